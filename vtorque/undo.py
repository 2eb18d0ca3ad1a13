# SPDX-License-Identifier: Apache-2.0
"""What a failed start gives back, whom it tells why, and when it is counted."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from vtorque import run, state, teardown, topology
from vtorque.deadline import Deadline
from vtorque.errors import Blame, GenerationClosed, InternalError, NodeBusy, StateError, VtorqueError
from vtorque.model import Job
from vtorque.node import Node
from vtorque.published import NodeFailed
from vtorque.state import JobState

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 2.0
_BUSY_PAUSE_SECONDS = 15.0
_SISTERS_PAUSE_SECONDS = 1.0


@contextlib.contextmanager
def undoing(job: Job, node: Node, record: JobState, deadline: Deadline) -> Iterator[None]:
    """Give back what a failed start has begun; say why to the job's user, or by raising to the batch system."""
    try:
        yield
    except Exception as error:
        trouble = known(error)
        if isinstance(trouble, InternalError):
            log.exception("unforeseen")
        _undo(job, node, record, trouble, deadline=deadline)


def known(error: Exception) -> VtorqueError:
    """What went wrong, as a failure that the program knows."""
    if isinstance(error, VtorqueError):
        return error
    if isinstance(error, OSError):
        return StateError(f"{error.filename or 'a file of root'}: {error.strerror}")
    return InternalError(f"internal error: {error!r}")


def is_wanted(job: Job) -> bool:
    """A deleted job's spool file is gone, and nobody tells its prologue (requests.c:2261-2285)."""
    return job.spool_script is None or job.spool_script.exists()


def _undo(
    job: Job, node: Node, record: JobState, error: VtorqueError, *, deadline: Deadline
) -> None:
    """Give back what was begun; then say why, to the user or to the batch system."""
    log.error("%s", error.one_line(), extra={"details": error.details})
    teardown.release(record, hypervisor=node.hypervisor, rules=node.filter, deadline=deadline)
    if isinstance(error, GenerationClosed) or not is_wanted(job):
        # Its epilogue has been here, and no other will come for what would be left now.
        return
    root = Path(node.site.state_dir)
    if isinstance(error, NodeBusy):
        # Another job has what this one needs, and will give it back: nobody's fault, however often.
        # A sister has told her mother superior; failing would take her node out of the cluster.
        if job.nodes and not node.failing_drains:
            deadline.pause(_BUSY_PAUSE_SECONDS)
            raise error
        if not job.nodes:
            return
    elif error.blame is not Blame.USER and not (node.failing_drains and isinstance(error, NodeFailed)):
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
