# SPDX-License-Identifier: Apache-2.0
"""How a job ends on a node, whether or not it began there: nothing that starts guests is loaded for it."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from vtorque import demand, guardpost, state, teardown
from vtorque.deadline import Deadline
from vtorque.errors import RequestError, known
from vtorque.model import Job
from vtorque.node import Node
from vtorque.state import JobState
from vtorque.userside import UserSide

log = logging.getLogger(__name__)


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


def _give_back(steps: contextlib.ExitStack, job: Job, node: Node, deadline: Deadline) -> None:
    record = node.state(job.key)
    if record.exists:
        node.journal.resume(job, record.path, marker=state.READY)
        facts = {} if job.exit_status is None else {"exit_status": job.exit_status}
        node.journal.note("ended", facts=facts)
        steps.callback(_note_gone, node, record)
    steps.callback(guardpost.is_taken, Path(node.site.state_dir), job.key)
    steps.callback(teardown.release_unrecorded, job.key, node, deadline=deadline)
    steps.callback(teardown.release, record, node, deadline=deadline)


def _note_gone(node: Node, record: JobState) -> None:
    if not record.exists:
        node.journal.note("torn-down")


def _remove_job_directory(job: Job, node: Node, side: UserSide | None, deadline: Deadline) -> None:
    if side is not None:
        elements = demand.demand(job, node).request.elements
        side.remove(
            job.id, elements=elements, if_cancelled=job.may_run_again, deadline=demand.brief(deadline)
        )


@contextlib.contextmanager
def _side_of(job: Job, node: Node) -> Iterator[UserSide | None]:
    """The user's side of a job that may no longer have a user: teardown must not depend on it."""
    with contextlib.ExitStack() as stack:
        side = None
        try:
            side = stack.enter_context(demand.user_side(demand.demand(job, node), node))
        except (RequestError, OSError) as error:
            log.warning("the job directory is left alone: %s", known(error).brief)
        yield side
