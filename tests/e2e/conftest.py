# SPDX-License-Identifier: Apache-2.0
"""The lab, and jobs in it: everything here runs on real daemons and real guests."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import traces
from tests.guests import tiny
from tests.inventory import Inventory, differences
from vtorque import imagebuild, lab
from vtorque.backends.hypervisor.libvirt import Libvirt
from vtorque.deadline import growing
from vtorque.lab import demo, nodes, parts

PREFIX = Path(__file__).resolve().parents[2]
JOB_SECONDS = 1200
PATIENCE_SECONDS = 20
SCRIPTS = parts.ROOT / "scripts-vm"
TINY = "img=tiny.qcow2,ram=192M"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job that is over: its id, its exit status by qstat, and what it printed."""

    id: str
    exit_status: int
    out: bytes
    err: bytes


class Lab:
    """What a user of the lab does, and what its administrator looks at."""

    def __init__(self) -> None:
        user = pwd.getpwnam(parts.USER)
        self.home = Path(user.pw_dir)
        self.uid = user.pw_uid
        self.hypervisor = Libvirt("qemu:///system")
        self.mom_priv = parts.ROOT / "torque/mom_priv"
        self.configuration = parts.PROGRAM / "etc/vtorque.yaml"
        self._before: Inventory = {}

    def as_user(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command as the user in his home."""
        groups = os.getgrouplist(parts.USER, pwd.getpwnam(parts.USER).pw_gid)
        path = f"{parts.PROGRAM}/scripts:{parts.PROGRAM}/scripts/local:/usr/bin:/bin"
        return subprocess.run(
            ["/usr/bin/env", *argv], check=False, capture_output=True, cwd=self.home,
            env={"PATH": path, "HOME": str(self.home), "LOGNAME": parts.USER, "LANG": "C.UTF-8", "MARK": "a'b \" c"},
            user=self.uid, group=pwd.getpwnam(parts.USER).pw_gid, extra_groups=groups, stdin=subprocess.DEVNULL,
        )

    def write(self, name: str, text: str) -> str:
        """A script of the user's."""
        path = self.home / name
        path.write_text(text)
        path.chmod(0o755)
        os.chown(path, self.uid, pwd.getpwnam(parts.USER).pw_gid)
        return name

    def submit(self, script: str, *options: str, vm: str = TINY) -> str:
        """Submit a script; the job's id."""
        done = self.as_user("vsub", *options, "-vm", vm, script)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def state(self, job: str) -> dict[str, object]:
        """The job's record."""
        jobs: list[dict[str, object]] = json.loads(self.as_user("qstat", "--json", job).stdout)
        return jobs[0]

    def phase(self, job: str) -> list[str]:
        """The phases that the job has noted so far."""
        try:
            lines = (self.home / ".vtorque" / job / "phases").read_text().splitlines()
        except OSError:
            return []
        return [json.loads(line)["phase"] for line in lines]

    def until(self, job: str, phase: str) -> None:
        """Wait until the job has noted a phase."""
        end, ask = time.monotonic() + JOB_SECONDS, 0.0
        while phase not in self.phase(job):
            # Asked all the time, qstat would have the guest's CPU.
            if time.monotonic() >= ask:
                assert time.monotonic() < end and self.state(job)["state"] != "C", self.read(job, "e")
                ask = time.monotonic() + 1
            time.sleep(0.05)

    def appears(self, name: str) -> None:
        """Wait until a job has made a file in the home."""
        path = self.home / name
        end = time.monotonic() + JOB_SECONDS
        while not path.exists():
            assert time.monotonic() < end, f"{name} was not made"
            time.sleep(0.05)
        path.unlink()

    def ended(self, job: str) -> Ended:
        """Wait for the job's end."""
        end, pauses = time.monotonic() + JOB_SECONDS, growing(first=0.1, longest=1.0)
        while (record := self.state(job))["state"] != "C":
            assert time.monotonic() < end, f"job {job} did not end: {record}, {self.read(job, 'e')!r}"
            time.sleep(next(pauses))
        status = record["exit_status"]
        assert isinstance(status, int)
        return Ended(id=job, exit_status=status, out=self.read(job, "o"), err=self.read(job, "e"))

    def run(self, text: str, *options: str, vm: str = TINY) -> Ended:
        """Run a script in guests, to its end."""
        return self.ended(self.submit(self.write("job.sh", text), *options, vm=vm))

    def read(self, job: str, letter: str) -> bytes:
        """An output file of the job, as far as it was delivered."""
        number = job.partition(".")[0]
        return b"".join(path.read_bytes() for path in sorted(self.home.glob(f"*.{letter}{number}")))

    def watch(self) -> None:
        """From now on what is different was left, taken away or changed by a job."""
        self._before = traces.take()

    def leftovers(self) -> list[str]:
        """What jobs have left on any node, or done to what is none of theirs; who ends by himself may take a moment."""
        end = time.monotonic() + PATIENCE_SECONDS
        while left := differences(self._before, traces.take()):
            if not all(map(traces.A_MOMENT.match, left)) or time.monotonic() > end:
                break
            time.sleep(0.05)
        return left

    def delete_all(self) -> None:
        """Delete whatever jobs there are, and wait for their ends."""
        for record in json.loads(self.as_user("qstat", "--json").stdout):
            if record["state"] != "C":
                self.as_user("qdel", record["id"])
                self.ended(record["id"])

    def on(self, node: str, *argv: str) -> str:
        """What a command says that runs on a simulated node as root."""
        done = subprocess.run(nodes.command(node, argv), check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def view(self, node: str) -> nodes.View:
        """Where a simulated node's own files are for us, and how its libvirt is reached."""
        return next(view for view in self.views() if view.host == node)

    def views(self) -> tuple[nodes.View, ...]:
        """The same of every node."""
        return nodes.views(lab.size())


@contextlib.contextmanager
def a_lab_of(number: int, strangers: traces.Strangers) -> Iterator[Lab]:
    """A lab with so many nodes and strangers on them, whatever lab there is; afterwards it is as it was before."""
    were_here = strangers.are_here
    assert strangers.leave() == []
    if lab.size() and not lab.status(PREFIX)["batch system"]:
        # The machine went down under it: its batch system would start again what jobs it had.
        take_down()
    before = lab.size()
    if before not in (0, number):
        take_down()
    # A run that was killed left those of its guests, and the next ones' are named as they are.
    nodes.remove_groups()
    lab.up(PREFIX, number=number, progress=print)
    try:
        if number == 1:
            # The kernel may keep rules of a lab whose files are gone.
            subprocess.run([parts.PROGRAM / "scripts/vmgr", "sweep"], check=True)
        tiny.build(parts.IMAGES)
        strangers.come()
        yield Lab()
    finally:
        touched = strangers.leave()
        if before != number:
            take_down()
            if before:
                lab.up(PREFIX, number=before, progress=print)
        if were_here:
            strangers.come()
    assert touched == []


def take_down() -> None:
    """`lab down`, after which nothing of the lab is left."""
    lab.down(PREFIX, progress=print)
    assert not any(lab.status(PREFIX).values())
    for path in (parts.ROOT, parts.STATE, Path("/home") / parts.USER):
        assert not path.exists(), f"{path} was left by lab down"
    assert not list(Path("/sys/class/net").glob(f"{parts.BRIDGE}*"))
    assert str(parts.ROOT) not in Path("/proc/self/mountinfo").read_text()
    end = time.monotonic() + PATIENCE_SECONDS
    while left := processes_of_the_lab():
        assert time.monotonic() < end, left
        time.sleep(0.1)


def processes_of_the_lab() -> dict[int, bytes]:
    """Whoever was started by the lab, or lives on a node of it."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words, mounts = (entry / "cmdline").read_bytes(), (entry / "mountinfo").read_text()
            if os.fsencode(parts.ROOT) + b"/" in words or f"{parts.ROOT.name}/nodes/" in mounts:
                found[int(entry.name)] = words
    return found


@pytest.fixture(scope="session")
def strangers() -> traces.Strangers:
    """They come and go with the lab."""
    return traces.Strangers()


@pytest.fixture(scope="session")
def a_lab(strangers: traces.Strangers) -> Iterator[Lab]:
    with a_lab_of(1, strangers) as found:
        yield found


@pytest.fixture(scope="module")
def a_lab_with_two_nodes(strangers: traces.Strangers) -> Iterator[Lab]:
    # Not for the session: there is but one lab on a machine, and most tests want it with one node.
    with a_lab_of(2, strangers) as found:
        yield found


@contextlib.contextmanager
def watched(lab: Lab, session: pytest.Session) -> Iterator[Lab]:
    """The lab, on which after every test all has to be as it was before."""
    lab.watch()
    failed = session.testsfailed
    yield lab
    # Who failed waits for none of his jobs: what they have would only hide why he did, and is not the next one's.
    left = lab.leftovers() if session.testsfailed == failed else []
    lab.delete_all()
    assert not left, "\n".join(left)


@pytest.fixture
def two_nodes(a_lab_with_two_nodes: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab with the nodes vtn1 and vtn2."""
    with watched(a_lab_with_two_nodes, request.session) as found:
        yield found


@pytest.fixture
def the_lab(a_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab with one node, which is this machine."""
    with watched(a_lab, request.session) as found:
        yield found


@pytest.fixture
def debian_image(a_lab: Lab) -> str:
    """The one Debian image of all tests, with Open MPI: to build another takes a minute."""
    return imagebuild.build(demo.RECIPE, parts.IMAGES, packages=["openmpi-bin"], progress=print).name


@pytest.fixture
def setting(a_lab: Lab) -> Iterator[object]:
    """Change options of the lab's configuration for one test."""
    before = a_lab.configuration.read_text()

    def change(**options: object) -> None:
        lines = [line for line in before.splitlines() if line.partition(":")[0] not in options]
        lines += [f"{name}: {value}" for name, value in options.items()]
        a_lab.configuration.write_text("\n".join(lines) + "\n")

    yield change
    a_lab.configuration.write_text(before)


@pytest.fixture
def scripts(setting: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Puts the site's own scripts for guests in their place."""

    def put(**texts: str) -> None:
        SCRIPTS.mkdir(mode=0o755)
        for name, text in texts.items():
            (SCRIPTS / name).write_text(f"#!/bin/sh\n{text}\n")
            (SCRIPTS / name).chmod(0o755)
        setting(VM_SCRIPTS_DIR=SCRIPTS)

    yield put
    shutil.rmtree(SCRIPTS, ignore_errors=True)
