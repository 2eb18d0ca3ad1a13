# SPDX-License-Identifier: Apache-2.0
"""Jobs that start more than once, jobs that end before they started, and what is left in their users' homes."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.test_lifecycle import Scene, hooked
from tests.contract.test_sisters import Cluster, Sister
from tests.contract.test_sisters import make as make
from tests.contract.test_vsub import JOBS, Front
from tests.fakes.guest import FakeSession, FakeTransport
from vtorque import guestnames, leftovers, lifecycle
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.model import JobId

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

Make = Callable[..., Cluster]


def end(sister: Sister, status: int) -> None:
    lifecycle.epilogue(sister.job._replace(exit_status=status), sister.node, deadline=Deadline(40))
    assert sister.left() == []


def cancel(cluster: Cluster, job: str) -> None:
    """What epilogue.precancel does."""
    path = cluster.directory.parent / f"{job}.cancelled"
    path.touch()
    about = cluster.directory.stat()
    os.chown(path, about.st_uid, about.st_gid)


def test_a_job_that_is_rerun_finds_its_directory_again_and_runs_in_new_guests(make: Make) -> None:
    cluster = make(nodes=1)
    (mother,) = cluster.sisters
    cluster.start()
    end(mother, 271)
    assert cluster.directory.exists()
    cluster.start()
    assert mother.hypervisor.calls.count("create") == 2
    assert [each["uuid"] for each in cluster.ready()["guests"]] == [str(guestnames.guest_uuid("7.srv", 0))]
    end(mother, 0)
    assert not list(cluster.directory.parent.iterdir())


@pytest.mark.parametrize("status", [0, 1, 255, -1, -2, -10, -11, -12])
def test_a_job_that_is_over_takes_its_directory_along(make: Make, status: int) -> None:
    cluster = make(nodes=1)
    end(cluster.sisters[0], status)
    assert not cluster.directory.exists()


@pytest.mark.parametrize("status", [-3, -4, -5, -6, -13, -14, 265, 271])
def test_a_job_that_may_start_again_keeps_it(make: Make, status: int) -> None:
    cluster = make(nodes=1)
    end(cluster.sisters[0], status)
    assert cluster.directory.exists()


def test_a_job_that_was_deleted_takes_it_along_because_precancel_said_so(make: Make) -> None:
    cluster = make(nodes=1)
    cancel(cluster, "7.srv")
    end(cluster.sisters[0], 271)
    assert not list(cluster.directory.parent.iterdir())


def test_the_note_of_a_job_that_ended_by_itself_goes_as_well(make: Make) -> None:
    cluster = make(nodes=1)
    cancel(cluster, "7.srv")
    end(cluster.sisters[0], 0)
    assert not list(cluster.directory.parent.iterdir())


def test_an_element_that_is_rerun_is_not_taken_for_one_that_has_ended(make: Make) -> None:
    cluster = make(nodes=1, elements=2)
    (mother,) = cluster.sisters
    one, two = (mother.job._replace(id=JobId(f"7[{number}].srv")) for number in (1, 2))
    for job, status in ((one, 271), (two, 0)):
        lifecycle.epilogue(job._replace(exit_status=status), mother.node, deadline=Deadline(40))
    assert cluster.directory.exists()
    lifecycle.epilogue(one._replace(exit_status=0), mother.node, deadline=Deadline(40))
    assert not cluster.directory.exists()


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path("/var/lib") / f"vtorque-rerun-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def test_elements_of_an_array_overlap_on_one_node(root: Path) -> None:
    """Between one's prologue and its epilogue there is all of another's."""
    scene = Scene(root)
    jobs = [scene.job._replace(id=JobId(f"7[{number}].srv")) for number in (1, 2)]
    nodes = []
    for job in jobs:
        said = f"ready {guestnames.guest_uuid(job.id, 0)}\n".encode()
        transport = FakeTransport({"10.0.0.1": lambda said=said: FakeSession(said)})  # type: ignore[misc]
        # Each has hooks of its own, and each of these a root that acts for no other job.
        nodes.append(hooked(replace(scene.node, transport=transport), job))
    (root / "mom_priv/jobs").mkdir(parents=True)
    for job, node in zip(jobs, nodes, strict=True):
        (root / "mom_priv/jobs" / f"{job.key}.JB").touch()
        lifecycle.prologue(job, node, scene.launch, deadline=Deadline(60))
    assert set(scene.hypervisor._domains) == {"7-1.srv_1of1", "7-2.srv_1of1"}
    for job, node, left in zip(jobs, nodes, ({"7-2.srv_1of1"}, set()), strict=True):
        lifecycle.epilogue(job._replace(exit_status=0), node, deadline=Deadline(60))
        assert set(scene.hypervisor._domains) == left
    assert scene.left() == []


@pytest.mark.parametrize("script_is_gone", [True, False])
def test_an_epilogue_beside_a_running_prologue_ends_it_and_nothing_is_born_late(
    root: Path, script_is_gone: bool
) -> None:
    scene = Scene(root)

    def meanwhile() -> FakeSession:
        if script_is_gone:
            (root / "7.srv.SC").unlink()
        scene.epilogue()
        return FakeSession(f"ready {guestnames.guest_uuid('7.srv', 0)}\n".encode())

    scene.node = replace(scene.node, transport=FakeTransport({"10.0.0.1": meanwhile}))
    scene.prologue()
    assert "create" in scene.hypervisor.calls
    assert scene.left() == []


def test_an_epilogue_that_comes_twice_or_before_any_prologue_is_no_trouble(root: Path) -> None:
    scene = Scene(root)
    for _ in range(2):
        scene.epilogue()
    scene.prologue()
    for _ in range(2):
        scene.epilogue()
    assert scene.left() == []


def test_failed_starts_are_farther_apart_each_time_and_end_with_the_reason(root: Path) -> None:
    """Torque itself starts a requeued job again at once."""
    scene = Scene(root, says=b"failed: cannot mount\n", requeue_limit=4)
    for tries in (1, 2, 3):
        pauses: list[float] = []
        with pytest.raises(VtorqueError, match="cannot mount"):
            deadline = Deadline(600, sleep=pauses.append)
            lifecycle.prologue(scene.job, scene.node, scene.launch, deadline=deadline)
        assert pauses[-1] == 2.0**tries
        scene.epilogue(-3)
    scene.prologue()
    assert scene.markers() == {"failed"}
    scene.epilogue()
    assert scene.left() == []


class Home:
    """A user's home with job directories, and a qstat that notes what it is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs = path / ".vtorque"
        self.jobs.mkdir()
        self.asked = path / "asked"
        self.asked.touch()
        self.qstat = path / "qstat"

    def answers(self, text: str, status: int = 0) -> None:
        self.qstat.write_text(f"#!/bin/sh\necho $2 >>{self.asked}\necho noise >&2\nprintf '{text}'\nexit {status}\n")
        self.qstat.chmod(0o755)

    def job(self, number: int, *, days: float) -> Path:
        path = self.jobs / f"{number:016x}"
        (path / "script").mkdir(parents=True)
        (self.jobs / f"{number}.srv").symlink_to(path.name)
        then = time.time() - days * 86400
        os.utime(path, (then, then))
        return path

    def tidy(self) -> None:
        leftovers.tidy(self.path, qstat=str(self.qstat), env={"PATH": "/bin"})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.mark.parametrize(("text", "status", "stays"), [
    ("", 153, False), ("    job_state = C\\n", 0, False), ("    job_state = Q\\n", 0, True), ("", 0, True),
    ("    job_state = C\\n    job_state = Q\\n", 0, True), ("", 111, True),
])
def test_the_next_submission_asks_about_an_old_directory_and_removes_it_when_its_job_is_over(
    home: Home, text: str, status: int, stays: bool
) -> None:
    home.answers(text, status)
    path = home.job(7, days=2)
    (home.jobs / "7.srv.cancelled").touch()
    home.tidy()
    assert home.asked.read_text() == "7.srv\n"
    assert path.exists() is stays
    assert len(list(home.jobs.iterdir())) == (3 if stays else 0)


