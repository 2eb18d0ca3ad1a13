# SPDX-License-Identifier: Apache-2.0
"""The order of the verbs for each hook: the table of contents of the program."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vtorque import (
    bringup,
    demand,
    discover,
    guardpost,
    markers,
    orphans,
    published,
    service,
    state,
    teardown,
)
from vtorque.aftermath import epilogue as epilogue
from vtorque.aftermath import epilogue_parallel as epilogue_parallel
from vtorque.bringup import ABORTED
from vtorque.deadline import Deadline
from vtorque.demand import Demand
from vtorque.errors import GenerationClosed, RequestError, known
from vtorque.guard import Orders
from vtorque.model import Job
from vtorque.node import Node
from vtorque.state import JobState
from vtorque.sweeping import forgotten as forgotten
from vtorque.sweeping import sweep as sweep
from vtorque.undo import is_wanted, undoing
from vtorque.userside import UserSide

log = logging.getLogger(__name__)

Launch = Callable[[Orders, int], None]
"""Starts a guard with her orders and the descriptor that marks her place."""

_SWEEP_SECONDS = 30.0
# Between a sister's hook and the moment mom must know the job lies the mother superior's whole start.
_START_MARGIN_SECONDS = 60.0


def prologue(job: Job, node: Node, launch: Launch, *, deadline: Deadline) -> None:
    """Bring the job's guests up on the mother superior, await the sisters', leave the ready marker.

    A user's fault is left for the job's wrapper to report; a node's fault is
    raised, and with it the job is requeued, until it has happened too often.
    """
    record = node.state(job.key)
    node.journal.begin(job)
    with undoing(job, node, record, deadline):
        wanted = demand.demand(job, node)
        with demand.user_side(wanted, node) as side, _telling_sisters(job, side, deadline):
            service.require(node.site, node=node.shape.name)
            _bring_up(wanted, node, record, side, launch, deadline=deadline.reserve(node.site.undo_reserve))
        state.forget_attempts(Path(node.site.state_dir), job.key)
        service.succeeded(node.site)


def prologue_parallel(job: Job, node: Node, launch: Launch, *, deadline: Deadline) -> None:
    """Start a sister's guests and leave them to a guard: mom does nothing else meanwhile."""
    record = node.state(job.key)
    node.journal.begin(job)
    with undoing(job, node, record, deadline):
        wanted = demand.demand(job, node)
        with demand.user_side(wanted, node) as side, _telling_mother(job, node, side, deadline):
            service.require(node.site, node=node.shape.name)
            orphans.adopt(job.key, node, deadline=deadline)
            teardown.release(record, node, deadline=deadline)
            with _place(job, node, deadline) as place:
                # Not before: the guard of an earlier start may have had a last word.
                for name in (published.name(job), published.lost_name(job.node_index), ABORTED):
                    side.forget(name, deadline=demand.brief(deadline))
                record.create(user=wanted.account.name, uid=wanted.account.uid)
                node.journal.keep(record.path)
                decided, started = bringup.start(
                    wanted, node, record, deadline=deadline.reserve(node.site.undo_reserve)
                )
                seconds = deadline.remaining + _START_MARGIN_SECONDS
                orders = Orders(
                    demand=wanted, plan=decided, generation=record.generation, started=started, start_seconds=seconds
                )
                launch(orders, place)


def muster(job: Job, node: Node, *, deadline: Deadline) -> None:
    """On the mother superior, when all nodes have been through `prologue_parallel`, she too: await all
    guests, leave the ready marker. Nothing is done where a marker is.

    For OpenPBS, where her own first hook runs before her sisters' and must not wait for them.
    """
    record = node.state(job.key)
    if any((record.path / name).exists() for name in (state.READY, state.FAILED)):
        return
    record.bound = record.generation
    node.journal.resume(job, record.path)
    with undoing(job, node, record, deadline, ran=True):
        wanted = demand.demand(job, node)
        with (
            demand.user_side(wanted, node) as side, _telling_sisters(job, side, deadline),
            _dismissing_guard(job, node, record, deadline),
        ):
            enough = deadline.reserve(node.site.undo_reserve)
            peers = bringup.gather(wanted, side, record, deadline=enough.within(node.site.timeout), first=0)
            bringup.reporter(wanted, side, node.journal, enough)("ready")
            with record.act(deadline=enough):
                record.publish(
                    state.READY, markers.ready_marker(wanted, peers),
                    share=partial(node.root.share, deadline=enough),
                )
            node.journal.note("ready")
        state.forget_attempts(Path(node.site.state_dir), job.key)


