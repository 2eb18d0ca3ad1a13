# SPDX-License-Identifier: Apache-2.0
"""The order of the verbs for each hook: the table of contents of the program."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vtorque import bringup, discover, plan, published, run, state, teardown, topology
from vtorque.bringup import ABORTED, Demand
from vtorque.deadline import Deadline
from vtorque.errors import (
    Blame,
    GenerationClosed,
    InternalError,
    NodeBusy,
    RequestError,
    StateError,
    VtorqueError,
)
from vtorque.guard import Orders
from vtorque.model import Job
from vtorque.node import Node
from vtorque.state import JobState
from vtorque.userside import UserSide

log = logging.getLogger(__name__)

Launch = Callable[[Orders, int], None]
"""Starts a guard with her orders and the descriptor that marks her place."""

_FIRST_PAUSE_SECONDS = 2.0
_BUSY_PAUSE_SECONDS = 15.0
_SISTERS_PAUSE_SECONDS = 1.0
_SWEEP_SECONDS = 30.0
# Between a sister's hook and the moment mom must know the job lies the mother superior's whole start.
_START_MARGIN_SECONDS = 60.0


def prologue(job: Job, node: Node, launch: Launch, *, deadline: Deadline) -> None:
    """Bring the job's guests up on the mother superior, await the sisters', leave the ready marker.

    A user's fault is left for the job's wrapper to report; a node's fault is
    raised, and with it the job is requeued, until it has happened too often.
    """
    record = node.state(job.key)
    with _undoing(job, node, record, deadline):
        wanted = bringup.demand(job, node)
        with bringup.user_side(wanted) as side, _telling_sisters(job, side, deadline):
            _bring_up(wanted, node, record, side, launch, deadline=deadline.reserve(node.site.undo_reserve))
        state.forget_attempts(Path(node.site.state_dir), job.key)


def prologue_parallel(job: Job, node: Node, launch: Launch, *, deadline: Deadline) -> None:
    """Start a sister's guests and leave them to a guard: mom does nothing else meanwhile."""
    record = node.state(job.key)
    with _undoing(job, node, record, deadline):
        wanted = bringup.demand(job, node)
        with bringup.user_side(wanted) as side, _telling_mother(job, node, side, deadline):
            for name in (published.name(job.node_index), published.lost_name(job.node_index), ABORTED):
                side.forget(name, deadline=bringup.brief(deadline))
            teardown.release(record, hypervisor=node.hypervisor, deadline=deadline)
            with _place(job, node, deadline) as place:
                record.create()
                decided, started = bringup.start(
                    wanted, node, record, deadline=deadline.reserve(node.site.undo_reserve)
                )
                seconds = deadline.remaining + _START_MARGIN_SECONDS
                launch(Orders(demand=wanted, plan=decided, started=started, start_seconds=seconds), place)


def epilogue(job: Job, node: Node, *, deadline: Deadline) -> None:
    """Give everything back, whatever happened before, and as often as it is called."""
    with contextlib.ExitStack() as steps:
        # Unwound from the last to the first; one that fails does not stop the others.
        if not job.will_be_retried:
            steps.callback(state.forget_attempts, Path(node.site.state_dir), job.key)
            side = steps.enter_context(_side_of(job, node))
            steps.callback(_remove_job_directory, job, node, side, deadline)
        _give_back(steps, job, node, deadline)


def epilogue_parallel(job: Job, node: Node, *, deadline: Deadline) -> None:
    """Give everything back on a sister; the job directory is the mother superior's affair."""
    with contextlib.ExitStack() as steps:
        steps.callback(state.forget_attempts, Path(node.site.state_dir), job.key)
        _give_back(steps, job, node, deadline)


def forgotten(node: Node) -> list[str]:
    """Keys of the jobs that are recorded here, that mom no longer knows, and that nobody guards."""
    root = Path(node.site.state_dir)
    return [key for key in state.jobs(root) if not node.knows(key) and not state.is_guarded(root, key)]


def sweep(node: Node, *, deadline: Deadline) -> list[str]:
    """Tear down the jobs that nobody will send an epilogue for; the keys of those that are gone."""
    swept = []
    for key in forgotten(node):
        log.warning("job %s is forgotten by mom, tearing it down", key)
        try:
            teardown.release(node.state(key), hypervisor=node.hypervisor, deadline=deadline)
            swept.append(key)
        except (VtorqueError, OSError):
            log.exception("job %s could not be torn down", key)
    return swept


def _bring_up(
    wanted: Demand, node: Node, record: JobState, side: UserSide, launch: Launch, *, deadline: Deadline
) -> None:
    job = wanted.job
    report = bringup.reporter(wanted, side, deadline)
    sweep(node, deadline=deadline.within(_SWEEP_SECONDS))
    teardown.release(record, hypervisor=node.hypervisor, deadline=deadline)
    record.create()
    report("planned")
    decided, started = bringup.start(wanted, node, record, deadline=deadline)
    report("started")
    guests = discover.guests(
        started, job=job, user=wanted.account.name, node=node, state=record, deadline=deadline
    )
    peers = [published.peer(guest) for guest in guests]
    peers += bringup.gather(wanted, side, deadline=deadline.within(node.site.timeout))
    report("ready")
    with record.act(deadline=deadline):
        if not _is_wanted(job):
            raise GenerationClosed(f"job {job.id} was deleted while its guests were being started")
        if len(peers) > 1:
            with _place(job, node, deadline) as place:
                orders = Orders(
                    demand=wanted, plan=decided, started=(), start_seconds=_START_MARGIN_SECONDS,
                    peers=tuple(sorted(peers, key=lambda peer: peer.rank)[1:]),
                )
                launch(orders, place)
        record.publish(state.READY, run.ready_marker(decided, peers), group=wanted.account.group.gid)


