# SPDX-License-Identifier: Apache-2.0
"""Jobs under Slurm's real daemons, on two nodes, each with a network, a mount namespace and a libvirt of its own."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Lab, watched
from tests.e2e.slurm import Slurm, SlurmNode, a_slurm
from tests.e2e.typist import Typist
from vtorque import guestnames
from vtorque.lab import nodes, parts

pytestmark = pytest.mark.e2e

NODES = ("vtn1", "vtn2")
_CHANGED = {"BATCH_SYSTEM": "slurm", "PBS_QSUB_ON_FE": "/usr/bin/sbatch", "PBS_QSUB_ON_NODES": "/usr/bin/sbatch",
            "REQUEUE_LIMIT": "3"}
_PROMPT = r"[$] $"
_UUID = "cat /sys/class/dmi/id/product_uuid\n"


class SlurmLab:
    """The lab with Slurm in place of its own batch system."""

    def __init__(self, lab: Lab, slurm: Slurm) -> None:
        self.lab = lab
        self.slurm = slurm

    def submit(self, script: str, *options: str) -> str:
        """Submit a script with vsub, as the lab's user; the job's id."""
        name = self.lab.write("job.sh", f"#!/bin/sh\n{script}\n")
        done = self.lab.as_user(f"SLURM_CONF={self.slurm.conf}", "vsub", *options, "-vm", TINY, name)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def as_user(self, *argv: str) -> None:
        done = self.lab.as_user(f"SLURM_CONF={self.slurm.conf}", *argv)
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def hidden(self, path: Path, *hosts: str) -> Iterator[None]:
        """Have nothing at `path` on these nodes, nor let anything be put there."""
        for host in hosts:
            self.lab.on(host, "mount", "-t", "tmpfs", "-o", "nr_inodes=1,mode=755", "none", str(path))
        try:
            yield
        finally:
            for host in hosts:
                self.lab.on(host, "umount", str(path))


@pytest.fixture(scope="module")
def slurm_lab(a_lab_with_two_nodes: Lab) -> Iterator[SlurmLab]:
    lab = a_lab_with_two_nodes
    before = lab.configuration.read_text()
    lines = [line for line in before.splitlines() if line.partition(":")[0] not in _CHANGED]
    lab.configuration.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in _CHANGED.items()), ""]))
    hosts = [
        SlurmNode(name=host, host=host, address=nodes.address(host), command=partial(nodes.command, host))
        for host in NODES
    ]
    try:
        with a_slurm("e2e", hosts, parts.PROGRAM / "scripts", address=parts.ADDRESS) as slurm:
            yield SlurmLab(lab, slurm)
    finally:
        lab.configuration.write_text(before)


@pytest.fixture
def site(slurm_lab: SlurmLab, request: pytest.FixtureRequest) -> Iterator[SlurmLab]:
    """After every test all is as it was before, and every node is idle."""
    with watched(slurm_lab.lab, request.session):
        yield slurm_lab
    for node in NODES:
        slurm_lab.slurm.idle(node)


def test_a_job_runs_in_its_guest_and_ends_with_its_scripts_own_status(site: SlurmLab) -> None:
    job = site.submit(f"{_UUID}echo $PBS_JOBID $SLURM_JOB_ID $PBS_JOBNAME $PBS_NP $PBS_O_WORKDIR $PWD; exit 3")
    ended = site.slurm.ended(job)
    out = ended.out.splitlines()
    assert (ended.state, ended.exit_code) == ("FAILED", "3:0"), ended.err
    assert out[0] == str(guestnames.guest_uuid(job, 0))
    home = str(site.lab.home)
    assert out[1].split() == [job, job, "job.sh", "1", home, home]


def test_a_job_over_two_nodes_reaches_all_its_guests(site: SlurmLab) -> None:
    job = site.submit(f'for guest in $(cat "$PBS_NODEFILE"); do ssh "$guest" "{_UUID.strip()}; hostname"; done',
                      "-l", "nodes=2")
    ended = site.slurm.ended(job)
    out = ended.out.splitlines()
    assert out[::2] == [str(guestnames.guest_uuid(job, rank)) for rank in range(2)], ended.err
    assert out[1::2] == [f"v{node}-1" for node in NODES]


def test_each_element_of_an_array_has_a_guest_of_its_own(site: SlurmLab) -> None:
    job = site.submit(f"{_UUID}echo $PBS_ARRAYID $PBS_JOBID $PBS_ARRAY_ID", "-t", "4-5")
    seen = {}
    for element in (4, 5):
        ended = site.slurm.ended(f"{job}_{element}")
        uuid, about = ended.out.splitlines()
        index, own, array = about.split()
        assert (index, array, uuid) == (str(element), job, str(guestnames.guest_uuid(own, 0))), ended.err
        seen[own] = uuid
    assert len(seen) == 2


def test_scancel_reaches_the_script(site: SlurmLab) -> None:
    job = site.submit("trap 'echo told' TERM; touch up; sleep 1000 & wait; wait; echo over")
    site.lab.appears("up")
    site.as_user("scancel", job)
    ended = site.slurm.ended(job)
    assert ended.state == "CANCELLED"
    assert ended.out == "told\nover\n"


def test_a_requeued_job_starts_again(site: SlurmLab) -> None:
    job = site.submit("echo start ${SLURM_RESTART_COUNT-0}; touch up; [ -n \"$SLURM_RESTART_COUNT\" ] || sleep 1000")
    site.lab.appears("up")
    site.slurm.ask("scontrol", "requeue", job)
    site.lab.appears("up")
    ended = site.slurm.ended(job)
    assert (ended.state, ended.out.splitlines()[-1]) == ("COMPLETED", "start 1"), ended.err


def test_a_users_fault_leaves_the_node_idle(site: SlurmLab) -> None:
    with site.hidden(parts.IMAGES, *NODES):
        ended = site.slurm.ended(site.submit("echo never"))
    assert (ended.exit_code, ended.out) == ("65:0", "")
    assert "vtorque: image tiny.qcow2 is not in the catalogue" in ended.err


def test_a_sister_that_fails_is_drained_and_her_mother_superior_is_not(site: SlurmLab) -> None:
    mother, sister = NODES
    with site.hidden(parts.ROOT / "disks", sister):
        job = site.submit("echo then it ran", "-l", "nodes=2")
        site.slurm.until(job, Reason="launch_failed_requeued_held")
        assert site.slurm.drained(sister) == "Prolog error"
    assert "No space left on device" in site.slurm.log(sister)
    site.slurm.idle(mother)
    site.slurm.resume(sister)
    site.slurm.ask("scontrol", "release", job)
    ended = site.slurm.ended(job)
    assert (ended.state, ended.out) == ("COMPLETED", "then it ran\n")


def test_a_job_that_takes_too_long_is_told_so_as_on_bare_metal(site: SlurmLab) -> None:
    job = site.submit("trap 'echo told' TERM; sleep 1000 & wait; wait", "-l", "walltime=1")
    ended = site.slurm.ended(job)
    assert (ended.state, ended.out) == ("TIMEOUT", "told\n")
    assert "DUE TO TIME LIMIT" in ended.err


def test_an_interactive_job_is_a_terminal_in_the_guest(site: SlurmLab) -> None:
    user = Typist(f"SLURM_CONF={site.slurm.conf} vsub -I -vm {TINY}", columns=101, rows=31)
    job = user.until(r"salloc: Granted job allocation (\d+)")[1]
    for line, sees in (
        ("stty size; echo $TERM $PBS_ENVIRONMENT $PBS_JOBID", rf"31 101\s+vt220 PBS_INTERACTIVE {job}\s"),
        ("cat /sys/class/dmi/id/product_uuid", str(guestnames.guest_uuid(job, 0))),
    ):
        user.until(_PROMPT)
        user.types(f"{line}\r")
        user.until(sees)
    user.until(_PROMPT)
    user.resize(columns=77, rows=22)
    # A size and what is typed take different ways, and either may be there first.
    user.types("until [ \"$(stty size)\" = '22 77' ]; do sleep 0.1; done; echo re''sized\r")
    user.until(r"resized\s")
    user.until(_PROMPT)
    # A program in the foreground: before that Ctrl-C would be the shell's own.
    user.types("sh -c 'echo sleep''ing; exec sleep 1000'\r")
    user.until("sleeping\\s")
    user.types("\x03")
    user.until(_PROMPT)
    user.types("echo inter''rupted $?\r")
    user.until("interrupted 130")
    user.until(_PROMPT)
    user.types("exit 7\r")
    assert user.ends() == 7
    assert site.slurm.over(job)["ExitCode"] == "7:0"
    assert not list((site.lab.home / ".vtorque").iterdir())


def test_a_script_may_run_on_the_terminal(site: SlurmLab) -> None:
    name = site.lab.write("ask.sh", "#!/bin/sh\nprintf 'name? '\nread name\necho hello $name; exit 4\n")
    user = Typist(f"SLURM_CONF={site.slurm.conf} vsub -I -x -vm {TINY} {name}", columns=80, rows=24)
    job = user.until(r"salloc: Granted job allocation (\d+)")[1]
    user.until(r"name\? ")
    user.types("ann\r")
    user.until("hello ann")
    assert user.ends() == 4
    assert site.slurm.over(job)["ExitCode"] == "4:0"
