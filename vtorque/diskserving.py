# SPDX-License-Identifier: Apache-2.0
"""The server of a user's own disk: a process of his that hands it to QEMU over a socket of root's."""

import contextlib
import json
import sys
from pathlib import Path

from vtorque import proc, serving
from vtorque.deadline import Deadline
from vtorque.diskserver import QEMU_NBD
from vtorque.errors import ConfigError, RequestError, StateError
from vtorque.model import Account, VmRequest

DISK = "disk"
"""The kind of such a server in the ledger; its name is the socket."""

_SCRIPT = Path(__file__).with_name("diskserver.py")
# A crowded file server takes what its client has not yet handed over; after that nothing more is worth waiting for.
_PATIENCE_SECONDS = 20.0


def start(
    request: VmRequest,
    path: Path,
    *,
    account: Account,
    owner: tuple[int, int],
    holder: str,
    log: Path,
    deadline: Deadline,
) -> None:
    """Serve the request's disk as `account` at the socket `path`, to which only `owner` may connect.

    `holder` is what the next one who wants it is told. Raises RequestError with
    the reason when the user cannot have it, ConfigError and StateError when
    it is not his fault, and DeadlineExceeded.
    """
    if not QEMU_NBD.exists():
        raise ConfigError(f"-vm disk= needs {QEMU_NBD} on the node", hint="apt-get install qemu-utils")
    identity = proc.Identity(
        uid=account.uid, gid=account.group.gid, groups=tuple(group.gid for group in account.groups)
    )
    with serving.listening(path, owner) as listener, log.open("xb") as said:
        child = proc.spawn(
            [sys.executable, "-I", "-S", str(_SCRIPT)], stdin=proc.PIPE, stdout=proc.DEVNULL, stderr=said.fileno(),
            env=serving.environment(path), cwd=Path("/"), identity=identity, pass_fds=[listener.fileno()],
        )
        order = {
            "path": request.disk, "new_mib": request.disk_new_mib, "holder": holder, "socket": listener.fileno(),
            "format": "qcow2" if request.disk.endswith(".qcow2") else "raw",
        }
        status = _until_it_serves(child, json.dumps(order).encode(), request, deadline)
    if status != 0:
        raise _failure(request, status, serving.said(log))


def end(path: Path, *, deadline: Deadline) -> None:
    """End the server at the socket `path`: what its guest has written goes to the image first. DeadlineExceeded."""
    serving.end(path, patience=_PATIENCE_SECONDS, deadline=deadline)


def _until_it_serves(child: proc.Child, order: bytes, request: VmRequest, deadline: Deadline) -> int:
    """Give the order and wait for the child's status: what serves then is a child of its own."""
    assert child.stdin is not None
    try:
        # What it has to say when it does not listen any more is on its standard error.
        with contextlib.suppress(BrokenPipeError), child.stdin as orders:
            orders.write(order)
        for _ in deadline.ticks(doing=f"opening the disk {request.disk}"):
            if (status := child.poll()) is not None:
                return status
    except BaseException:
        proc.kill_session(child.pid)
        child.wait()
        raise
    raise AssertionError("a deadline ends by itself")


def _failure(request: VmRequest, status: int, said: str) -> RequestError | StateError:
    if status != 1 or said.startswith("Traceback"):
        return StateError(f"the server of disk {request.disk} ended with status {status}", details=said)
    reason = said.partition("\n")[0].removeprefix("qemu-nbd: ") or "cannot be opened"
    hint = f"disk={request.disk}:20G makes one" if "no such file" in reason or "is empty" in reason else ""
    return RequestError(f"-vm disk={request.disk}: {reason}", hint=hint)
