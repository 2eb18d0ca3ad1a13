# SPDX-License-Identifier: Apache-2.0
"""What this node has."""

import fcntl
import os
import re
import socket
import struct
from dataclasses import replace
from pathlib import Path

from vtorque import units
from vtorque.job import JobId
from vtorque.shape import HugePages, NodeShape, NumaNode

# netdevice(7).
_SIOCGIFADDR = 0x8915
# Where Torque keeps a job's CPUs: with its cpusets, and with its cgroups.
_CPUSETS = (
    "dev/cpuset/torque/{job}/cpus", "dev/cpuset/torque/{job}/cpuset.cpus",
    "sys/fs/cgroup/cpuset/torque/{job}/cpuset.cpus",
)


def node_shape(system: Path = Path("/sys/devices/system")) -> NodeShape:
    """CPUs that this process may run on, their cores and NUMA nodes, and the node's whole memory, in MiB.

    Where the kernel does not say, in a container perhaps, cores and NUMA nodes stay unknown.
    """
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    return NodeShape(
        name=socket.gethostname(),
        cpus=cpus,
        memory_mib=_memory_mib(Path("/proc/meminfo")),
        cores=_cores(system, cpus),
        numa=_numa(system, cpus),
    )


def for_job(shape: NodeShape, job: JobId, root: Path = Path("/")) -> NodeShape:
    """The node as one job may use it: only its cpuset, where Torque has made one for it."""
    for path in _CPUSETS:
        try:
            own = set(units.cpu_list((root / path.format(job=job)).read_text())) & set(shape.cpus)
        except (OSError, ValueError):
            continue
        if own:
            outside = tuple(cpu for cpu in shape.cpus if cpu not in own)
            return replace(shape, cpus=tuple(sorted(own)), own_cpuset=True, outside=outside)
    return shape


def _cores(system: Path, cpus: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The hardware threads of each core, as far as they may be used."""
    groups = set()
    for cpu in cpus:
        threads = _cpu_list(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") or (cpu,)
        groups.add(tuple(each for each in threads if each in cpus))
    return tuple(sorted(groups))


def _numa(system: Path, cpus: tuple[int, ...]) -> tuple[NumaNode, ...]:
    nodes = []
    for path in system.glob("node/node[0-9]*"):
        own = tuple(cpu for cpu in _cpu_list(path / "cpulist") if cpu in cpus)
        nodes.append(NumaNode(
            id=int(path.name.removeprefix("node")),
            cpus=own,
            memory_mib=_memory_mib(path / "meminfo"),
            socket=_number(system / f"cpu/cpu{own[0]}/topology/physical_package_id") if own else 0,
            pages=_huge_pages(path / "hugepages"),
        ))
    return tuple(sorted(nodes, key=lambda node: node.id))


def _memory_mib(meminfo: Path) -> int:
    """MemTotal of the node, or of a NUMA node: `Node 0 MemTotal:  16384 kB`."""
    found = re.search(r"MemTotal:\s+([0-9]+) kB", _text(meminfo), re.ASCII)
    return int(found[1]) >> 10 if found else 0


def _huge_pages(directory: Path) -> tuple[HugePages, ...]:
    sizes = sorted(int(path.name[len("hugepages-"):-len("kB")]) for path in directory.glob("hugepages-*kB"))
    return tuple(
        HugePages(size_kib=size, total=total, free=_number(directory / f"hugepages-{size}kB/free_hugepages"))
        for size in sizes
        if (total := _number(directory / f"hugepages-{size}kB/nr_hugepages"))
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    """A number that the kernel tells; 0 when it does not, and for its -1 of what it does not know."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else 0


def _cpu_list(path: Path) -> tuple[int, ...]:
    try:
        return units.cpu_list(_text(path))
    except ValueError:
        return ()


def address_on(interface: str) -> str:
    """The node's first IPv4 address on an interface, or nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", os.fsencode(interface)[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
