# SPDX-License-Identifier: Apache-2.0
"""Root's hooks behind the shims in `scripts/`: the one place that owns their exit status.

An uncaught exception would exit 1, and Torque would abort the user's job, Slurm drain the node.
"""

import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtorque import chain, logs, orders, proc, slurmconf, slurmstarts
from vtorque.backends import batch
from vtorque.backends.batch import openpbs, slurm
from vtorque.cli.prefix import PREFIX
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError, VtorqueError, known
from vtorque.job import JOB_EXEC_RETRY, Job, PelogKind

log = logging.getLogger(__name__)

_MOM_CONFIG_LIMIT = 1 << 20
# mom kills a hook without warning; this much earlier we stop by ourselves.
_MARGIN_SECONDS = 5.0
_UMASK = 0o077
_GUARD = "guard"
_LOADER = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT")
_SLURM_HOOKS = ("slurm-prolog", "slurm-epilog")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How mom or slurmd called a hook: kept as it was for the site's own, and to learn the job from.

    `system` is whose hook it is. OpenPBS tells its own nothing of the job's
    resources: the shim has found the `request` elsewhere. `begun` is when it was
    called, by the monotonic clock.
    """

    system: str
    kind: PelogKind
    hook: Path
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    directory: Path
    umask: int
    request: str = ""
    begun: float | None = None


def main(argv: Sequence[str]) -> int:
    """`argv` is the kind of hook, the path mom or slurmd called, and mom's own arguments; or `guard`."""
    if argv[0] == _GUARD:
        return _guard()
    started = time.monotonic()
    # A twelfth of a start, and of the memory that children share with us. A hook is over before it pays for it.
    gc.disable()
    environ = dict(os.environ)
    of_slurm = argv[0] in _SLURM_HOOKS
    request = environ.pop(openpbs.CLASSIC_REQUEST, "")
    # The shim has put these away from our own interpreter.
    environ |= {name: value for name in _LOADER if (value := environ.pop(f"VTORQUE_{name}", ""))}
    call = Call(
        system="slurm" if of_slurm else "openpbs" if request else "torque",
        kind=slurm.kind_of(argv[0], environ) if of_slurm else PelogKind(argv[0]),
        hook=Path(argv[1]),
        arguments=tuple(argv[2:]),
        environ=environ,
        directory=Path.cwd(),
        umask=os.umask(_UMASK),
        request=request,
        begun=started,
    )
    be_orderly()
    # Until there is a log file: Python would print warnings and worse to the job's stderr.
    logs.setup(None)
    deadline = Deadline(_hook_seconds(call) - _MARGIN_SECONDS - (time.monotonic() - started))
    if not call.kind.starts:
        status = _own_part(call, deadline)
        return _original(call, deadline) or status
    return _original(call, deadline) or _own_part(call, deadline)


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


def _hook_seconds(call: Call) -> float:
    return batch.by_name(call.system).hook_seconds(_configuration(call))


def _configuration(call: Call) -> str:
    """The text of mom's or slurmd's own configuration, nothing when it cannot be read."""
    with contextlib.suppress(OSError):
        if call.system == "slurm":
            return slurmconf.read(slurmconf.find(Path(call.environ.get("SLURM_CONF", slurmconf.CACHED))))
        with (call.hook.parent / "config").open() as file:
            return file.read(_MOM_CONFIG_LIMIT)
    return ""


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
        _say(error.one_line())
        return batch.by_name(call.system).exit_status(call.kind, error.blame)
    if status < 0:
        _say(f"{path} was killed by signal {-status}")
    # What replaced the only hook must end as it did: mom takes death by signal for success, slurmd does not.
    return max(status, 0) if call.system == "torque" else abs(status)


def _own_part(call: Call, deadline: Deadline) -> int:
    if call.kind is PelogKind.PRECANCEL:
        return 0
    with contextlib.ExitStack() as stack:
        try:
            verb = _prepare(call, stack)
        except Exception as error:  # noqa: BLE001
            # Failed starts cannot be counted without a configuration, and a requeue that is not
            # counted would go on for ever. The wrapper finds no ready marker and says why.
            _report(call, error)
            return 0
        try:
            verb(deadline)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it must not become the exit status 1 that aborts the job.
            _report(call, error)
            return batch.by_name(call.system).exit_status(call.kind, known(error).blame)
    return 0


