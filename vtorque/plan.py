# SPDX-License-Identifier: Apache-2.0
"""From what a user asked for to what this node will do. All policy is here; nothing is touched."""

from vtorque import guestnames, numa, shares, units
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError, NodeBusy, RequestError
from vtorque.model import Account, Image, Job, JobPlan, NodeShape, VmPlan, VmRequest
from vtorque.overhead import qemu_memory_mib


def make(
    *, job: Job, account: Account, request: VmRequest, image: Image, site: SiteConfig, shape: NodeShape
) -> JobPlan:
    """Decide everything about the job's guests on this node.

    The same arguments give the same plan on every node and after every
    restart. Raises RequestError with the numbers when the node can never do it,
    and NodeBusy when only what other jobs hold of it, `shape.held`, is in the way.
    """
    _check(job, request, image, site, shape)
    node_name = job.nodes[job.node_index] if job.nodes else shape.name
    places, iocm_cpus = numa.place(request, site, shape)
    host = numa.host_cpus(shape, site.host_os_core_count)
    vms = tuple(
        _vm(job, request, site, slot=slot, node_name=node_name, place=place, host=host)
        for slot, place in enumerate(places)
    )
    return JobPlan(
        job=job,
        account=account,
        request=request,
        image=image,
        mounts=shares.mounts(account, request, image, site),
        vms=vms,
        iocm_cpus=iocm_cpus,
    )


def _check(job: Job, request: VmRequest, image: Image, site: SiteConfig, shape: NodeShape) -> None:
    if request.arch != image.arch:
        raise RequestError(f"image {image.name} is for {image.arch}, not {request.arch}")
    if request.disk and request.distro == "osv":
        raise RequestError("-vm disk=: OSv guests have no place for it")
    _check_mapping(request, site, shape)
    _check_cores(request, site, shape)
    _check_memory(request, site, shape)
    if site.hugepages:
        _check_pages(request, site, shape)
    # Only now, as what can never be is not busy.
    _check_free(request, site, shape)


def _check_cores(request: VmRequest, site: SiteConfig, shape: NodeShape) -> None:
    needed, offered = _cores(request), len(numa.usable(shape, site))
    if needed > offered:
        what = f"{_guests(request)} of {request.vcpus} vCPUs{' and IOcm' if request.iocm else ''}"
        raise RequestError(
            f"{what} need {needed} cores; node {shape.name} offers {offered}",
            hint="lower -vm vcpus= or -vm vms_per_node=",
        )


def _check_memory(request: VmRequest, site: SiteConfig, shape: NodeShape) -> None:
    needed = request.vms_per_node * qemu_memory_mib(request.memory_mib, request.vcpus)
    whole = max(0, shape.memory_mib - site.host_os_ram_mb)
    offered = whole if site.hugepages else _plain_mib(site, shape)
    if needed > offered:
        raise RequestError(
            f"{_guests(request)} of {request.memory_mib} MiB need {needed} MiB with QEMU's own part; "
            f"node {shape.name} offers {offered} MiB",
            hint="lower -vm ram= or -vm vms_per_node=",
        )


def _check_pages(request: VmRequest, site: SiteConfig, shape: NodeShape) -> None:
    """A node without any is the administrator's fault; to want more than there are is the user's."""
    size = numa.page_size(request, shape)
    if not size:
        raise ConfigError(f"HUGEPAGES: node {shape.name} has none", hint="vm.nr_hugepages, or HUGEPAGES: false")
    there, needed = numa.all_pages(shape, size), request.vms_per_node * numa.pages_of(request.memory_mib, size)
    own, offered = _memory(request, site), _plain_mib(site, shape)
    if needed > there or own > offered:
        raise RequestError(
            f"{_guests(request)} of {request.memory_mib} MiB need {needed} huge pages of {size} KiB "
            f"and {own} MiB beside them; node {shape.name} has {there} and {offered} MiB",
            hint="lower -vm ram= or -vm vms_per_node=",
        )


