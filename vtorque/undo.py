# SPDX-License-Identifier: Apache-2.0
"""What a failed start gives back, whom it tells why, and when it is counted."""

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vtorque import markers, service, state, teardown
from vtorque.deadline import Deadline
from vtorque.errors import Blame, GenerationClosed, InternalError, NodeBusy, NodeOut, VtorqueError, known
from vtorque.kinds import DISK, DOMAIN, SHARE
from vtorque.model import Job
from vtorque.node import Node
from vtorque.state import JobState

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 2.0
_BUSY_PAUSE_SECONDS = 15.0
_SISTERS_PAUSE_SECONDS = 1.0
_ABOUT_USERS = (DOMAIN, SHARE, DISK)


@contextlib.contextmanager
def undoing(job: Job, node: Node, record: JobState, deadline: Deadline, *, ran: bool = False) -> Iterator[None]:
    """Give back what a failed start has begun; say why to the job's user, or by raising to the batch system.

    With `ran` what its user has in its guests may have run, whatever the record says by then.
    """
    try:
        yield
    except Exception as error:
        trouble = known(error)
        if isinstance(trouble, InternalError):
            log.exception("unforeseen")
        node.journal.failed(trouble, is_deleted=isinstance(trouble, GenerationClosed) or not is_wanted(job, node))
        _undo(job, node, record, trouble, ran=ran or _had_a_guest(record), deadline=deadline)


def is_wanted(job: Job, node: Node) -> bool:
    """A deleted job's spool file is gone, and nobody tells its prologue (requests.c:2261-2285)."""
    return job.spool_script is None or node.root.has_script(job.spool_script)


def _undo(
    job: Job, node: Node, record: JobState, error: VtorqueError, *, ran: bool, deadline: Deadline
) -> None:
    """Give back what was begun; then say why, to the user or to the batch system."""
    log.error("%s", error.one_line(), extra={"details": error.details})
    try:
        teardown.release(record, node, deadline=deadline)
    except (VtorqueError, OSError):
        # The epilogue tries again, and the sweep. That the start failed counts all the same, or it is made for ever.
        log.exception("job %s still holds something on this node", job.id)
    if isinstance(error, GenerationClosed) or record.replaced or not is_wanted(job, node):
        # Its epilogue has been here, and no other will come for what would be left now.
        return
    record.audit.note("start", failure=error)
    service.failed(node.site, job, error, ran=ran, make=node.root.make_standing)
    if _starts_again(job, node, error, ran, deadline):
        raise error
    if isinstance(error, NodeBusy) and not job.nodes:
        # Failing would take her node out of the cluster.
        return
    state.forget_attempts(Path(node.site.state_dir), job.key)
    if not job.nodes:
        # A sister has no wrapper: she has told the mother superior.
        return
    try:
        if not record.exists:
            record.create(user=job.user)
        node.journal.keep(record.path)
        record.publish(
            state.FAILED, markers.failure_marker(error), share=partial(node.root.share, deadline=deadline)
        )
    except OSError:
        # A disk on which nothing can be told does not count either how often it is tried again: not at once.
        deadline.pause(_BUSY_PAUSE_SECONDS)
        raise


def _had_a_guest(record: JobState) -> bool:
    """Whether what its user has in a guest may have run, or what serves his files to one, and is his to kill."""
    with contextlib.suppress(VtorqueError, OSError):
        return any(each.kind in _ABOUT_USERS and record.certain(each) for each in record.held())
    return False


def _starts_again(job: Job, node: Node, error: VtorqueError, ran: bool, deadline: Deadline) -> bool:
    """Whether the batch system is to start the job again, after a pause: Torque would at once, 56 times in 15 s."""
    if isinstance(error, NodeOut | NodeBusy):
        # However often: another job will give back what this one needs, or this one has to find another node.
        waits = bool(job.nodes) and not node.failing_drains
        if waits:
            deadline.pause(_BUSY_PAUSE_SECONDS)
        return waits or isinstance(error, NodeOut)
    if error.blame is Blame.USER or (node.failing_drains and (ran or isinstance(error, service.NOT_ITS_OWN))):
        # One user must not drain a node by what he has in his guests. That it fails those of others is counted.
        return False
    tries = _count_attempt(Path(node.site.state_dir), job, node.site.requeue_limit)
    if tries >= node.site.requeue_limit:
        return False
    # A sister's mom waits meanwhile.
    deadline.pause(_FIRST_PAUSE_SECONDS**tries if job.nodes else _SISTERS_PAUSE_SECONDS)
    return True


def _count_attempt(root: Path, job: Job, limit: int) -> int:
    """Failed starts so far; the limit when they cannot be counted, or the job would start for ever."""
    try:
        return state.attempt(root, job)
    except OSError:
        log.exception("cannot count the failed starts of job %s", job.id)
        return limit
