# SPDX-License-Identifier: Apache-2.0
"""The order of the verbs for each hook: the table of contents of the program."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from vtorque import boot, discover, images, limits, plan, request, run, state, submit, teardown, topology
from vtorque.deadline import Deadline
from vtorque.errors import Blame, GenerationClosed, InternalError, RequestError, StateError, VtorqueError
from vtorque.files import UserSide
from vtorque.model import Account, Job, JobPlan, VmRequest
from vtorque.node import Node
from vtorque.proc import Identity
from vtorque.state import JobState

log = logging.getLogger(__name__)

Report = Callable[[str], None]

_USER_SIDE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 2.0
_SWEEP_SECONDS = 30.0


def prologue(job: Job, node: Node, *, deadline: Deadline) -> None:
    """Bring the job's guests up on the mother superior and leave the ready marker.

    A user's fault is left for the job's wrapper to report; a node's fault is
    raised, and with it the job is requeued, until it has happened too often.
    """
    record = node.state(job.key)
    try:
        _bring_up(job, node, record, deadline=deadline.reserve(node.site.undo_reserve))
    except VtorqueError as error:
        _undo(job, node, record, error, deadline=deadline)
    except OSError as error:
        trouble = StateError(f"{error.filename or 'a file of root'}: {error.strerror}")
        _undo(job, node, record, trouble, deadline=deadline)
    except Exception as error:
        log.exception("unforeseen")
        _undo(job, node, record, InternalError(f"internal error: {error!r}"), deadline=deadline)
    else:
        state.forget_attempts(Path(node.site.state_dir), job.key)


def epilogue(job: Job, node: Node, *, deadline: Deadline) -> None:
    """Give everything back, whatever happened before, and as often as it is called."""
    with contextlib.ExitStack() as steps:
        # Unwound from the last to the first; one that fails does not stop the others.
        if not job.will_be_retried:
            steps.callback(state.forget_attempts, Path(node.site.state_dir), job.key)
            side = steps.enter_context(_side_of(job, node))
            steps.callback(_remove_job_directory, job, side, deadline)
        steps.callback(_release_unrecorded, job, node, deadline)
        steps.callback(
            teardown.release, node.state(job.key), hypervisor=node.hypervisor, deadline=deadline
        )


def forgotten(node: Node) -> list[str]:
    """Keys of the jobs that are recorded here and that mom no longer knows."""
    return [key for key in state.jobs(Path(node.site.state_dir)) if not node.knows(key)]


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


def _bring_up(job: Job, node: Node, record: JobState, *, deadline: Deadline) -> None:
    account = topology.account(job.user, min_uid=node.site.min_uid)
    wanted = request.decode(job.request)
    # The user's side is forked before anything starts a thread.
    with _reporting(job, account, wanted, deadline) as report:
        sweep(node, deadline=deadline.within(_SWEEP_SECONDS))
        teardown.release(record, hypervisor=node.hypervisor, deadline=deadline)
        record.create()
        report("planned")
        decided = _decide(job, account, wanted, node)
        record.save_plan(json.dumps(asdict(decided), default=str, indent=1))
        started = boot.start(decided, node=node, state=record, deadline=deadline)
        report("started")
        guests = discover.guests(
            started, job=job, user=account.name, node=node, state=record, deadline=deadline
        )
        report("ready")
        with record.act(deadline=deadline):
            if not _is_wanted(job):
                raise GenerationClosed(f"job {job.id} was deleted while its guests were being started")
            record.publish(state.READY, run.ready_marker(decided, guests), group=account.group.gid)


def _decide(job: Job, account: Account, wanted: VmRequest, node: Node) -> JobPlan:
    image = images.find(Path(node.site.vm_img_dir), wanted.image)
    limits.check(wanted, node.site, [group.name for group in account.groups])
    images.require_trusted(image)
    images.inspect(image.path)
    return plan.make(
        job=job, account=account, request=wanted, image=image, site=node.site, shape=node.shape
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
    if error.blame is not Blame.USER:
        tries = _count_attempt(root, job, node.site.requeue_limit)
        if tries < node.site.requeue_limit:
            # Torque itself starts a requeued job again at once, 56 times in 15 s.
            deadline.pause(_FIRST_PAUSE_SECONDS**tries)
            raise error
    state.forget_attempts(root, job.key)
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
    directories = (Path(node.site.disk_dir) / job.key, Path(node.site.state_dir) / "seeds")
    teardown.release_unrecorded(
        job.key, hypervisor=node.hypervisor, directories=directories, deadline=deadline
    )


def _remove_job_directory(job: Job, side: UserSide | None, deadline: Deadline) -> None:
    if side is not None:
        elements = request.decode(job.request).elements
        side.remove(job.id, elements=elements, deadline=deadline.within(_USER_SIDE_SECONDS))


@contextlib.contextmanager
def _side_of(job: Job, node: Node) -> Iterator[UserSide | None]:
    """The user's side of a job that may no longer have a user: teardown must not depend on it."""
    try:
        account = topology.account(job.user, min_uid=node.site.min_uid)
        wanted = request.decode(job.request)
    except RequestError as error:
        log.info("the job directory is left alone: %s", error.brief)
        yield None
    else:
        with _user_side(account, wanted) as side:
            yield side


@contextlib.contextmanager
def _user_side(account: Account, wanted: VmRequest) -> Iterator[UserSide]:
    identity = Identity(
        uid=account.uid, gid=account.group.gid, groups=tuple(group.gid for group in account.groups)
    )
    with contextlib.closing(UserSide(identity, account.home, wanted.request_id)) as side:
        yield side


@contextlib.contextmanager
def _reporting(job: Job, account: Account, wanted: VmRequest, deadline: Deadline) -> Iterator[Report]:
    """Tell the user's side which phase begins; what it misses it misses."""
    name = submit.phases_name(job.key, wanted.elements)
    with _user_side(account, wanted) as side:
        def report(phase: str) -> None:
            line = json.dumps({"time": round(time.time(), 3), "phase": phase})
            side.append(name, line + "\n", deadline=deadline.within(_USER_SIDE_SECONDS))

        yield report