def test_it_asks_once_at_most_and_about_each_once_a_day(home: Home) -> None:
    home.answers("    job_state = Q\\n")
    for number in range(3):
        home.job(number, days=2)
    home.job(9, days=0.5)
    for count in (1, 2, 3, 3, 3):
        home.tidy()
        assert len(home.asked.read_text().splitlines()) == count
    assert "9.srv" not in home.asked.read_text()


def test_without_qstat_or_a_home_it_is_left_for_another_time(home: Home) -> None:
    path = home.job(7, days=2)
    (home.jobs / "8.srv").symlink_to("gone")
    (home.jobs / "9.srv").symlink_to("/")
    home.tidy()
    assert path.exists()
    shutil.rmtree(home.jobs)
    home.tidy()


def test_a_submission_tidies_up_and_says_nothing_of_it(tmp_path: Path) -> None:
    front = Front(tmp_path)
    (front.root / "qstat").write_text("#!/bin/sh\necho unknown job >&2\nexit 153\n")
    (front.root / "qstat").chmod(0o755)
    jobs = front.root / "home" / JOBS.name
    old = jobs / "0123456789abcdef"
    old.mkdir(parents=True)
    (jobs / "7.srv").symlink_to(old.name)
    os.utime(old, (0, 0))
    vsub = [str(front.root / "scripts/vsub"), "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1"; shift; exec "$@"', jobs.parent, JOBS.parent, *vsub],
        capture_output=True, check=False, cwd=front.root,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"12.srv\n", b"")
    assert not old.exists() and not (jobs / "7.srv").is_symlink()
    assert (jobs / "12.srv").is_symlink()
