# SPDX-License-Identifier: Apache-2.0
"""Root's hooks behind the shims in `scripts/`: the one place that owns their exit status.

An uncaught exception would exit 1, and Torque would abort the user's job.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtorque import chain, logs, proc
from vtorque.backends import batch
from vtorque.deadline import Deadline
from vtorque.errors import Blame, StateError, VtorqueError
from vtorque.model import PelogKind

log = logging.getLogger(__name__)

_PREFIX = Path(__file__).resolve().parents[2]
_MOM_CONFIG_LIMIT = 1 << 20
# mom kills a hook without warning; this much earlier we stop by ourselves.
_MARGIN_SECONDS = 5.0
_UMASK = 0o077


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How mom called a hook: kept as it was for the site's own, and to learn the job from."""

    kind: PelogKind
    hook: Path
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    directory: Path
    umask: int


def main(argv: Sequence[str]) -> int:
    """`argv` is the kind of hook, the path mom called, and mom's own arguments."""
    started = time.monotonic()
    call = Call(
        kind=PelogKind(argv[0]),
        hook=Path(argv[1]),
        arguments=tuple(argv[2:]),
        environ=dict(os.environ),
        directory=Path.cwd(),
        umask=os.umask(_UMASK),
    )
    _be_orderly()
    deadline = Deadline(_hook_seconds(call) - _MARGIN_SECONDS - (time.monotonic() - started))
    if not call.kind.starts:
        status = _own_part(call, deadline)
        return _original(call, deadline) or status
    return _original(call, deadline) or _own_part(call, deadline)


def _be_orderly() -> None:
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
    text = ""
    with contextlib.suppress(OSError), (call.hook.parent / "config").open() as file:
        text = file.read(_MOM_CONFIG_LIMIT)
    return batch.by_name("torque").hook_seconds(text)


def _original(call: Call, deadline: Deadline) -> int:
    """The site's own hook, with mom's own arguments; it runs even when our configuration is broken."""
    path = chain.original(call.hook)
    if path is None:
        return 0
    try:
        status = chain.run(
            path, call.arguments,
            environ=call.environ, directory=call.directory, umask=call.umask, deadline=deadline,
        )
    except VtorqueError as error:
        _say(error.one_line())
        return batch.by_name("torque").exit_status(call.kind, error.blame)
    # Mom takes a hook's death by signal for success; what replaced her only child must do the same.
    return max(status, 0)


def _own_part(call: Call, deadline: Deadline) -> int:
    dialect = batch.by_name("torque")
    try:
        _serve(call, deadline)
    except VtorqueError as error:
        log.exception("%s: %s", call.kind, error.one_line())
        _say(error.one_line())
        return dialect.exit_status(call.kind, error.blame)
    except Exception as error:
        # Whatever it is, it must not become the exit status 1 that aborts the job.
        log.exception("%s: unforeseen", call.kind)
        _say(f"internal error: {error!r}")
        return dialect.exit_status(call.kind, Blame.BUG)
    return dialect.exit_status(call.kind, None)


def _serve(call: Call, deadline: Deadline) -> None:
    # Imported here, not above: whatever is missing or broken on this node, the site's
    # own hooks have to run.
    from vtorque import lifecycle
    from vtorque.cli import assembly

    verbs = {PelogKind.PROLOGUE: lifecycle.prologue, PelogKind.EPILOGUE: lifecycle.epilogue}
    if call.kind not in verbs:
        return
    site = assembly.site(_PREFIX)
    logs.setup(assembly.log_file(site), verbose=site.debug_default)
    dialect = batch.by_name(site.batch_system)
    job = dialect.parse_job(call.kind, call.arguments, call.environ, _node_file(call))
    with logs.about(job=job.id), logs.step(call.kind), assembly.node(site, _PREFIX) as node:
        verbs[call.kind](job, node, deadline=deadline)


def _node_file(call: Call) -> str:
    path = call.environ.get("PBS_NODEFILE")
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeError) as error:
        raise StateError(f"cannot read the node file {path}: {error}") from error


def _say(message: str) -> None:
    """To the job's own stderr, where mom shows it."""
    with contextlib.suppress(OSError):
        print(f"vtorque: {message}", file=sys.stderr, flush=True)
