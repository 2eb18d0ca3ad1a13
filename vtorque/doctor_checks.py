# SPDX-License-Identifier: Apache-2.0
"""What a node's files, links and devices say of its health; nothing here starts a process or talks to anybody.

A check yields what it found. What it raises instead is an error of the node,
and `doctor` says so.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vtorque import files, imageprobe, images
from vtorque.backends import batch
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, RequestError
from vtorque.model import NodeShape, PelogKind
from vtorque.overhead import qemu_memory_mib

MOUNTS = Path("/proc/self/mounts")
HIDE_KVM = "hide /dev/kvm from libvirt's daemon, which may take minutes to define a guest; see contrib/lab-libvirtd"
_GIB = 1 << 30
_SCARCE, _TOO_LITTLE = 10 * _GIB, _GIB
_IFF_UP = 0x1
# linux/kvm.h; the version has been 12 since Linux 2.6.22 and will not change.
_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_API = 0xAE00, 0xAE01, 12
_MOM_CONFIG_LIMIT = 64 * 1024
# What Torque takes off, and what a hook keeps for its own end.
_ALARM_MARGIN_SECONDS = 15
_INSPECTION_SECONDS = 30.0
REMOTE = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "beegfs", "gpfs", "9p", "afs", "autofs", "fuse.sshfs")
)
_BUILD = "vmgr image build debian-12"
_OCTAL = re.compile(r"\\([0-7]{3})")


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: one line with names and numbers, and the way out when there is something to do."""

    name: str
    level: Level
    text: str
    hint: str = ""


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return _finding(Level.OK, name, text, "")


def warning(name: str, text: str, hint: str) -> Finding:
    """Guests run, but something should be done."""
    return _finding(Level.WARNING, name, text, hint)


def error(name: str, text: str, hint: str = "") -> Finding:
    """Guests cannot run here, or must not."""
    return _finding(Level.ERROR, name, text, hint)


def accelerator(
    site: SiteConfig, *, device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")
) -> Iterator[Finding]:
    """HYPERVISOR_TYPE against what this machine can do; `device` is /dev/kvm as libvirt's daemon sees it."""
    name = "accelerator"
    fault = kvm_fault(device, cpuinfo)
    if site.hypervisor_type == "kvm":
        if fault:
            hint = "turn it on in the firmware, modprobe kvm_intel or kvm_amd; or HYPERVISOR_TYPE: qemu, which is slow"
            yield error(name, f"guests are to run with KVM, but {fault}", hint)
        else:
            yield ok(name, "guests run with KVM, and /dev/kvm works")
    elif not device.is_char_device():
        yield ok(name, "guests are emulated, and libvirt sees no /dev/kvm")
    elif fault:
        yield warning(name, f"guests are emulated; there is a /dev/kvm of no use, as {fault}", HIDE_KVM)
    else:
        yield warning(name, "guests are emulated although /dev/kvm works", "HYPERVISOR_TYPE: kvm")


def kvm_fault(device: Path, cpuinfo: Path) -> str:
    """Why guests cannot run with KVM, or nothing when they can: neither its file nor the ioctls tell."""
    if not device.exists():
        return "there is no /dev/kvm"
    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as trouble:
        return f"/dev/kvm cannot be opened: {trouble.strerror}"
    try:
        version = fcntl.ioctl(handle, _KVM_GET_API_VERSION, 0)
        if version != _KVM_API:
            return f"/dev/kvm has API version {version}, not {_KVM_API}"
        os.close(fcntl.ioctl(handle, _KVM_CREATE_VM, 0))
    except OSError as trouble:
        return f"/dev/kvm refuses to make a guest: {trouble.strerror}"
    finally:
        os.close(handle)
    # KVM without the processor's help (kvm_pvm) makes guests that no ordinary kernel boots in.
    if not {"vmx", "svm"} & set(cpuinfo.read_text(errors="replace").split()):
        return "the processor has neither vmx nor svm"
    return ""


def kvm_of_libvirt(proc: Path = Path("/proc")) -> Path:
    """/dev/kvm where libvirt's daemon would find it: it may have been started in a /dev of its own."""
    for comm in proc.glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() in ("libvirtd", "virtqemud"):
                return comm.parent / "root" / "dev" / "kvm"
    return Path("/dev/kvm")


