# SPDX-License-Identifier: Apache-2.0
"""From what a user asked for to what this node will do. All policy is here; nothing is touched."""

import hashlib
import uuid
from pathlib import Path, PurePosixPath

from vtorque import units
from vtorque.config import SiteConfig
from vtorque.errors import RequestError
from vtorque.model import Account, Image, Job, JobPlan, Mount, NodeShape, VmPlan, VmRequest
from vtorque.overhead import qemu_memory_mib

_NAMESPACE = uuid.UUID("6f1d0f5e-4b0a-5d0c-9a37-76746f727175")
_MAC_BYTES = 6


def make(
    *,
    job: Job,
    account: Account,
    request: VmRequest,
    image: Image,
    site: SiteConfig,
    shape: NodeShape,
) -> JobPlan:
    """Decide everything about the job's guests on this node.

    The same arguments give the same plan on every node and after every
    restart. Raises RequestError with the numbers when the node cannot do it.
    """
    _check(job, request, image, site, shape)
    node_name = job.nodes[job.node_index]
    total = request.vms_per_node * len(job.nodes)
    cpus = shape.cpus[site.host_os_core_count:]
    vms = tuple(
        _vm(job, request, site, slot=slot, total=total, node_name=node_name, cpus=cpus)
        for slot in range(request.vms_per_node)
    )
    hostnames = (
        guest_hostname(node, slot) for node in job.nodes for slot in range(request.vms_per_node)
    )
    return JobPlan(
        job=job,
        account=account,
        request=request,
        image=image,
        mounts=_mounts(account, site),
        vms=vms,
        node_file=tuple(name for name in hostnames for _ in range(request.vcpus)),
    )


def guest_uuid(job_id: str, rank: int) -> uuid.UUID:
    """The UUID that the guest of this rank carries in its firmware tables."""
    return uuid.uuid5(_NAMESPACE, f"{job_id}/{rank}")


def guest_hostname(node: str, slot: int) -> str:
    """`v<host>-<n>` with n from 1, the manual's name of a guest."""
    return f"v{node.partition('.')[0]}-{slot + 1}"


def _check(job: Job, request: VmRequest, image: Image, site: SiteConfig, shape: NodeShape) -> None:
    if len(job.nodes) != 1:
        raise RequestError(
            f"guests on {len(job.nodes)} nodes are not supported yet", hint="ask for -l nodes=1"
        )
    if request.arch != image.arch:
        raise RequestError(f"image {image.name} is for {image.arch}, not {request.arch}")
    if request.disk:
        raise RequestError("-vm disk=: not supported by this version")
    _check_mapping(request, site, shape)
    number = request.vms_per_node
    cores = max(0, len(shape.cpus) - site.host_os_core_count)
    if number * request.vcpus > cores:
        raise RequestError(
            f"{_guests(number)} of {request.vcpus} vCPUs need {number * request.vcpus} cores; "
            f"node {shape.name} offers {cores}",
            hint="lower -vm vcpus= or -vm vms_per_node=",
        )
    needed = number * qemu_memory_mib(request.memory_mib, request.vcpus)
    offered = max(0, shape.memory_mib - site.host_os_ram_mb)
    if needed > offered:
        raise RequestError(
            f"{_guests(number)} of {request.memory_mib} MiB need {needed} MiB with QEMU's own part; "
            f"node {shape.name} offers {offered} MiB",
            hint="lower -vm ram= or -vm vms_per_node=",
        )


def _check_mapping(request: VmRequest, site: SiteConfig, shape: NodeShape) -> None:
    """A user maps vCPUs to CPUs that his job may use, and that the host does not keep."""
    if not request.pinning[0].isdecimal():
        return
    usable = shape.cpus[site.host_os_core_count:]
    mapped = {cpu for text in request.pinning.split(";") for cpu in units.cpu_sequence(text)}
    if outside := sorted(mapped - set(usable)):
        raise RequestError(
            f"-vm vcpu_pinning=: node {shape.name} offers the CPUs {units.cpu_list_text(usable)}, "
            f"not {units.cpu_list_text(outside)}"
        )


def _guests(number: int) -> str:
    return "1 guest" if number == 1 else f"{number} guests"


def _vm(
    job: Job,
    request: VmRequest,
    site: SiteConfig,
    *,
    slot: int,
    total: int,
    node_name: str,
    cpus: tuple[int, ...],
) -> VmPlan:
    rank = job.node_index * request.vms_per_node + slot
    name = f"{job.key}_{rank + 1}of{total}"
    disks = Path(site.disk_dir) / job.key
    return VmPlan(
        rank=rank,
        slot=slot,
        node_index=job.node_index,
        name=name,
        uuid=guest_uuid(job.id, rank),
        mac=_mac(site.mac_prefix, job, rank),
        hostname=guest_hostname(node_name, slot),
        vcpus=request.vcpus,
        memory_mib=request.memory_mib,
        cpus=_cpus(request, slot, cpus),
        overlay=disks / f"{name}.qcow2",
        seed=Path(site.state_dir) / "seeds" / f"{name}.iso",
        console=disks / f"{name}.console",
    )


def _cpus(request: VmRequest, slot: int, cpus: tuple[int, ...]) -> tuple[int, ...]:
    """The host CPU of each vCPU: in order, as the user maps them, or wherever the kernel puts them."""
    if request.pinning == "false":
        return ()
    if request.pinning in ("true", "auto"):
        return cpus[slot * request.vcpus:(slot + 1) * request.vcpus]
    return units.cpu_sequence(request.pinning.split(";")[slot])


def _mac(prefix: str, job: Job, rank: int) -> str:
    """The site's prefix, filled up from a digest of job and rank."""
    octets = bytes.fromhex(prefix.replace(":", ""))
    digest = hashlib.sha256(f"{job.id}/{rank}".encode()).digest()
    return (octets + digest)[:_MAC_BYTES].hex(":")


def _mounts(account: Account, site: SiteConfig) -> tuple[Mount, ...]:
    """The user's home at its own path, and the shares at the paths of the manual."""
    home = f"{site.vm_nfs_home.rstrip('/')}/{account.name}" if site.vm_nfs_home else ""
    wanted = (
        (home, account.home, site.vm_nfs_options),
        (site.vm_nfs_ws, PurePosixPath("/workspace"), site.vm_nfs_options),
        (site.vm_nfs_opt, PurePosixPath("/opt"), site.vm_nfs_opt_options),
    )
    return tuple(
        Mount(source=source, target=Path(target), fstype="nfs4", options=options)
        for source, target, options in wanted
        if source
    )