@contextlib.contextmanager
def _place(job: Job, node: Node, deadline: Deadline) -> Iterator[int]:
    """A guard's place, once the one of an earlier start has gone; a guard that is launched keeps it."""
    for _ in deadline.ticks(doing=f"waiting for the last guard of job {job.id} to go"):
        place = state.guard(Path(node.site.state_dir), job.key)
        if place is not None:
            break
    assert place is not None
    try:
        yield place
    finally:
        os.close(place)


@contextlib.contextmanager
def _telling_sisters(job: Job, side: UserSide, deadline: Deadline) -> Iterator[None]:
    """When there is going to be no job, nobody runs an epilogue on the sisters (mom_comm.c:3960-3984)."""
    try:
        yield
    except BaseException:
        if len(job.nodes) > 1:
            side.replace(ABORTED, "", deadline=bringup.brief(deadline))
        raise


@contextlib.contextmanager
def _telling_mother(job: Job, node: Node, side: UserSide, deadline: Deadline) -> Iterator[None]:
    """Whoever waits for this sister's guests is told why they do not come."""
    try:
        yield
    except VtorqueError as error:
        text = published.failure_text(node.shape.name, error.one_line(), error.blame)
        side.replace(published.name(job.node_index), text, deadline=bringup.brief(deadline))
        raise


@contextlib.contextmanager
def _undoing(job: Job, node: Node, record: JobState, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except VtorqueError as error:
        _undo(job, node, record, error, deadline=deadline)
    except OSError as error:
        trouble = StateError(f"{error.filename or 'a file of root'}: {error.strerror}")
        _undo(job, node, record, trouble, deadline=deadline)
    except Exception as error:
        log.exception("unforeseen")
        _undo(job, node, record, InternalError(f"internal error: {error!r}"), deadline=deadline)


def _give_back(steps: contextlib.ExitStack, job: Job, node: Node, deadline: Deadline) -> None:
    steps.callback(_release_unrecorded, job, node, deadline)
    steps.callback(
        teardown.release, node.state(job.key), hypervisor=node.hypervisor, deadline=deadline
    )


def _is_wanted(job: Job) -> bool:
    """A deleted job's spool file is gone, and nobody tells its prologue (requests.c:2261-2285)."""
    return job.spool_script is None or job.spool_script.exists()


def _undo(
    job: Job, node: Node, record: JobState, error: VtorqueError, *, deadline: Deadline
) -> None:
    """Give back what was begun; then say why, to the user or to the batch system."""
    log.error("%s", error.one_line(), extra={"details": error.details})
    teardown.release(record, hypervisor=node.hypervisor, deadline=deadline)
    if isinstance(error, GenerationClosed) or not _is_wanted(job):
        # Its epilogue has been here, and no other will come for what would be left now.
        return
    root = Path(node.site.state_dir)
    if isinstance(error, NodeBusy):
        # Another job has what this one needs, and will give it back: nobody's fault, however often.
        # A sister has told her mother superior; failing would take her node out of the cluster.
        if job.nodes:
            deadline.pause(_BUSY_PAUSE_SECONDS)
            raise error
        return
    if error.blame is not Blame.USER:
        tries = _count_attempt(root, job, node.site.requeue_limit)
        if tries < node.site.requeue_limit:
            # Torque itself starts a requeued job again at once, 56 times in 15 s. A sister's mom waits meanwhile.
            deadline.pause(_FIRST_PAUSE_SECONDS**tries if job.nodes else _SISTERS_PAUSE_SECONDS)
            raise error
    state.forget_attempts(root, job.key)
    if not job.nodes:
        # A sister has no wrapper: she has told the mother superior.
        return
    record.create()
    record.publish(state.FAILED, run.failure_marker(error), group=topology.primary_group(job.user))


def _count_attempt(root: Path, job: Job, limit: int) -> int:
    """Failed starts so far; the limit when they cannot be counted, or the job would start for ever."""
    try:
        return state.attempt(root, job)
    except OSError:
        log.exception("cannot count the failed starts of job %s", job.id)
        return limit


def _release_unrecorded(job: Job, node: Node, deadline: Deadline) -> None:
    directories = (*plan.directories(node.site, job.key).values(), Path(node.site.state_dir) / "seeds")
    teardown.release_unrecorded(
        job.key, hypervisor=node.hypervisor, directories=directories, deadline=deadline
    )


def _remove_job_directory(job: Job, node: Node, side: UserSide | None, deadline: Deadline) -> None:
    if side is not None:
        elements = bringup.demand(job, node).request.elements
        side.remove(job.id, elements=elements, deadline=bringup.brief(deadline))


@contextlib.contextmanager
def _side_of(job: Job, node: Node) -> Iterator[UserSide | None]:
    """The user's side of a job that may no longer have a user: teardown must not depend on it."""
    try:
        wanted = bringup.demand(job, node)
    except RequestError as error:
        log.info("the job directory is left alone: %s", error.brief)
        yield None
    else:
        with bringup.user_side(wanted) as side:
            yield side