def _check_free(request: VmRequest, site: SiteConfig, shape: NodeShape) -> None:
    """What the node has in all has to be free as well; NodeBusy says who holds it."""
    cores, free = _cores(request), numa.free_cores(shape, site)
    if cores > free:
        raise _busy(shape, f"{_guests(request)} need {cores} cores, {max(0, free)} are free")
    memory, free = _memory(request, site), _plain_mib(site, shape) - sum(held.memory_mib for held in shape.held)
    if memory > free:
        raise _busy(shape, f"{_guests(request)} need {memory} MiB, {max(0, free)} are free")
    size = numa.page_size(request, shape) if site.hugepages else 0
    pages, free = request.vms_per_node * numa.pages_of(request.memory_mib, size), numa.free_pages(shape, size)
    if pages > free:
        raise _busy(shape, f"{_guests(request)} need {pages} huge pages of {size} KiB, {free} are free")
    if request.pinning[0].isdecimal():
        held = {cpu for each in shape.held for cpu in each.cpus}
        if taken := held.intersection(units.cpu_sequence(request.pinning.replace(";", ","))):
            raise _busy(shape, f"-vm vcpu_pinning= names the CPUs {units.cpu_list_text(taken)} of them")


def _cores(request: VmRequest) -> int:
    """Those of the guests, and IOcm's."""
    return request.vms_per_node * request.vcpus + (request.iocm_max_cores if request.iocm else 0)


def _memory(request: VmRequest, site: SiteConfig) -> int:
    """MiB that the guests take beside huge pages."""
    each = qemu_memory_mib(request.memory_mib, request.vcpus)
    return request.vms_per_node * (each - request.memory_mib if site.hugepages else each)


def _plain_mib(site: SiteConfig, shape: NodeShape) -> int:
    """Memory for guests that is not in huge pages: what is set aside for those serves nothing else."""
    return max(0, shape.memory_mib - site.host_os_ram_mb - sum(map(numa.pool_mib, shape.numa)))


def _busy(shape: NodeShape, why: str) -> NodeBusy:
    if not shape.held:
        return NodeBusy(f"not now: something else uses node {shape.name}; {why}")
    jobs = ", ".join(held.key for held in shape.held)
    cores = sum(held.cores for held in shape.held)
    memory = sum(held.memory_mib + sum(s.pages * s.page_kib >> 10 for s in held.shares) for held in shape.held)
    who = f"job {jobs} holds" if len(shape.held) == 1 else f"jobs {jobs} hold"
    return NodeBusy(f"not now: {who} {cores} cores and {memory} MiB of node {shape.name}; {why}")


def _check_mapping(request: VmRequest, site: SiteConfig, shape: NodeShape) -> None:
    """A user maps vCPUs to CPUs that his job may use, and that the host does not keep."""
    if not request.pinning[0].isdecimal():
        return
    usable = numa.usable(shape, site)
    mapped = {cpu for text in request.pinning.split(";") for cpu in units.cpu_sequence(text)}
    if outside := sorted(mapped - set(usable)):
        raise RequestError(
            f"-vm vcpu_pinning=: node {shape.name} offers the CPUs {units.cpu_list_text(usable)}, "
            f"not {units.cpu_list_text(outside)}"
        )


def _guests(request: VmRequest) -> str:
    return "1 guest" if request.vms_per_node == 1 else f"{request.vms_per_node} guests"


def _vm(
    job: Job, request: VmRequest, site: SiteConfig, *,
    slot: int, node_name: str, place: numa.Place, host: tuple[int, ...],
) -> VmPlan:
    pinned = request.pinning != "false"
    return VmPlan(
        **guestnames.given(job, request, site, slot=slot, node=node_name),
        cpus=place.cpus,
        floating=place.floating,
        numa_nodes=place.numa_nodes,
        cells=place.cells,
        emulator_cpus=host if pinned else (),
        iothread=pinned and bool(host) and request.vcpus > 1,
        page_kib=place.page_kib,
        sockets=place.sockets,
        threads=place.threads,
    )
