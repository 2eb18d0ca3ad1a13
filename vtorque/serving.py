# SPDX-License-Identifier: Apache-2.0
"""Servers that hand a user's files to his guests as himself; and those of virtiofs shares, one for each share.

A server is known by its socket, whose path is in its environment; that is how
it is found again, whoever started it and however that ended.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError
from vtorque.model import Account, Mount

SHARE = "share"
"""The kind of a server in the ledger; its name is the socket."""

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
"""QEMU's own server, the one in C."""

_SCRIPT = Path(__file__).with_name("shareserver.py")
_MARK = "VTORQUE_SHARE"
# linux/un.h: 108 with the final NUL.
_LONGEST_PATH = 107
_LOG_LIMIT = 2000
_READY = b"Waiting for vhost-user socket connection"
# Each of them could only do something to the user's own files, and none is needed for it.
_WITHOUT = "-chown:-dac_override:-fowner:-fsetid:-mknod:-setfcap"


def start(
    mount: Mount, path: Path, *, account: Account, owner: tuple[int, int], log: Path, deadline: Deadline
) -> None:
    """Serve the mount's directory as `account` at the socket `path`, to which only `owner` may connect.

    Raises ConfigError with the reason when the user cannot be served, and DeadlineExceeded.
    """
    if not VIRTIOFSD.exists():
        raise ConfigError(f"SHARE: virtiofs needs {VIRTIOFSD}", hint="SHARE: nfs or 9p")
    with listening(path, owner) as listener, log.open("xb") as said:
        child = proc.spawn(
            [sys.executable, "-I", "-S", str(_SCRIPT)], stdin=proc.PIPE, stdout=proc.PIPE, stderr=said.fileno(),
            env=environment(path), cwd=Path("/"), pass_fds=[listener.fileno()],
        )
        try:
            _instruct(child, mount, account, listener.fileno(), deadline)
            _await(child, mount, log, deadline)
        except BaseException:
            proc.kill_session(child.pid)
            child.wait()
            raise
    proc.detach(child)


@contextlib.contextmanager
def listening(path: Path, owner: tuple[int, int]) -> Iterator[socket.socket]:
    """A socket at `path` for a server to inherit, to which only `owner` may connect; ConfigError."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(f"{path} is too long for a socket", hint="a shorter STATE_DIR")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        files.give(path, uid=owner[0], gid=owner[1], mode=0o600)
        listener.listen(1)
        yield listener


def environment(path: Path) -> dict[str, str]:
    """What the server at `path` and all that comes of it see, and are found by."""
    return {**proc.CLEAN_ENV, _MARK: str(path)}


def end(path: Path, *, patience: float = 0.0, deadline: Deadline) -> None:
    """End the server at the socket `path`, however far it came, and remove the socket; DeadlineExceeded.

    For `patience` seconds it is asked to, then it is killed.
    """
    asking = deadline.within(patience)
    for _ in deadline.ticks(doing=f"ending the server of {path}"):
        pids = serving(path)
        for pid in pids:
            _signal(pid, path, signal.SIGKILL if asking.expired else signal.SIGTERM)
        if not pids:
            break
    path.unlink(missing_ok=True)


def serving(path: Path) -> list[int]:
    """Process ids of the server at the socket `path`; zombies have no environment."""
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal() and _is_marked(each, path)]


def said(log: Path) -> str:
    """The end of what a server complained about."""
    with contextlib.suppress(FileNotFoundError):
        return log.read_text(errors="backslashreplace").strip()[-_LOG_LIMIT:]
    return ""


def _is_marked(process: Path, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return f"{_MARK}={path}".encode() in (process / "environ").read_bytes().split(b"\0")
    return False


def _signal(pid: int, path: Path, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            # Meanwhile the number may be somebody else's.
            if _is_marked(Path("/proc", str(pid)), path):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _instruct(child: proc.Child, mount: Mount, account: Account, handle: int, deadline: Deadline) -> None:
    """Give the order, and make the user and his groups the only ones that there are for the child."""
    assert child.stdin is not None and child.stdout is not None
    gids = sorted({account.group.gid, *(group.gid for group in account.groups)})
    options = ("sandbox=namespace", f"modcaps={_WITHOUT}", "cache=auto", "log_level=info")
    order = {
        "uid": account.uid, "gid": account.group.gid, "groups": gids, "directory": str(mount.directory),
        "readonly": mount.readonly, "keep_groups": True,
        # 0 leaves the limit as it is: to raise it takes a right that the host does not grant.
        "argv": [str(VIRTIOFSD), f"--fd={handle}", "--rlimit-nofile=0", "-o", f"source={mount.directory}",
                 *(word for option in options for word in ("-o", option))],
    }
    with contextlib.suppress(BrokenPipeError), child.stdin as orders, child.stdout as answers:
        orders.write(json.dumps(order).encode() + b"\n")
        orders.flush()
        os.set_blocking(answers.fileno(), False)
        for _ in deadline.ticks(doing=f"starting the server of {mount.directory}"):
            answer = answers.read()
            if answer is not None:
                break
        if answer != b"unshared\n":
            return
        process = Path("/proc", str(child.pid))
        (process / "uid_map").write_text(f"{account.uid} {account.uid} 1\n")
        (process / "gid_map").write_text("".join(f"{gid} {gid} 1\n" for gid in gids))
        orders.write(b"mapped\n")
        orders.flush()


def _await(child: proc.Child, mount: Mount, log: Path, deadline: Deadline) -> None:
    for _ in deadline.ticks(doing=f"starting the server of {mount.directory}"):
        ended, text = child.poll() is not None, said(log)
        if _READY.decode() in text:
            return
        if ended:
            reason = text.splitlines()[-1] if text else "it ended"
            raise StateError(f"cannot serve {mount.directory}: {reason}", details=text)
