# SPDX-License-Identifier: Apache-2.0
"""The only module that starts programs, but for those in the place of a user's own: see `foreground`."""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""The only search path that root code and its children use."""

CLEAN_ENV = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
"""What a child of ours sees unless told otherwise; nothing is inherited."""

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
Child = subprocess.Popen[bytes]
"""A started process."""

_EXCERPT, _MOST_KILLED, _REAP_SECONDS, _DYING_SECONDS = 2000, 10_000, 1.0, 5.0


class Result(NamedTuple):
    """How a command ended: `status` is 0 to 255, or minus the signal that killed it."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes


class Identity(NamedTuple):
    """Numeric ids to run as; names are never looked up after a fork."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def run(
    argv: Sequence[str | Path], *, deadline: Deadline, stdin: bytes = b"", env: Mapping[str, str] = CLEAN_ENV,
    cwd: Path = Path("/"), statuses: Collection[int] = (0,), identity: Identity | None = None,
) -> Result:
    """Run `argv` to its end in a session of its own.

    At the deadline the whole session is killed, not just the child. Raises
    DeadlineExceeded, or CommandError when it cannot be started or its status
    is not in `statuses`.
    """
    words = tuple(map(str, argv))
    child = spawn(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                  env=env, cwd=cwd, identity=identity)
    try:
        stdout, stderr = child.communicate(stdin, timeout=deadline.remaining)
    except BaseException as error:
        # Also when the child itself has ended: something of its session may hold the pipes open.
        kill_session(child.pid)
        for pipe in filter(None, (child.stdin, child.stdout, child.stderr)):
            pipe.close()
        reap(child)
        if isinstance(error, subprocess.TimeoutExpired):
            raise DeadlineExceeded(f"out of time: {words[0]}", details=shlex.join(words)) from None
        raise
    if child.returncode not in statuses:
        raise _failure(words, child.returncode, stderr)
    return Result(argv=words, status=child.returncode, stdout=stdout, stderr=stderr)


def spawn(
    argv: Sequence[str], *, stdin: int, stdout: int, stderr: int, env: Mapping[str, str], cwd: Path,
    identity: Identity | None = None, umask: int = 0o077, executable: Path | None = None,
    pass_fds: Collection[int] = (), before_exec: Callable[[], None] | None = None, session: bool = True,
) -> Child:
    """Start `argv` as the leader of a new session and return at once.

    With `session` false it only leads a process group, within our session.
    `before_exec` runs in the child, after the ids are dropped. Raises
    CommandError when it cannot be started.
    """
    try:
        return subprocess.Popen(
            argv, executable=executable, stdin=stdin, stdout=stdout, stderr=stderr, env=env,
            cwd=cwd, umask=umask, start_new_session=session, pass_fds=tuple(pass_fds),
            user=identity.uid if identity else None, group=identity.gid if identity else None,
            extra_groups=identity.groups if identity else None, preexec_fn=before_exec,
            process_group=None if session else 0,
        )
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", details=shlex.join(argv)) from error


def detach(child: Child) -> int:
    """Let a child outlive us, and stop subprocess from warning that it does; its process id."""
    child.returncode = 0
    return child.pid


def reap(child: Child) -> None:
    """Take the status of a child that was killed; not for long, and never mind which.

    Who is traced by his own user is nobody else's zombie meanwhile (ptrace(2), "Death under
    ptrace"), and who waits for a file system in the kernel does not die before it answers.
    """
    try:
        child.wait(Deadline(_REAP_SECONDS).remaining)
    except subprocess.TimeoutExpired:
        detach(child)


def wait_in_group(child: Child, *, deadline: Deadline) -> int:
    """The status of a child that leads a process group: killed with its group at the deadline.

    Raises DeadlineExceeded.
    """
    try:
        return child.wait(deadline.remaining)
    except subprocess.TimeoutExpired:
        name = child.args[0] if isinstance(child.args, list | tuple) else child.args
        raise DeadlineExceeded(f"{name!s} did not end in time") from None
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            reap(child)


def kill_session(leader: int) -> None:
    """Kill every process of the session that `leader` leads, as pbs_mom does.

    A process that made a session of its own is out of reach; that is how
    Torque's `pelogalm()` behaves too (prolog.c:296-342).
    """
    told: set[int] = set()
    # Once more as long as there are new ones: who is being killed may have had a child meanwhile. Not for ever.
    while len(told) < _MOST_KILLED and (new := [pid for pid in session_members(leader) if pid not in told]):
        # The leader first: a shell that sees its command die ends with a status before its own signal comes.
        for pid in sorted(new, key=lambda pid: pid != leader):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        told.update(new)


def session_members(leader: int) -> list[int]:
    """Process ids whose session is `leader`, zombies left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            # The command name may hold blanks and brackets: the fields start after the last ')'.
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == leader and fields[0] not in (b"Z", b"X"):
                members.append(int(entry.name))
    return members


def name(pid: int) -> str:
    """What tells a process from all others that ever have its number, nothing when it has ended: with when it began."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if fields[0] not in (b"Z", b"X"):
            return f"{pid} {int(fields[19])}"
    return ""


def end(process: str, *, uid: int, deadline: Deadline) -> None:
    """Kill a process, by its `name`, as long as it is `uid`'s; DeadlineExceeded when it does not die."""
    pid = int(process.partition(" ")[0])
    for _ in deadline.within(_DYING_SECONDS).ticks(doing=f"ending process {pid}"):
        if name(pid) != process or _uids(pid) != {uid}:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _uids(pid: int) -> set[int]:
    """All four of a process. Who owns its directory in /proc does not tell: that is root of whoever is not dumpable."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/status").read_bytes().partition(b"\nUid:")[2].split(maxsplit=4)
        return {int(word) for word in words[:4]}
    return set()


def _failure(argv: Sequence[str], status: int, stderr: bytes) -> CommandError:
    text = stderr.decode(errors="backslashreplace").strip()
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    last = text.splitlines()[-1] if text else "no message"
    return CommandError(
        f"{Path(argv[0]).name} failed with {how}: {last}",
        details=f"{shlex.join(argv)}\n{text[-_EXCERPT:]}",
    )
