# SPDX-License-Identifier: Apache-2.0
"""Whether what the configuration names is there: programs, directories, scripts and huge pages."""

import contextlib
import grp
import importlib.util
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from vtorque import accounts, files, images, serving, sitescripts
from vtorque.config import SiteConfig
from vtorque.diskserver import QEMU_NBD
from vtorque.doctor_checks import Finding, error, existing, ok, warning
from vtorque.errors import ConfigError, ImageError
from vtorque.model import NodeShape

KEYGEN, QEMU_IMG = Path("/usr/bin/ssh-keygen"), Path("/usr/bin/qemu-img")
_PACKAGES = {KEYGEN: "openssh-client", QEMU_IMG: "qemu-utils", QEMU_NBD: "qemu-utils"}
_GIB = 1 << 30
_SCARCE = 10 * _GIB
_SBATCH = "/usr/bin/sbatch"
# Who is in one of these is root in all but name, or opens what guests are kept in.
_MIGHTY = ("root", "disk", "kmem", "shadow", "sudo", "wheel", "docker", "lxd", "kvm", "libvirt", "libvirt-qemu")


def qemu_user(site: SiteConfig) -> Iterator[Finding]:
    """QEMU_USER is a user of this node."""
    try:
        uid, gid = accounts.user_ids(site.qemu_user)
    except ConfigError as trouble:
        yield error("qemu-user", trouble.brief, "set QEMU_USER, or apt-get install libvirt-daemon-system")
    else:
        yield ok("qemu-user", f"{site.qemu_user} has uid {uid} and gid {gid}")


def account(site: SiteConfig, prefix: Path) -> Iterator[Finding]:
    """The account that the program runs as is one of its own, and in no group that gives back what it has not."""
    name = accounts.PROGRAM
    try:
        uid, gid = accounts.program()
    except ConfigError as trouble:
        # Without a hint there is one, which is root.
        hint = f"{prefix}/contrib/make-account" if trouble.hint else f"usermod -u N {name}"
        yield error("account", trouble.brief, hint)
        return
    bad = [*_sharers(site, name, uid), *_groups(site, name, gid)]
    if not bad and uid >= site.min_uid:
        text = f"{name} has uid {uid}, as people have who submit jobs: MIN_UID is {site.min_uid}"
        bad.append(warning("account", text, f"usermod -u N {name}, if it is nobody's login"))
    yield from bad or [ok("account", f"{name} has uid {uid} and gid {gid}")]


def compiled(package: Path = Path(__file__).parent) -> Iterator[Finding]:
    """Whoever calls the program finds it compiled: else each vsub takes several times as long, which nobody notices."""
    modules = list(package.rglob("*.py"))
    bad = [path for path in modules if not _is_compiled(path)]
    if bad:
        text = f"{len(bad)} of {len(modules)} modules below {package} are not compiled for everybody"
        yield warning("compiled", text, f"(umask 022; python3 -m compileall -qf {package})")
    else:
        yield ok("compiled", f"all {len(modules)} modules below {package} are")


