# SPDX-License-Identifier: Apache-2.0
"""The lab's ground: the program, a user, a network; each made, removed and looked at separately."""

import compileall
import contextlib
import os
import pwd
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from vtorque import accounts, files, proc
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError
from vtorque.install import account
from vtorque.lab.daemons import Daemon

ROOT = Path("/var/lib/vtorque-lab")
PROGRAM = ROOT / "vtorque"
IMAGES = Path("/var/cache/vtorque-lab/images")
STATE = Path("/run/vtorque-lab")
USER = "vtlab"
GROUPS = ("vtlab-blue", "vtlab-green")
BRIDGE = "vtlab0"
ADDRESS = "10.99.0.1"
_MAC = "02:00:0a:63:00:01"

_TREE = ("vtorque", "scripts", "templates", "templates-vm", "contrib", "examples")
_SECONDS = 60.0
# An administrator who wants more of a lab than this edits the file; `up` writes it anew.
_CONFIGURATION = """\
# Written by `vmgr lab up`.
BATCH_SYSTEM: local
TORQUE_HOME: {root}/torque
PBS_QSUB_ON_FE: {root}/vtorque/scripts/local/qsub
PBS_QSUB_ON_NODES: {root}/vtorque/scripts/local/qsub
VM_IMG_DIR: {images}
VM_NFS_HOME: {address}:/home
VM_NFS_WS: {address}:/workspace
VM_NFS_OPT: {address}:/opt
BRIDGE: {bridge}
HYPERVISOR_TYPE: {hypervisor}
HOST_OS_CORE_COUNT: 0
HOST_OS_RAM_MB: 512
IMG_DEFAULT: debian-12.qcow2
VCPUS_DEFAULT: 1
RAM_DEFAULT: 512
TIMEOUT: 480
SSH_TIMEOUT: 20
GUEST_TIMEOUT: 20
REQUEUE_LIMIT: 1
NODE_FAILURE_LIMIT: 0
STATE_DIR: {state}
DISK_DIR: {root}/disks
RAMDISK_DIR: {root}/ramdisk
IMAGE_CACHE_DIR: {root}/image-cache
LOG_DIR: {root}/log
"""


class Part:
    """Something the lab makes. `up` and `down` may be repeated; `down` removes only what `up` made."""

    name = ""

    def up(self) -> None:
        """Make it, unless it is there."""
        raise NotImplementedError

    def down(self) -> None:
        """Remove it, unless it is gone."""
        raise NotImplementedError

    def is_up(self) -> bool:
        """Whether it is there and works."""
        raise NotImplementedError


class Program(Part):
    """A copy of the program that users can reach, with the lab's configuration."""

    name = "program"

    def __init__(self, source: Path) -> None:
        self._source = source

    def up(self) -> None:
        for name in _TREE:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(self._source / name, PROGRAM / name, dirs_exist_ok=True, ignore=ignore)
        text = _CONFIGURATION.format(
            root=ROOT, images=IMAGES, address=ADDRESS, bridge=BRIDGE, state=STATE,
            hypervisor="kvm" if kvm_is_usable() else "qemu",
        )
        compileall.compile_dir(PROGRAM / "vtorque", quiet=1)
        (PROGRAM / "etc").mkdir(exist_ok=True)
        files.replace(PROGRAM / "etc/vtorque.yaml", text.encode(), mode=0o644)
        for path in (PROGRAM, *PROGRAM.rglob("*")):
            os.chown(path, 0, 0)
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)

    def down(self) -> None:
        shutil.rmtree(PROGRAM, ignore_errors=True)

    def is_up(self) -> bool:
        return (PROGRAM / "etc/vtorque.yaml").is_file()


