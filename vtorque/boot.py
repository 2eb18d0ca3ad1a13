# SPDX-License-Identifier: Apache-2.0
"""Start this node's guests of a job. What is taken is in the ledger before it exists."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vtorque import files, guestnet, guestscripts, imageprobe, logs
from vtorque.backends.transport import KeyPair
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.imageprobe import Probed
from vtorque.kinds import DIRECTORY, DISK, DOMAIN, FILE, SHARE
from vtorque.model import GuestKeys, JobPlan, Order, Resource, VmPlan
from vtorque.node import Node
from vtorque.state import JobState

log = logging.getLogger(__name__)

Said = Callable[[], list[tuple[Path, str]]]
"""What servers of shares have said until now, by their sockets."""


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
    place = plan.vms[0].overlay.parent
    # Before it is in the ledger: what is there is removed by its name. Root makes sure of it, too.
    files.require_private(place)
    with state.taking(Resource(kind=DIRECTORY, name=str(place)), deadline=deadline):
        node.root.make_place(plan.request.fs_type, deadline=deadline)
    probe = node.transport.make_key()
    scripts = node.root.scripts() if node.site.vm_scripts_dir else {}

    def one(vm: VmPlan, domain_xml: str, host_key: str) -> Started:
        with logs.about(job=plan.job.id, guest=vm.name), logs.step("start"):
            _start(plan, vm, base, domain_xml, node=node, state=state, deadline=deadline)
        ends_cleanly = guestscripts.ends_cleanly(vm, guestscripts.of_rank(scripts, vm.rank))
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


@contextlib.contextmanager
def _made(path: Path, *, node: Node, state: JobState, deadline: Deadline) -> Iterator[int]:
    """A guest's file, to be written; QEMU's in the end."""
    with state.taking(Resource(kind=FILE, name=str(path)), deadline=deadline):
        handle = node.root.create(path, deadline=deadline)
        try:
            yield handle
        finally:
            os.close(handle)
        node.root.give(path, deadline=deadline)


def _write(
    plan: JobPlan, vm: VmPlan, host: KeyPair, probe: KeyPair, scripts: Mapping[str, str], *,
    node: Node, state: JobState, deadline: Deadline,
) -> str:
    """Have a guest's seed and its domain document written, by somebody who can do nothing else; the document."""
    order = Order(
        slot=vm.slot, announce=node.announce, scripts=tuple(guestscripts.of_rank(scripts, vm.rank).items()),
        keys=GuestKeys(host_private=host.private, host_public=host.public, probe_public=probe.public),
    )
    with (
        logs.about(job=plan.job.id, guest=vm.name),
        _made(vm.seed, node=node, state=state, deadline=deadline) as handle,
    ):
        return node.plans.write(plan, order, handle=handle, deadline=deadline)


def _start(
    plan: JobPlan, vm: VmPlan, base: Probed, domain_xml: str, *, node: Node, state: JobState, deadline: Deadline
) -> None:
    with _made(vm.overlay, node=node, state=state, deadline=deadline) as handle:
        imageprobe.make_overlay(base, handle, size_mib=plan.request.disk_size_mib)
    # Others make these, when the domain starts.
    for path in filter(None, (vm.console, vm.channel)):
        with state.taking(Resource(kind=FILE, name=str(path)), deadline=deadline):
            pass
    said = _serve(plan, vm, node=node, state=state, deadline=deadline)
    _serve_disk(plan, vm, node=node, state=state, deadline=deadline)
    with state.taking(Resource(kind=DOMAIN, name=vm.name), deadline=deadline):
        node.journal.note("defined", rank=vm.rank)
        base.require_same()
        try:
            node.hypervisor.create(domain_xml, deadline=deadline)
        except VtorqueError:
            for path, text in said():
                log.error("the server of %s said: %s", path, text)  # noqa: TRY400
            raise
    node.journal.note("started", rank=vm.rank)


def _serve(plan: JobPlan, vm: VmPlan, *, node: Node, state: JobState, deadline: Deadline) -> Said:
    """Start the servers of the guest's shares, when they are processes of their own; what each says is kept."""
    shares = tuple(zip(plan.mounts, vm.share_sockets, strict=False))
    for mount, path in shares:
        share_log = _share_log(vm, path)
        with state.taking(Resource(kind=FILE, name=str(share_log)), deadline=deadline):
            handle = node.root.create(share_log, deadline=deadline)
        try:
            with state.taking(Resource(kind=SHARE, name=str(path)), deadline=deadline):
                assert mount.directory is not None
                node.root.serve_share(
                    path, mount.directory, readonly=mount.readonly, log=handle, deadline=deadline
                )
        finally:
            os.close(handle)
    return lambda: [(path, node.root.console(_share_log(vm, path))) for _, path in shares]


def _serve_disk(plan: JobPlan, vm: VmPlan, *, node: Node, state: JobState, deadline: Deadline) -> None:
    """Start the server of the user's own disk, if the guest has it."""
    path = vm.disk_socket
    if path is None:
        return
    disk_log = _share_log(vm, path)
    with state.taking(Resource(kind=FILE, name=str(disk_log)), deadline=deadline):
        handle = node.root.create(disk_log, deadline=deadline)
    try:
        with state.taking(Resource(kind=DISK, name=str(path)), deadline=deadline):
            said = node.root.serve_disk(
                path, plan.request.disk, new_mib=plan.request.disk_new_mib,
                holder=f"job {plan.job.id} on node {vm.node}", deadline=deadline,
            )
        files.write_all(handle, said.encode())
    finally:
        os.close(handle)


def _share_log(vm: VmPlan, path: Path) -> Path:
    return vm.overlay.parent / f"{path.stem}.log"
