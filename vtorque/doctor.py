# SPDX-License-Identifier: Apache-2.0
"""Whether this node can run guests: every check at once, none of which can hang or break the others."""

import contextlib
import queue
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from vtorque import doctor_checks as checks
from vtorque import doctor_network, doctor_openpbs, doctor_service, doctor_site, doctor_slurm, proc, topology
from vtorque.backends.hypervisor.inspector import Inspector
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.doctor_checks import Finding, Level, error, ok, warning
from vtorque.errors import CommandError, DeadlineExceeded, VtorqueError
from vtorque.shares import server_of

__all__ = ["Finding", "Level", "examine", "exit_status", "nhc"]

Check = Callable[[], Iterator[Finding]]

_GRACE_SECONDS = 1.0
_VERSION_SECONDS = 15.0
_SLOW_SECONDS = 5.0
_CLEAN_UP_SECONDS = 5.0
_CONNECT_SECONDS = 3.0
_TOOL_SECONDS = 5.0
_DIRECTORY_OF_LIBVIRT = Path("/var/lib/libvirt/qemu")
_FIRST_YEAR = 2024
# Mom reads 1024 bytes of what the script prints (check_state(), mom_server.c), and "message=" comes before it.
_NHC_LENGTH = 900
_DOMAIN_PREFIX = "vtorque-doctor-"
_DOMAIN = """\
<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid>
<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type{about}>hvm</type></os></domain>
"""
_VIRSH = Path("/usr/bin/virsh")


def examine(site: SiteConfig, *, prefix: Path, front_end: bool = False, deadline: Deadline) -> list[Finding]:
    """What all checks found, in a fixed order. Never raises: a check that fails or hangs is an error.

    A front end starts no guests and has no hooks: nothing is asked of it that only a node needs.
    """
    within = deadline.reserve(_GRACE_SECONDS)
    every = _of_front_ends(site) if front_end else _of_nodes(site, prefix, within)
    every.append(("clock", partial(clock, deadline=within)))
    return conclude(every, deadline=deadline)


def _of_front_ends(site: SiteConfig) -> list[tuple[str, Check]]:
    return [
        ("role", lambda: iter([ok("role", "a front end, as it was installed: nothing is asked of it as a node")])),
        ("submit", partial(doctor_site.submits, site)),
        ("commands", partial(doctor_site.commands, doctor_site.KEYGEN)),
        ("compiled", doctor_site.compiled),
        ("images", partial(checks.catalogue, Path(site.vm_img_dir), site.img_default)),
    ]


def _of_nodes(site: SiteConfig, prefix: Path, within: Deadline) -> list[tuple[str, Check]]:
    return [
        ("service", partial(doctor_service.in_service, site)),
        ("accelerator", lambda: checks.accelerator(site, device=checks.kvm_of_libvirt())),
        ("libvirt", partial(libvirt, site, deadline=within)),
        ("machine", partial(machine, site, deadline=within)),
        ("account", partial(doctor_site.account, site, prefix)),
        ("qemu-user", partial(doctor_site.qemu_user, site)),
        ("commands", partial(doctor_site.commands, doctor_site.QEMU_IMG, doctor_site.KEYGEN)),
        ("commands", partial(doctor_site.own_disks, site)),
        ("compiled", doctor_site.compiled),
        ("bridge", partial(checks.bridge, site.bridge)),
        ("bridge", partial(doctor_network.own_address, site)),
        ("filter", partial(doctor_network.network_filter, site, deadline=within)),
        ("iptables", partial(doctor_network.host_rules, site)),
        ("nfs", partial(shares, site, deadline=within)),
        ("images", partial(checks.catalogue, Path(site.vm_img_dir), site.img_default)),
        ("cache", partial(doctor_site.image_cache, site)),
        ("site", partial(doctor_site.named, site, prefix)),
        ("disk", partial(checks.disk_space, Path(site.disk_dir))),
        ("state", partial(checks.state_directory, Path(site.state_dir))),
        *_of_hooks(site, prefix / "scripts"),
        ("room", lambda: checks.room(site, topology.node_shape())),
        ("pages", lambda: doctor_site.huge_pages(site, topology.node_shape())),
    ]


def _of_hooks(site: SiteConfig, scripts: Path) -> list[tuple[str, Check]]:
    mom_priv = Path(site.torque_home) / "mom_priv"
    own = {"slurm": doctor_slurm, "openpbs": doctor_openpbs}.get(site.batch_system)
    if own is not None:
        return [("hooks", partial(own.hooks, site, scripts)), ("time", partial(own.hook_time, site))]
    # The lab links its own hooks, and everybody else's are linked where the site's may be as well.
    install = "vmgr lab up" if site.batch_system == "local" else f"vmgr install --system {site.batch_system}"
    linked = partial(checks.hooks, mom_priv, scripts, install=install)
    return [("hooks", linked), ("time", partial(checks.hook_time, site, mom_priv))]


