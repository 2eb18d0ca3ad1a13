# SPDX-License-Identifier: Apache-2.0
"""What a guest, and all that is its own on a node, is called. Pure: whoever asks, on any node, comes to the same."""

import hashlib
import uuid
from pathlib import Path
from typing import Any

from vtorque import announcement, datadisk, names, shares
from vtorque.config import SiteConfig
from vtorque.model import Job, VmRequest

_NAMESPACE = uuid.UUID("6f1d0f5e-4b0a-5d0c-9a37-76746f727175")
_MAC_BYTES = 6
# With its three letters as long as a name may be: the kernel's IFNAMSIZ is 16, with the final NUL.
_TAP_DIGITS = 12


def given(job: Job, request: VmRequest, site: SiteConfig, *, slot: int, node: str) -> dict[str, Any]:
    """Those fields of a guest's VmPlan in which nothing is decided: job, request and site make them."""
    rank = job.node_index * request.vms_per_node + slot
    # The manual's name: it counts on the node, since a sister does not know how many there are in all.
    name = f"{job.key}_{slot + 1}of{request.vms_per_node}"
    disks = names.places(site)[request.fs_type] / job.key
    return {
        "rank": rank,
        "slot": slot,
        "node_index": job.node_index,
        "node": node,
        "name": name,
        "uuid": guest_uuid(job.id, rank),
        "mac": guest_mac(site.mac_prefix, job.id, rank),
        "tap": _tap(job.id, rank),
        "hostname": guest_hostname(node, slot),
        "vcpus": request.vcpus,
        "memory_mib": request.memory_mib,
        "overlay": disks / f"{name}.qcow2",
        "seed": names.seeds(site) / f"{name}.iso",
        "console": disks / f"{name}.console",
        "share_sockets": shares.sockets(name, site),
        "disk_socket": datadisk.socket(request, name, rank, site),
        "channel": _channel(name, site),
    }


def guest_uuid(job_id: str, rank: int) -> uuid.UUID:
    """The UUID that the guest of this rank carries in its firmware tables."""
    return uuid.uuid5(_NAMESPACE, f"{job_id}/{rank}")


def guest_hostname(node: str, slot: int) -> str:
    """`v<host>-<n>` with n from 1, the manual's name of a guest."""
    return f"v{node.partition('.')[0]}-{slot + 1}"


def guest_mac(prefix: str, job_id: str, rank: int) -> str:
    """The site's prefix, filled up from a digest of job and rank.

    Both are partly the user's choice, who may search for a job that has a certain address: of 24 bits in seconds.
    """
    octets = bytes.fromhex(prefix.replace(":", ""))
    digest = hashlib.sha256(f"{job_id}/{rank}".encode()).digest()
    return (octets + digest)[:_MAC_BYTES].hex(":")


def _channel(name: str, site: SiteConfig) -> Path | None:
    path = names.seeds(site) / f"{name}.channel"
    return path if announcement.fits(path) else None


def _tap(job_id: str, rank: int) -> str:
    """A name that libvirt leaves alone, as it does not begin like its own (virNetDevGenerateName)."""
    return f"vtg{hashlib.sha256(f'tap/{job_id}/{rank}'.encode()).hexdigest()[:_TAP_DIGITS]}"
