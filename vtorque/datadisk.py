# SPDX-License-Identifier: Apache-2.0
"""The user's own disk in rank 0's guest: where its server listens, and how a domain document says so. Pure."""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from vtorque.config import SiteConfig
from vtorque.model import JobPlan, VmPlan, VmRequest

SERIAL = "vtorque-data"
"""How the guest knows the disk among its own."""

TARGET = "/data"
"""Where the guest mounts it."""


def socket(request: VmRequest, name: str, rank: int, site: SiteConfig) -> Path | None:
    """Where the disk of the guest `name` is served: that of rank 0 has one, if the user has."""
    if rank != 0 or not request.disk:
        return None
    return Path(site.state_dir) / "seeds" / f"{name}.data.sock"


def words(plan: JobPlan, vm: VmPlan) -> list[str]:
    """What guest-setup is told of it."""
    if vm.disk_socket is None:
        return []
    return ["disk", SERIAL, TARGET, "format" if plan.request.disk_new_mib else "keep", plan.request.disk]


def planned(vm: VmPlan) -> dict[str, Any]:
    """The plan in the words of `found`."""
    if vm.disk_socket is None:
        return {"served disks": []}
    source = {"protocol": "nbd"}
    host = {"transport": "unix", "socket": str(vm.disk_socket)}
    return {"served disks": [("network", "raw", source, [host], SERIAL, False, False)]}


def found(root: Element) -> dict[str, Any]:
    """What a document says of every disk that is not a file."""
    return {"served disks": [_disk(each) for each in root.iter("disk") if each.get("type") != "file"]}


def _disk(disk: Element) -> tuple[Any, ...]:
    driver, source = disk.find("driver"), disk.find("source")
    return (
        disk.get("type"), None if driver is None else driver.get("type"),
        None if source is None else dict(source.attrib), [dict(host.attrib) for host in disk.iter("host")],
        disk.findtext("serial"), disk.find("readonly") is not None, disk.find("backingStore") is not None,
    )
