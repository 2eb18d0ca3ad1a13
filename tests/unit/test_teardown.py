# SPDX-License-Identifier: Apache-2.0
"""Giving back: everything is tried, what failed stays in the ledger, and it can be said twice."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.filter import FakeFilter
from tests.fakes.hypervisor import FakeHypervisor
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, HypervisorError, StateError
from vtorque.model import Resource
from vtorque.state import JobState
from vtorque.teardown import DIRECTORY, DOMAIN, FILE, SHUTDOWN, release, release_unrecorded
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
    return state


def take_all(record: JobState, hypervisor: FakeHypervisor, disks: Path) -> None:
    """What a start takes, in its order."""
    with record.taking(Resource(kind=DIRECTORY, name=str(disks)), deadline=soon()):
        disks.mkdir()
    for name in ("overlay", "seed"):
        with record.taking(Resource(kind=FILE, name=str(disks / name)), deadline=soon()):
            (disks / name).touch()
    with record.taking(Resource(kind=DOMAIN, name="7.srv_1of1"), deadline=soon()):
        started(hypervisor, "7.srv_1of1")


def test_everything_is_given_back_and_forgotten(record: JobState, tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    take_all(record, hypervisor, tmp_path / "disks")
    release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
    assert hypervisor.domains(deadline=soon()) == {}
    assert not (tmp_path / "disks").exists()
    assert not record.exists


def test_it_may_be_said_twice_and_of_a_job_that_never_was(record: JobState, tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    for _ in range(2):
        release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
    release(JobState(tmp_path, "8.srv"), hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
    assert not record.exists


@pytest.mark.parametrize("call", range(1, 8))
def test_what_could_not_be_given_back_stays_held_for_the_next_try(record: JobState, tmp_path: Path, call: int) -> None:
    hypervisor = FakeHypervisor()
    take_all(record, hypervisor, tmp_path / "disks")
    hypervisor.fail_at = len(hypervisor.calls) + call
    if call == 1:
        with pytest.raises(StateError, match=r"could not give back domain 7\.srv_1of1"):
            release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
        assert record.held() == [Resource(kind=DOMAIN, name="7.srv_1of1")]
        assert not (tmp_path / "disks/overlay").exists(), "one failure must not keep the others"
    release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
    assert not record.exists and not (tmp_path / "disks").exists()
    assert "7.srv_1of1" not in hypervisor._domains


@pytest.mark.parametrize("call", range(1, 4))
def test_a_domain_that_appears_late_is_destroyed_or_cannot_start(record: JobState, tmp_path: Path, call: int) -> None:
    """libvirtd goes on with a start whose caller was killed, and needs the files for it."""
    overlay = tmp_path / "overlay"

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
    release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
    with contextlib.suppress(HypervisorError):
        started(hypervisor, "g", disk=str(overlay))
    assert hypervisor.domains(deadline=soon()) == {}
    assert hypervisor.calls.count("destroy") == 2


def test_a_domain_that_was_seen_to_exist_and_is_gone_is_believed_gone(record: JobState) -> None:
    hypervisor = FakeHypervisor()
    with record.taking(Resource(kind=DOMAIN, name="g"), deadline=soon()):
        pass
    release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
    assert hypervisor.calls.count("destroy") == 1


def test_without_a_ledger_things_are_found_by_tag_and_name(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    started(hypervisor, "7.srv_1of1")
    started(hypervisor, "8.srv_1of1", job="8.srv")
    disks, seeds = tmp_path / "7.srv", tmp_path / "seeds"
    for directory in (disks, seeds):
        directory.mkdir()
    for path in (disks / "7.srv_1of1.qcow2", seeds / "7.srv_1of1.iso", seeds / "77.srv_1of1.iso"):
        path.touch()
    release_unrecorded(
        "7.srv", hypervisor=hypervisor, rules=FakeFilter(), table="", directories=(disks, seeds), deadline=soon()
    )
    assert hypervisor.domains(deadline=soon()) == {"8.srv_1of1": "8.srv"}
    assert [path.name for path in seeds.iterdir()] == ["77.srv_1of1.iso"]
    assert not disks.exists()


@pytest.mark.parametrize(("obeys", "presses"), [(1, 1), (3, 3), (1000, 6)])
def test_a_guest_may_shut_down_before_it_is_destroyed_but_not_for_longer_than_half_of_the_time(
    record: JobState, obeys: int, presses: int
) -> None:
    hypervisor = FakeHypervisor()
    hypervisor.obeys = obeys
    for kind in (DOMAIN, SHUTDOWN):
        with record.taking(Resource(kind=kind, name="g"), deadline=soon()):
            if kind == DOMAIN:
                started(hypervisor, "g")
    deadline = soon()
    release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=deadline)
    assert hypervisor.calls.count("shutdown") == presses
    assert hypervisor.calls.index("destroy") > hypervisor.calls.index("is_running")
    assert deadline.remaining >= 30 and not record.exists


def test_a_hypervisor_that_presses_no_button_still_destroys(record: JobState) -> None:
    hypervisor = FakeHypervisor()
    for kind in (DOMAIN, SHUTDOWN):
        with record.taking(Resource(kind=kind, name="g"), deadline=soon()):
            if kind == DOMAIN:
                started(hypervisor, "g")
    hypervisor.fail_at = len(hypervisor.calls) + 1
    release(record, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
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
        take_all(state, hypervisor, tmp_path / "disks")
    release(state, hypervisor=hypervisor, rules=FakeFilter(), deadline=soon())
    assert not state.exists
    assert hypervisor.domains(deadline=soon()) == {}


def test_older_parts_of_a_console_log_go_with_it(record: JobState, tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    with record.taking(Resource(kind=FILE, name=str(console)), deadline=soon()):
        for name in ("console.log", "console.log.0", "console.log.1", "console.log.old"):
            (tmp_path / name).touch()
    release(record, hypervisor=FakeHypervisor(), rules=FakeFilter(), deadline=soon())
    assert [path.name for path in tmp_path.glob("console*")] == ["console.log.old"]
