# SPDX-License-Identifier: Apache-2.0
"""The server of a user's own disk: a process of his that hands it to QEMU over a socket of root's."""

import contextlib
import json
import os
import sys
from pathlib import Path

from vtorque import proc, serving
from vtorque.deadline import Deadline
from vtorque.diskserver import QEMU_NBD
from vtorque.errors import ConfigError, DeadlineExceeded, RequestError, printable
from vtorque.identity import Account

_SCRIPT = Path(__file__).with_name("diskserver.py")


def start(
    disk: str, new_mib: int, path: Path, *, account: Account, owner: tuple[int, int], holder: str, deadline: Deadline
) -> bytes:
    """Serve the user's `disk`, which is made with `new_mib` where it is missing, as `account` at the socket `path`,
    to which only `owner` may connect; what the server said.

    `holder` is what the next one who wants it is told. Raises RequestError with
    the reason when the user cannot have it, ConfigError when the node has no
    server, and DeadlineExceeded when there was no time for it.
    """
    deadline.require(f"opening the disk {disk}")
    if not QEMU_NBD.exists():
        raise ConfigError(f"-vm disk= needs {QEMU_NBD} on the node", hint="apt-get install qemu-utils")
    gids = tuple(group.gid for group in account.groups)
    identity = proc.Identity(uid=account.uid, gid=account.group.gid, groups=gids)
    with serving.listening(path, owner[0], account.uid) as listener:
        # What it says it says into a pipe: a file of root's, open for it, its user could have from it (pidfd_getfd(2)).
        child = proc.spawn(
            [sys.executable, "-I", "-S", str(_SCRIPT)], stdin=proc.PIPE, stdout=proc.DEVNULL, stderr=proc.PIPE,
            env=serving.environment(path), cwd=Path("/"), identity=identity, pass_fds=[listener.fileno()],
        )
        order = {
            "path": disk, "new_mib": new_mib, "holder": holder, "socket": listener.fileno(),
            "format": "qcow2" if disk.endswith(".qcow2") else "raw",
        }
        status, said = _until_it_serves(child, json.dumps(order).encode(), deadline)
    if status != 0:
        raise _failure(disk, status, said.decode(errors="backslashreplace"))
    return said


def _until_it_serves(child: proc.Child, order: bytes, deadline: Deadline) -> tuple[int | None, bytes]:
    """Give the order, wait for the child's status, if there is one in time, and what it said: its own child serves."""
    assert child.stdin is not None and child.stderr is not None
    status = None
    with child.stderr as said:
        try:
            # What it has to say when it does not listen any more is on its standard error.
            with contextlib.suppress(BrokenPipeError), child.stdin as orders:
                orders.write(order)
            with contextlib.suppress(DeadlineExceeded):
                for _ in deadline.ticks(doing="opening a disk"):
                    if (status := child.poll()) is not None:
                        break
        finally:
            if status is None:
                proc.kill_session(child.pid)
                proc.reap(child)
        # Who serves has it open.
        os.set_blocking(said.fileno(), False)
        return status, said.read(serving.SAID_LIMIT) or b""


def _failure(disk: str, status: int | None, said: str) -> RequestError:
    """Always the user's: who traces his own process has it say, and end, as he likes."""
    reason = printable(said.partition("\n")[0].removeprefix("qemu-nbd: ")) or "cannot be opened"
    if status != 1 or said.startswith("Traceback"):
        reason = "cannot be opened in time" if status is None else f"its server ended with status {status}"
    hint = f"disk={disk}:20G makes one" if "no such file" in reason or "is empty" in reason else ""
    return RequestError(f"-vm disk={disk}: {reason}", details=said, hint=hint)
