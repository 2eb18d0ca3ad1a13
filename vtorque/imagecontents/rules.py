# SPDX-License-Identifier: Apache-2.0
"""What an image must contain, and who may become root in it (doc/guest-images.md)."""

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vtorque.imagecontents.ext4 import Ext4

MISSING, RIGHTS = "missing", "rights"
"""The kinds of a finding; others are the SHARE that needs what is missing."""

_LIMIT = 1 << 20
_MODULES_LIMIT = 8 << 20
_MOST_OF_A_KIND = 5
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_UNITS = "/etc/systemd/system"
_WANTS = [f"{_UNITS}/{name}.target.wants" for name in ("multi-user", "cloud-init", "sysinit", "default", "sockets")]
_GENERATOR = "/lib/systemd/system-generators/cloud-init-generator"
_TOOLS = ("sh", "awk", "ip", "timeout", "setsid")
_INCLUDE = re.compile(r"^\s*Include\s+.*/etc/ssh/sshd_config\.d/\*\.conf", re.MULTILINE | re.IGNORECASE)
_SOURCES = re.compile(r"^datasource_list:([^#\n]*(?:\n[ \t]*- .*)*)", re.MULTILINE)
_MODULES = {"nfs": "nfsv4", "9p": "9p", "virtiofs": "virtiofs"}
_HINTS = {"nfs": "install nfs-common or nfs-utils", "9p": "another kernel", "virtiofs": "another kernel"}
# What distributions make a program with root's rights, and keep an eye on.
_SETUID = {
    "at", "chage", "chfn", "chsh", "crontab", "dbus-daemon-launch-helper", "fusermount", "fusermount3", "gpasswd",
    "grub2-set-bootflag", "mount", "mount.nfs", "newgidmap", "newgrp", "newuidmap", "pam_timestamp_check", "passwd",
    "ping", "pkexec", "polkit-agent-helper-1", "snap-confine", "ssh-keysign", "sssd_pam", "su", "sudo", "umount",
    "unix_chkpwd", "userhelper", "vmware-user-suid-wrapper",
}
_SYSTEM = ("/usr/", "/etc/", "/bin/", "/sbin/", "/lib", "/boot/", "/root/")
_LOWEST_UID, _NOBODY = 1000, 65534
_GROUPS = ("docker", "lxd", "incus", "incus-admin", "disk", "shadow", "sudo", "wheel", "admin", "root")
# Whoever may speak to its daemon is root.
_DAEMONS = ("docker", "lxd", "incus-admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that an image lacks or grants, and what to do."""

    kind: str
    what: str
    hint: str


def check(system: Ext4) -> list[Finding]:
    """Everything that is wrong with the root file system of an image."""
    rules: tuple[tuple[str, Callable[[Ext4], Iterator[tuple[str, str]]]], ...] = (
        (MISSING, _cloud_init), (MISSING, _ssh), (MISSING, _tools), (RIGHTS, _accounts), (RIGHTS, _sudo),
        (RIGHTS, _groups), (RIGHTS, _files),
    )
    found = [Finding(kind=kind, what=what, hint=hint) for kind, rule in rules for what, hint in rule(system)]
    return found + [Finding(kind=kind, what=what, hint=_HINTS[kind]) for kind, what in _shares(system)]


def _cloud_init(system: Ext4) -> Iterator[tuple[str, str]]:
    if not _program(system, "cloud-init"):
        yield "cloud-init is missing", "install the package cloud-init"
        return
    if system.find("/etc/cloud/cloud-init.disabled"):
        yield "cloud-init is disabled", "remove /etc/cloud/cloud-init.disabled"
    enabled = any("cloud-init" in name for directory in _WANTS for name in system.names(directory))
    if not enabled and (not system.find(_GENERATOR) or _masked(system, "cloud-init.target")):
        yield "cloud-init is started by no unit", "systemctl enable cloud-init.service"
    sources = [match[1] for text in _configuration(system) for match in _SOURCES.finditer(text)]
    if sources and "NoCloud" not in sources[-1]:
        yield "cloud-init does not look for NoCloud", "datasource_list: [ NoCloud ] in /etc/cloud/cloud.cfg.d"


def _ssh(system: Ext4) -> Iterator[tuple[str, str]]:
    if not _program(system, "sshd"):
        yield "an SSH server is missing", "install the package openssh-server"
        return
    wanted = {name for directory in _WANTS for name in system.names(directory)}
    if not wanted & {"ssh.service", "sshd.service", "ssh.socket", "sshd.socket"}:
        yield "the SSH server is started by no unit", "systemctl enable ssh or sshd"
    if not _INCLUDE.search(system.text("/etc/ssh/sshd_config", limit=_LIMIT) or ""):
        yield "sshd does not read sshd_config.d", "Include /etc/ssh/sshd_config.d/*.conf in sshd_config"


def _tools(system: Ext4) -> Iterator[tuple[str, str]]:
    for name in _TOOLS:
        if not _program(system, name):
            yield f"{name} is missing", f"install what has the program {name}"


def _shares(system: Ext4) -> Iterator[tuple[str, str]]:
    """What is missing for each SHARE."""
    if not _program(system, "mount.nfs4") and not _program(system, "mount.nfs"):
        yield "nfs", "mount.nfs4 is missing"
    known = ""
    for version in system.names("/lib/modules"):
        for name in ("modules.dep", "modules.builtin"):
            known += system.text(f"/lib/modules/{version}/{name}", limit=_MODULES_LIMIT) or ""
    for share, module in _MODULES.items():
        if f"/{module}.ko" not in known:
            yield share, f"no kernel of it has the module {module}"


def _accounts(system: Ext4) -> Iterator[tuple[str, str]]:
    for fields in _table(system, "/etc/passwd", 7):
        if fields[2].lstrip("0") == "" and fields[0] != "root":
            yield f"account {fields[0]} is root by its number", f"userdel {fields[0]}"
        if not fields[1]:
            yield f"account {fields[0]} needs no password", f"passwd --lock {fields[0]}"
    for fields in _table(system, "/etc/shadow", 2):
        if not fields[1]:
            yield f"account {fields[0]} needs no password", f"passwd --lock {fields[0]}"
        elif fields[1][0] not in "!*":
            yield f"account {fields[0]} has a password", f"passwd --lock {fields[0]}"
    for name in ("authorized_keys", "authorized_keys2"):
        text = system.text(f"/root/.ssh/{name}", limit=_LIMIT) or ""
        if any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
            yield "root lets in whoever has a certain key", f"remove /root/.ssh/{name}"


def _sudo(system: Ext4) -> Iterator[tuple[str, str]]:
    """Rules of sudo by which somebody needs no password: users of jobs have none that they could be asked for."""
    names = [name for name in system.names("/etc/sudoers.d") if "." not in name and not name.endswith("~")]
    for path in ("/etc/sudoers", *(f"/etc/sudoers.d/{name}" for name in names)):
        text = (system.text(path, limit=_LIMIT) or "").replace("\\\n", " ")
        for line in (each.strip() for each in text.splitlines()):
            words = line.split()
            if line.startswith(("@include", "#include")):
                if words[1:] not in (["/etc/sudoers.d"], ["/etc/sudoers.d/"]):
                    yield f"{path} includes {' '.join(words[1:])}, which is not looked at", "put it into /etc/sudoers.d"
            elif line.startswith("#") or not words:
                continue
            elif ("NOPASSWD" in line and words[0] != "root") or (words[0].startswith("Defaults")
                                                                  and "!authenticate" in line):
                yield f"{path} lets {words[0]} become root without a password", f"remove the line: {line}"
    doas = system.text("/etc/doas.conf", limit=_LIMIT) or ""
    if re.search(r"^\s*permit\b.*\bnopass\b", doas, re.MULTILINE):
        yield "/etc/doas.conf lets somebody become root without a password", "remove nopass"


def _groups(system: Ext4) -> Iterator[tuple[str, str]]:
    groups = {fields[0]: fields[3] for fields in _table(system, "/etc/group", 4)}
    for name in _GROUPS:
        if members := [each for each in groups.get(name, "").split(",") if each and each != "root"]:
            yield f"{members[0]} is in group {name}, whose members can become root", f"gpasswd -d {members[0]} {name}"
        elif name in _DAEMONS and name in groups:
            yield f"there is a group {name}, whose members are root", f"remove {name}"


def _files(system: Ext4) -> Iterator[tuple[str, str]]:
    """Files that an ordinary user could become root by; the first of each kind."""
    kinds: dict[str, list[tuple[str, str]]] = {"setuid": [], "writable": [], "owned": []}
    for path, inode in system.walk():
        if not stat.S_ISREG(inode.mode):
            continue
        name = path.rpartition("/")[2]
        if inode.mode & stat.S_ISUID and (inode.uid or name not in _SETUID or not path.startswith(_SYSTEM)):
            kinds["setuid"].append((f"{path} runs with the rights of uid {inode.uid}", f"chmod u-s {path}"))
        if not path.startswith(_SYSTEM):
            continue
        if inode.mode & stat.S_IWOTH:
            kinds["writable"].append((f"{path} can be written by everybody", f"chmod o-w {path}"))
        if inode.uid >= _LOWEST_UID and inode.uid != _NOBODY:
            kinds["owned"].append((f"{path} belongs to uid {inode.uid}, which a job's user may have",
                                   f"chown root {path}"))
    for each in kinds.values():
        yield from each[:_MOST_OF_A_KIND]
        if len(each) > _MOST_OF_A_KIND:
            yield f"and {len(each) - _MOST_OF_A_KIND} files more like {each[0][0].partition(' ')[0]}", each[0][1]


def _program(system: Ext4, name: str) -> bool:
    return any(system.find(f"{directory}/{name}") for directory in _PATH)


def _masked(system: Ext4, unit: str) -> bool:
    number = system.find(f"{_UNITS}/{unit}", follow=False)
    inode = system.inode(number) if number else None
    return inode is not None and stat.S_ISLNK(inode.mode) and system.link(inode) == "/dev/null"


def _configuration(system: Ext4) -> Iterator[str]:
    """cloud-init's own files, in the order in which later ones count more."""
    directory = "/etc/cloud/cloud.cfg.d"
    names = [name for name in system.names(directory) if name.endswith(".cfg")]
    for path in ("/etc/cloud/cloud.cfg", *(f"{directory}/{name}" for name in names)):
        yield system.text(path, limit=_LIMIT) or ""


def _table(system: Ext4, path: str, columns: int) -> list[list[str]]:
    """The lines of a file of accounts, each with as many fields at least."""
    lines = (system.text(path, limit=_LIMIT) or "").splitlines()
    found = [line.split(":") for line in lines if line and not line.startswith("#")]
    return [fields for fields in found if len(fields) >= columns]