class Account(Part):
    """An ordinary user with two more groups, to submit as."""

    name = f"user {USER}"

    def up(self) -> None:
        if self.is_up():
            return
        for group in GROUPS:
            do("groupadd", "-f", group)
        do("useradd", "--create-home", "--user-group", "--groups", ",".join(GROUPS),
            "--shell", "/bin/bash", "--comment", "user of the vtorque lab", USER)
        user = pwd.getpwnam(USER)
        profile = f'PATH="{PROGRAM}/scripts:{PROGRAM}/scripts/local:$PATH"\n'
        path = Path(user.pw_dir) / ".profile"
        path.unlink(missing_ok=True)
        files.write_new(path, profile.encode(), mode=0o644)
        files.give(path, uid=user.pw_uid, gid=user.pw_gid)

    def down(self) -> None:
        if self.is_up():
            do("userdel", "--remove", USER, statuses=(0, 12))
        for group in GROUPS:
            do("groupdel", group, statuses=(0, 6))

    def is_up(self) -> bool:
        try:
            return pwd.getpwnam(USER).pw_gecos == "user of the vtorque lab"
        except KeyError:
            return False


class ProgramUser(Part):
    """The account that the program runs as, here as on any node; it stays, as the lab need not be the only one."""

    name = f"user {accounts.PROGRAM}"

    def up(self) -> None:
        if command := account.making():
            do(*command)

    def down(self) -> None:
        pass

    def is_up(self) -> bool:
        return not account.making()


class Network(Part):
    """A bridge for guests only, with the node's address on it and a DHCP server behind it."""

    name = f"bridge {BRIDGE}"

    def __init__(self) -> None:
        self._leases = ROOT / "dnsmasq.leases"
        self._dnsmasq = Daemon("dnsmasq", [
            "/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping",
            f"--interface={BRIDGE}", "--bind-interfaces", "--except-interface=lo", "--dhcp-authoritative",
            "--dhcp-range=10.99.0.16,10.99.0.250,255.255.255.0,1h", f"--dhcp-leasefile={self._leases}",
            "--log-facility=-", "--pid-file",
        ], directory=ROOT)

    def up(self) -> None:
        if not self._has_bridge():
            # Without a MAC of its own it has that of one of its ports, another one whenever a guest comes or goes.
            do("ip", "link", "add", BRIDGE, "address", _MAC, "type", "bridge", "forward_delay", "0",
               "no_linklocal_learn", "1")
            do("ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
        do("ip", "link", "set", BRIDGE, "up")
        self._dnsmasq.start()

    def stop_dhcp(self) -> None:
        """Leave guests without a DHCP server until the next `up`."""
        self._dnsmasq.stop()

    def down(self) -> None:
        self.stop_dhcp()
        self._leases.unlink(missing_ok=True)
        if self._has_bridge():
            do("ip", "link", "delete", BRIDGE)

    def is_up(self) -> bool:
        return self._has_bridge() and self._dnsmasq.is_running()

    @staticmethod
    def _has_bridge() -> bool:
        return Path(f"/sys/class/net/{BRIDGE}").exists()


def kvm_is_usable() -> bool:
    """Whether guests can run on this machine's own virtualisation: what the processor says, not /dev."""
    flags = Path("/proc/cpuinfo").read_text(errors="replace").split()
    return Path("/dev/kvm").exists() and ("vmx" in flags or "svm" in flags)


def answers(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def do(program: str, *words: str, statuses: Sequence[int] = (0,)) -> None:
    """Run a program of this machine to its end. Raises ConfigError when it is missing, CommandError when it fails."""
    path = shutil.which(program, path=proc.PATH)
    if path is None:
        raise ConfigError(f"{program} is missing on this machine")
    proc.run([path, *words], deadline=Deadline(_SECONDS), statuses=statuses)


def refuse_foreign(recorded: bool) -> None:
    """Refuse to begin when something of the lab's names belongs to somebody else; StateError."""
    if recorded:
        return
    with contextlib.suppress(KeyError):
        pwd.getpwnam(USER)
        raise StateError(f"there is a user {USER} that is not the lab's", hint="the lab needs this name")
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        hint = f"ip link delete {BRIDGE}"
        raise StateError(f"there is an interface {BRIDGE} that is not the lab's", hint=hint)
