# SPDX-License-Identifier: Apache-2.0
"""What OpenPBS's hook (contrib/openpbs) starts for one event: a job on standard input, a verdict on standard output.

The mother superior's execjob_begin runs before her sisters' (mom_comm.c:3188),
and each blocks its mom: all of them start guests and leave them to guards. At
execjob_launch, which runs in the job's own process, the mother superior waits
for everybody's.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vtorque import guardpost, lifecycle, logs, service, sweeping
from vtorque.backends.batch.openpbs import Event, OpenPbs
from vtorque.cli import assembly, pelog
from vtorque.cli.prefix import PREFIX
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, NodeOut, RequestError, VtorqueError
from vtorque.model import Job
from vtorque.node import Node

log = logging.getLogger(__name__)

Verb = Callable[[Deadline], None]

_LIMIT = 1 << 16
# The hook kills us when its own time is over; this much earlier we stop by ourselves.
_MARGIN_SECONDS = 5.0


def main() -> int:
    """One event; always 0, because the verdict is what is printed."""
    started = time.monotonic()
    pelog.be_orderly()
    logs.setup(None)
    with contextlib.ExitStack() as stack:
        try:
            event = OpenPbs().parse_event(sys.stdin.buffer.read(_LIMIT))
            verb = _prepare(event, stack)
        except Exception as error:  # noqa: BLE001
            # A requeue that is not counted would go on until the server holds the job: the
            # wrapper finds no ready marker, and ends it.
            verdict = _verdict("accept", error)
        else:
            deadline = Deadline(event.seconds - _MARGIN_SECONDS - (time.monotonic() - started))
            verdict = carry_out(verb, deadline, when_out="offline" if event.job is None else "requeue")
    print(json.dumps(verdict), flush=True)
    return 0


def carry_out(verb: Verb, deadline: Deadline, *, when_out: str = "requeue") -> dict[str, str]:
    """What the hook has to tell OpenPBS of this event: `accept` or `requeue`, `when_out` of a node that is; and why."""
    try:
        verb(deadline)
    except Exception as error:  # noqa: BLE001
        return _verdict(when_out if isinstance(error, NodeOut) else "requeue", error)
    return {"verdict": "accept", "message": ""}


def classic(job: Job, node: Node, launch: lifecycle.Launch) -> Verb:
    """The classic prologue of a single-node site, which has no hooks: everything in one."""
    if guardpost.is_taken(Path(node.site.state_dir), job.key):
        # The hooks are installed as well, and have begun.
        return lambda deadline: None
    if len(job.nodes) > 1:
        reason = RequestError(
            f"the job is on {len(job.nodes)} nodes, and guests were prepared on the first one only",
            hint="the site has to install contrib/openpbs/vtorque_hook.py",
        )
        return lambda deadline: lifecycle.refuse(job, node, reason, deadline=deadline)
    return lambda deadline: lifecycle.prologue(job, node, launch, deadline=deadline)


def _prepare(event: Event, stack: contextlib.ExitStack) -> Verb:
    """Everything up to the verb itself, which is all that a requeue may repeat."""
    site = assembly.site(PREFIX)
    assembly.open_logs(site, step=event.name)
    if event.job is not None:
        stack.enter_context(logs.about(job=event.job.id))
    stack.enter_context(logs.step(event.name))
    if Path(site.torque_home).resolve() != event.home:
        # Whatever is not in mom's own directory is a job that she has forgotten.
        raise ConfigError(f"TORQUE_HOME is {site.torque_home}, and mom's home is {event.home}")
    node = stack.enter_context(assembly.node(site, PREFIX, starts=event.name == "execjob_begin"))
    return verb_for(event, node, pelog.launch)


def verb_for(event: Event, node: Node, launch: lifecycle.Launch) -> Verb:
    """What is to be done at an event; ConfigError when nothing is."""
    job = event.job
    if job is None:
        return lambda deadline: _sweep(node, deadline)
    match event.name:
        case "execjob_begin":
            # Here the mother superior is like her sisters: mom does nothing else meanwhile.
            return lambda deadline: lifecycle.prologue_parallel(
                job._replace(nodes=(), spool_script=None), node, launch, deadline=deadline
            )
        case "execjob_prologue" | "execjob_launch":
            return lambda deadline: lifecycle.muster(job, node, deadline=deadline)
        case "execjob_epilogue" | "execjob_end" | "execjob_abort":
            verb = lifecycle.epilogue if event.mother_superior else lifecycle.epilogue_parallel
            return lambda deadline: verb(job, node, deadline=deadline)
    raise ConfigError(f"nothing is to be done at {event.name}")


def _sweep(node: Node, deadline: Deadline) -> None:
    sweeping.sweep(node, deadline=deadline, thorough=True)
    service.require(node.site, node=node.shape.name)


def _verdict(word: str, error: Exception) -> dict[str, str]:
    said = error.one_line() if isinstance(error, VtorqueError) else f"internal error: {error!r}"
    log.error("%s", said, exc_info=error)
    with contextlib.suppress(OSError):
        for line in said.splitlines():
            print(f"vtorque: {line}", file=sys.stderr, flush=True)
    return {"verdict": word, "message": said}
