# SPDX-License-Identifier: Apache-2.0
"""Servers that hand a user's files to his guests as himself; and those of virtiofs shares, one for each share.

A server is known by its socket, whose path is in its environment and whose group has the number of its user; that is
how it is found again, whoever started it and however that ended. Anybody may have the path in his environment: who is
neither root nor that user is none, and what else the user has there, or keeps in the kernel, has only his own rights.
"""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, DeadlineExceeded, RequestError, StateError
from vtorque.identity import Account

log = logging.getLogger(__name__)

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
"""QEMU's own server, the one in C."""

_SCRIPT = Path(__file__).with_name("shareserver.py")
_MARK = "VTORQUE_SHARE"
# linux/un.h: 108 with the final NUL.
_LONGEST_PATH = 107
SAID_LIMIT = 2000
"""How much of what a server says is read, in bytes."""

# user_namespaces(7): so many lines, in less than a page.
_MAP_LINES, _PAGE = 340, 4096
# What a starter who was killed has still started is there by then; who comes later only says that he is a server.
_LATE_SECONDS = 1.0
_DYING_SECONDS = 5.0
_READY = b"Waiting for vhost-user socket connection"
# Each of them could only do something to the user's own files, and none is needed for it.
_WITHOUT = "-chown:-dac_override:-fowner:-fsetid:-mknod:-setfcap"


def start(
    directory: Path, path: Path, *, readonly: bool, account: Account, owner: tuple[int, int], log: int,
    deadline: Deadline,
) -> None:
    """Serve a `directory` as `account` at the socket `path`, to which only `owner` may connect.

    What the server says is written to the descriptor `log`. Raises RequestError with the reason when it is the
    user's that it does not serve, ConfigError and StateError when it is not, and DeadlineExceeded.
    """
    if not VIRTIOFSD.exists():
        raise ConfigError(f"SHARE: virtiofs needs {VIRTIOFSD}", hint="SHARE: nfs or 9p")
    with listening(path, owner[0], account.uid) as listener:
        child = proc.spawn(
            [sys.executable, "-I", "-S", str(_SCRIPT)], stdin=proc.PIPE, stdout=proc.PIPE, stderr=log,
            env=environment(path), cwd=Path("/"), pass_fds=[listener.fileno()],
        )
        try:
            _instruct(child, directory, readonly, account, listener.fileno(), deadline)
            _await(child, directory, log, deadline)
        except BaseException:
            proc.kill_session(child.pid)
            proc.reap(child)
            raise
    proc.detach(child)


