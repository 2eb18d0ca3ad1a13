# SPDX-License-Identifier: Apache-2.0
"""Start this node's guests of a job. What is taken is in the ledger before it exists."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vtorque import diskserving, files, guestnet, imageprobe, logs, serving, sitescripts
from vtorque.backends.transport import KeyPair
from vtorque.deadline import Deadline
from vtorque.diskserving import DISK
from vtorque.errors import VtorqueError
from vtorque.imageprobe import Probed
from vtorque.model import GuestKeys, JobPlan, Order, Resource, VmPlan
from vtorque.node import Node
from vtorque.serving import SHARE
from vtorque.state import JobState
from vtorque.teardown import DIRECTORY, DOMAIN, FILE

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A guest that was started, and what it has to prove before it is believed.

    `probe` is root's own key for this start; it exists in this process only.
    With `ends_cleanly` it has something to write or to run at its end.
    """

    vm: VmPlan
    host_key: str
    probe: KeyPair
    ends_cleanly: bool = False


def start(plan: JobPlan, base: Probed, *, node: Node, state: JobState, deadline: Deadline) -> tuple[Started, ...]:
    """Start all guests of the plan on its image, as it was probed, several at once.

    Raises ImageError when that has changed since, HypervisorError and others of blame NODE; then the ledger tells what
    was begun.
    """
    guestnet.fence(plan, node=node, state=state, deadline=deadline)
    _directory(plan.vms[0].overlay.parent, state, deadline)
    files.directory(Path(node.site.state_dir, "seeds"), mode=0o711)
    probe = node.transport.make_key()
    scripts = sitescripts.read(node.site.vm_scripts_dir)

    def one(vm: VmPlan, domain_xml: str, host_key: str) -> Started:
        with logs.about(job=plan.job.id, guest=vm.name), logs.step("start"):
            _start(plan, vm, base, domain_xml, node=node, state=state, deadline=deadline)
        ends_cleanly = sitescripts.ends_cleanly(vm, sitescripts.of_rank(scripts, vm.rank))
        return Started(vm=vm, host_key=host_key, probe=probe, ends_cleanly=ends_cleanly)

    hosts = [node.transport.make_key() for _ in plan.vms]
    # One after the other: all are written by one process, and what is wrong with a template starts no guest.
    documents = [
        _write(plan, vm, host, probe, scripts, node=node, state=state, deadline=deadline)
        for vm, host in zip(plan.vms, hosts, strict=True)
    ]
    told = (plan.vms, documents, [host.public for host in hosts])
    if len(plan.vms) == 1 or not node.site.parallel:
        return tuple(map(one, *told))
    with ThreadPoolExecutor(max_workers=node.site.parallel_guests, thread_name_prefix="start") as pool:
        return tuple(pool.map(one, *told))


def _directory(path: Path, state: JobState, deadline: Deadline) -> None:
    # Before it is in the ledger: what is there is removed by its name.
    files.require_private(path)
    # QEMU has to reach its overlay by its name.
    with state.taking(Resource(kind=DIRECTORY, name=str(path)), deadline=deadline):
        files.directory(path, mode=0o711)


def _write(
    plan: JobPlan, vm: VmPlan, host: KeyPair, probe: KeyPair, scripts: Mapping[str, str], *,
    node: Node, state: JobState, deadline: Deadline,
) -> str:
    """Have a guest's seed and its domain document written, by somebody who can do nothing else; the document."""
    uid, gid = plan.runs_as or node.qemu_ids
    order = Order(
        slot=vm.slot, announce=node.announce, scripts=tuple(sitescripts.of_rank(scripts, vm.rank).items()),
        keys=GuestKeys(host_private=host.private, host_public=host.public, probe_public=probe.public),
    )
    taken = Resource(kind=FILE, name=str(vm.seed))
    with logs.about(job=plan.job.id, guest=vm.name), state.taking(taken, deadline=deadline):
        with files.created(vm.seed, mode=0o600) as handle:
            domain_xml = node.plans.write(plan, order, handle=handle, deadline=deadline)
        files.give(vm.seed, uid=uid, gid=gid)
    return domain_xml


def _start(
    plan: JobPlan, vm: VmPlan, base: Probed, domain_xml: str, *, node: Node, state: JobState, deadline: Deadline
) -> None:
    uid, gid = plan.runs_as or node.qemu_ids
    with state.taking(Resource(kind=FILE, name=str(vm.overlay)), deadline=deadline):
        imageprobe.make_overlay(base, vm.overlay, size_mib=plan.request.disk_size_mib)
        files.give(vm.overlay, uid=uid, gid=gid)
    # Others make these, when the domain starts.
    for path in filter(None, (vm.console, vm.channel)):
        with state.taking(Resource(kind=FILE, name=str(path)), deadline=deadline):
            pass
    _serve(plan, vm, owner=(uid, gid), state=state, deadline=deadline)
    _serve_disk(plan, vm, owner=(uid, gid), state=state, deadline=deadline)
    with state.taking(Resource(kind=DOMAIN, name=vm.name), deadline=deadline):
        node.journal.note("defined", rank=vm.rank)
        base.require_same()
        try:
            node.hypervisor.create(domain_xml, deadline=deadline)
        except VtorqueError:
            for path in vm.share_sockets:
                log.error("the server of %s said: %s", path, serving.said(_share_log(vm, path)))  # noqa: TRY400
            raise
    node.journal.note("started", rank=vm.rank)


def _serve(plan: JobPlan, vm: VmPlan, *, owner: tuple[int, int], state: JobState, deadline: Deadline) -> None:
    """Start the servers of the guest's shares, when they are processes of their own."""
    for mount, path in zip(plan.mounts, vm.share_sockets, strict=False):
        share_log = _share_log(vm, path)
        with state.taking(Resource(kind=FILE, name=str(share_log)), deadline=deadline):
            pass
        with state.taking(Resource(kind=SHARE, name=str(path)), deadline=deadline):
            serving.start(mount, path, account=plan.account, owner=owner, log=share_log, deadline=deadline)


def _serve_disk(plan: JobPlan, vm: VmPlan, *, owner: tuple[int, int], state: JobState, deadline: Deadline) -> None:
    """Start the server of the user's own disk, if the guest has it."""
    path = vm.disk_socket
    if path is None:
        return
    disk_log = _share_log(vm, path)
    with state.taking(Resource(kind=FILE, name=str(disk_log)), deadline=deadline):
        pass
    with state.taking(Resource(kind=DISK, name=str(path)), deadline=deadline):
        diskserving.start(
            plan.request, path, account=plan.account, owner=owner, holder=f"job {plan.job.id} on node {vm.node}",
            log=disk_log, deadline=deadline,
        )


def _share_log(vm: VmPlan, path: Path) -> Path:
    return vm.overlay.parent / f"{path.stem}.log"
