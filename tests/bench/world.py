# SPDX-License-Identifier: Apache-2.0
"""A cluster of one in a namespace: an installation, a user, a mom's spool, a qsub and guests that cost nothing."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import Command
from tests.builders import KEY, a_request
from vtorque import guestnames, images, request
from vtorque.backends.transport import keys

REPOSITORY = Path(__file__).resolve().parents[2]
JOB = "7.srv"
USER, UID = "vtbench", 64321
GUESTS = 16
IMAGE_MIB = 64

_CONFIGURATION = """\
BATCH_SYSTEM: torque
PBS_QSUB_ON_FE: {root}/qsub
PBS_QSUB_ON_NODES: {root}/qsub
TORQUE_HOME: {root}/torque
VM_IMG_DIR: {root}/images
IMG_DEFAULT: a.qcow2
VCPUS_DEFAULT: 1
RAM_DEFAULT: 256
HYPERVISOR_TYPE: qemu
BRIDGE: lo
NETWORK_FILTER: false
QEMU_USER: root
HOST_OS_CORE_COUNT: 0
HOST_OS_RAM_MB: 0
STATE_DIR: {root}/run
DISK_DIR: {root}/disks
IMAGE_CACHE_DIR: {root}/cache
LOG_DIR: {root}/log
"""
_HOOK = """\
#!/usr/bin/python3 -IS
import sys
sys.dont_write_bytecode = True
from pathlib import Path
sys.path[:] = ["{prefix}", "{repository}", *sys.path, "/usr/lib/python3/dist-packages"]
from tests.bench import standin
from vtorque.cli import leave
leave(standin.main(Path("{root}"), sys.argv[1:]))
"""
_SSHD = """\
Port 22
HostKey {root}/key
AuthorizedKeysFile {root}/key.pub
ForceCommand {root}/guest
PidFile none
StrictModes no
UsePAM no
UseDNS no
MaxStartups 200
Include {root}/sshd.d/*.conf
"""
_GUEST = """\
#!/bin/sh
set -- $SSH_CONNECTION
case ${{SSH_ORIGINAL_COMMAND-}} in
await-setup) exec cat "{root}/guests/$3" ;;
*run-job*) exec /bin/sh "{prefix}/templates-vm/run-job.sh" ;;
*) exec /bin/sh -c "$SSH_ORIGINAL_COMMAND" ;;
esac
"""


class World:
    """Where commands are measured; `heavier` adds to each of them what its budget must notice."""

    def __init__(self, root: Path, *, heavier: bool = False) -> None:
        self.root = root
        self.prefix = root / "vtorque"
        self.home = root / "home"
        self.mom_priv = root / "torque/mom_priv"
        self.environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        # Copies of a large one fill the queue of a slow disk, and prove no more.
        self._image_mib = 2 if heavier else IMAGE_MIB
        self._install()
        self._account()
        self._spool()
        self._farm()
        if heavier:
            self._burden()

    def _install(self) -> None:
        for name in ("vtorque", "scripts", "templates", "templates-vm"):
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, self.prefix / name, ignore=skipped)
        places = {"root": self.root, "prefix": self.prefix, "repository": REPOSITORY}
        _write(self.prefix / "etc/vtorque.yaml", _CONFIGURATION.format(**places))
        _write(self.prefix / "scripts/hook", _HOOK.format(**places), mode=0o755)
        _write(self.root / "guest", _GUEST.format(**places), mode=0o755)
        _write(self.root / "qsub", "#!/bin/sh\necho 7.srv\n", mode=0o755)
        subprocess.run(
            ["/usr/bin/python3", "-m", "compileall", "-q", self.prefix / "vtorque"], check=True
        )
        source = self.root / "source.qcow2"
        raw = self.root / "source.raw"
        raw.write_bytes(os.urandom(self._image_mib << 20))
        subprocess.run(["/usr/bin/qemu-img", "convert", "-q", "-O", "qcow2", raw, source], check=True)
        raw.unlink()
        about = {"name": "a.qcow2", "distro": "debian", "arch": "x86_64", "description": ""}
        images.publish(self.root / "images", about, {"a.qcow2": source})

    def _account(self) -> None:
        self.home.mkdir()
        os.chown(self.home, UID, UID)
        # In our own namespace: nobody else sees the user. All of it, because a mount on one file is
        # gone when somebody puts another file in its place.
        own = self.root / "etc"
        for attempt in range(5):
            # Somebody may just be adding a user: a lock is there when it is listed, and gone when it is copied.
            if subprocess.run(["/usr/bin/cp", "-a", "/etc/.", own], check=attempt == 4).returncode == 0:
                break
        with (own / "passwd").open("a") as file:
            file.write(f"{USER}:*:{UID}:{UID}::{self.home}:/bin/sh\n")
        os.chown(own / "hosts", UID, UID)
        subprocess.run(["/usr/bin/mount", "--bind", own, "/etc"], check=True)
        for place in ("/run", "/var/spool"):
            subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "tmpfs", place], check=True)
        for place in ("/run/vtorque-job", "/var/spool/torque/aux"):
            Path(place).mkdir(parents=True)
            os.chown(place, UID, UID)

    def _spool(self) -> None:
        (self.mom_priv / "jobs").mkdir(parents=True)
        (self.mom_priv / f"jobs/{JOB}.SC").touch()
        (self.root / "nodes").write_text("n1\n")
        for name in ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel"):
            (self.mom_priv / name).symlink_to(self.prefix / "scripts" / name)
        _write(self.root / "job.sh", "#!/bin/sh\necho ran\n", mode=0o755)

    def _farm(self) -> None:
        key = keys.make()
        _write(self.root / "key", key.private, mode=0o600)
        _write(self.root / "key.pub", key.public)
        for rank in range(GUESTS):
            _write(self.root / f"guests/127.0.1.{rank + 1}", f"ready {guestnames.guest_uuid(JOB, rank)}\n")
        _write(self.root / "sshd", _SSHD.format(root=self.root))
        Path("/run/sshd").mkdir()
        subprocess.run(["/usr/sbin/ip", "link", "set", "lo", "up"], check=True)
        subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", self.root / "sshd"], stderr=subprocess.DEVNULL)
        _await_port(22)

    def _burden(self) -> None:
        """What every gate has to notice: more processes, a library, a look at the home, a copy of the image."""
        for hook in ("prologue", "epilogue"):
            path = self.prefix / "scripts" / hook
            path.write_text(path.read_text().replace("case ", f': "$(cat {self.home}/.profile 2>&1)"\ncase ', 1))
        path = self.prefix / "vtorque/cli/plain.py"
        wasted = "import subprocess, yaml\nfor number in range(3):\n    subprocess.run(['/bin/true'])\n"
        path.write_text(path.read_text().replace("import os\n", f"import os\n{wasted}", 1))
        path = self.prefix / "vtorque/leftovers.py"
        path.write_text(path.read_text().replace("_MOST_LOOKED_AT = 64", "_MOST_LOOKED_AT = 1 << 30"))
        path = self.prefix / "vtorque/imageprobe.py"
        before = "    overlay.write(handle, "
        copies = "    for _ in range(9):\n" \
            "        subprocess.run(['/bin/dd', 'status=none', f'if={base.path}', 'bs=1M'], stdout=handle)\n"
        wasted = f"    import subprocess\n{copies}    os.truncate(handle, 0)\n"
        path.write_text(path.read_text().replace(before, wasted + before, 1))

    def plain_vsub(self) -> Command:
        return self._vsub(self.root / "job.sh")

    def vm_vsub(self) -> Command:
        return self._vsub("-vm", "vcpus=1", self.root / "job.sh")

    def qsub(self) -> Command:
        return Command(argv=[self.root / "qsub", self.root / "job.sh"], env=self.environ, user=UID)

    def _vsub(self, *words: str | Path) -> Command:
        return Command(argv=[self.prefix / "scripts/vsub", *words], env=self.environ, user=UID)

    def forget_submissions(self) -> None:
        shutil.rmtree(self.home / ".vtorque", ignore_errors=True)

    def old_submissions(self, number: int) -> None:
        """Directories of jobs that are still in the queue."""
        jobs = self.home / ".vtorque"
        jobs.mkdir(exist_ok=True)
        for each in range(number):
            (jobs / f"{each:016x}").mkdir()
            (jobs / f"{each + 100}.srv").symlink_to(f"{each:016x}")
        for path in (jobs, *jobs.iterdir()):
            os.chown(path, UID, UID, follow_symlinks=False)

    def job_directory(self) -> None:
        """What vsub leaves for the job whose request is `request`."""
        self.forget_submissions()
        path = self.home / ".vtorque" / a_request().request_id
        about = {"script": "job.sh", "shell": "/bin/sh", "exported": [], "interactive": False, "x11": False,
                 "elements": 1}
        _write(path / "job.json", json.dumps(about))
        _write(path / "key", (self.root / "key").read_text(), mode=0o600)
        _write(path / "script/job.sh", (self.root / "job.sh").read_text(), mode=0o700)
        for each in (path.parent, path, *path.rglob("*")):
            os.chown(each, UID, UID)

    def hook(self, kind: str, *, guests: int = 1, plain: bool = False) -> Command:
        """One of mom's hooks for a job of so many guests, or of none when it is `plain`."""
        wanted = a_request(image="a.qcow2", vcpus=1, memory_mib=64, vms_per_node=guests, public_key=KEY)
        resources = "nodes=1" if plain else f"nodes=1,other={request.encode(wanted)}"
        script = str(self.mom_priv / f"jobs/{JOB}.SC")
        if kind.startswith("prologue"):
            words = [JOB, USER, USER, "job", resources, "batch", "", script]
        else:
            words = [JOB, USER, USER, "job", "1", resources, "", "batch", "", "0", script]
        sister = kind.endswith(".parallel")
        env = {**self.environ, "PBS_NODEFILE": "" if sister else str(self.root / "nodes"), "PBS_NP": "2",
               "PBS_NODENUM": str(int(sister))}
        return Command(argv=[self.mom_priv / kind, *words], env=env)

    def wrapper(self) -> Command:
        """The job's wrapper, once a prologue has left the ready marker."""
        argv = [str(self.prefix / "scripts/jobrun"), a_request().request_id]
        return Command(argv=argv, env={**self.environ, "PBS_JOBID": JOB}, user=UID)

    def ssh(self) -> Command:
        """The cheapest thing that OpenSSH's own client can do in a guest."""
        key = self.root / "user.key"
        _write(key, (self.root / "key").read_text(), mode=0o600)
        os.chown(key, UID, UID)
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes")
        words = [word for option in options for word in ("-o", option)]
        argv = ["/usr/bin/ssh", *words, "-i", str(key), "127.0.1.1", "true"]
        return Command(argv=argv, env=self.environ, user=UID)

    def domains(self) -> list[str]:
        """The guests that are still running."""
        return sorted(each.name for each in (self.root / "domains").iterdir())


@contextlib.contextmanager
def world(*, heavier: bool = False) -> Iterator[World]:
    # Not below /tmp: root trusts no path with a component that others may write.
    root = Path("/var/lib") / f"vtorque-bench-{os.getpid()}-{time.monotonic_ns()}"
    root.mkdir(mode=0o755)
    # STATE_DIR is in memory, as on a node; and what domains there are costs nothing to keep.
    # What guests would tell a hook, which is not root when it hears it.
    (root / "told").mkdir()
    (root / "told").chmod(0o777)
    in_memory = [root / "run", root / "domains"]
    for place in in_memory:
        place.mkdir(mode=0o755)
        subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    try:
        yield World(root, heavier=heavier)
    finally:
        for place in in_memory:
            subprocess.run(["/usr/bin/umount", "--lazy", place], check=True)
        shutil.rmtree(root)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _await_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"sshd does not listen on port {port}")
