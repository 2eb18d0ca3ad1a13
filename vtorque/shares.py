# SPDX-License-Identifier: Apache-2.0
"""Guests' shares: which a job gets, and how a domain document says so. Pure."""

import functools
import re
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from vtorque.config import SiteConfig
from vtorque.errors import RequestError
from vtorque.model import Account, Image, JobPlan, Mount, VmPlan, VmRequest

_WORKSPACE, _OPT = PurePosixPath("/workspace"), PurePosixPath("/opt")
# The directory of the share that is each user's own.
_HOME = "~"
_NFS_PORT = 2049
_PORT = re.compile(r"(?:^|,)port=([0-9]{1,5})(?:,|$)", re.ASCII)
_USER_MARKS = ("[username]", "__USER_NAME__", "%u")
# What is a program with somebody else's rights on the host is none in the guest. Without cache=mmap
# nothing can be mapped for writing.
_SHARE_OPTIONS = {
    "virtiofs": ("nosuid", "nodev", "noatime"),
    "9p": ("nosuid", "nodev", "noatime", "trans=virtio", "version=9p2000.L", "msize=262144", "cache=mmap"),
}


def mounts(account: Account, request: VmRequest, image: Image, site: SiteConfig) -> tuple[Mount, ...]:
    """The user's home at its own path, and the shares at the paths of the manual."""
    if site.share != "nfs":
        if request.distro == "osv":
            raise RequestError(f"OSv guests mount NFS only, and this site has SHARE: {site.share}")
        return _host_mounts(account, site)
    wanted = (
        (_home(site.vm_nfs_home, account.name), account.home, site.vm_nfs_home_options or site.vm_nfs_options),
        (site.vm_nfs_ws, _WORKSPACE, site.vm_nfs_ws_options or site.vm_nfs_options),
        (site.vm_nfs_opt, _OPT, site.vm_nfs_opt_options),
    )
    exports = tuple(
        Mount(source=source, target=Path(target), fstype="nfs4", options=options)
        for source, target, options in wanted
        if source
    )
    doubt = "" if image.trusted and image.verified else "verified" if image.trusted else "trusted"
    if doubt and (bare := [each for each in exports if not _has_tickets(each.options)]):
        ways = "SHARE: virtiofs, or mount options with sec=krb5p"
        raise RequestError(
            f"image {image.name} is not {doubt}, and its root could be everybody on {bare[0].source}",
            hint=ways if doubt == "trusted" else f"vmgr image verify {image.name}; {ways}",
        )
    return exports


def server_of(share: str, options: str) -> tuple[str, int]:
    """Server and port of `server:/export`, with its mount options."""
    port = _PORT.search(options)
    return share.partition(":/")[0].strip("[]"), int(port[1]) if port else _NFS_PORT


def sockets(name: str, site: SiteConfig) -> tuple[Path, ...]:
    """Where the servers of the shares of guest `name` listen, when the host runs some."""
    if site.share != "virtiofs":
        return ()
    return tuple(Path(site.state_dir) / "seeds" / f"{name}.{tag}.sock" for tag in _served(site))


def paths(plan: JobPlan, vm: VmPlan) -> set[Path]:
    """What QEMU opens for the guest's shares: a server's socket, or the directory itself."""
    if vm.share_sockets:
        return set(vm.share_sockets)
    return {mount.directory for mount in plan.mounts if mount.directory}


def planned(plan: JobPlan, vm: VmPlan) -> dict[str, Any]:
    """The plan in the words of `found`."""
    shares: list[tuple[Any, ...]] = []
    for number, mount in enumerate(plan.mounts):
        if vm.share_sockets:
            shares.append((None, "virtiofs", str(vm.share_sockets[number]), mount.source, False))
        elif mount.directory:
            shares.append(("squash", None, str(mount.directory), mount.source, mount.readonly))
    return {
        "filesystems": shares,
        "memory access": ["shared"] if vm.share_sockets else [],
        # Without relabelling and with these numbers, libvirt starts QEMU as the user, with all his groups.
        "labels": [("dac", "no", f"+{plan.runs_as[0]}:+{plan.runs_as[1]}")] if plan.runs_as else None,
    }


def found(root: Element, plan: JobPlan) -> dict[str, Any]:
    """What a document says of it; labels only where the plan has one."""
    return {
        "filesystems": [_filesystem(each) for each in root.iter("filesystem")],
        "memory access": [each.get("mode") for each in root.findall("memoryBacking/access")],
        "labels": [
            (each.get("model"), each.get("relabel"), each.findtext("label")) for each in root.iter("seclabel")
        ] if plan.runs_as else None,
    }


def _filesystem(share: Element) -> tuple[Any, ...]:
    driver, source, target = (share.find(name) for name in ("driver", "source", "target"))
    at = {} if source is None else source.attrib
    return (
        share.get("accessmode"), None if driver is None else driver.get("type"), at.get("socket", at.get("dir")),
        None if target is None else target.get("dir"), share.find("readonly") is not None,
    )


def _home(export: str, user: str) -> str:
    """The export of the user's home: he is appended, unless the export says where his name belongs."""
    if not export:
        return ""
    named = functools.reduce(lambda text, mark: text.replace(mark, user), _USER_MARKS, export)
    return named if named != export else f"{export.rstrip('/')}/{user}"


def _has_tickets(options: str) -> bool:
    """Whether NFS asks for Kerberos rather than believe the guest who it is; the last word counts."""
    said = [word for word in options.split(",") if word.startswith("sec=")]
    return bool(said) and all(flavour.startswith("krb5") for flavour in said[-1][4:].split(":"))


def _served(site: SiteConfig) -> dict[str, tuple[str, bool]]:
    """What the host serves besides NFS: the tag of each share, its directory, and whether only to be read."""
    wanted = {
        "home": (_HOME, False),
        "workspace": (site.vm_share_ws, site.vm_share_ws_readonly),
        "opt": (site.vm_share_opt, site.vm_share_opt_readonly),
    }
    return {tag: share for tag, share in wanted.items() if share[0]}


def _host_mounts(account: Account, site: SiteConfig) -> tuple[Mount, ...]:
    targets = {"home": account.home, "workspace": _WORKSPACE, "opt": _OPT}
    return tuple(
        Mount(
            source=tag, target=Path(targets[tag]), fstype=site.share,
            options=",".join(("ro" if readonly else "rw", *_SHARE_OPTIONS[site.share])),
            directory=account.home if directory == _HOME else Path(directory), readonly=readonly,
        )
        for tag, (directory, readonly) in _served(site).items()
    )
