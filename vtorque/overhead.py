# SPDX-License-Identifier: Apache-2.0
"""What QEMU needs beside the guest's own memory.

KubeVirt's formula, without its per-device terms: page tables of 1/512 of the
memory, 8 MiB a vCPU, a fixed part.
"""

_FIXED_MIB = 120
_PER_VCPU_MIB = 8
_PAGE_TABLE_PART = 512


def qemu_memory_mib(memory_mib: int, vcpus: int) -> int:
    """MiB that a guest of this size takes from its node, QEMU's own part included."""
    return memory_mib + memory_mib // _PAGE_TABLE_PART + _PER_VCPU_MIB * vcpus + _FIXED_MIB


def guest_memory_mib(node_mib: int, vcpus: int) -> int:
    """The largest guest of so many vCPUs that takes at most `node_mib` from its node; 0 when there is none."""
    rest = max(0, node_mib - _PER_VCPU_MIB * vcpus - _FIXED_MIB)
    return rest - -(-rest // (_PAGE_TABLE_PART + 1)) if rest else 0
