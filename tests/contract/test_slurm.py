# SPDX-License-Identifier: Apache-2.0
"""The real scripts/slurm/* as Prolog and Epilog of real daemons.

No guest is started here: this is about jobs without one, bad requests, a
broken site, and who is blamed for it.
"""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import program
from tests.builders import a_request
from tests.e2e.slurm import Slurm, SlurmNode, a_slurm
from vtorque import request

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="slurmd is root"),
]

USER = pwd.getpwnam("nobody")
NODE = "n1"
CONFIGURATION = """\
BATCH_SYSTEM: slurm
VM_IMG_DIR: {root}/images
HYPERVISOR_TYPE: qemu
LIBVIRT_URI: test:///default
BRIDGE: lo
QEMU_USER: root
MIN_UID: 1
REQUEUE_LIMIT: 2
STATE_DIR: {root}/run
DISK_DIR: {root}/disks
LOG_DIR: {root}/log
"""


class Site:
    """An installation in a scratch directory, and a Slurm that uses it."""

    def __init__(self, root: Path, slurm: Slurm) -> None:
        self.root = root
        self.slurm = slurm
        self.home = root / "home"
        self.configure()

    def configure(self, more: str = "") -> None:
        (self.root / "vtorque/etc/vtorque.yaml").write_text(CONFIGURATION.format(root=self.root) + more)

    def submit(self, script: str, comment: str = "", *options: str) -> str:
        path = self.home / "job.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        done = subprocess.run(
            ["sbatch", "--parsable", "-o", "out.%j", "-e", "err.%j", f"--comment={comment}", *options, str(path)],
            check=False, capture_output=True, text=True, cwd=self.home, env=self.slurm.environment(),
            user=USER.pw_uid, group=USER.pw_gid, extra_groups=[],
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wrapper(self) -> str:
        """What vsub submits, of a job whose directory is not there: the marker is looked at first."""
        return f"exec {self.root}/vtorque/scripts/jobrun 0123456789abcdef"

    def left(self) -> list[str]:
        """What is still recorded of jobs."""
        places = [self.root / "run" / name for name in ("jobs", "slurm", "attempts")]
        return [str(path) for place in places for path in place.glob("*")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Site]:
    root = Path("/var/lib") / f"vtorque-test-slurm-{os.getpid()}"
    root.mkdir(mode=0o755)
    try:
        program.copy_to(root / "vtorque")
        for name in ("vtorque/etc", "home"):
            (root / name).mkdir()
        os.chown(root / "home", USER.pw_uid, USER.pw_gid)
        with a_slurm("slurm", [SlurmNode(name=NODE)], root / "vtorque/scripts") as slurm:
            yield Site(root, slurm)
    finally:
        shutil.rmtree(root)


@pytest.fixture
def site(cluster: Site) -> Iterator[Site]:
    cluster.configure()
    yield cluster
    assert cluster.left() == []
    assert cluster.slurm.node_state(NODE) == "idle"
    for name in ("prolog", "epilog"):
        (cluster.slurm.root / f"{name}.orig").unlink(missing_ok=True)


def bad(**changes: object) -> str:
    return request.encode(a_request(**changes))


def test_a_job_without_guests_runs_as_if_we_were_not_there(site: Site) -> None:
    ended = site.slurm.ended(site.submit("echo ran; exit 4", "anything"))
    assert (ended.state, ended.exit_code, ended.out) == ("FAILED", "4:0", "ran\n")
    assert not (site.root / "run").exists()


@pytest.mark.parametrize("comment", ["", "vt1.abc"])
def test_the_sites_own_hooks_run_with_slurmds_own_environment(site: Site, comment: str) -> None:
    for name in ("prolog", "epilog"):
        path = site.slurm.root / f"{name}.orig"
        path.write_text(f"#!/bin/sh\n/usr/bin/env >{site.root}/{name}.env\n")
        path.chmod(0o755)
    job = site.submit("true", comment)
    site.slurm.ended(job)
    for name in ("prolog", "epilog"):
        text = (site.root / f"{name}.env").read_text()
        assert f"SLURM_JOB_ID={job}\n" in text and f"SLURM_SCRIPT_CONTEXT={name}_slurmd\n" in text
        assert "HOME=" not in text


@pytest.mark.parametrize(
    ("comment", "says"),
    [("vt1.", "no request"), ("vt1.abc", "request is damaged"), (bad(image="absent.qcow2"), "is not in the catalogue")],
    ids=["empty", "damaged", "absent"],
)
def test_a_users_fault_is_told_on_the_jobs_stderr_and_drains_no_node(site: Site, comment: str, says: str) -> None:
    ended = site.slurm.ended(site.submit(site.wrapper(), comment))
    assert (ended.state, ended.exit_code, ended.out) == ("FAILED", "65:0", "")
    assert "vtorque: " in ended.err and says in ended.err


def test_a_nodes_fault_drains_the_node_and_holds_the_job_until_it_has_happened_too_often(site: Site) -> None:
    with an_image_that_others_can_write(site):
        job = site.submit(site.wrapper(), bad(image="a.qcow2"))
        site.slurm.until(job, Reason="launch_failed_requeued_held")
        assert site.slurm.drained(NODE) == "Prolog error"
        assert f"vtorque: {site.root}/images is writable by others (chmod go-w" in site.slurm.log(NODE)
        site.slurm.resume(NODE)
        site.slurm.ask("scontrol", "release", job)
        ended = site.slurm.ended(job)
    assert ended.exit_code == "69:0"
    assert "is writable by others (chmod go-w" in ended.err


def test_with_a_broken_configuration_the_sites_own_hooks_run_and_nothing_else(site: Site) -> None:
    original = site.slurm.root / "prolog.orig"
    original.write_text(f"#!/bin/sh\n: >{site.root}/ran\n")
    original.chmod(0o755)
    site.configure("NO_SUCH_OPTION: 1\n")
    ended = site.slurm.ended(site.submit(site.wrapper(), bad()))
    assert ended.exit_code == "69:0" and "NO_SUCH_OPTION" in ended.err
    assert (site.root / "ran").exists()


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$"])
def test_a_prolog_of_the_sites_that_fails_drains_as_without_us(site: Site, end: str) -> None:
    original = site.slurm.root / "prolog.orig"
    original.write_text(f"#!/bin/sh\n{end}\n")
    original.chmod(0o755)
    job = site.submit(site.wrapper(), bad())
    site.slurm.until(job, Reason="launch_failed_requeued_held")
    assert site.slurm.drained(NODE) == "Prolog error"
    site.slurm.ask("scancel", job)
    site.slurm.resume(NODE)


@contextlib.contextmanager
def an_image_that_others_can_write(site: Site) -> Iterator[None]:
    images = site.root / "images"
    images.mkdir()
    about = {"name": "a.qcow2", "distro": "debian", "arch": "x86_64", "sha256": "", "description": "", "schema": 1}
    (images / "a.qcow2.json").write_text(json.dumps(about))
    (images / "a.qcow2").write_bytes(b"")
    images.chmod(0o777)
    try:
        yield
    finally:
        shutil.rmtree(images)
