# SPDX-License-Identifier: Apache-2.0
"""What is left of each NUMA node of a node, while a job's guests are placed one after the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vtorque.model import NodeShape
from vtorque.shape import ANYWHERE, NumaNode, Share

_KIB = 1024


@dataclass(slots=True, kw_only=True)
class Core:
    """A physical core: all its threads, those that are free, and whether the host keeps another of them."""

    cpus: tuple[int, ...]
    free: list[int]
    with_host: bool


@dataclass(slots=True, kw_only=True)
class Room:
    """One NUMA node, or the CPUs of none. Guests that float hold a number of its CPUs, `floating`."""

    id: int
    socket: int
    cores: list[Core]
    memory_mib: int
    pages: dict[int, int] = field(default_factory=dict)
    floating: int = 0
    used: list[Core] = field(default_factory=list)
    unpromised: int = 0

    def __post_init__(self) -> None:
        # In the order in which they are given away, so that finding the next costs nothing.
        self.cores.sort(key=lambda core: (core.with_host, core.cpus))
        self.unpromised = sum(len(core.free) for core in self.cores)

    @property
    def free(self) -> tuple[int, ...]:
        """CPUs that nobody was promised by number."""
        return tuple(sorted(cpu for core in self.cores for cpu in core.free))

    @property
    def spare(self) -> int:
        """How many CPUs may still be promised."""
        return max(0, self.unpromised - self.floating)

    def take(self, number: int) -> tuple[int, ...]:
        """So many free CPUs, core by core. What is less than a core comes from one that is broken
        already, and from one that the host is on only when nothing else is left."""
        taken: list[int] = []
        while len(taken) < number:
            left = number - len(taken)
            place = self._next(left)
            core = self.cores[place]
            taken += core.free[:left]
            del core.free[:left]
            if not core.free:
                self.used.append(self.cores.pop(place))
        self.unpromised -= len(taken)
        return tuple(taken)

    def _next(self, left: int) -> int:
        """The place of the core to take from: a whole one that is not too large, else a broken one."""
        broken: int | None = None
        for place, core in enumerate(self.cores):
            if len(core.free) == len(core.cpus):
                if len(core.cpus) <= left:
                    return place
            elif broken is None:
                broken = place
        if broken is None or self.cores[broken].with_host > self.cores[0].with_host:
            return 0
        return broken

    def remove(self, cpu: int) -> None:
        """Take this very CPU."""
        for place, core in enumerate(self.cores):
            if cpu in core.free:
                core.free.remove(cpu)
                self.unpromised -= 1
                if not core.free:
                    self.used.append(self.cores.pop(place))
                return


class Rooms:
    """All NUMA nodes, those of a socket beside one another."""

    def __init__(self, shape: NodeShape, usable: Sequence[int], *, memory_mib: int) -> None:
        """`usable` are CPUs for guests; `memory_mib` is divided as the memory that is not in huge pages."""
        named = {cpu for held in shape.held for cpu in held.cpus}
        plain = {node.id: node.memory_mib - pool_mib(node) for node in shape.numa}
        whole = max(1, sum(plain.values()))
        self.nodes = [
            Room(
                id=node.id, socket=node.socket, cores=_cores(shape, set(usable) & set(node.cpus), named),
                memory_mib=memory_mib * plain[node.id] // whole,
                pages={pages.size_kib: pages.total for pages in node.pages},
            )
            for node in sorted(shape.numa, key=lambda node: (node.socket, node.id))
        ]
        others = set(usable) - {cpu for node in shape.numa for cpu in node.cpus}
        if others:
            cores = _cores(shape, others, named)
            self.nodes.append(Room(id=ANYWHERE, socket=ANYWHERE, cores=cores, memory_mib=memory_mib))
        self._loose: dict[int, int] = {}
        for held in shape.held:
            for share in held.shares:
                self.hold(share, cores=0 if shape.own_cpuset else share.cores)
        free = {(node.id, pages.size_kib): pages.free for node in shape.numa for pages in node.pages}
        for room in self.nodes:
            room.pages = {size: max(0, min(number, free[room.id, size])) for size, number in room.pages.items()}

    def hold(self, share: Share, *, cores: int) -> None:
        """Take a share off its node. Memory from anywhere is taken off every node: it may be in any."""
        for room in self.nodes:
            if share.node in (room.id, ANYWHERE):
                room.memory_mib -= share.memory_mib
            if share.node == room.id:
                room.floating += cores
                if share.page_kib in room.pages:
                    room.pages[share.page_kib] -= share.pages
        if share.node == ANYWHERE and share.pages:
            self._loose[share.page_kib] = self._loose.get(share.page_kib, 0) + share.pages

    def all_pages(self, size_kib: int) -> int:
        """Huge pages of this size that are left in all nodes together."""
        return max(0, sum(room.pages.get(size_kib, 0) for room in self.nodes) - self._loose.get(size_kib, 0))

    def most_memory(self, room: Room, *, own_mib: int, page_kib: int) -> int:
        """MiB that a guest may have of this node, in huge pages if it has such, beside QEMU's own memory."""
        if not page_kib:
            return room.memory_mib - own_mib
        if room.memory_mib < own_mib:
            return 0
        return (room.pages.get(page_kib, 0) - self._loose.get(page_kib, 0)) * page_kib // _KIB

    def of(self, cpu: int) -> Room:
        """Where a CPU is."""
        return next(room for room in self.nodes if any(cpu in core.cpus for core in (*room.cores, *room.used)))

    def take(self, number: int) -> tuple[int, ...]:
        """So many free CPUs, wherever they are: the emptiest node first, and its floating guests' last."""
        taken: tuple[int, ...] = ()
        for room in sorted(self.nodes, key=lambda room: -room.spare):
            taken += room.take(min(number - len(taken), room.spare))
        for room in self.nodes:
            taken += room.take(min(number - len(taken), len(room.free)))
        return taken


def pool_mib(node: NumaNode) -> int:
    """Memory of a NUMA node that is set aside for huge pages, MiB."""
    return sum(pages.total * pages.size_kib // _KIB for pages in node.pages)


def by_core(shape: NodeShape, cpus: Iterable[int]) -> list[tuple[int, ...]]:
    """These CPUs core by core, in the order of the first of each."""
    left = set(cpus)
    known = [tuple(cpu for cpu in core if cpu in left) for core in shape.cores]
    alone = left - {cpu for core in known for cpu in core}
    return sorted([*filter(None, known), *((cpu,) for cpu in alone)])


def _cores(shape: NodeShape, cpus: set[int], named: set[int]) -> list[Core]:
    usable = set(cpus)
    return [
        Core(
            cpus=core, free=[cpu for cpu in core if cpu in usable and cpu not in named],
            with_host=not usable.issuperset(core),
        )
        for core in by_core(shape, {*shape.cpus, *shape.outside}) if usable.intersection(core)
    ]