def exit_status(findings: Iterable[Finding]) -> int:
    """0 when all is well, 1 with warnings only, 2 with errors."""
    worst = {finding.level for finding in findings}
    return 2 if Level.ERROR in worst else 1 if Level.WARNING in worst else 0


def nhc(findings: Iterable[Finding]) -> str:
    """The line that makes mom report her node as down, for $node_check_script; nothing without an error."""
    errors = [f"{finding.name}: {finding.text}" for finding in findings if finding.level is Level.ERROR]
    line = " ".join("; ".join(errors).split()).encode("ascii", "replace").decode()
    return f"ERROR {line}"[:_NHC_LENGTH] if errors else ""


def conclude(every: Iterable[tuple[str, Check]], *, deadline: Deadline) -> list[Finding]:
    """Run named checks side by side; the findings of each, in the given order.

    Each has a thread of its own that is abandoned at the deadline: a file
    system of a dead server holds whoever looks at it.
    """
    begun = [(name, _start(name, check)) for name, check in every]
    findings: list[Finding] = []
    for name, answers in begun:
        try:
            while (finding := answers.get(timeout=deadline.remaining)) is not None:
                findings.append(finding)
        except queue.Empty:
            hint = "a file system, a name server or a daemon does not answer"
            findings.append(error(name, "the check did not end in time", hint))
    return findings


def libvirt(site: SiteConfig, *, deadline: Deadline) -> Iterator[Finding]:
    """LIBVIRT_URI answers, and defines a guest in a reasonable time."""
    seconds = min(_VERSION_SECONDS, deadline.remaining / 3)
    yield (answer := version(site.libvirt_uri, deadline=deadline.within(seconds)))
    if answer.level is not Level.ERROR:
        yield defining(site.libvirt_uri, kind=site.hypervisor_type, machine=site.machine_type, deadline=deadline)


def version(uri: str, *, deadline: Deadline) -> Finding:
    """Versions of libvirt and of its hypervisor."""
    if not _VIRSH.is_file():
        return warning("libvirt", f"there is no {_VIRSH} to ask {uri}", "apt-get install libvirt-clients")
    try:
        answer = _output(_VIRSH, "-c", uri, "version", "--daemon", deadline=deadline)
    except DeadlineExceeded:
        hint = "libvirt may be probing QEMU; virsh version shows how long it takes"
        return warning("libvirt", f"{uri} does not tell its version in time", hint)
    except CommandError as trouble:
        return error("libvirt", f"{uri}: {trouble.brief}", "is libvirtd running on this node?")
    lines = dict(line.partition(": ")[::2] for line in answer.splitlines() if ": " in line)
    daemon, emulator = lines.get("Running against daemon", "?"), lines.get("Running hypervisor", "?")
    return ok("libvirt", f"{uri} answers: libvirt {daemon}, {emulator}")


def defining(uri: str, *, kind: str, machine: str, deadline: Deadline) -> Finding:
    """How long it takes to define a guest and to forget it; nothing of this or of earlier examinations stays."""
    name = f"{_DOMAIN_PREFIX}{uuid.uuid4().hex[:12]}"
    about = f" arch='x86_64' machine='{machine}'" if machine else ""
    xml = _DOMAIN.format(kind=kind, name=name, uuid=uuid.uuid4(), about=about)
    with contextlib.closing(Inspector(uri)) as hypervisor:
        _forget_earlier(uri, hypervisor, deadline=deadline.within(_TOOL_SECONDS))
        started = time.monotonic()
        try:
            hypervisor.define(xml, deadline=deadline.reserve(min(_CLEAN_UP_SECONDS, deadline.remaining / 4)))
        except DeadlineExceeded:
            seconds = time.monotonic() - started
            text = f"a guest was not defined within {seconds:.0f} s; {name} may stay until the next examination"
            return error("define", text, _slow_hint(kind))
        except VtorqueError as trouble:
            return error("define", trouble.brief, trouble.hint)
        finally:
            with contextlib.suppress(VtorqueError):
                hypervisor.destroy(name, deadline=deadline)
        seconds = time.monotonic() - started
    if seconds > _SLOW_SECONDS:
        return warning("define", f"defining a guest takes {seconds:.1f} s", _slow_hint(kind))
    return ok("define", f"defining a guest takes {seconds * 1000:.0f} ms")


def machine(site: SiteConfig, *, deadline: Deadline) -> Iterator[Finding]:
    """MACHINE_TYPE is one that the emulator knows."""
    program = f"qemu-system-{site.arch_default}"
    emulator = shutil.which(program, path=proc.PATH)
    if emulator is None:
        yield error("machine", f"there is no {program} on this node", "apt-get install qemu-system-x86")
        return
    answer = _output(emulator, "-machine", "help", deadline=deadline.within(_TOOL_SECONDS))
    known = [line.split()[0] for line in answer.splitlines()[1:] if line.strip()]
    if site.machine_type in known:
        yield ok("machine", f"{emulator} knows {site.machine_type}")
    else:
        yield error("machine", f"{emulator} does not know {site.machine_type}", "set MACHINE_TYPE, or update QEMU")


