# SPDX-License-Identifier: Apache-2.0
"""Which CPUs, NUMA nodes and huge pages of a node a job's guests get. Pure, and the same for the same arguments.

A guest gets one NUMA node when one has room, the fullest that has; else it
spans several and sees them as cells of its own. Where not even that adds up,
as between the guests of other jobs, its memory comes from anywhere. Whether
there is enough in all is not decided here but in `plan`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vtorque import units
from vtorque.config import SiteConfig
from vtorque.model import GuestCell, NodeShape, VmRequest
from vtorque.overhead import qemu_memory_mib
from vtorque.reservation import pages_of as pages_of
from vtorque.reservation import shares_of
from vtorque.rooms import Room, Rooms, by_core
from vtorque.rooms import pool_mib as pool_mib
from vtorque.shape import ANYWHERE, Share

_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one guest is put; the fields are those of VmPlan."""

    cpus: tuple[int, ...] = ()
    floating: tuple[tuple[int, ...], ...] = ()
    numa_nodes: tuple[int, ...] = ()
    cells: tuple[GuestCell, ...] = ()
    page_kib: int = 0
    sockets: int = 1
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """What one guest needs: vCPUs, its memory, QEMU's own, in MiB, and the size of huge page, in KiB."""

    vcpus: int
    memory_mib: int
    own_mib: int
    page_kib: int
    pinned: bool


def host_cpus(shape: NodeShape, count: int) -> tuple[int, ...]:
    """The `count` CPUs that the host keeps, the first, and both threads of a core before another core's.

    A job with a cpuset of its own leaves the host those outside of it.
    """
    pool = shape.outside if shape.own_cpuset else shape.cpus
    return tuple(cpu for core in by_core(shape, pool) for cpu in core)[:count]


def usable(shape: NodeShape, site: SiteConfig) -> tuple[int, ...]:
    """The CPUs that guests may have, whoever holds them now."""
    kept = set(host_cpus(shape, site.host_os_core_count))
    return tuple(cpu for cpu in shape.cpus if cpu not in kept)


def free_cores(shape: NodeShape, site: SiteConfig) -> int:
    """How many of them nobody was promised. Where each job has its own cpuset, others' numbers do not count."""
    named = {cpu for held in shape.held for cpu in held.cpus}
    floating = sum(share.cores for held in shape.held for share in held.shares)
    return len(set(usable(shape, site)) - named) - (0 if shape.own_cpuset else floating)


def page_size(request: VmRequest, shape: NodeShape) -> int:
    """The largest size of huge page (KiB) that divides a guest's memory and of which there are enough now,
    else in all; the smallest where there never are, and 0 on a node without any."""
    sizes = sorted({pages.size_kib for node in shape.numa for pages in node.pages if pages.total}, reverse=True)
    fitting = [size for size in sizes if request.memory_mib * _KIB % size == 0]
    for there in (free_pages, all_pages):
        for size in fitting:
            if there(shape, size) >= request.vms_per_node * pages_of(request.memory_mib, size):
                return size
    return sizes[-1] if sizes else 0


def free_pages(shape: NodeShape, size_kib: int) -> int:
    """Huge pages of a size that nobody uses and nobody was promised."""
    return Rooms(shape, (), memory_mib=0).all_pages(size_kib)


def all_pages(shape: NodeShape, size_kib: int) -> int:
    """Huge pages of a size that the node has."""
    return sum(pages.total for node in shape.numa for pages in node.pages if pages.size_kib == size_kib)


