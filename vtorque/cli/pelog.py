# SPDX-License-Identifier: Apache-2.0
"""Root's hooks behind the shims in `scripts/`: the one place that owns their exit status.

An uncaught exception would exit 1, and Torque would abort the user's job, Slurm drain the node.
"""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vtorque import chain, logs, proc
from vtorque.cli.prefix import PREFIX
from vtorque.deadline import Deadline
from vtorque.errors import InternalError, StateError, VtorqueError, known

if TYPE_CHECKING:
    from vtorque.cli.rooted import Program
    from vtorque.monitor import Bound

log = logging.getLogger(__name__)

CLASSIC_REQUEST = "VTORQUE_REQUEST"
"""The variable in which the shim of a classic script of OpenPBS's hands the line of the job's script over."""

_MOM_CONFIG_LIMIT = 1 << 20
# mom kills a hook without warning; this much earlier we stop by ourselves.
_MARGIN_SECONDS = 5.0
# What a hook usually gets, for the site's own where nobody can tell: prolog.c of Torque and of OpenPBS; slurmd waits.
_USUAL_SECONDS = {"torque": 290.0, "openpbs": 30.0, "slurm": 600.0}
_UMASK = 0o077
_GUARD, _DOWNLOADER = "guard", "downloader"
_LOADER = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT")
_STARTS = ("prologue", "prologue.parallel", "slurm-prolog")
_PRECANCEL = "epilogue.precancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How mom or slurmd called a hook: kept as it was for the site's own, and to learn the job from.

    `system` is whose hook it is. OpenPBS tells its own nothing of the job's
    resources: the shim has found the `request` elsewhere. `begun` is when it was
    called, by the monotonic clock; `config` is the text of mom's own configuration, and
    `node_file` that of the job's nodes, and why it cannot be read.
    """

    system: str
    name: str
    hook: Path
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    directory: Path
    umask: int
    request: str = ""
    begun: float = 0.0
    config: str = ""
    node_file: tuple[str, str] = ("", "")

    @property
    def starts(self) -> bool:
        """Whether it brings a job up rather than down."""
        return self.name in _STARTS

    @property
    def fails_with(self) -> int:
        """What tells the batch system that the node is at fault, or the program: never 1, which aborts Torque's job."""
        return 1 if self.system == "slurm" else 3

    @property
    def job(self) -> tuple[str, str]:
        """The job's id and its user, as they were told; StateError when they were not."""
        if self.system == "slurm":
            return self.environ.get("SLURM_JOB_ID", ""), self.environ.get("SLURM_JOB_USER", "")
        if len(self.arguments) < 2:
            raise StateError(f"{self.name} was called with {len(self.arguments)} arguments")
        return self.arguments[0], self.arguments[1]


def main(argv: Sequence[str]) -> int:
    """`argv` is the kind of hook, the path mom or slurmd called, and mom's own arguments; or
    `guard`; or, no more root, `downloader`."""
    if argv[0] == _GUARD:
        return _guard()
    if argv[0] == _DOWNLOADER:
        from vtorque import downloader

        return downloader.main()
    started = time.monotonic()
    # A twelfth of a start, and of the memory that children share with us. A hook is over before it pays for it.
    gc.disable()
    environ = dict(os.environ)
    request = environ.pop(CLASSIC_REQUEST, "")
    # The shim has put these away from our own interpreter.
    environ |= {name: value for name in _LOADER if (value := environ.pop(f"VTORQUE_{name}", ""))}
    hook = Path(argv[1])
    system = "slurm" if argv[0].startswith("slurm") else "openpbs" if request else "torque"
    call = Call(
        system=system,
        name=argv[0],
        hook=hook,
        arguments=tuple(argv[2:]),
        environ=environ,
        directory=Path.cwd(),
        umask=os.umask(_UMASK),
        request=request,
        begun=started,
        config="" if system == "slurm" else _configuration(hook),
        node_file=_node_file(system, argv, environ) if argv[0] in _STARTS else ("", ""),
    )
    be_orderly()
    # Until there is a log file: Python would print warnings and worse to the job's stderr.
    logs.setup(None)
    return _hook(call)


def be_orderly() -> None:
    """Undo what mom hands down: closed or foreign descriptors, blocked signals, her environment.

    On a sister, epilogues start with 1 and 2 closed and TERM and CHLD blocked
    (prolog.c:945-1000).
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir("/")
    os.environ.clear()
    os.environ.update(proc.CLEAN_ENV)


def _configuration(hook: Path) -> str:
    """The text of mom's own configuration, nothing when it cannot be read."""
    with contextlib.suppress(OSError), (hook.parent / "config").open() as file:
        return file.read(_MOM_CONFIG_LIMIT)
    return ""


