# SPDX-License-Identifier: Apache-2.0
"""The lab's services: libvirt, NFS, a batch system."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from vtorque import files
from vtorque.deadline import Deadline
from vtorque.errors import CommandError
from vtorque.lab import nodes
from vtorque.lab.daemons import Daemon
from vtorque.lab.parts import ADDRESS, PROGRAM, ROOT, USER, Account, Part, answers, do, kvm_is_usable

_LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")
_SECONDS = 60.0
_LAST_JOBS_SECONDS = 120.0
_GANESHA = """\
NFS_CORE_PARAM {{ Protocols = 4; Bind_addr = {address}; NFS_Port = 2049;
  Enable_NLM = false; Enable_RQUOTA = false; }}
NFSV4 {{ Graceless = true; Minor_Versions = 1, 2; Only_Numeric_Owners = true; RecoveryBackend = fs; }}
EXPORT_DEFAULTS {{ Squash = No_Root_Squash; SecType = sys; Transports = TCP; Protocols = 4;
  Access_Type = None; }}
{exports}
LOG {{ Default_Log_Level = EVENT; }}
"""
_EXPORT = """\
EXPORT {{ Export_Id = {number}; Path = {path}; Pseudo = {pseudo};
  CLIENT {{ Clients = 10.99.0.0/24; Access_Type = {access}; }} FSAL {{ Name = VFS; }} }}