def place(request: VmRequest, site: SiteConfig, shape: NodeShape) -> tuple[tuple[Place, ...], tuple[int, ...]]:
    """The places of all guests, no two on one CPU, and IOcm's CPUs. There has to be enough in all."""
    memory = shape.memory_mib - site.host_os_ram_mb - sum(map(pool_mib, shape.numa))
    rooms = Rooms(shape, usable(shape, site), memory_mib=memory)
    page = page_size(request, shape) if site.hugepages else 0
    own = qemu_memory_mib(request.memory_mib, request.vcpus) - request.memory_mib
    size = _Size(
        vcpus=request.vcpus, memory_mib=request.memory_mib, own_mib=own, page_kib=page,
        pinned=request.pinning == "true",
    )
    mapped = [] if not request.pinning[0].isdecimal() else list(map(units.cpu_sequence, request.pinning.split(";")))
    for cpu in (cpu for cpus in mapped for cpu in cpus):
        rooms.of(cpu).remove(cpu)
    places: list[Place] = []
    for slot in range(request.vms_per_node):
        if mapped:
            made = _where_mapped(mapped[slot], size, rooms)
        elif request.pinning == "false":
            made = Place(page_kib=page)
        else:
            made = _where_free(size, rooms)
        for share in _shares(made, size):
            rooms.hold(share, cores=share.cores)
        places.append(made)
    iocm = rooms.take(request.iocm_max_cores) if request.iocm else ()
    if request.pinning == "auto":
        places = [replace(made, floating=_floating(made, size, rooms)) for made in places]
    return tuple(_with_topology(made, size, shape) for made in places), tuple(sorted(iocm))


def _shares(made: Place, size: _Size) -> list[Share]:
    return shares_of(
        vcpus=size.vcpus, memory_mib=size.memory_mib, own_mib=size.own_mib, page_kib=made.page_kib,
        pinned=bool(made.cpus), numa_nodes=made.numa_nodes, cells=made.cells,
    )


def _where_free(size: _Size, rooms: Rooms) -> Place:
    """The NUMA node that has just room enough, or several, or wherever there is any."""
    fitting = [
        room for room in rooms.nodes
        if room.spare >= size.vcpus and _most(room, size, rooms) >= size.memory_mib
    ]
    if fitting:
        room = min(fitting, key=lambda room: (room.spare, room.id))
        cpus = room.take(size.vcpus) if size.pinned else ()
        return Place(cpus=cpus, numa_nodes=_known(room), page_kib=size.page_kib)
    parts = _span(size, rooms)
    if not parts:
        return Place(cpus=rooms.take(size.vcpus) if size.pinned else (), page_kib=size.page_kib)
    cpus = tuple(cpu for room, vcpus, _ in parts for cpu in (room.take(vcpus) if size.pinned else ()))
    cells: list[GuestCell] = []
    first = 0
    for room, vcpus, memory in parts:
        cells.append(GuestCell(vcpus=tuple(range(first, first + vcpus)), memory_mib=memory, node=room.id))
        first += vcpus
    return _over(cpus, cells, size)


def _where_mapped(cpus: tuple[int, ...], size: _Size, rooms: Rooms) -> Place:
    """The NUMA nodes of the CPUs that a user chose."""
    parts: dict[int, list[int]] = {}
    for vcpu, cpu in enumerate(cpus):
        parts.setdefault(rooms.nodes.index(rooms.of(cpu)), []).append(vcpu)
    used = {rooms.nodes[index].id: (rooms.nodes[index], vcpus) for index, vcpus in sorted(parts.items())}
    memory = _split_memory([room for room, _ in used.values()], [len(vcpus) for _, vcpus in used.values()], size, rooms)
    if not memory or ANYWHERE in used:
        return Place(cpus=cpus, page_kib=size.page_kib)
    cells = [
        GuestCell(vcpus=tuple(vcpus), memory_mib=mib, node=node)
        for mib, (node, (_, vcpus)) in zip(memory, used.items(), strict=True)
    ]
    return _over(cpus, cells, size)


def _over(cpus: tuple[int, ...], cells: Sequence[GuestCell], size: _Size) -> Place:
    nodes = tuple(cell.node for cell in cells)
    return Place(cpus=cpus, numa_nodes=nodes, cells=tuple(cells) if len(cells) > 1 else (), page_kib=size.page_kib)


