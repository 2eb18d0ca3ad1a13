# SPDX-License-Identifier: Apache-2.0
"""A node's guests between its hooks: proven and published, watched, and torn down when nobody else does.

A process of its own, in a session of its own: on a sister mom does nothing else
while a hook runs, and forgets some jobs without running an epilogue
(mom_comm.c:2761-2775, 3960-3984).
"""

import contextlib
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

from vtorque import demand, discover, guardpost, logs, metrics, published, service, teardown, wakeups
from vtorque.boot import Started
from vtorque.bringup import ABORTED
from vtorque.deadline import Deadline, growing
from vtorque.demand import Demand
from vtorque.errors import GenerationClosed, VtorqueError, known
from vtorque.model import JobPlan, Peer
from vtorque.node import Node
from vtorque.state import JobState
from vtorque.userside import UserSide
from vtorque.wakeups import Changes

log = logging.getLogger(__name__)

# While the job is being started a mother superior may give up, which is told through the user's home:
# an NFS client sees a new file after seconds, however often it looks (nfs(5), acdirmin).
_STARTING_PAUSE_SECONDS = 1.0
# All by which a running job may end is told by its guests' processes and by this node's own
# directories. So late it is noticed where one of them cannot be watched.
_RUNNING_PAUSE_SECONDS = 30.0
_CALL_SECONDS = 30.0
# How often a guest is listened to before it counts as lost.
_LOOKS = 4
_TEARDOWN_SECONDS = 120.0
# A job that mom has just let go of may be between two of her files.
_FORGOTTEN_SECONDS = 5.0
_FORGOTTEN = "mom has forgotten the job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a guard is told: her node's part of the job.

    `generation` is the one she guards: a job that is requeued may be back before she looks again.
    `started` are guests that she has to prove and publish first, none where a
    prologue has done so. Mom must know the job `start_seconds` from now. `peers`
    are the guests for a mother superior's guard to listen to: all but rank 0, to
    which the job's wrapper is connected.
    """

    demand: Demand
    plan: JobPlan
    generation: str
    started: tuple[Started, ...]
    start_seconds: float
    peers: tuple[Peer, ...] = ()


def watch(orders: Orders, node: Node) -> None:
    """Stay as long as the generation is open; end it when the batch system has forgotten the job."""
    record = node.state(orders.demand.job.key)
    record.bound = orders.generation
    node.journal.resume(orders.demand.job, record.path)
    try:
        with demand.user_side(orders.demand, node) as side:
            if orders.started and not _publish(orders, node, record, side):
                reason = "its guests do not come"
            else:
                reason = _until_over(orders, node, record, side)
        if reason:
            log.warning("%s: tearing job %s down", reason, orders.demand.job.id)
            if reason == _FORGOTTEN:
                node.journal.note("swept")
            _tear_down(orders, record, node)
    finally:
        guardpost.leave(Path(node.site.state_dir), record.key)


def _publish(orders: Orders, node: Node, record: JobState, side: UserSide) -> bool:
    """Prove the guests and tell the mother superior; or why not."""
    job = orders.demand.job
    deadline = Deadline(orders.start_seconds)
    try:
        guests = discover.guests(
            orders.started, job=job, account=orders.demand.account, node=node, state=record,
            deadline=deadline,
        )
    except GenerationClosed:
        # There is no job any more, or another start of it, which is not to hear of this one.
        return False
    except (VtorqueError, OSError) as trouble:
        error = known(trouble)
        log.exception("%s", error.one_line(), extra={"details": error.details})
        node.journal.failed(error)
        text = published.failure_text(node.shape.name, error.one_line(), error.blame)
        side.replace(published.name(job), text, deadline=Deadline(_CALL_SECONDS))
        service.failed(node.site, job, error, ran=True, make=node.root.make_standing)
        return False
    service.succeeded(node.site)
    text = published.guests_text(guests)
    is_told = side.replace(published.name(job), text, deadline=Deadline(_CALL_SECONDS))
    node.journal.note("ready")
    metrics.publish(node)
    return is_told


def _until_over(orders: Orders, node: Node, record: JobState, side: UserSide) -> str:
    """Wait for the generation's end; why it has to be ended here, or nothing."""
    key = orders.demand.job.key
    expected_by = time.monotonic() + orders.start_seconds
    known = lost = False
    forgotten_at = math.inf
    silence = _Silence(orders, node)
    pauses = growing(longest=_STARTING_PAUSE_SECONDS)
    with (
        node.hypervisor.changes() as ends,
        contextlib.closing(Changes(record.path, onto=node.watch())) as changes,
    ):
        while not record.closed:
            now = time.monotonic()
            if node.knows(key):
                pauses = pauses if known else growing(longest=_RUNNING_PAUSE_SECONDS)
                known, forgotten_at = True, math.inf
            elif known or now > expected_by:
                forgotten_at = min(forgotten_at, now + _FORGOTTEN_SECONDS)
                if now >= forgotten_at:
                    return _FORGOTTEN
            if not known and side.read(ABORTED, limit=1, deadline=Deadline(_CALL_SECONDS)) is not None:
                return "its mother superior has given up"
            if not lost and (_report_lost(orders, node, record, side) or silence.report(side)):
                lost = True
                node.journal.note("lost")
            due = min(forgotten_at, math.inf if lost else silence.due) - time.monotonic()
            wakeups.wait(max(0.0, min(due, next(pauses))), ends, changes)
    return ""