def _node_file(system: str, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, str]:
    """The text of the file that names the job's nodes, if there is one; or why it cannot be read."""
    path = environ.get("PBS_NODEFILE", "")
    if system == "openpbs" and len(argv) > 2:
        # It is there when a classic prologue starts (start_exec.c), who is only not told.
        path = str(Path(argv[1]).parents[1] / "aux" / argv[2])
    try:
        return (Path(path).read_text(encoding="ascii"), "") if path else ("", "")
    except (OSError, UnicodeError) as error:
        return "", f"cannot read the node file {path}: {error}"


def _hook(call: Call) -> int:
    program, seconds = None, None
    try:
        if call.name != _PRECANCEL:
            # Imported here, not above: whatever is missing or broken on this node, the site's
            # own hooks have to run.
            from vtorque.cli import rooted

            program = rooted.Program(partial(_program, call), step=call.name)
            seconds = program.seconds
    except Exception as error:  # noqa: BLE001
        # Failed starts cannot be counted without a configuration, and a requeue that is not
        # counted would go on for ever. The wrapper finds no ready marker and says why.
        _report(call.name, error)
        seconds = getattr(error, "seconds", None)
    seconds = seconds or _USUAL_SECONDS[call.system]
    deadline = Deadline(seconds - _MARGIN_SECONDS - (time.monotonic() - call.begun))
    if call.starts:
        if status := _original(call, deadline):
            if program:
                program.dismiss()
            return status
        return _own_part(call, program, deadline)
    status = _own_part(call, program, deadline)
    return _original(call, deadline) or status


def _original(call: Call, deadline: Deadline) -> int:
    """The site's own hook, with mom's own arguments; it runs even when our configuration is broken."""
    try:
        path = chain.original(call.hook)
        if path is None:
            return 0
        status = chain.run(
            path, call.arguments,
            environ=call.environ, directory=call.directory, umask=call.umask, deadline=deadline,
        )
    except VtorqueError as error:
        say(error.one_line())
        return call.fails_with
    if status < 0:
        say(f"{path} was killed by signal {-status}")
    # What replaced the only hook must end as it did: mom takes death by signal for success, slurmd does not.
    return max(status, 0) if call.system == "torque" else abs(status)


def _own_part(call: Call, program: "Program | None", deadline: Deadline) -> int:
    if program is None:
        return 0
    try:
        from vtorque.cli import rooted

        # A sister's guard talks to her guests.
        wanted = rooted.Wanted(starts=call.starts, talks=call.starts and call.name != "prologue.parallel")
        # It stops by itself before that, if it can.
        status = program.run(wanted, job=call.job, launch=launch, patience=deadline.remaining + _MARGIN_SECONDS / 2)
    except Exception as error:  # noqa: BLE001
        program.dismiss()
        _report(call.name, error)
        return 0
    if status in (0, call.fails_with):
        return status
    _report(call.name, InternalError(f"the program ended with status {status}"))
    # A start that nobody has counted must not be made again, or it is made for ever: the wrapper says that there is
    # no guest. What an end has left other jobs should not meet.
    return 0 if call.starts else call.fails_with


def _program(call: Call, orders: socket.socket) -> int:
    """Where another account's life begins."""
    from vtorque.cli import hooked

    return hooked.main(call, orders)


def launch(bound: "Bound", told: bytes, place: int, talks: bool) -> None:
    """Start a guard, who `talks` to guests, in a session of its own.

    Her orders hold a key: they go through a pipe of our own.
    """
    child = proc.spawn(
        [sys.executable, "-IS", str(PREFIX / "scripts" / "hook"), _GUARD],
        stdin=proc.PIPE, stdout=proc.DEVNULL, stderr=proc.DEVNULL, env=proc.CLEAN_ENV, cwd=Path("/"),
        pass_fds=(place,),
    )
    assert child.stdin is not None
    with child.stdin as pipe:
        pipe.write(f"{bound.id} {bound.user} {int(talks)}\n".encode() + told)
    proc.detach(child)


def _guard() -> int:
    """The life of a guard."""
    from vtorque.cli import rooted

    logs.setup(None)
    # Written by the hook that started us, into a pipe that nobody else has.
    whose, _, told = sys.stdin.buffer.read().partition(b"\n")
    identity, user, talks = whose.decode().split(" ")
    program = rooted.Program(partial(_guarding, told), step=_GUARD)
    return abs(program.run(rooted.Wanted(talks=talks == "1"), job=(identity, user)))


def _guarding(told: bytes, orders: socket.socket) -> int:
    """Where another account's life begins."""
    from vtorque.cli import hooked

    return hooked.guarding(told, orders)


def _report(kind: str, error: Exception) -> None:
    said = known(error).one_line()
    log.error("%s: %s", kind, said, exc_info=error)
    say(said)


def say(message: str) -> None:
    """To the job's own stderr, where mom shows it."""
    with contextlib.suppress(OSError):
        for line in message.splitlines():
            print(f"vtorque: {line}", file=sys.stderr, flush=True)
