# SPDX-License-Identifier: Apache-2.0
"""Giving back: everything is tried, what failed stays in the ledger, and it can be said twice."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import a_site
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.node import a_node
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, HypervisorError, StateError
from vtorque.kinds import DIRECTORY, DOMAIN, FILE, SHUTDOWN
from vtorque.model import Resource
from vtorque.node import Node
from vtorque.state import JobState
from vtorque.teardown import release, release_unrecorded
from vtorque.wakeups import Wakeup

XML = """<domain><name>{}</name><uuid>{}</uuid><metadata>
<v:vtorque xmlns:v='https://vtorque.org/xmlns/domain/1' job='{}'/></metadata>
<devices><disk><source file='{}'/></disk></devices></domain>"""


def soon() -> Deadline:
    """A deadline whose pauses cost no time."""
    now = [0.0]

    def sleep(seconds: float, *until: Wakeup) -> None:
        now[0] += seconds

    return Deadline(60, clock=lambda: now[0], sleep=sleep)


def started(hypervisor: FakeHypervisor, name: str, job: str = "7.srv", disk: str = "/dev/null") -> None:
    hypervisor.create(XML.format(name, f"uuid-{name}", job, disk), deadline=soon())


@pytest.fixture
def record(tmp_path: Path) -> JobState:
    state = JobState(tmp_path / "state", "7.srv")
    state.create()
    (tmp_path / "state/seeds").mkdir()
    (tmp_path / "disks").mkdir()
    return state


def on(root: Path, hypervisor: FakeHypervisor) -> Node:
    """A node with its state and its disks below `root`."""
    site = a_site(state_dir=str(root / "state"), disk_dir=str(root / "disks"), ramdisk_dir=str(root / "none"))
    return a_node(site, hypervisor=hypervisor)


def files_of(root: Path) -> tuple[Path, Path]:
    """The overlay and the seed of the job's guest."""
    return root / "disks/7.srv/7.srv_1of1.qcow2", root / "state/seeds/7.srv_1of1.iso"


def take_all(record: JobState, hypervisor: FakeHypervisor, root: Path) -> None:
    """What a start takes, in its order."""
    disks = root / "disks/7.srv"
    with record.taking(Resource(kind=DIRECTORY, name=str(disks)), deadline=soon()):
        disks.mkdir()
    for path in files_of(root):
        with record.taking(Resource(kind=FILE, name=str(path)), deadline=soon()):
            path.touch()
    with record.taking(Resource(kind=DOMAIN, name="7.srv_1of1"), deadline=soon()):
        started(hypervisor, "7.srv_1of1")


