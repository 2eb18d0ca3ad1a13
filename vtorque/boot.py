# SPDX-License-Identifier: Apache-2.0
"""Start this node's guests of a job. What is taken is in the ledger before it exists."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vtorque import files, images, logs, render, seed
from vtorque.backends.transport import KeyPair
from vtorque.deadline import Deadline
from vtorque.model import JobPlan, Resource, VmPlan
from vtorque.node import Node
from vtorque.state import JobState
from vtorque.teardown import DIRECTORY, DOMAIN, FILE

log = logging.getLogger(__name__)

_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A guest that was started, and what it has to prove before it is believed.

    `probe` is root's own key for this start; it exists in this process only.
    """

    vm: VmPlan
    host_key: str
    probe: KeyPair


def start(plan: JobPlan, *, node: Node, state: JobState, deadline: Deadline) -> tuple[Started, ...]:
    """Define and start all guests of the plan, several at once.

    Raises HypervisorError and others of blame NODE; then the ledger tells what
    was begun.
    """
    _directory(Path(node.site.disk_dir) / plan.job.key, state, deadline)
    files.directory(Path(node.site.state_dir, "seeds"), mode=0o711)
    probe = node.transport.make_key()

    def one(vm: VmPlan) -> Started:
        with logs.about(job=plan.job.id, guest=vm.name), logs.step("start"):
            return _start(plan, vm, probe, node=node, state=state, deadline=deadline)

    if len(plan.vms) == 1 or not node.site.parallel:
        return tuple(map(one, plan.vms))
    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="start") as pool:
        return tuple(pool.map(one, plan.vms))


def _directory(path: Path, state: JobState, deadline: Deadline) -> None:
    # QEMU has to reach its overlay by its name.
    with state.taking(Resource(kind=DIRECTORY, name=str(path)), deadline=deadline):
        files.directory(path, mode=0o711)


def _start(
    plan: JobPlan, vm: VmPlan, probe: KeyPair, *, node: Node, state: JobState, deadline: Deadline
) -> Started:
    host = node.transport.make_key()
    keys = render.GuestKeys(host_private=host.private, host_public=host.public, probe_public=probe.public)
    rendered = render.guest(
        plan, vm, site=node.site, keys=keys, announce=node.announce, templates=node.templates
    )
    uid, gid = node.qemu_ids
    with state.taking(Resource(kind=FILE, name=str(vm.overlay)), deadline=deadline):
        images.make_overlay(plan.image, vm.overlay, deadline=deadline)
        files.give(vm.overlay, uid=uid, gid=gid)
    with state.taking(Resource(kind=FILE, name=str(vm.seed)), deadline=deadline):
        contents = {
            "user-data": rendered.user_data,
            "meta-data": rendered.meta_data,
            "network-config": rendered.network_config,
        }
        files.write_new(vm.seed, seed.iso(contents), mode=0o600)
        files.give(vm.seed, uid=uid, gid=gid)
    with state.taking(Resource(kind=FILE, name=str(vm.console)), deadline=deadline):
        pass
    # Define, then start: a guest whose start was cut short can then be found by its
    # name, while one that was merely being created appears when nobody looks any more.
    with state.taking(Resource(kind=DOMAIN, name=vm.name), deadline=deadline):
        node.hypervisor.define(rendered.domain_xml, deadline=deadline)
    with state.act(deadline=deadline):
        node.hypervisor.start(vm.name, deadline=deadline)
    return Started(vm=vm, host_key=host.public, probe=probe)
