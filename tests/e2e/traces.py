# SPDX-License-Identifier: Apache-2.0
"""What jobs leave on the nodes of the lab, or do to those who are none of theirs."""

import base64
import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

from tests.inventory import Node, Watched, differences
from vtorque import lab
from vtorque.backends.hypervisor.inspector import Inspector
from vtorque.backends.hypervisor.libvirt import Libvirt
from vtorque.deadline import Deadline
from vtorque.lab import nodes, parts

STAYS = {
    str(parts.STATE): "a node makes it for its first job",
    **{f"{place}/{name}": "likewise"
       for place in (parts.STATE, f"{nodes.DIRECTORY}/*/state")
       for name in ("jobs", "seeds", "attempts", "guards", "admission", "slurm", "node")},
    f"{parts.ROOT}/disks": "likewise",
    f"{parts.ROOT}/log": "likewise",
    f"/home/{parts.USER}/.vtorque": "likewise for a user",
    f"{parts.ROOT}/log/**": "logs, accounts and the audit",
    f"{nodes.DIRECTORY}/*/log/**": "likewise",
    f"{nodes.DIRECTORY}/*/messages/**": "libvirt's log of each guest",
    f"{parts.ROOT}/*.log": "a daemon's log",
    f"{nodes.DIRECTORY}/*/*.log": "likewise",
    f"{parts.ROOT}/*.json": "which process a daemon is: a test may have had it started again",
    f"{nodes.DIRECTORY}/*/*.json": "likewise",
    f"{parts.ROOT}/ganesha.pid": "likewise",
    f"{parts.PROGRAM}/etc/vtorque.yaml": "the site's own: tests change it",
    f"{parts.ROOT}/scripts-vm**": "likewise",
    f"{parts.ROOT}/torque/mom_priv/prologue": "likewise",
    f"{parts.ROOT}/dnsmasq.leases": "an address is leased for an hour",
    f"{parts.ROOT}/torque/server_priv/**": "what the batch system knows of jobs that are over",
    f"{parts.ROOT}/**/mom_priv/loop.*": "the lock of a mom's main loop",
    f"{parts.PROGRAM}/**/__pycache__**": "a cache, Python's",
}
"""Paths that do not count, and why."""

A_MOMENT = re.compile("left: ([a-z0-9]+ )?(process|lock|file [^ ]*/state/guards/[^ ]*$)")
"""What may end a moment after its job: who sees for himself that it is over."""

STRANGER = "stranger"
"""What the names of those contain who are none of any job's."""

_LIBVIRT = (Path("/run/libvirt"), Path("/var/lib/libvirt"), Path("/etc/libvirt/qemu"))
_SECONDS = 60.0
# What the text of every private key of OpenSSH's begins with, however it is wrapped.
_SECRET = base64.b64encode(b"openssh-key-v1")[:18]
_DOMAIN = """\
<domain type="qemu"><name>{name}</name><memory unit="MiB">16</memory><os><type>hvm</type></os></domain>
"""


def take() -> dict[str, str]:
    """All that is there of any job, on any node, and of whoever else is there."""
    found = _of_the_machine().take()
    for view in nodes.views(lab.size()):
        own = (Node(pid=_keeper(view)),) if view.host else ()
        with contextlib.closing(Libvirt(view.uri)) as libvirt:
            seen = Watched(domains=libvirt, nodes=own, daemons=_daemons(), descriptors=False).take()
        found |= {f"{view.host} {name}".strip(): look for name, look in seen.items()}
    return found


def of_the_kernel() -> dict[str, str]:
    """What nobody's files show of this machine: rules, interfaces and control groups; and libvirt's guests."""
    return Watched(places=_LIBVIRT, nodes=(Node(pid=os.getpid(), alone=False),), descriptors=False).take()