def test_everything_is_given_back_and_forgotten(record: JobState, tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    take_all(record, hypervisor, tmp_path)
    release(record, on(tmp_path, hypervisor), deadline=soon())
    assert hypervisor.domains(deadline=soon()) == {}
    assert not list((tmp_path / "disks").iterdir()) and not list((tmp_path / "state/seeds").iterdir())
    assert not record.exists


def test_it_may_be_said_twice_and_of_a_job_that_never_was(record: JobState, tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    for _ in range(2):
        release(record, on(tmp_path, hypervisor), deadline=soon())
    release(JobState(tmp_path, "8.srv"), on(tmp_path, hypervisor), deadline=soon())
    assert not record.exists


@pytest.mark.parametrize("call", range(1, 8))
def test_what_could_not_be_given_back_stays_held_for_the_next_try(record: JobState, tmp_path: Path, call: int) -> None:
    hypervisor = FakeHypervisor()
    take_all(record, hypervisor, tmp_path)
    hypervisor.fail_at = len(hypervisor.calls) + call
    if call == 1:
        with pytest.raises(StateError, match=r"could not give back domain 7\.srv_1of1"):
            release(record, on(tmp_path, hypervisor), deadline=soon())
        assert record.held() == [Resource(kind=DOMAIN, name="7.srv_1of1")]
        assert not any(path.exists() for path in files_of(tmp_path)), "one failure must not keep the others"
    release(record, on(tmp_path, hypervisor), deadline=soon())
    assert not record.exists and not list((tmp_path / "disks").iterdir())
    assert "7.srv_1of1" not in hypervisor._domains


@pytest.mark.parametrize("call", range(1, 4))
def test_a_domain_that_appears_late_is_destroyed_or_cannot_start(record: JobState, tmp_path: Path, call: int) -> None:
    """libvirtd goes on with a start whose caller was killed, and needs the files for it."""
    overlay, _ = files_of(tmp_path)
    overlay.parent.mkdir()

    class Late(FakeHypervisor):
        def destroy(self, name: str, *, deadline: Deadline) -> bool:
            there = super().destroy(name, deadline=deadline)
            if self.calls.count("destroy") == call:
                with contextlib.suppress(HypervisorError):
                    started(self, name, disk=str(overlay))
            return there

    hypervisor = Late()
    with record.taking(Resource(kind=FILE, name=str(overlay)), deadline=soon()):
        overlay.touch()
    with pytest.raises(KeyboardInterrupt), record.taking(Resource(kind=DOMAIN, name="g"), deadline=soon()):
        raise KeyboardInterrupt
    release(record, on(tmp_path, hypervisor), deadline=soon())
    with contextlib.suppress(HypervisorError):
        started(hypervisor, "g", disk=str(overlay))
    assert hypervisor.domains(deadline=soon()) == {}
    assert hypervisor.calls.count("destroy") == 2


def test_a_domain_that_was_seen_to_exist_and_is_gone_is_believed_gone(record: JobState, tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    with record.taking(Resource(kind=DOMAIN, name="g"), deadline=soon()):
        pass
    release(record, on(tmp_path, hypervisor), deadline=soon())
    assert hypervisor.calls.count("destroy") == 1


def test_without_a_ledger_things_are_found_by_tag_and_name(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    started(hypervisor, "7.srv_1of1")
    started(hypervisor, "8.srv_1of1", job="8.srv")
    (overlay, seed), strange = files_of(tmp_path), tmp_path / "state/seeds/7.srv_notes"
    for path in (overlay, seed, seed.with_name("77.srv_1of1.iso"), strange):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    release_unrecorded("7.srv", on(tmp_path, hypervisor), deadline=soon())
    assert hypervisor.domains(deadline=soon()) == {"8.srv_1of1": "8.srv"}
    assert {path.name for path in seed.parent.iterdir()} == {"77.srv_1of1.iso", strange.name}
    assert not overlay.parent.exists()


def test_the_rest_of_what_has_no_ledger_is_nobody_elses_to_keep(tmp_path: Path) -> None:
    """Where somebody else has put something in the job's directory, it stays, and that is said."""
    overlay, _ = files_of(tmp_path)
    overlay.parent.mkdir(parents=True)
    for name in (overlay.name, "notes"):
        (overlay.parent / name).touch()
    with pytest.raises(OSError, match="not empty"):
        release_unrecorded("7.srv", on(tmp_path, FakeHypervisor()), deadline=soon())
    assert [path.name for path in overlay.parent.iterdir()] == ["notes"]


@pytest.mark.parametrize(("obeys", "presses"), [(1, 1), (3, 3), (1000, 6)])
def test_a_guest_may_shut_down_before_it_is_destroyed_but_not_for_longer_than_half_of_the_time(
    record: JobState, tmp_path: Path, obeys: int, presses: int
) -> None:
    hypervisor = FakeHypervisor()
    hypervisor.obeys = obeys
    for kind in (DOMAIN, SHUTDOWN):
        with record.taking(Resource(kind=kind, name="g"), deadline=soon()):
            if kind == DOMAIN:
                started(hypervisor, "g")
    deadline = soon()
    release(record, on(tmp_path, hypervisor), deadline=deadline)
    assert hypervisor.calls.count("shutdown") == presses
    assert hypervisor.calls.index("destroy") > hypervisor.calls.index("is_running")
    assert deadline.remaining >= 30 and not record.exists


def test_a_hypervisor_that_presses_no_button_still_destroys(record: JobState, tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    for kind in (DOMAIN, SHUTDOWN):
        with record.taking(Resource(kind=kind, name="g"), deadline=soon()):
            if kind == DOMAIN:
                started(hypervisor, "g")
    hypervisor.fail_at = len(hypervisor.calls) + 1
    release(record, on(tmp_path, hypervisor), deadline=soon())
    assert hypervisor.calls == ["create", "shutdown", "destroy"]


@pytest.mark.parametrize("left", [True, False], ids=["something left", "nothing left"])
def test_a_generation_that_somebody_else_closes_meanwhile_is_seen_to_be_empty(tmp_path: Path, left: bool) -> None:
    class Raced(JobState):
        @contextlib.contextmanager
        def closing(self, *, deadline: Deadline) -> Iterator[None]:
            # Who was killed at it had removed the lock first.
            (self.path / "lock").unlink()
            if not left:
                self.remove()
            raise GenerationClosed(f"job {self.key} was torn down meanwhile")
            yield

    state, hypervisor = Raced(tmp_path / "state", "7.srv"), FakeHypervisor()
    state.create()
    if left:
        for place in (tmp_path / "disks", tmp_path / "state/seeds"):
            place.mkdir()
        take_all(state, hypervisor, tmp_path)
    release(state, on(tmp_path, hypervisor), deadline=soon())
    assert not state.exists
    assert hypervisor.domains(deadline=soon()) == {}


def test_older_parts_of_a_console_log_go_with_it(record: JobState, tmp_path: Path) -> None:
    console = tmp_path / "disks/7.srv/7.srv_1of1.console"
    console.parent.mkdir()
    with record.taking(Resource(kind=FILE, name=str(console)), deadline=soon()):
        for ending in ("", ".0", ".1", ".old"):
            console.with_name(f"{console.name}{ending}").touch()
    release(record, on(tmp_path, FakeHypervisor()), deadline=soon())
    assert [path.name for path in console.parent.iterdir()] == ["7.srv_1of1.console.old"]


def test_what_a_version_before_has_put_into_the_jobs_own_record_goes(record: JobState, tmp_path: Path) -> None:
    channel = record.path / "channel.1"
    with record.taking(Resource(kind=FILE, name=str(channel)), deadline=soon()):
        channel.touch()
    release(record, on(tmp_path, FakeHypervisor()), deadline=soon())
    assert not record.exists


def test_no_line_of_a_ledger_removes_what_is_no_guests(record: JobState, tmp_path: Path) -> None:
    """The ledger is the program's; what is removed by it root removes."""
    (tmp_path / "passwd").touch()
    foreign = Resource(kind=FILE, name=str(tmp_path / "passwd"))
    with record.taking(foreign, deadline=soon()):
        pass
    with pytest.raises(StateError, match="is no place for a guest's file"):
        release(record, on(tmp_path, FakeHypervisor()), deadline=soon())
    assert (tmp_path / "passwd").exists() and record.held() == [foreign]
