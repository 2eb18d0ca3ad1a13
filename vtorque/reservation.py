# SPDX-License-Identifier: Apache-2.0
"""What a plan takes of a node: of its cores, its memory, its huge pages. Pure."""

from collections.abc import Sequence

from vtorque.model import GuestCell, JobPlan
from vtorque.overhead import qemu_memory_mib
from vtorque.shape import ANYWHERE, Reservation, Share

_KIB = 1024


def of(decided: JobPlan) -> Reservation:
    """What the node promises with this plan."""
    shares: list[Share] = []
    memory = 0
    for vm in decided.vms:
        own = qemu_memory_mib(vm.memory_mib, vm.vcpus) - vm.memory_mib
        shares += shares_of(
            vcpus=vm.vcpus, memory_mib=vm.memory_mib, own_mib=own, page_kib=vm.page_kib, pinned=bool(vm.cpus),
            numa_nodes=vm.numa_nodes, cells=vm.cells,
        )
        memory += own + (0 if vm.page_kib else vm.memory_mib)
    cpus = (*(cpu for vm in decided.vms for cpu in vm.cpus), *decided.iocm_cpus)
    return Reservation(key=decided.job.key, cpus=tuple(sorted(cpus)), memory_mib=memory, shares=tuple(shares))


def shares_of(
    *, vcpus: int, memory_mib: int, own_mib: int, page_kib: int, pinned: bool,
    numa_nodes: Sequence[int], cells: Sequence[GuestCell],
) -> list[Share]:
    """What a placed guest takes of each NUMA node; QEMU's own memory may be in any of its nodes.

    Sizes are those of the fields of VmPlan; `pinned` vCPUs have CPUs of their own.
    """
    node = numa_nodes[0] if numa_nodes else ANYWHERE
    parts = [(cell.node, len(cell.vcpus), cell.memory_mib) for cell in cells]
    return [
        Share(
            node=node, cores=0 if pinned else vcpus, page_kib=page_kib,
            memory_mib=own_mib + (0 if page_kib else memory), pages=pages_of(memory, page_kib),
        )
        for node, vcpus, memory in parts or [(node, vcpus, memory_mib)]
    ]


def pages_of(memory_mib: int, size_kib: int) -> int:
    """Huge pages that so much memory takes."""
    return -(-memory_mib * _KIB // size_kib) if size_kib else 0