"""


class Hypervisor(Part):
    """libvirtd and virtlogd, unless this machine runs its own."""

    name = "libvirt"

    def __init__(self) -> None:
        self._virtlogd = Daemon("virtlogd", ["/usr/sbin/virtlogd"], directory=ROOT)
        hide = "yes" if not kvm_is_usable() else "no"
        self._libvirtd = Daemon("libvirtd", [
            "/usr/bin/unshare", "--mount", "--propagation", "private",
            str(PROGRAM / "contrib/lab-libvirtd"), str(ROOT), hide,
        ], directory=ROOT)

    def up(self) -> None:
        if answers(_LIBVIRT_SOCKET):
            return
        files.replace(ROOT / "qemu.conf", b"namespaces = []\n", mode=0o644)
        files.replace(ROOT / "no-kvm", b"", mode=0o600)
        self._virtlogd.start()
        _LIBVIRT_SOCKET.unlink(missing_ok=True)
        self._libvirtd.start()
        self._libvirtd.require(_LIBVIRT_SOCKET, deadline=Deadline(_SECONDS))

    def down(self) -> None:
        self._libvirtd.stop()
        self._virtlogd.stop()
        for name in ("qemu.conf", "no-kvm"):
            (ROOT / name).unlink(missing_ok=True)

    def is_up(self) -> bool:
        return answers(_LIBVIRT_SOCKET)


class Shares(Part):
    """A user-space NFS server that exports the user's home, a workspace and a read-only /opt to guests."""

    name = "NFS server"

    def __init__(self) -> None:
        self._configuration = ROOT / "ganesha.conf"
        self._ganesha = Daemon("ganesha", [
            "/usr/bin/ganesha.nfsd", "-F", "-f", str(self._configuration), "-L", "/dev/stderr",
            "-p", str(ROOT / "ganesha.pid"), "-N", "NIV_EVENT",
        ], directory=ROOT)

    def up(self) -> None:
        user = pwd.getpwnam(USER)
        workspace, opt = ROOT / "workspace", ROOT / "opt"
        for directory in (workspace, opt):
            directory.mkdir(mode=0o755, exist_ok=True)
        workspace.chmod(0o1777)
        files.replace(opt / "README", b"The software tree of the lab.\n", mode=0o644)
        exports = ((user.pw_dir, f"/home/{USER}", "RW"), (workspace, "/workspace", "RW"), (opt, "/opt", "RO"))
        text = _GANESHA.format(address=ADDRESS, exports="".join(
            _EXPORT.format(number=number, path=path, pseudo=pseudo, access=access)
            for number, (path, pseudo, access) in enumerate(exports, 1)
        ))
        files.replace(self._configuration, text.encode(), mode=0o644)
        Path("/run/ganesha").mkdir(exist_ok=True)
        self._ganesha.start()
        for _ in Deadline(_SECONDS).ticks(doing="start the NFS server"):
            if self.is_up():
                return
            if not self._ganesha.is_running():
                raise CommandError("the NFS server did not start", hint=f"see {self._ganesha.log}")

    def down(self) -> None:
        self._ganesha.stop(number=signal.SIGKILL)
        for path in (self._configuration, ROOT / "ganesha.pid"):
            path.unlink(missing_ok=True)
        for directory in (ROOT / "workspace", ROOT / "opt"):
            shutil.rmtree(directory, ignore_errors=True)

    def is_up(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((ADDRESS, 2049), timeout=1):
            return self._ganesha.is_running()
        return False


class Engine(Part):
    """The local batch system, with vtorque's hooks where an administrator would link them."""

    name = "batch system"

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self._home = ROOT / "torque"
        self._hosts = hosts
        mom = str(PROGRAM / "scripts/local/pbs_mom")
        command = ["/usr/bin/python3", "-I", mom, "--home", str(self._home)]
        if hosts:
            command += ["--nodes", str(nodes.DIRECTORY)]
        self._daemon = Daemon("pbs_mom", command, directory=ROOT)

    def up(self) -> None:
        for view in nodes.views(len(self._hosts) or 1):
            _set_up(view.mom_priv)
        if self._hosts:
            (self._home / "server_priv").mkdir(mode=0o750, parents=True, exist_ok=True)
            text = "".join(f"{host} np={os.cpu_count() or 1}\n" for host in self._hosts)
            files.replace(self._home / "server_priv/nodes", text.encode(), mode=0o644)
        self._daemon.start()
        self._daemon.require(self._home / "server.sock", deadline=Deadline(_SECONDS))

    def down(self) -> None:
        was_running = self._daemon.is_running()
        # It ends its jobs first, and their guests with them.
        self._daemon.stop(patience=_LAST_JOBS_SECONDS)
        if not was_running and not self._hosts and (PROGRAM / "etc").is_dir():
            self._end_jobs()
        shutil.rmtree(self._home, ignore_errors=True)

    def is_up(self) -> bool:
        return self._daemon.is_running() and answers(self._home / "server.sock")

    def _end_jobs(self) -> None:
        """End the jobs of an engine that was killed, and have given back what they held. Simulated nodes need none."""
        for _ in Deadline(_SECONDS).ticks(doing="end the lab's jobs"):
            serving = _serving_jobs()
            if not serving:
                break
            for pid in serving:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # No job is known any more.
        shutil.rmtree(self._home / "mom_priv/jobs", ignore_errors=True)
        Hypervisor().up()
        do("env", "-i", str(PROGRAM / "scripts/vmgr"), "sweep")


def _serving_jobs() -> list[int]:
    """Lives, hooks and guards of jobs of an engine for this machine, and all that the jobs' user runs."""
    uid = pwd.getpwnam(USER).pw_uid if Account().is_up() else -1
    ours = {os.fsencode(PROGRAM / "scripts" / name) for name in ("local/pbs_mom", "hook")}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes()
            # One that has ended, and that nobody has waited for, has none.
            if argv and (entry.stat().st_uid == uid or ours & {*argv.split(b"\0")}):
                found.append(int(entry.name))
    return found


def _set_up(mom_priv: Path) -> None:
    """The directory of one mom's files, with our hooks in it."""
    for directory in (mom_priv, mom_priv / "jobs"):
        directory.mkdir(mode=0o751, parents=True, exist_ok=True)
    for name in ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel", "epilogue.precancel"):
        link = mom_priv / name
        link.unlink(missing_ok=True)
        link.symlink_to(PROGRAM / "scripts" / name)
    # Without KVM, on a busy machine, a guest takes minutes to boot.
    files.replace(mom_priv / "config", b"$prologalarm 600\n", mode=0o644)