def _known(room: Room) -> tuple[int, ...]:
    return () if room.id == ANYWHERE else (room.id,)


def _most(room: Room, size: _Size, rooms: Rooms) -> int:
    return rooms.most_memory(room, own_mib=size.own_mib, page_kib=size.page_kib)


def _span(size: _Size, rooms: Rooms) -> list[tuple[Room, int, int]]:
    """Nodes beside one another with the guest's vCPUs and MiB on each: the fewest, on the fewest sockets."""
    known = [room for room in rooms.nodes if room.id != ANYWHERE and room.spare]
    for number in range(2, min(len(known), size.vcpus) + 1):
        found = []
        for start in range(len(known) - number + 1):
            some = known[start:start + number]
            vcpus = _split_vcpus(some, size.vcpus)
            memory = _split_memory(some, vcpus, size, rooms) if vcpus else []
            if memory:
                rank = (len({room.socket for room in some}), sum(room.spare for room in some), start)
                found.append((rank, list(zip(some, vcpus, memory, strict=True))))
        if found:
            return min(found, key=lambda each: each[0])[1]
    return []


def _split_vcpus(rooms: Sequence[Room], vcpus: int) -> list[int]:
    """As evenly as there is room, by whole cores; at least one on each, and nothing when they do not fit."""
    if sum(room.spare for room in rooms) < vcpus:
        return []
    threads = max((len(core.cpus) for room in rooms for core in (*room.cores, *room.used)), default=1)
    given: Mapping[int, int] = {}
    left = vcpus
    for done, index in enumerate(sorted(range(len(rooms)), key=lambda index: rooms[index].spare)):
        others = len(rooms) - done - 1
        even = -(-left // (others + 1) // threads) * threads
        given = {**given, index: min(even, rooms[index].spare, left - others)}
        left -= given[index]
    return [given[index] for index in range(len(rooms))]


def _split_memory(rooms: Sequence[Room], vcpus: Sequence[int], size: _Size, all_rooms: Rooms) -> list[int]:
    """MiB on each node, as its vCPUs are and by whole huge pages; nothing when they do not fit."""
    step = size.page_kib // _KIB or 1
    if size.memory_mib % step:
        step = 1
    most = [max(0, _most(room, size, all_rooms)) // step * step for room in rooms]
    given = [
        min(limit, size.memory_mib * number // size.vcpus // step * step)
        for limit, number in zip(most, vcpus, strict=True)
    ]
    for index, limit in enumerate(most):
        given[index] += min(limit - given[index], size.memory_mib - sum(given))
    return given if sum(given) == size.memory_mib and all(given) else []


def _floating(made: Place, size: _Size, rooms: Rooms) -> tuple[tuple[int, ...], ...]:
    """For each vCPU the free CPUs of the NUMA node that it belongs to."""
    free = {room.id: room.free for room in rooms.nodes}
    if made.cells:
        return tuple(free[cell.node] for cell in made.cells for _ in cell.vcpus)
    everywhere = tuple(sorted(cpu for cpus in free.values() for cpu in cpus))
    return (free[made.numa_nodes[0]] if made.numa_nodes else everywhere,) * size.vcpus


def _with_topology(made: Place, size: _Size, shape: NodeShape) -> Place:
    """Threads and sockets as the guest may see them: only where they are the host's."""
    threads = len(next((core for core in shape.cores if made.cpus and made.cpus[0] in core), (0,)))
    cores = [set(made.cpus[at:at + threads]) for at in range(0, len(made.cpus), threads)]
    if not made.cpus or any(core not in map(set, shape.cores) for core in cores):
        threads = 1
    number = len(made.cells) or 1
    each = size.vcpus // number
    even = all(cell.vcpus == tuple(range(at * each, (at + 1) * each)) for at, cell in enumerate(made.cells))
    sockets = number if even and each * number == size.vcpus else 1
    return replace(made, threads=threads, sockets=sockets)
