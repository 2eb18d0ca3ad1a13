# SPDX-License-Identifier: Apache-2.0
"""What a node has for guests, and what of it is promised: CPUs, memory, huge pages, and where they are."""

from dataclasses import dataclass

ANYWHERE = -1
"""The number of no NUMA node: wherever the kernel puts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HugePages:
    """The huge pages of one size (KiB) in a NUMA node: all there are, and those that are free now."""

    size_kib: int
    total: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """CPUs and memory that are close to one another. `memory_mib` includes that of the huge pages."""

    id: int
    cpus: tuple[int, ...]
    memory_mib: int
    socket: int = 0
    pages: tuple[HugePages, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of what a job holds: in a NUMA node, or in whichever the kernel chose when `node` is ANYWHERE.

    `cores` are counted and float, beside those that are held by number.
    `memory_mib` is without that of the huge pages.
    """

    node: int
    cores: int = 0
    memory_mib: int = 0
    pages: int = 0
    page_kib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What a node promised to a job: CPUs by their number, and shares. `memory_mib` is all of its memory."""

    key: str
    cpus: tuple[int, ...]
    memory_mib: int
    shares: tuple[Share, ...]

    @property
    def cores(self) -> int:
        """All cores that are promised, by number or floating."""
        return len(self.cpus) + sum(share.cores for share in self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """What this node has: CPU numbers that processes may use, and all its memory.

    `cores` are the hardware threads of each physical core and `numa` its NUMA
    nodes; both are empty when they are not known. A job with a cpuset of its own
    has that as `cpus`, and the node's other CPUs are `outside`. `held` is what
    other jobs were promised.
    """

    name: str
    cpus: tuple[int, ...]
    memory_mib: int
    cores: tuple[tuple[int, ...], ...] = ()
    numa: tuple[NumaNode, ...] = ()
    own_cpuset: bool = False
    outside: tuple[int, ...] = ()
    held: tuple[Reservation, ...] = ()
