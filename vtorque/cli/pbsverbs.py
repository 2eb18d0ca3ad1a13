# SPDX-License-Identifier: Apache-2.0
"""The program at an event of OpenPBS's, an account of its own by now.

The mother superior's execjob_begin runs before her sisters' (mom_comm.c:3188),
and each blocks its mom: all of them start guests and leave them to guards. At
execjob_launch, which runs in the job's own process, the mother superior waits
for everybody's.
"""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from vtorque import guardpost, lifecycle, logs, names, service, sweeping
from vtorque.backends.batch.openpbs import Event, OpenPbs
from vtorque.cli import assembly, family, hooked, pbshook
from vtorque.cli.prefix import PREFIX
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, NodeOut, RequestError
from vtorque.model import Job
from vtorque.node import Node

Verb = Callable[[Deadline], None]

# The hook kills us when its own time is over; this much earlier we stop by ourselves.
_MARGIN_SECONDS = 5.0


def main(text: bytes, started: float, called: socket.socket) -> int:
    """Carry out what an event, in the hook's own words, asks for, and tell the verdict."""
    try:
        event = OpenPbs().parse_event(text)
        site = assembly.site(PREFIX)
        if Path(site.torque_home).resolve() != event.home:
            # Whatever is not in mom's own directory is a job that she has forgotten.
            raise ConfigError(f"TORQUE_HOME is {site.torque_home}, and mom's home is {event.home}")
    except Exception as error:  # noqa: BLE001
        family.refuse(called, error)
        return 0
    deadline = Deadline(event.seconds - _MARGIN_SECONDS).since(started)
    kin = family.begin(called, site, seconds=event.seconds)
    logs.setup(names.log(site), verbose=site.debug_default)
    with contextlib.ExitStack() as stack:
        try:
            if event.job is not None:
                stack.enter_context(logs.about(job=event.job.id))
            stack.enter_context(logs.step(event.name))
            node = stack.enter_context(assembly.node(site, kin))
            verb = verb_for(event, node, hooked.launch(node))
        except Exception as error:  # noqa: BLE001
            pbshook.tell("accept", error)
        else:
            pbshook.tell(*verdict(verb, deadline, when_out="offline" if event.job is None else "requeue"))
    return 0


def verdict(verb: Verb, deadline: Deadline, *, when_out: str = "requeue") -> tuple[str, Exception | None]:
    """What the hook has to tell OpenPBS of this event: `accept` or `requeue`, `when_out` of a node that is; and why."""
    try:
        verb(deadline)
    except Exception as error:  # noqa: BLE001
        return when_out if isinstance(error, NodeOut) else "requeue", error
    return "accept", None


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