@contextlib.contextmanager
def listening(path: Path, owner: int, server: int) -> Iterator[socket.socket]:
    """A socket at `path` for a server to inherit who is `server`, to which only `owner` may connect; ConfigError."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(f"{path} is too long for a socket", hint="a shorter STATE_DIR")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        # The mode gives the group nothing; it says whose the server is, until the socket is gone.
        files.give(path, uid=owner, gid=server, mode=0o600)
        listener.listen(1)
        yield listener


def environment(path: Path) -> dict[str, str]:
    """What the server at `path` and all that comes of it see, and are found by."""
    return {**proc.CLEAN_ENV, _MARK: str(path)}


def end(path: Path, *, patience: float = 0.0, deadline: Deadline) -> None:
    """End the server at the socket `path`, however far it came, and remove the socket; DeadlineExceeded.

    For `patience` seconds it is asked to, then it is killed. What does not die of that is left alone.
    """
    asking = deadline.reserve(2 * _DYING_SECONDS).within(patience)
    dying = Deadline(asking.remaining + _DYING_SECONDS)
    # Without an end to who counts, a chain of forks would be ahead of us for ever.
    before = time.clock_gettime(time.CLOCK_BOOTTIME) + _LATE_SECONDS
    for _ in deadline.ticks(doing=f"ending the server of {path}"):
        pids = serving(path, before=before)
        for pid in pids:
            _signal(pid, path, signal.SIGKILL if asking.expired else signal.SIGTERM)
        if not pids:
            break
        if dying.expired:
            log.error("processes %s of the server of %s do not die: it counts as ended", pids, path)
            break
    path.unlink(missing_ok=True)


def serving(path: Path, *, before: float = math.inf) -> list[int]:
    """Process ids of the server at the socket `path` that began `before` so many seconds after the node did."""
    processes = (each for each in Path("/proc").iterdir() if each.name.isdecimal())
    return [int(each.name) for each in processes if _serves(each, path, before)]


def said(log: int) -> str:
    """The end of what a server complained about."""
    begin = max(0, os.fstat(log).st_size - SAID_LIMIT)
    return os.pread(log, SAID_LIMIT, begin).decode(errors="backslashreplace").strip()


def _serves(process: Path, path: Path, before: float) -> bool:
    """Whether it is one of the server's; without a socket nobody is, and zombies have no environment.

    Only root's processes and the user's are looked into: another's environment may take as long to read as he likes.
    """
    with contextlib.suppress(OSError):
        uids = {b"0", b"%d" % path.lstat().st_gid}
        # All four of them, proc_pid_status(5): a stranger's setuid program has the environment that he gives it.
        is_ours = uids.issuperset((process / "status").read_bytes().partition(b"\nUid:")[2].split(maxsplit=4)[:4])
        ticks = int((process / "stat").read_bytes().rpartition(b")")[2].split()[19])
        if is_ours and ticks < before * os.sysconf("SC_CLK_TCK"):
            with (process / "environ").open("rb", buffering=0) as environment:
                return f"{_MARK}={path}".encode() in environment.read(_PAGE).split(b"\0")
    return False


def _signal(pid: int, path: Path, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            # Meanwhile the number may be somebody else's.
            if _serves(Path("/proc", str(pid)), path, math.inf):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _instruct(
    child: proc.Child, directory: Path, readonly: bool, account: Account, handle: int, deadline: Deadline
) -> None:
    """Give the order, and make the user and his groups the only ones that there are for the child."""
    assert child.stdin is not None and child.stdout is not None
    gids = list(dict.fromkeys((account.group.gid, *(group.gid for group in account.groups))))
    while len(gids) > _MAP_LINES or len(_mapped(gids)) >= _PAGE:
        gids.pop()
    options = ("sandbox=namespace", f"modcaps={_WITHOUT}", "cache=auto", "log_level=info")
    order = {
        "uid": account.uid, "gid": account.group.gid, "groups": gids, "directory": str(directory),
        "readonly": readonly, "keep_groups": True,
        # 0 leaves the limit as it is: to raise it takes a right that the host does not grant.
        "argv": [str(VIRTIOFSD), f"--fd={handle}", "--rlimit-nofile=0", "-o", f"source={directory}",
                 *(word for option in options for word in ("-o", option))],
    }
    with contextlib.suppress(BrokenPipeError), child.stdin as orders, child.stdout as answers:
        orders.write(json.dumps(order).encode() + b"\n")
        orders.flush()
        os.set_blocking(answers.fileno(), False)
        for _ in deadline.ticks(doing=f"starting the server of {directory}"):
            answer = answers.read()
            if answer is not None:
                break
        if answer != b"unshared\n":
            return
        process = Path("/proc", str(child.pid))
        (process / "uid_map").write_text(f"{account.uid} {account.uid} 1\n")
        (process / "gid_map").write_text(_mapped(gids))
        orders.write(b"mapped\n")
        orders.flush()


def _mapped(numbers: list[int]) -> str:
    return "".join(f"{number} {number} 1\n" for number in numbers)


def _await(child: proc.Child, directory: Path, log: int, deadline: Deadline) -> None:
    """Wait until the server says that it is there: by now it is the user, who may stop, kill and keep from it."""
    status, text = None, ""
    with contextlib.suppress(DeadlineExceeded):
        for _ in deadline.ticks(doing=""):
            status, text = child.poll(), said(log)
            if _READY.decode() in text:
                return
            if status is not None:
                break
    if status is None:
        raise RequestError(f"cannot serve {directory}: it cannot be opened in time", details=text)
    reason = text.splitlines()[-1] if text and status > 0 else f"its server ended with status {status}"
    # 0 is what virtiofsd makes of a SIGTERM.
    his = status <= 0 or reason == f"Permission denied: {directory}"
    raise (RequestError if his else StateError)(f"cannot serve {directory}: {reason}", details=text)
