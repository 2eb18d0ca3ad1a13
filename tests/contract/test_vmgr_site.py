# SPDX-License-Identifier: Apache-2.0
"""vmgr's site side as an administrator and as a user see it: the real command on a configuration of its own."""

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import program
from vtorque.deadline import Deadline
from vtorque.model import Resource
from vtorque.state import JobState

pytestmark = pytest.mark.runs

NOBODY = pwd.getpwnam("nobody")


class Site:
    """An installation that any user can read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        program.copy_to(root, ("vtorque", "scripts", "templates"))
        self.path = root / "etc/vtorque.yaml"
        self.path.parent.mkdir()
        self.configure("VCPUS_DEFAULT: 3\n")

    def configure(self, text: str) -> None:
        self.path.write_text(text)
        for path in (self.root, *self.root.rglob("*")):
            path.chmod(path.stat().st_mode | 0o055)
            path.chmod(path.stat().st_mode & ~0o022)

    def vmgr(self, *words: str, uid: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts/vmgr", *words], check=False, capture_output=True, text=True, user=uid,
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **environ}, stdin=subprocess.DEVNULL,
        )


@pytest.fixture
def site() -> Iterator[Site]:
    # Not below pytest's own directory, which nobody else may enter.
    root = Path(f"/var/lib/vtorque-site-{os.getpid()}")
    root.mkdir(mode=0o755)
    try:
        yield Site(root)
    finally:
        shutil.rmtree(root)


def test_every_option_is_shown_with_the_line_it_comes_from(site: Site) -> None:
    site.configure("# mine\nVCPUS_DEFAULT: 3\nVM_IMAGE_DIR: /images\n")
    shown = site.vmgr("show", "config", "--origin")
    assert shown.returncode == 0, shown.stderr
    lines = dict(line.split(" = ", 1) for line in shown.stdout.splitlines())
    assert lines["VCPUS_DEFAULT"].split() == ["3", f"{site.path}:2"]
    assert lines["VM_IMG_DIR"].split() == ["/images", f"{site.path}:3"]
    assert lines["RAM_DEFAULT"].split() == ["24576", "default"]
    rows = json.loads(site.vmgr("show", "config", "--json").stdout)
    assert {"option": "VCPUS_DEFAULT", "value": 3, "origin": f"{site.path}:2"} in rows


@pytest.mark.parametrize("words", ["show config", "--help", "show images --help"])
@pytest.mark.parametrize(("redirection", "status", "says"), [
    (">/dev/full", 1, "vmgr: cannot write: No space left on device\n"),
    (">&-", 1, "vmgr: cannot write: Bad file descriptor\n"),
    ("2>&-", 0, ""),
    ("<&- 2>&- | :", 0, ""),
])
def test_output_that_nobody_takes_is_a_failure_in_one_line(
    site: Site, words: str, redirection: str, status: int, says: str
) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{site.root}/scripts/vmgr {words} {redirection}"], check=False,
        capture_output=True, text=True,
    )
    assert (done.returncode, done.stderr) == (status, says)


def test_users_see_what_concerns_them(site: Site) -> None:
    own = site.vmgr("show", "config", uid=NOBODY.pw_uid)
    assert own.returncode == 0, own.stderr
    assert "VCPUS_DEFAULT = 3" in own.stdout and "HOST_OS_RAM_MB" in own.stdout
    assert "STATE_DIR" not in own.stdout and "VM_NFS_HOME" not in own.stdout


def test_a_good_configuration_has_notes_only(site: Site) -> None:
    site.configure("VCPUS_DEFAULT: 3\nLOG_ROTATE: true\n")
    good = site.vmgr("config", "check")
    assert good.returncode == 0
    assert good.stdout.splitlines() == [
        f"{site.path}:2: LOG_ROTATE: has no effect: logrotate does it",
        f"{site.path}: 2 options set, 1 without effect",
    ]
    assert site.vmgr("config", "check", "--strict").returncode == 1


def test_every_mistake_is_named_at_once(site: Site) -> None:
    site.configure("VCPUS_DEFAULT: many\nTIMOUT: 3\nGROUP_LIMITS: [x max_cpu=3]\n")
    bad = site.vmgr("config", "check")
    assert bad.returncode == 1
    assert bad.stderr.splitlines() == [
        f"vmgr: {site.path}:1: VCPUS_DEFAULT: must be a whole number, not 'many'",
        f"vmgr: {site.path}:2: TIMOUT: is not an option; did you mean TIMEOUT?",
        f"vmgr: {site.path}:3: GROUP_LIMITS: 'max_cpu' is not one of max_vcpus, max_ram, max_vms_per_node, "
        "max_disk_size, groups",
    ]


def test_a_configuration_that_others_can_write_is_not_good(site: Site) -> None:
    site.path.chmod(0o666)
    bad = site.vmgr("config", "check")
    assert bad.returncode == 1 and f"{site.path} is writable by others" in bad.stderr
    draft = site.vmgr("config", "check", str(site.path))
    assert draft.returncode == 0, "a draft may lie anywhere"


def test_the_originals_configuration_is_converted_and_never_executed(site: Site) -> None:
    source = site.root / "config.sh"
    source.write_text(f'VCPUS_DEFAULT=5\nBRIDGE="$(touch {site.root}/executed)"\nVM_IMG_DIR="/pool"\n')
    made = site.vmgr("config", "import", str(source))
    assert made.returncode == 0
    site.configure(made.stdout)
    assert site.vmgr("config", "check").returncode == 0
    assert "VM_IMG_DIR = /pool" in site.vmgr("show", "config").stdout
    assert "config.sh:2: BRIDGE" in made.stderr and not (site.root / "executed").exists()
    assert site.vmgr("config", "import", "/absent").returncode == 2


def test_the_doctor_is_for_root_and_speaks_json(site: Site) -> None:
    assert site.vmgr("doctor", uid=NOBODY.pw_uid).returncode == 2
    findings = site.vmgr("doctor", "--json")
    found = json.loads(findings.stdout)
    worst = {each["level"] for each in found}
    assert findings.returncode == (2 if "error" in worst else 1 if "warning" in worst else 0)
    assert {"accelerator", "libvirt", "bridge", "hooks"} <= {each["name"] for each in found}
    line = site.vmgr("doctor", "--nhc").stdout
    assert line.startswith("ERROR ") and line.endswith("\n") and line.count("\n") == 1


def test_a_configuration_that_is_wrong_or_missing_is_what_the_doctor_finds(site: Site) -> None:
    site.configure("TIMEOUT: soon\nBRIDG: x\n")
    found = site.vmgr("doctor", "--json")
    assert found.returncode == 2
    assert [each["text"].partition(": ")[0] for each in json.loads(found.stdout)] == [
        f"{site.path}:1", f"{site.path}:2",
    ]
    site.path.unlink()
    assert site.vmgr("doctor").returncode == 2
    assert site.vmgr("doctor", "--nhc").stdout.startswith("ERROR config: there is no configuration")


def test_a_configuration_that_users_may_not_read_is_said_to_be_so_in_one_line(site: Site) -> None:
    site.path.parent.chmod(0o700)
    script = site.root / "job.sh"
    script.write_text("#!/bin/sh\n")
    for words, status in ((("scripts/vsub", str(script)), 78), (("scripts/vsub", "-vm", "vcpus=1", str(script)), 78),
                          (("scripts/vmgr", "show", "images"), 1), (("scripts/vmgr", "show", "config"), 1)):
        done = subprocess.run(
            [site.root / words[0], *words[1:]], check=False, capture_output=True, text=True, user=NOBODY.pw_uid,
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}, stdin=subprocess.DEVNULL, cwd="/",
        )
        name = words[0].rpartition("/")[2]
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr == f"{name}: cannot read {site.path}: Permission denied (users have to read it)\n"


class TestSweep:
    """Root's, with a libvirt that is away, in a network of its own: nobody else's tables are swept."""

    @pytest.fixture
    def node(self, site: Site) -> Site:
        site.configure(
            f"STATE_DIR: {site.root}/run\nDISK_DIR: {site.root}/disks\nLOG_DIR: {site.root}/log/deep\n"
            f"TORQUE_HOME: {site.root}/torque\nRAMDISK_DIR: {site.root}/ramdisk\nQEMU_USER: root\n"
            "LIBVIRT_URI: qemu:///system?socket=/nonexistent\n"
        )
        return site

    def sweep(self, node: Site) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "-n", node.root / "scripts/vmgr", "sweep"], check=False, capture_output=True, text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}, stdin=subprocess.DEVNULL,
        )

    def log(self, node: Site, name: str = "vtorque.log") -> list[dict[str, str]]:
        return [json.loads(line) for line in (node.root / "log/deep" / name).read_text().splitlines()]

    def test_what_cannot_be_given_back_is_a_line_and_the_rest_is_in_the_log(self, node: Site) -> None:
        record = JobState(node.root / "run", "8.srv")
        record.create()
        with record.taking(Resource(kind="domain", name="vt_8"), deadline=Deadline(5)):
            pass
        done = self.sweep(node)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
        assert done.stderr.startswith("vmgr: job 8.srv could not be torn down: could not give back domain vt_8: ")
        messages = [each["message"] for each in self.log(node)]
        assert "job 8.srv is forgotten by mom, tearing it down" in messages
        assert any("traceback" in each for each in self.log(node))
        assert self.log(node, "audit.log")[-1]["step"] == "sweep"

    def test_nothing_to_do_is_silent(self, node: Site) -> None:
        done = self.sweep(node)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_a_node_that_is_taken_out_before_anything_was_logged_leaves_a_line(self, node: Site) -> None:
        done = node.vmgr("node", "out", "new", "disk")
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = self.log(node, "audit.log")
        assert (line["act"], line["reason"], line["step"]) == ("take out", "new disk", "vmgr")
        assert node.vmgr("node", "status").returncode == 3

    def test_a_node_that_cannot_be_noted_as_out_is_not_said_to_be(self, node: Site) -> None:
        for name in ("run", "disks"):
            (node.root / name).write_text("in the way")
        done = node.vmgr("node", "out", "x")
        assert done.returncode == 1 and "the node is still in" in done.stderr and done.stderr.count("\n") == 1


def test_a_user_sweeps_his_own_job_directories(site: Site) -> None:
    """Of jobs that the batch system no longer knows; of others nothing is touched."""
    home = Path(f"/var/lib/vtorque-home-{os.getpid()}")
    user = f"vtsweep{os.getpid()}"
    subprocess.run(["/usr/sbin/useradd", "-M", "-d", home, user], check=True)
    uid = pwd.getpwnam(user).pw_uid
    try:
        jobs = home / ".vtorque"
        for job in ("1.srv", "2.srv", "3.srv"):
            (jobs / f"{job[0] * 16}").mkdir(parents=True)
            (jobs / job).symlink_to(job[0] * 16)
        for path in (home, *home.rglob("*")):
            os.chown(path, uid, uid, follow_symlinks=False)
        qstat = site.root / "qstat"
        qstat.write_text('#!/bin/sh\ncase $2 in 1.srv) echo "    job_state = C" ;; 2.srv) exit 153 ;; '
                         '*) echo "    job_state = Q" ;; esac\n')
        qstat.chmod(0o755)
        site.configure(f"PBS_QSUB_ON_FE: {site.root}/qsub\n")
        assert site.vmgr("sweep", "--dry-run", uid=uid).stdout == "1.srv\n2.srv\n"
        assert len(list(jobs.iterdir())) == 6
        assert site.vmgr("sweep", uid=uid).stdout == "1.srv\n2.srv\n"
        assert sorted(path.name for path in jobs.iterdir()) == ["3.srv", "3" * 16]
        qstat.write_text("#!/bin/sh\nexit 1\n")
        failed = site.vmgr("sweep", uid=uid)
        assert failed.returncode == 1 and "whether job 3.srv is over is not known" in failed.stderr
        assert (jobs / "3.srv").exists()
    finally:
        subprocess.run(["/usr/sbin/userdel", user], check=True)
        shutil.rmtree(home)
