# SPDX-License-Identifier: Apache-2.0
"""A Slurm of real daemons without systemd: munged, slurmctld and a slurmd for each node, gone without a trace."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import ports

SECONDS = 60
JOB_SECONDS = 600
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
_CONF = """\
ClusterName=vtorque
SlurmctldHost={host}({address})
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
SlurmUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
MailProg=/bin/true
KillWait=3
Prolog={root}/prolog
Epilog={root}/epilog
PrologFlags=Alloc,DeferBatch,Contain
PrologEpilogTimeout=300
BatchStartTimeout=300
{nodes}PartitionName=batch Nodes=ALL Default=YES MaxTime=1:00:00 State=UP
"""


@dataclass(frozen=True, kw_only=True)
class SlurmNode:
    """A node of the cluster: its name, the host and address of its slurmd, and what runs a command there as root."""

    name: str
    host: str = field(default_factory=socket.gethostname)
    address: str = "127.0.0.1"
    command: Callable[[Sequence[str]], list[str]] = list


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job that is over, as slurmctld shows it."""

    id: str
    state: str
    exit_code: str
    out: str
    err: str


class Slurm:
    """The cluster, for as long as it is up."""

    def __init__(self, root: Path, nodes: Sequence[SlurmNode], *, address: str = "127.0.0.1") -> None:
        self.root = root
        self.conf = root / "slurm.conf"
        self._nodes = {node.name: node for node in nodes}
        self._daemons: list[subprocess.Popen[bytes]] = []
        text = "".join(
            f"NodeName={node.name} NodeHostname={node.host} NodeAddr={node.address} Port={ports.free()}"
            " CPUs=2 RealMemory=4000\n"
            for node in nodes
        )
        self.conf.write_text(_CONF.format(
            host=socket.gethostname(), address=address, port=ports.free(), root=root, nodes=text,
        ))

    def hooks(self, scripts: Path) -> None:
        """Put our hooks where slurm.conf looks for them."""
        for name in ("prolog", "epilog"):
            (self.root / name).symlink_to(scripts / "slurm" / name)

    def up(self) -> None:
        """Start all daemons and wait until every node is idle."""
        munge = self.root / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", ["/usr/sbin/munged", "--foreground", f"--socket={munge / 'socket'}", *files], "munge")
        _until(lambda: (munge / "socket").exists(), "munged listens")
        (self.root / "state").mkdir(mode=0o700)
        self._start("slurmctld", ["/usr/sbin/slurmctld", "-D", "-f", str(self.conf)])
        for node in self._nodes.values():
            (self.root / f"spool-{node.name}").mkdir(mode=0o755)
            self.start_node(node.name)
        _until(lambda: all(self.node_state(name) == "idle" for name in self._nodes), "all nodes are idle")

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        argv = ["/usr/sbin/slurmd", "-D", "-N", name, "-f", str(self.conf)]
        self._start(f"slurmd-{name}", self._nodes[name].command(argv))

    def down(self) -> None:
        """End all daemons, and what is left of jobs."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        mark = f"SLURM_CONF={self.conf}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)

    def ask(self, *argv: str) -> str:
        """What a command of Slurm's says to root."""
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=self.environment())
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        """What commands of Slurm's need."""
        return {"PATH": "/usr/bin:/bin", "SLURM_CONF": str(self.conf)}

    def node_state(self, name: str) -> str:
        """`idle`, `draining`, `drained`, ..., as sinfo says it."""
        return self.ask("sinfo", "--noheader", "--Format=StateLong", f"--nodes={name}").strip("*")

    def log(self, name: str) -> str:
        """The log of a node's slurmd."""
        return (self.root / f"slurmd-{name}.log").read_text()

    def drained(self, name: str) -> str:
        """Wait until a node is drained and its Epilogs are over; why it was."""
        _until(lambda: self.node_state(name) == "drained", f"{name} is drained")
        return self.ask("sinfo", "--noheader", "--list-reasons", "--format=%E", f"--nodes={name}")

    def resume(self, name: str) -> None:
        """Put a drained node back to work."""
        self.ask("scontrol", "update", f"nodename={name}", "state=resume")
        self.idle(name)

    def idle(self, name: str) -> None:
        """Wait until a node has nothing to do, and may get something."""
        _until(lambda: self.node_state(name) == "idle", f"{name} is idle")

    def job(self, job: str) -> dict[str, str]:
        """The fields of a job as scontrol shows them."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, job: str, **fields: str) -> None:
        """Wait until scontrol shows these fields of a job."""

        def has() -> bool:
            about = self.job(job)
            assert about["JobState"] not in _OVER, about
            return fields.items() <= about.items()

        _until(has, f"job {job} has {fields}", JOB_SECONDS)

    def over(self, job: str) -> dict[str, str]:
        """Wait for a job's end, its Epilogs included; its fields."""
        # COMPLETING goes before the other state, and ends with the last Epilog.
        _until(lambda: self.job(job)["JobState"] in _OVER, f"job {job} is over", JOB_SECONDS)
        return self.job(job)

    def ended(self, job: str) -> Ended:
        """The end of a batch job."""
        about = self.over(job)
        files = [Path(about[name]) for name in ("StdOut", "StdErr")]
        out, err = (path.read_text() if path.exists() else "" for path in files)
        return Ended(id=job, state=about["JobState"], exit_code=about["ExitCode"], out=out, err=err)

    def _start(self, name: str, argv: Sequence[str], user: str | None = None) -> None:
        who = pwd.getpwnam(user) if user else None
        with (self.root / f"{name}.out").open("ab") as out:
            self._daemons.append(subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True,
                env=self.environment(), user=who and who.pw_uid, group=who and who.pw_gid, extra_groups=[],
            ))


@contextlib.contextmanager
def a_slurm(name: str, nodes: Sequence[SlurmNode], scripts: Path, *, address: str = "127.0.0.1") -> Iterator[Slurm]:
    """A cluster below /var/lib, where root trusts every path."""
    root = Path("/var/lib") / f"vtorque-{name}-{os.getpid()}"
    root.mkdir(mode=0o755)
    slurm = Slurm(root, nodes, address=address)
    slurm.hooks(scripts)
    try:
        slurm.up()
        yield slurm
    finally:
        slurm.down()
        shutil.rmtree(root)


def _until(true: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not happen that {what}"
        time.sleep(0.1)