def _of_the_machine() -> Watched:
    """What all nodes have in common, and what is the only node's own if it is the machine itself."""
    home = Path(pwd.getpwnam(parts.USER).pw_dir)
    libvirt = _LIBVIRT if lab.size() == 1 else ()
    return Watched(
        places=(parts.ROOT, parts.STATE, home / ".vtorque", *libvirt), homes=(home,), stays=STAYS,
        # Other tests work on the machine as well.
        nodes=(Node(pid=os.getpid(), alone=False),),
        words=[f"{place}/".encode() for place in (parts.ROOT, parts.STATE)],
        users=[pwd.getpwnam(name).pw_uid for name in (parts.USER, "libvirt-qemu")],
        daemons=_daemons(), secrets=(_SECRET,), descriptors=False,
    )


def _daemons() -> set[int]:
    """Processes of the lab itself."""
    return {
        json.loads(path.read_text())["pid"]
        for pattern in ("*.json", f"{nodes.DIRECTORY.name}/*/*.json") for path in parts.ROOT.glob(pattern)
    }


def _keeper(view: nodes.View) -> int:
    pid: int = json.loads((nodes.DIRECTORY / view.host / "place.json").read_text())["pid"]
    return pid


class Strangers:
    """Somebody else's domain, directory, tap, table and process on every node: no job may touch them."""

    def __init__(self, name: str = STRANGER) -> None:
        self._name = name
        self._tap, self._domain = f"vtg{name}", f"0.{name}_1of1"
        self._came: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def are_here(self) -> bool:
        """Whether they have come and not left."""
        return bool(self._came)

    def come(self) -> None:
        """Put them on every node of the lab."""
        for view in nodes.views(lab.size()):
            # They may be left of tests that were killed.
            self._clear(view)
            self._directory(view).mkdir(mode=0o711, parents=True)
            (self._directory(view) / "notes.img").write_text("somebody's own\n")
            _on(view, "ip", "tuntap", "add", "dev", self._tap, "mode", "tap")
            _on(view, "nft", f"table bridge {self._name} {{ chain own {{ type filter hook forward priority 0; }}; }}")
            with contextlib.closing(Inspector(view.uri)) as libvirt:
                libvirt.define(_DOMAIN.format(name=self._domain), deadline=Deadline(_SECONDS))
            self._processes.append(_start(view, f"echo; read {self._name}"))
        self._came = self._seen()

    def leave(self) -> list[str]:
        """Take them away again; what has become of them meanwhile."""
        if not self._came:
            return []
        there, came, self._came = self._seen(), self._came, {}
        for process in self._processes:
            process.communicate()
        self._processes.clear()
        for view in nodes.views(lab.size()):
            self._clear(view)
        return differences(came, there)

    def _clear(self, view: nodes.View) -> None:
        with contextlib.closing(Libvirt(view.uri)) as libvirt:
            libvirt.destroy(self._domain, deadline=Deadline(_SECONDS))
        _on(view, "nft", f"add table bridge {self._name}; delete table bridge {self._name}")
        _on(view, "ip", "tuntap", "delete", "dev", self._tap, "mode", "tap")
        shutil.rmtree(self._directory(view), ignore_errors=True)

    def _seen(self) -> dict[str, str]:
        return {name: look for name, look in take().items() if self._name in name}

    def _directory(self, view: nodes.View) -> Path:
        # It could be a job's, by its name.
        return view.disks / f"0.{self._name}"


def _start(view: nodes.View, script: str) -> subprocess.Popen[bytes]:
    """A process of the user's that prints a line, and ends with us."""
    user = pwd.getpwnam(parts.USER)
    become = ["/usr/bin/setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    argv = _command(view, *become, "/bin/sh", "-c", script)
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    return process


def _on(view: nodes.View, *argv: str) -> None:
    subprocess.run(_command(view, *argv), check=True)


def _command(view: nodes.View, *argv: str) -> list[str]:
    return nodes.command(view.host, argv) if view.host else list(argv)