def bridge(name: str, *, net: Path = Path("/sys/class/net")) -> Iterator[Finding]:
    """BRIDGE is there, is a bridge and is up."""
    interface = net / name
    if not interface.exists():
        there = ", ".join(sorted(each.parent.name for each in net.glob("*/bridge"))) or "none"
        yield error("bridge", f"there is no interface {name}; bridges are: {there}", "set BRIDGE, or make the bridge")
    elif not (interface / "bridge").is_dir():
        yield error("bridge", f"interface {name} is not a bridge", f"make a bridge, put {name} into it, and set BRIDGE")
    # Not operstate: a bridge without a running guest has no carrier and counts as down.
    elif not int((interface / "flags").read_text(), 16) & _IFF_UP:
        yield error("bridge", f"bridge {name} is down", f"ip link set {name} up")
    else:
        yield ok("bridge", f"bridge {name} is up, with {len(list((interface / 'brif').glob('*')))} ports")


def catalogue(directory: Path, default: str) -> Iterator[Finding]:
    """VM_IMG_DIR is root's own, holds images, and IMG_DEFAULT is one that can be started."""
    if not directory.is_dir():
        yield error("images", f"there is no image directory {directory}", f"{_BUILD}, or set VM_IMG_DIR")
        return
    files.require_trusted(directory)
    number = len(images.names(directory))
    if not number:
        yield error("images", f"there are no images in {directory}", _BUILD)
        return
    try:
        image = images.find(directory, default)
    except RequestError as trouble:
        text = f"IMG_DEFAULT {default} is not among the {number} images in {directory}"
        yield warning("images", text, f"set IMG_DEFAULT; {trouble.hint}")
        return
    images.require_trusted(image)
    if not image.url:
        imageprobe.probe(image.path, deadline=Deadline(_INSPECTION_SECONDS))
    yield ok("images", f"{number} in {directory}, with IMG_DEFAULT {default}")


