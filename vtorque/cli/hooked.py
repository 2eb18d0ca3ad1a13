# SPDX-License-Identifier: Apache-2.0
"""The program in a hook or a guard: an account of its own by now, with root at hand."""

import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vtorque import aftermath, logs, names, orders, slurmconf, slurmstarts
from vtorque.backends import batch
from vtorque.backends.batch import openpbs, slurm
from vtorque.cli import assembly, family, pelog
from vtorque.cli.family import Family
from vtorque.cli.pelog import Call
from vtorque.cli.prefix import PREFIX
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError, known
from vtorque.job import JOB_EXEC_RETRY, Job, PelogKind
from vtorque.node import Node

if TYPE_CHECKING:
    from vtorque.guard import Orders

log = logging.getLogger(__name__)

_MARGIN_SECONDS = 5.0


def main(call: Call, called: socket.socket) -> int:
    """What a hook does for its job; the hook's exit status."""
    conf = _configuration(call)
    seconds = batch.by_name(call.system).hook_seconds(conf)
    deadline = Deadline(seconds - _MARGIN_SECONDS).since(call.begun)
    try:
        site = assembly.site(PREFIX)
        if (call.system == "slurm") != (site.batch_system == "slurm"):
            raise ConfigError(f"this hook is for {call.system}", hint=f"BATCH_SYSTEM is {site.batch_system}")
    except Exception as error:  # noqa: BLE001
        family.refuse(called, error, seconds=seconds)
        return 0
    kin = family.begin(called, site, seconds=seconds)
    logs.setup(names.log(site), verbose=site.debug_default)
    with contextlib.ExitStack() as stack:
        try:
            verb = _prepare(call, site, kin, conf, stack)
        except Exception as error:  # noqa: BLE001
            # Failed starts cannot be counted without a configuration, and a requeue that is not
            # counted would go on for ever. The wrapper finds no ready marker and says why.
            _report(call.name, error)
            return 0
        try:
            verb(deadline)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it must not become the exit status 1 that aborts the job.
            _report(call.name, error)
            return batch.by_name(call.system).exit_status(_kind(call), known(error).blame)
    return 0


def guarding(told: bytes, called: socket.socket) -> int:
    """The life of a guard."""
    from vtorque import guard  # with all that an end has no use for

    site = assembly.site(PREFIX)
    kin = family.begin(called, site)
    logs.setup(names.log(site), verbose=site.debug_default)
    ordered = orders.decode(guard.Orders, told)
    with logs.about(job=ordered.demand.job.id), logs.step("guard"), assembly.node(site, kin) as node:
        try:
            guard.watch(ordered, node)
        except Exception:
            log.exception("unforeseen")
            return 1
    return 0


def launch(node: Node) -> "Callable[[Orders, int], None]":
    """Has root start a guard. One whose guests are proven talks to nobody."""
    return lambda told, place: node.root.launch(orders.encode(told), place, talks=bool(told.started))


def _prepare(
    call: Call, site: SiteConfig, kin: Family, conf: str, stack: contextlib.ExitStack
) -> Callable[[Deadline], None]:
    """Everything up to the verb itself, which is all that may be repeated by a requeue."""
    kind = _kind(call)
    environ = {**call.environ, openpbs.CLASSIC_REQUEST: call.request}
    text, trouble = call.node_file
    if trouble:
        raise StateError(trouble)
    job = batch.by_name(site.batch_system).parse_job(kind, call.arguments, environ, text)
    stack.enter_context(logs.about(job=job.id))
    stack.enter_context(logs.step(kind))
    node = stack.enter_context(assembly.node(site, kin, begun=call.begun))
    if call.system == "slurm":
        job = _noted(call, kind, job, conf, Path(site.state_dir), stack)
    match kind:
        case PelogKind.PROLOGUE if call.system == "openpbs":
            from vtorque.cli import pbsverbs

            return pbsverbs.classic(job, node, launch(node))
        case PelogKind.PROLOGUE | PelogKind.PROLOGUE_PARALLEL:
            from vtorque import lifecycle  # with all that an end has no use for

            start = lifecycle.prologue if kind is PelogKind.PROLOGUE else lifecycle.prologue_parallel

            def begin(deadline: Deadline) -> None:
                start(job, node, launch(node), deadline=deadline)
                if call.system == "slurm":
                    slurmstarts.succeeded(Path(site.state_dir), job)

            return begin
        case PelogKind.EPILOGUE:
            return lambda deadline: aftermath.epilogue(job, node, deadline=deadline)
        case _:
            return lambda deadline: aftermath.epilogue_parallel(job, node, deadline=deadline)


def _kind(call: Call) -> PelogKind:
    return slurm.kind_of(call.name, call.environ) if call.system == "slurm" else PelogKind(call.name)


def _configuration(call: Call) -> str:
    """The text of mom's or slurmd's own configuration, nothing when it cannot be read."""
    if call.system == "slurm":
        with contextlib.suppress(OSError):
            return slurmconf.read(slurmconf.find(Path(call.environ.get("SLURM_CONF", slurmconf.CACHED))))
    return call.config


def _noted(
    call: Call, kind: PelogKind, job: Job, conf: str, root: Path, stack: contextlib.ExitStack
) -> Job:
    """The job, once its start or its end is noted where its other hook and the guard find it."""
    if kind.starts:
        slurmstarts.begin(root, job, environ=call.environ, conf=conf)
        return job
    stack.callback(slurmstarts.forget, root, job)
    again = slurmstarts.runs_again(root, job, environ=call.environ)
    return job._replace(exit_status=JOB_EXEC_RETRY) if again else job


def _report(kind: str, error: Exception) -> None:
    said = known(error).one_line()
    log.error("%s: %s", kind, said, exc_info=error)
    pelog.say(said)
