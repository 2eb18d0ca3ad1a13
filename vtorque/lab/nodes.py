# SPDX-License-Identifier: Apache-2.0
"""Nodes of the lab: this machine itself, or simulated ones, each with a network, mounts and libvirt of its own."""

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, RequestError
from vtorque.lab import parts
from vtorque.lab.daemons import Daemon
from vtorque.lab.parts import ADDRESS, BRIDGE, PROGRAM, ROOT, STATE, Part, answers, kvm_is_usable
from vtorque.mom.places import NodePlace, Start

DIRECTORY = ROOT / "nodes"
MOST = 14
"""So many addresses are left below those that the DHCP server gives away."""

_SECONDS = 60.0
_ROOT_USER = proc.Identity(uid=0, gid=0, groups=(0,))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A node as this machine sees it: its libvirt, and where its own directories are."""

    host: str
    uri: str
    state: Path
    disks: Path
    mom_priv: Path


def hosts(number: int) -> tuple[str, ...]:
    """Names of so many nodes; of one, which is the machine itself, none."""
    return tuple(f"vtn{each}" for each in range(1, number + 1)) if number > 1 else ()


def views(number: int) -> tuple[View, ...]:
    """Each node of a lab with so many."""
    if number == 1:
        return (View(host="", uri="qemu:///system", state=STATE, disks=ROOT / "disks",
                     mom_priv=ROOT / "torque/mom_priv"),)
    return tuple(
        View(host=host, uri=f"qemu+unix:///system?socket={DIRECTORY / host}/run/libvirt-sock",
             state=DIRECTORY / host / "state", disks=DIRECTORY / host / "disks",
             mom_priv=DIRECTORY / host / "mom_priv")
        for host in hosts(number)
    )


def place(host: str) -> NodePlace:
    """How to get onto a node. Raises RequestError when there is no such node."""
    if not (DIRECTORY / host).is_dir() or host not in hosts(MOST):
        raise RequestError(f"the lab has no node {host[:40]!r}", hint="vmgr lab up --nodes 2")
    return NodePlace(
        DIRECTORY / host / "mom_priv", record=DIRECTORY / host / "place.json", inside=ROOT / "torque/mom_priv"
    )


def command(host: str, argv: Sequence[str], *, cwd: Path = Path("/")) -> list[str]:
    """What runs `argv` on a node as root. Raises RequestError or CommandError."""
    return list(place(host).start(Start(argv=argv, cwd=cwd, identity=_ROOT_USER)).argv)


def remove_groups(root: Path = Path("/sys/fs/cgroup")) -> None:
    """All nodes have one tree of control groups: remove those of dead guests, which a killed libvirt leaves."""
    guests = "machine/qemu-*.libvirt-qemu"
    for group in (*root.glob(guests), *root.glob(f"*/{guests}")):
        # A guest that runs, the lab's or another's, has processes there.
        with contextlib.suppress(OSError):
            if not any(each.read_text() for each in group.rglob("cgroup.procs")):
                for place in (*group.glob("*/"), group):
                    place.rmdir()


class Cluster(Part):
    """What all simulated nodes have in common: each other's names, and settings of libvirt."""

    name = "node files"

    def __init__(self, number: int) -> None:
        known = [f"{ADDRESS} {os.uname().nodename}", *(f"{address(host)} {host}" for host in hosts(number))]
        self._files = {
            "hosts": "\n".join(["127.0.0.1 localhost", *known, ""]), "qemu.conf": "namespaces = []\n", "no-kvm": "",
        }

    def up(self) -> None:
        for name, text in self._files.items():
            files.replace(ROOT / name, text.encode(), mode=0o644)

    def down(self) -> None:
        for name in self._files:
            (ROOT / name).unlink(missing_ok=True)
        # Not when a node is still there: `down` says so.
        with contextlib.suppress(OSError):
            DIRECTORY.rmdir()
        remove_groups()

    def is_up(self) -> bool:
        return all((ROOT / name).exists() for name in self._files)


class Node(Part):
    """One simulated node, kept by a process that does nothing else."""

    def __init__(self, host: str) -> None:
        self.name = f"node {host}"
        self.host = host
        self._own = DIRECTORY / host
        # A name of an interface has at most 15 characters, and the bridge's is the lab's own.
        self._uplink = f"{BRIDGE}-{host.removeprefix('vtn')}"
        hide = "no" if kvm_is_usable() else "yes"
        self._keeper = Daemon("keeper", [
            "/usr/bin/unshare", "--mount", "--net", "--uts", "--propagation", "private",
            str(PROGRAM / "contrib/lab-node"), str(ROOT), str(STATE), host, BRIDGE, address(host), self._uplink,
            str(os.getpid()), hide,
        ], directory=self._own)

    def up(self) -> None:
        if not self._is_made():
            self.down()
            self._make()
        if not self._libvirt_answers():
            (self._own / "run/libvirt-sock").unlink(missing_ok=True)
            virtlogd, libvirtd = self._daemons()
            virtlogd.start()
            libvirtd.start()
            libvirtd.require(self._own / "run/libvirt-sock", deadline=Deadline(_SECONDS))

    def down(self) -> None:
        for daemon in reversed(self._daemons()):
            daemon.stop()
        if Path(f"/sys/class/net/{self._uplink}").exists():
            # It goes by itself, some time after the last process of a node that died.
            parts.do("ip", "link", "delete", self._uplink, statuses=(0, 1))
        self._end_all()
        self._keeper.stop()
        shutil.rmtree(self._own, ignore_errors=True)

    def is_up(self) -> bool:
        return self._is_made() and self._libvirt_answers()

    def _is_made(self) -> bool:
        return self._own.is_dir() and place(self.host).is_there

    def _libvirt_answers(self) -> bool:
        return answers(self._own / "run/libvirt-sock")

    def _make(self) -> None:
        self._own.mkdir(mode=0o755, parents=True)
        self._keeper.start()
        self._keeper.require(self._own / "ready", deadline=Deadline(_SECONDS))
        parts.do("ip", "link", "set", self._uplink, "master", BRIDGE, "up")
        pid = self._keeper.pid
        if pid is None:
            raise CommandError(f"{self.name} is gone again")
        # Without this it is not made: what was begun by an `up` that was killed is made anew.
        place(self.host).keep(pid)

    def _daemons(self) -> tuple[Daemon, Daemon]:
        logger, libvirt = (
            [f"/usr/sbin/{name}", "--pid-file", f"/run/libvirt/{name}.pid"] for name in ("virtlogd", "libvirtd")
        )
        if self._is_made():
            logger, libvirt = command(self.host, logger), command(self.host, libvirt)
        return Daemon("virtlogd", logger, directory=self._own), Daemon("libvirtd", libvirt, directory=self._own)

    def _end_all(self) -> None:
        """Kill whoever sees the node's files: its keeper, recorded or not, guests, what jobs have left."""
        for _ in Deadline(_SECONDS).ticks(doing=f"empty {self.name}"):
            inside = _processes_with(f"/nodes/{self.host}/state {STATE} ")
            if not inside:
                return
            for pid in inside:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def address(host: str) -> str:
    """A node's own address on the guests' bridge."""
    return f"{ADDRESS.rpartition('.')[0]}.{1 + int(host.removeprefix('vtn'))}"


def _processes_with(mount: str) -> list[int]:
    """Processes that see a mount, given by its source and its target as proc(5) shows them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mount in (entry / "mountinfo").read_text():
                found.append(int(entry.name))
    return found