def disk_space(directory: Path) -> Iterator[Finding]:
    """There is room for overlays at DISK_DIR, which is made when it is first needed."""
    yield space(directory, shutil.disk_usage(existing(directory)).free)


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that there is."""
    return next(each for each in (path, *path.parents) if each.exists())


def space(directory: Path, free: int) -> Finding:
    """What `free` bytes at DISK_DIR mean."""
    text = f"{free / _GIB:.1f} GiB are free at {directory}"
    if free < _TOO_LITTLE:
        return error("disk", f"{text}, less than 1 GiB", "make room, or set DISK_DIR to a larger disk")
    if free < _SCARCE:
        return warning("disk", f"{text}, less than 10 GiB", "make room, or set DISK_DIR to a larger disk")
    return ok("disk", text)


def state_directory(directory: Path, *, mounts: Path = MOUNTS) -> Iterator[Finding]:
    """STATE_DIR forgets when the node reboots, as its guests do."""
    kind = filesystem(directory.resolve(), mounts.read_text())
    if kind in ("tmpfs", "ramfs"):
        yield ok("state", f"{directory} is on {kind}")
    else:
        text = f"{directory} is on {kind}, not on tmpfs: after a reboot it tells of guests that are gone"
        yield warning("state", text, "set STATE_DIR to a directory on a tmpfs, like /run of most systems")


def filesystem(path: Path, mounts: str) -> str:
    """The type of file system at a real path, from the text of /proc/self/mounts."""
    kind, depth = "unknown", -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        where = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[1]))
        # The last of several mounts at one place is the one that is seen.
        if path.is_relative_to(where) and len(where.parts) >= depth:
            kind, depth = fields[2], len(where.parts)
    return kind


def hooks(
    mom_priv: Path, scripts: Path, *, install: str, mounts: Path = MOUNTS,
    kinds: Collection[PelogKind] = tuple(PelogKind),
) -> Iterator[Finding]:
    """Mom's hooks lead to ours in `scripts`, and are such that Torque runs them (prolog.c:413-539).

    `install` is the command that makes them so, and keeps the site's own.
    """
    if not mom_priv.is_dir():
        yield error("hooks", f"there is no {mom_priv}", "set TORQUE_HOME")
        return
    table = mounts.read_text()
    there = [kind for kind in kinds if os.path.lexists(mom_priv / kind)]
    bad = [found for kind in there if (found := _hook(mom_priv / kind, scripts / kind, table, install))]
    if missing := ", ".join(kind for kind in kinds if kind not in there):
        text = f"missing in {mom_priv}, which Torque takes for success: {missing}"
        bad.append(error("hooks", text, install))
    yield from dict.fromkeys(bad) or [ok("hooks", f"{len(kinds)} in {mom_priv} lead to {scripts}")]


def hook_time(site: SiteConfig, mom_priv: Path) -> Iterator[Finding]:
    """Mom lets a hook run for as long as a guest may take to boot, and to be undone."""
    if not mom_priv.is_dir():
        return
    config, text = mom_priv / "config", ""
    with contextlib.suppress(FileNotFoundError), config.open(errors="replace") as file:
        text = file.read(_MOM_CONFIG_LIMIT)
    has = batch.by_name(site.batch_system).hook_seconds(text)
    needs = site.timeout + site.undo_reserve
    found = f"mom kills a hook after {has:g} s, TIMEOUT and UNDO_RESERVE are {needs} s together"
    if has > needs:
        yield ok("time", found)
    else:
        line = f"$prologalarm {needs + _ALARM_MARGIN_SECONDS}"
        yield warning("time", found, f"put the line {line} into {config} and send mom a HUP, or lower TIMEOUT")


def room(site: SiteConfig, shape: NodeShape) -> Iterator[Finding]:
    """Something is left for guests, and enough for one of the default size."""
    cores = len(shape.cpus) - site.host_os_core_count
    memory = shape.memory_mib - site.host_os_ram_mb
    if cores <= 0:
        text = f"no core is left for guests: {len(shape.cpus)} less HOST_OS_CORE_COUNT {site.host_os_core_count}"
        yield error("room", text, "lower HOST_OS_CORE_COUNT")
    if memory <= 0:
        text = f"no memory is left for guests: {shape.memory_mib} MiB less HOST_OS_RAM_MB {site.host_os_ram_mb}"
        yield error("room", text, "lower HOST_OS_RAM_MB")
    if min(cores, memory) <= 0:
        return
    vcpus = site.vms_per_node_default * site.vcpus_default
    needed = site.vms_per_node_default * qemu_memory_mib(site.ram_default, site.vcpus_default)
    left = f"{cores} cores and {memory} MiB are left for guests"
    if vcpus > cores or needed > memory:
        text = f"{left}; a job with the defaults needs {vcpus} and {needed} MiB, and would be refused"
        yield warning("room", text, "lower VCPUS_DEFAULT, RAM_DEFAULT or VMS_PER_NODE_DEFAULT")
    else:
        yield ok("room", left)


def _hook(path: Path, script: Path, mounts: str, install: str) -> Finding | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        text = f"{path} leads to {path.readlink()}, which is not there: Torque takes it for success and runs jobs"
        return error("hooks", f"{text} on bare metal", install)
    target = path.resolve()
    if not stat.S_ISREG(about.st_mode):
        text = f"{target} is not a regular file, so Torque runs no job here"
        return error("hooks", text, f"move {path} away; {install}")
    if about.st_uid != 0:
        text = f"{target} belongs to uid {about.st_uid}, so Torque runs no job here"
        return error("hooks", text, f"chown root {target}")
    if about.st_mode & 0o022 or about.st_mode & 0o500 != 0o500:
        text = f"{target} has mode {about.st_mode & 0o7777:04o}, so Torque runs no job here"
        return error("hooks", text, f"chmod 755 {target}")
    try:
        files.require_trusted(target)
    except ConfigError as trouble:
        return error("hooks", trouble.brief, trouble.hint)
    if target != script.resolve():
        return warning("hooks", f"{path} is {target}, not {script}", install)
    if (kind := filesystem(target, mounts)) in REMOTE:
        text = f"{target} is on {kind}: while that is not mounted, Torque takes {path} for success"
        return warning("hooks", text, "install vtorque on a local disk")
    return None


def _finding(level: Level, name: str, text: str, hint: str) -> Finding:
    return Finding(name=name, level=level, text=" ".join(text.split()), hint=" ".join(hint.split()))