def _prepare(call: Call, stack: contextlib.ExitStack) -> Callable[[Deadline], None]:
    """Everything up to the verb itself, which is all that may be repeated by a requeue."""
    # Imported here, not above: whatever is missing or broken on this node, the site's
    # own hooks have to run.
    from vtorque import aftermath
    from vtorque.cli import assembly

    site = assembly.site(PREFIX)
    assembly.open_logs(site, step=call.kind)
    if (call.system == "slurm") != (site.batch_system == "slurm"):
        raise ConfigError(f"this hook is for {call.system}", hint=f"BATCH_SYSTEM is {site.batch_system}")
    dialect = batch.by_name(site.batch_system)
    environ = {**call.environ, openpbs.CLASSIC_REQUEST: call.request}
    job = dialect.parse_job(call.kind, call.arguments, environ, _node_file(call))
    stack.enter_context(logs.about(job=job.id))
    stack.enter_context(logs.step(call.kind))
    waits = call.kind is PelogKind.PROLOGUE
    node = stack.enter_context(assembly.node(site, PREFIX, begun=call.begun, starts=call.kind.starts, waits=waits))
    if call.system == "slurm":
        job = _noted(call, job, Path(site.state_dir), stack)
    match call.kind:
        case PelogKind.PROLOGUE if call.system == "openpbs":
            from vtorque.cli import pbshook

            return pbshook.classic(job, node, launch)
        case PelogKind.PROLOGUE | PelogKind.PROLOGUE_PARALLEL:
            from vtorque import lifecycle  # with all that an end has no use for

            start = lifecycle.prologue if call.kind is PelogKind.PROLOGUE else lifecycle.prologue_parallel

            def begin(deadline: Deadline) -> None:
                start(job, node, launch, deadline=deadline)
                if call.system == "slurm":
                    slurmstarts.succeeded(Path(site.state_dir), job)

            return begin
        case PelogKind.EPILOGUE:
            return lambda deadline: aftermath.epilogue(job, node, deadline=deadline)
        case _:
            return lambda deadline: aftermath.epilogue_parallel(job, node, deadline=deadline)


def _noted(call: Call, job: Job, root: Path, stack: contextlib.ExitStack) -> Job:
    """The job, once its start or its end is noted where its other hook and the guard find it."""
    if call.kind.starts:
        slurmstarts.begin(root, job, environ=call.environ, conf=_configuration(call))
        return job
    stack.callback(slurmstarts.forget, root, job)
    again = slurmstarts.runs_again(root, job, environ=call.environ)
    return job._replace(exit_status=JOB_EXEC_RETRY) if again else job


def launch(told: object, place: int) -> None:
    """Start a guard in a session of its own. Her orders hold a key: they go through a pipe of our own."""
    child = proc.spawn(
        [sys.executable, "-IS", str(PREFIX / "scripts" / "hook"), _GUARD],
        stdin=proc.PIPE, stdout=proc.DEVNULL, stderr=proc.DEVNULL, env=proc.CLEAN_ENV, cwd=Path("/"),
        pass_fds=(place,),
    )
    assert child.stdin is not None
    with child.stdin as pipe:
        pipe.write(orders.encode(told))
    proc.detach(child)


def _guard() -> int:
    """The life of a guard."""
    from vtorque import guard
    from vtorque.cli import assembly

    site = assembly.site(PREFIX)
    assembly.open_logs(site, step=_GUARD)
    # Written by the hook that started us, into a pipe that nobody else has.
    told = orders.decode(guard.Orders, sys.stdin.buffer.read())
    with logs.about(job=told.demand.job.id), logs.step(_GUARD), assembly.node(site, PREFIX) as node:
        try:
            guard.watch(told, node)
        except Exception:
            log.exception("unforeseen")
            return 1
    return 0


def _report(call: Call, error: Exception) -> None:
    said = known(error).one_line()
    log.error("%s: %s", call.kind, said, exc_info=error)
    _say(said)


def _node_file(call: Call) -> str:
    # What is wrong with it is no reason not to tear down.
    path = call.environ.get("PBS_NODEFILE") if call.kind.starts else ""
    if call.system == "openpbs" and call.kind.starts:
        # It is there when a classic prologue starts (start_exec.c), who is only not told.
        path = str(call.hook.parents[1] / "aux" / call.arguments[0])
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeError) as error:
        raise StateError(f"cannot read the node file {path}: {error}") from error


def _say(message: str) -> None:
    """To the job's own stderr, where mom shows it."""
    with contextlib.suppress(OSError):
        for line in message.splitlines():
            print(f"vtorque: {line}", file=sys.stderr, flush=True)