class _Silence:
    """Guests that do not answer any more: a node that is gone says nothing itself."""

    def __init__(self, orders: Orders, node: Node) -> None:
        self.due = time.monotonic() if orders.peers else math.inf
        self._heard = dict.fromkeys(orders.peers, self.due)
        self._vms_per_node = orders.plan.request.vms_per_node
        self._node = node

    def report(self, side: UserSide) -> bool:
        """Tell the job's wrapper when a guest has been silent for too long, once."""
        now = time.monotonic()
        if now < self.due:
            return False
        limit = self._node.site.guest_timeout
        self.due = now + limit / _LOOKS
        addresses = [peer.address for peer in self._heard]
        answering = self._node.transport.answering(addresses, seconds=limit / _LOOKS / 2)
        for peer, heard in self._heard.items():
            if peer.address in answering:
                self._heard[peer] = now
            elif now - heard >= limit:
                text = f"lost guest {peer.hostname} of rank {peer.rank} on node {peer.node}: no answer for {limit} s"
                log.error("%s", text)
                name = published.lost_name(peer.rank // self._vms_per_node)
                return side.replace(name, text, deadline=Deadline(_CALL_SECONDS))
        return False


def _report_lost(orders: Orders, node: Node, record: JobState, side: UserSide) -> bool:
    """Tell the job's wrapper when a guest is gone, once."""
    for vm in orders.plan.vms:
        try:
            if node.hypervisor.is_running(vm.name, deadline=Deadline(_CALL_SECONDS)):
                continue
        except VtorqueError as error:
            # libvirtd may be restarted under running guests, or hang.
            log.warning("cannot look at guest %s: %s", vm.name, error.one_line())
            return False
        if record.closed:
            # In an epilogue guests stop as well.
            return False
        text = f"lost guest {vm.hostname} of rank {vm.rank} on node {vm.node}: it has stopped"
        log.error("%s", text)
        side.replace(published.lost_name(vm.node_index), text, deadline=Deadline(_CALL_SECONDS))
        return True
    return False


def _tear_down(orders: Orders, record: JobState, node: Node) -> None:
    if record.replaced:
        return
    node.journal.note("ended")
    with contextlib.suppress(VtorqueError, OSError), logs.step("tear down"):
        teardown.release(record, node, deadline=Deadline(_TEARDOWN_SECONDS))
        node.journal.note("torn-down")