def _is_compiled(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        about = Path(importlib.util.cache_from_source(str(path))).stat()
        return bool(about.st_mode & 0o004) and about.st_mtime >= path.stat().st_mtime
    return False


def commands(*needed: Path) -> Iterator[Finding]:
    """The commands that hooks, or users, call are installed."""
    missing = [path for path in needed if not path.is_file()]
    for path in missing:
        yield error("commands", f"there is no {path} on this node", f"apt-get install {_PACKAGES[path]}")
    if not missing:
        yield ok("commands", f"{' and '.join(path.name for path in needed)} are there")


def own_disks(site: SiteConfig, *, program: Path = QEMU_NBD) -> Iterator[Finding]:
    """What serves a user's own disk, if jobs may bring one."""
    if site.disk_allowed and not program.is_file():
        text = f"DISK_ALLOWED: there is no {program}, so jobs with disk= will fail"
        yield warning("commands", text, f"apt-get install {_PACKAGES[QEMU_NBD]}, or DISK_ALLOWED: false")


def submits(site: SiteConfig) -> Iterator[Finding]:
    """The command that vsub becomes, or calls, on a front end is there."""
    slurms_own = site.batch_system == "slurm" and site.pbs_qsub_on_fe == type(site)().pbs_qsub_on_fe
    program = Path(_SBATCH if slurms_own else site.pbs_qsub_on_fe)
    if os.access(program, os.X_OK):
        yield ok("submit", f"vsub submits with {program}")
    else:
        yield error("submit", f"there is no {program}, with which vsub submits", "set PBS_QSUB_ON_FE")


def served(share: str, *, directory: Path, server: Path = serving.VIRTIOFSD) -> Finding:
    """Whether there is what serves files for SHARE `share`.

    For 9p that is QEMU, which has to reach libvirt's own `directory` as the user whose files it serves.
    """
    if share == "virtiofs" and not server.exists():
        return error("nfs", f"SHARE: virtiofs needs {server}", "install QEMU's own virtiofsd, or SHARE: nfs or 9p")
    if share == "9p" and directory.is_dir() and not directory.stat().st_mode & stat.S_IXOTH:
        text = f"SHARE: 9p runs QEMU as the job's user, who may not pass through {directory}"
        return error("nfs", text, f"chmod o+x {directory}, for good by dpkg-statoverride")
    return ok("nfs", f"shares are served by the node itself: {share}")


def named(site: SiteConfig, prefix: Path) -> Iterator[Finding]:
    """Directories and scripts of the site's own are there, and nobody else's to change where root acts on them."""
    bad = [*_untrusted(site, prefix), *_scripts(site), *_places(site)]
    yield from bad or [ok("site", "what the configuration names is there, and root's where it has to be")]


def image_cache(site: SiteConfig) -> Iterator[Finding]:
    """There is room at IMAGE_CACHE_DIR, if the catalogue has images that nodes fetch from a URL."""
    catalogue, directory = Path(site.vm_img_dir), Path(site.image_cache_dir)
    by_url = []
    for name in images.names(catalogue):
        # What is wrong with an entry is said of the catalogue.
        with contextlib.suppress(ImageError):
            by_url += [each for each in images.revisions(catalogue, name) if each.image.url]
    if by_url:
        free = shutil.disk_usage(existing(directory)).free
        text = f"{free / _GIB:.1f} GiB are free at {directory} for images by URL"
        hint = "make room, or set IMAGE_CACHE_DIR to a larger disk"
        yield warning("cache", f"{text}, less than 10 GiB", hint) if free < _SCARCE else ok("cache", text)


def huge_pages(site: SiteConfig, shape: NodeShape) -> Iterator[Finding]:
    """With HUGEPAGES the node has set some aside, and enough for a job of the default size."""
    if not site.hugepages:
        return
    there = sum(pages.total * pages.size_kib for node in shape.numa for pages in node.pages) >> 10
    needed = site.vms_per_node_default * site.ram_default
    hint = f"raise vm.nr_hugepages to {needed} MiB and more, or HUGEPAGES: false"
    if not there:
        yield error("pages", "HUGEPAGES: true, and the node has set no huge pages aside: no job gets guests", hint)
    elif there < needed:
        yield warning("pages", f"huge pages have {there} MiB, a job with the defaults needs {needed} MiB", hint)
    else:
        yield ok("pages", f"huge pages have {there} MiB for guests")


def _sharers(site: SiteConfig, name: str, uid: int) -> Iterator[Finding]:
    """Who else has this uid, and with it all that is the program's."""
    others = {pwd.getpwuid(uid).pw_name, *([site.qemu_user] if _uid(site.qemu_user) == uid else [])} - {name}
    if others:
        yield error("account", f"{name} has uid {uid}, and so has {', '.join(sorted(others))}", f"usermod -u N {name}")


def _groups(site: SiteConfig, name: str, gid: int) -> Iterator[Finding]:
    mighty = {each: _group(each) for each in os.getgrouplist(name, gid) if _is_mighty(site, each)}
    hint = f"groupadd --system {name}; usermod -g {name} {name}"
    if own := mighty.pop(gid, ""):
        yield error("account", f"the group of {name} is {own}, which it is not to be in", hint)
    elif _group(gid) != name:
        yield warning("account", f"the group of {name} is {_group(gid)}, which may read logs and accounting", hint)
    if mighty:
        # A hook takes none of these along; whatever else becomes this account does.
        among = ", ".join(sorted(mighty.values()))
        yield warning("account", f"{name} is in {among}, which it is not to be in", f"usermod -G '' {name}")


def _uid(user: str) -> int | None:
    with contextlib.suppress(ConfigError):
        return accounts.user_ids(user)[0]
    return None


def _is_mighty(site: SiteConfig, gid: int) -> bool:
    qemus = accounts.primary_group(site.qemu_user)
    return gid in (0, qemus) or _group(gid) in _MIGHTY


def _group(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def _untrusted(site: SiteConfig, prefix: Path) -> Iterator[Finding]:
    """What root refuses to act on, and with it each start of guests."""
    places = {"the program": prefix / "scripts", "its templates": prefix / "templates-vm"}
    places["TEMPLATE_DIR"] = Path(site.template_dir)
    if site.custom_ip_mapping:
        places["IP_TO_MAC_SCRIPT"] = Path(site.ip_to_mac_script)
    for name, path in places.items():
        try:
            if path.exists():
                files.require_trusted(path)
        except ConfigError as trouble:
            yield error("site", f"{name}: {trouble.brief}, so no job gets guests", trouble.hint)


def _scripts(site: SiteConfig) -> Iterator[Finding]:
    try:
        sitescripts.read(site.vm_scripts_dir)
    except ConfigError as trouble:
        yield error("site", trouble.brief, trouble.hint or "set VM_SCRIPTS_DIR, or leave it empty")
    mapping = Path(site.ip_to_mac_script)
    if site.custom_ip_mapping and not (mapping.is_file() and os.access(mapping, os.X_OK)):
        yield error("site", f"IP_TO_MAC_SCRIPT: there is no program {mapping}", "put it there, for root to run")


def _places(site: SiteConfig) -> Iterator[Finding]:
    for name, path, owner, meaning in (
        ("DISK_DIR", site.disk_dir, 0, "no job gets guests"),
        ("RAMDISK_DIR", site.ramdisk_dir, 0, "no job gets fs_type=ramdisk"),
        # The first hook makes it the program's.
        ("IMAGE_CACHE_DIR", site.image_cache_dir, _uid(accounts.PROGRAM) or 0, "no job gets an image by URL"),
    ):
        try:
            files.require_private(Path(path), owner=owner)
        except ConfigError as trouble:
            yield error("site", f"{name}: {trouble.brief}, so {meaning}", trouble.hint)
    if site.filesystem_type_default == "ramdisk" and not Path(site.ramdisk_dir).is_dir():
        text = f"FILESYSTEM_TYPE_DEFAULT: ramdisk, but there is no RAMDISK_DIR {site.ramdisk_dir}"
        yield error("site", text, "mount a tmpfs there, or FILESYSTEM_TYPE_DEFAULT: sharedfs")
    if site.prometheus_file and not Path(site.prometheus_file).parent.is_dir():
        text = f"PROMETHEUS_FILE: there is no {Path(site.prometheus_file).parent}, so there are no metrics"
        yield warning("site", text, "make it, or set PROMETHEUS_FILE to the node exporter's directory")