def refuse(job: Job, node: Node, reason: RequestError, *, deadline: Deadline) -> None:
    """Start nothing, and let the job's wrapper say why."""
    node.journal.begin(job)
    with undoing(job, node, node.state(job.key), deadline):
        raise reason


def _bring_up(
    wanted: Demand, node: Node, record: JobState, side: UserSide, launch: Launch, *, deadline: Deadline
) -> None:
    job = wanted.job
    report = bringup.reporter(wanted, side, node.journal, deadline)
    sweep(node, deadline=deadline.within(_SWEEP_SECONDS))
    orphans.adopt(job.key, node, deadline=deadline)
    teardown.release(record, node, deadline=deadline)
    record.create(user=wanted.account.name, uid=wanted.account.uid)
    node.journal.keep(record.path)
    side.forget(published.LOST, deadline=demand.brief(deadline))
    report("planned")
    decided, started = bringup.start(wanted, node, record, deadline=deadline)
    node.plans.close()
    report("started")
    guests = discover.guests(
        started, job=job, account=wanted.account, node=node, state=record, deadline=deadline
    )
    peers = [published.peer(guest) for guest in guests]
    peers += bringup.gather(wanted, side, record, deadline=deadline.within(node.site.timeout))
    report("ready")
    with record.act(deadline=deadline):
        if not is_wanted(job, node):
            raise GenerationClosed(f"job {job.id} was deleted while its guests were being started")
        if len(peers) > 1:
            with _place(job, node, deadline) as place:
                orders = Orders(
                    demand=wanted, plan=decided, generation=record.generation, started=(),
                    start_seconds=_START_MARGIN_SECONDS,
                    peers=tuple(sorted(peers, key=lambda peer: peer.rank)[1:]),
                )
                launch(orders, place)
        record.publish(
            state.READY, markers.ready_marker(decided, peers), share=partial(node.root.share, deadline=deadline)
        )
    node.journal.note("ready")


@contextlib.contextmanager
def _place(job: Job, node: Node, deadline: Deadline) -> Iterator[int]:
    """A guard's place, once the one of an earlier start has gone; a guard that is launched keeps it."""
    for _ in deadline.ticks(doing=f"waiting for the last guard of job {job.id} to go"):
        place = guardpost.take(Path(node.site.state_dir), job.key)
        if place is not None:
            break
    assert place is not None
    try:
        yield place
    finally:
        os.close(place)
        # Without a guard nobody else would clear it away.
        guardpost.is_taken(Path(node.site.state_dir), job.key)


@contextlib.contextmanager
def _dismissing_guard(job: Job, node: Node, record: JobState, deadline: Deadline) -> Iterator[None]:
    """What a guard would still do for this generation she must not do to the marker that follows it."""
    try:
        yield
    except BaseException:
        teardown.release(record, node, deadline=deadline)
        with _place(job, node, deadline):
            pass
        raise


@contextlib.contextmanager
def _telling_sisters(job: Job, side: UserSide, deadline: Deadline) -> Iterator[None]:
    """When there is going to be no job, nobody runs an epilogue on the sisters (mom_comm.c:3960-3984)."""
    try:
        yield
    except GenerationClosed:
        # Whoever has closed it ends the sisters' as well, and there may be another start by now.
        raise
    except BaseException:
        if len(job.nodes) > 1:
            side.replace(ABORTED, "", deadline=demand.brief(deadline))
        raise


@contextlib.contextmanager
def _telling_mother(job: Job, node: Node, side: UserSide, deadline: Deadline) -> Iterator[None]:
    """Whoever waits for this sister's guests is told why they do not come."""
    try:
        yield
    except Exception as error:
        trouble = known(error)
        text = published.failure_text(node.shape.name, trouble.one_line(), trouble.blame)
        side.replace(published.name(job), text, deadline=demand.brief(deadline))
        raise