def shares(site: SiteConfig, *, deadline: Deadline) -> Iterator[Finding]:
    """The servers of VM_NFS_* take connections."""
    if site.share != "nfs":
        yield doctor_site.served(site.share, directory=_DIRECTORY_OF_LIBVIRT)
        return
    wanted: dict[tuple[str, int], list[str]] = {}
    for option, share, options in (
        ("VM_NFS_HOME", site.vm_nfs_home, site.vm_nfs_home_options or site.vm_nfs_options),
        ("VM_NFS_WS", site.vm_nfs_ws, site.vm_nfs_ws_options or site.vm_nfs_options),
        ("VM_NFS_OPT", site.vm_nfs_opt, site.vm_nfs_opt_options),
    ):
        if share:
            wanted.setdefault(server_of(share, options), []).append(option)
    for (server, port), users in wanted.items():
        yield reachable(server, port, users=", ".join(users), deadline=deadline)
    if not wanted:
        yield ok("nfs", "no share is configured")


def reachable(server: str, port: int, *, users: str, deadline: Deadline) -> Finding:
    """Whether a TCP connection comes about; the guests' own ones may take another way."""
    seconds = deadline.within(_CONNECT_SECONDS).require(f"connect to {server}")
    started = time.monotonic()
    try:
        socket.create_connection((server, port), timeout=seconds).close()
    except OSError as trouble:
        why = trouble.strerror or f"no answer within {seconds:.0f} s"
        text = f"{server} port {port} for {users} cannot be reached: {why}"
        return error("nfs", text, "is the server up? else set VM_NFS_*, or leave it empty")
    return ok("nfs", f"{server} port {port} for {users} answers in {(time.monotonic() - started) * 1000:.0f} ms")


def clock(*, deadline: Deadline) -> Iterator[Finding]:
    """The clock is set, and something keeps it right."""
    yield clock_says(time.time(), _synchronised(deadline.within(_TOOL_SECONDS)))


def clock_says(now: float, synchronised: bool | None) -> Finding:
    """What the time `now` and the word of a time service mean; None when there is no such word."""
    today = datetime.fromtimestamp(now, UTC)
    text = f"the clock says {today:%Y-%m-%d %H:%M:%S} UTC"
    if today.year < _FIRST_YEAR:
        return error("clock", f"{text}, which is before {_FIRST_YEAR}", "set the clock, and run chrony")
    if synchronised is None:
        return ok("clock", f"{text}; nothing on this node tells whether it is synchronised")
    if not synchronised:
        return warning("clock", f"{text}, and is not synchronised", "systemctl enable --now chrony; chronyc tracking")
    return ok("clock", f"{text}, and is synchronised")


def _synchronised(deadline: Deadline) -> bool | None:
    """What chrony says, else what systemd says."""
    for words, yes, no in (
        (("/usr/bin/chronyc", "-n", "tracking"), "Normal", "Not synchronised"),
        (("/usr/bin/timedatectl", "show", "-p", "NTPSynchronized", "--value"), "yes", "no"),
    ):
        with contextlib.suppress(VtorqueError):
            answer = _output(*words, deadline=deadline)
            if yes in answer or no in answer:
                return yes in answer
    return None


def _forget_earlier(uri: str, hypervisor: Inspector, *, deadline: Deadline) -> None:
    """Remove what an examination left that ran out of time; a libvirt that hangs defines its guest later."""
    with contextlib.suppress(VtorqueError):
        for name in _output(_VIRSH, "-c", uri, "list", "--all", "--name", deadline=deadline).split():
            if name.startswith(_DOMAIN_PREFIX):
                hypervisor.destroy(name, deadline=deadline)


def _output(*words: str | Path, deadline: Deadline) -> str:
    deadline.require(f"run {words[0]}")
    return proc.run(words, deadline=deadline).stdout.decode(errors="replace")


def _slow_hint(kind: str) -> str:
    if kind == "kvm":
        return "does KVM work on this node? virt-host-validate qemu"
    return checks.HIDE_KVM


def _start(name: str, check: Check) -> "queue.SimpleQueue[Finding | None]":
    answers: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for finding in check():
                answers.put(finding)
        except VtorqueError as trouble:
            answers.put(error(name, trouble.brief, trouble.hint))
        except OSError as trouble:
            answers.put(error(name, f"{trouble.filename or 'the check'}: {trouble.strerror}"))
        except Exception as trouble:  # noqa: BLE001
            answers.put(error(name, f"the check itself failed: {trouble!r}"))
        finally:
            answers.put(None)

    threading.Thread(target=work, daemon=True, name=f"doctor {name}").start()
    return answers
