# SPDX-License-Identifier: Apache-2.0
"""Bring a job's guests up on this node: what a mother superior and a sister do alike."""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vtorque import (
    accounting,
    admission,
    boot,
    demand,
    imagecache,
    imageentry,
    imageprobe,
    limits,
    orders,
    published,
    request,
    topology,
)
from vtorque.accounting import Journal
from vtorque.boot import Started
from vtorque.deadline import Deadline, growing
from vtorque.demand import Demand
from vtorque.errors import Blame, GenerationClosed, NodeBusy
from vtorque.imageheader import Header
from vtorque.job import phases_name
from vtorque.model import Image, JobPlan, Peer, Question
from vtorque.node import Node
from vtorque.published import NodeFailed
from vtorque.state import JobState
from vtorque.userside import UserSide
from vtorque.wakeups import Changes

ABORTED = "aborted"
"""The file by which a mother superior tells her sisters that there will be no job."""

# Sisters publish over NFS, of which no kernel tells; looking more often would only ask the server more.
_LONGEST_PAUSE_SECONDS = 1.0
# What vtorque promised to other jobs is told when it is free again; not so what else may use the node.
_BUSY_PAUSE_SECONDS = 5.0


def reporter(wanted: Demand, side: UserSide, journal: Journal, deadline: Deadline) -> Callable[[str], None]:
    """Tells the user's side which phase begins, and what the guests did before; what it misses it misses."""
    name = phases_name(wanted.job.key, wanted.request.elements)
    told = 0

    def report(phase: str) -> None:
        nonlocal told
        new, told = journal.notes[told:], len(journal.notes)
        lines = [each for each in accounting.of_guests(new) if each["phase"] != phase]
        text = "".join(json.dumps(line) + "\n" for line in (*lines, journal.mark(phase)))
        side.append(name, text, deadline=demand.brief(deadline))

    return report


def start(wanted: Demand, node: Node, record: JobState, *, deadline: Deadline) -> tuple[JobPlan, tuple[Started, ...]]:
    """Plan this node's guests and start them. What is taken is in the ledger.

    A node that is busy is waited for where failing would drain it, as long as there
    is time for its guests to boot.
    """
    with contextlib.closing(Changes(admission.place(Path(node.site.state_dir)))) as promises:
        while True:
            try:
                return _start(wanted, node, record, deadline=deadline)
            except NodeBusy:
                if not node.failing_drains or deadline.reserve(node.site.timeout).expired:
                    raise
            deadline.pause(_BUSY_PAUSE_SECONDS, promises)


def _start(wanted: Demand, node: Node, record: JobState, *, deadline: Deadline) -> tuple[JobPlan, tuple[Started, ...]]:
    with _image(wanted, node, deadline) as image:
        node.journal.note("image")
        base = imageprobe.probe(image.path, deadline=deadline, trusted=True, look=node.root.inspect)
        decided = _decide(wanted, image, base.header, node, record, deadline)
        record.save_plan(orders.plain(decided))
        node.journal.note("planned", facts={
            "image": wanted.request.image, "guests": len(decided.vms), "vcpus": wanted.request.vcpus,
            "memory_mib": wanted.request.memory_mib,
        })
        return decided, boot.start(decided, base, node=node, state=record, deadline=deadline)


def gather(
    wanted: Demand, side: UserSide, record: JobState, *, deadline: Deadline, first: int = 1
) -> list[Peer]:
    """The guests of all sisters, or of all nodes from the `first` on, as soon as each has published hers.

    Raises NodeFailed that names the nodes whose guests did not come, or says of
    one why, or that it says nonsense; GenerationClosed when the start is over.
    """
    job = wanted.job
    missing = dict(enumerate(job.nodes[first:], first))
    found: list[Peer] = []
    pauses = growing(longest=_LONGEST_PAUSE_SECONDS)
    while True:
        for index in list(missing):
            text = side.read(published.name(job, index), limit=published.LIMIT, deadline=demand.brief(deadline))
            if text is not None:
                found += published.read(text, job=job.id, node_index=index, request=wanted.request)
                del missing[index]
        if not missing:
            return found
        if record.closed:
            raise GenerationClosed(f"job {job.id} was torn down while its sisters were waited for")
        if deadline.expired or not side.usable:
            why = "in time" if deadline.expired else f"that the home of {job.user} can tell of"
            raise NodeFailed(f"no guests from node {', '.join(missing.values())} {why}", Blame.NODE)
        deadline.pause(next(pauses))


@contextlib.contextmanager
def _image(wanted: Demand, node: Node, deadline: Deadline) -> Iterator[Image]:
    """The image, on this node if it has to be, where it stays until there are overlays on it."""
    image = imageentry.find(Path(node.site.vm_img_dir), wanted.request.image)
    limits.check(wanted.request, node.site, [group.name for group in wanted.account.groups])
    request.check_disk_size(wanted.request, most_mib=node.site.max_disk_size)
    imageentry.require_trusted(image)
    if node.site.vm_images_verified:
        image = image._replace(verified=imageentry.is_sealed(image.path.parent, image.sha256))
    with imagecache.local(
        image, fs_type=wanted.request.fs_type, site=node.site, deadline=deadline, root=node.root
    ) as local:
        yield local


def _decide(wanted: Demand, image: Image, header: Header, node: Node, record: JobState, deadline: Deadline) -> JobPlan:
    request.check_disk_size(wanted.request, most_mib=node.site.max_disk_size, image_bytes=header.size)
    ask = partial(Question, job=wanted.job, account=wanted.account, request=wanted.request, image=image)
    # Inside an act: whoever tears the job down comes after it and takes back what is promised here.
    with record.act(deadline=deadline):
        return admission.reserve(
            Path(node.site.state_dir), wanted.job.key, topology.for_job(node.shape, wanted.job.id),
            lambda shape: node.plans.plan(ask(shape=shape), deadline=deadline), deadline=deadline,
        )
