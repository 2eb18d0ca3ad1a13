# SPDX-License-Identifier: Apache-2.0
"""The node's record of a job: ledger, lock, tombstone."""

import fcntl
import json
import os
import threading
import time
from pathlib import Path

import pytest

from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, GenerationClosed, StateError
from vtorque.model import Job, JobId, Resource
from vtorque.state import JobState, attempt, forget_attempts, jobs

GUEST = Resource(kind="domain", name="7.srv_1of1")
DISK = Resource(kind="file", name="/disks/7.srv_1of1.qcow2")


@pytest.fixture
def record(tmp_path: Path) -> JobState:
    state = JobState(tmp_path, "7.srv")
    state.create()
    return state


def soon() -> Deadline:
    return Deadline(5)


def test_what_is_taken_is_held_newest_first_until_it_is_given_back(record: JobState) -> None:
    for resource in (DISK, GUEST):
        with record.taking(resource, deadline=soon()):
            pass
    assert record.held() == [GUEST, DISK]
    record.given_back(GUEST)
    assert record.held() == [DISK]


def test_a_resource_is_in_the_ledger_before_it_exists(record: JobState) -> None:
    with record.taking(GUEST, deadline=soon()):
        assert record.held() == [GUEST]
        assert not record.certain(GUEST)
    assert record.certain(GUEST)


def test_a_failed_act_stays_held_and_uncertain(record: JobState) -> None:
    with pytest.raises(RuntimeError), record.taking(GUEST, deadline=soon()):
        raise RuntimeError
    assert record.held() == [GUEST]
    assert not record.certain(GUEST)


def test_a_line_that_was_cut_short_promises_nothing(record: JobState) -> None:
    with record.taking(DISK, deadline=soon()):
        pass
    with (record.path / "ledger").open("a") as ledger:
        ledger.write('["take", "domain", "7.s')
    assert record.held() == [DISK]


def test_after_closing_no_act_begins(record: JobState) -> None:
    with record.closing(deadline=soon()):
        pass
    with pytest.raises(GenerationClosed), record.taking(GUEST, deadline=soon()):
        pytest.fail("the act began")
    assert record.held() == []


def test_closing_waits_for_a_running_act(record: JobState) -> None:
    waits = pytest.raises(DeadlineExceeded)
    with record.act(deadline=soon()), waits, record.closing(deadline=Deadline(0.05)):
        pytest.fail("it did not wait")


def test_acts_do_not_wait_for_one_another(record: JobState) -> None:
    with record.act(deadline=soon()), record.act(deadline=Deadline(0.05)):
        assert not (record.path / "closed").exists()


def test_an_act_after_removal_finds_its_generation_gone(record: JobState) -> None:
    with record.closing(deadline=soon()):
        record.remove()
    with pytest.raises(GenerationClosed), record.act(deadline=soon()):
        pytest.fail("the act began")


def test_whoever_waited_for_the_lock_of_a_removed_generation_does_not_act(record: JobState) -> None:
    """A start may wait for the lock while the epilogue that holds it removes everything."""
    outcome: list[str] = []

    def start() -> None:
        try:
            with record.act(deadline=soon()):
                outcome.append("acted")
        except GenerationClosed:
            outcome.append("closed")

    lock = record.path / "lock"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=start)
        waiting.start()
        while len([link for link in Path("/proc/self/fd").iterdir() if points_at(link, lock)]) < 2:
            time.sleep(0.001)
        lock.unlink()
    waiting.join()
    assert outcome == ["closed"]


def points_at(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target
    except FileNotFoundError:
        return False


def test_a_record_is_not_removed_while_something_is_held(record: JobState) -> None:
    with record.taking(GUEST, deadline=soon()):
        pass
    with pytest.raises(StateError, match=r"still holds domain 7\.srv_1of1"):
        record.remove()
    assert record.exists


def test_a_second_start_is_refused_while_the_first_is_recorded(record: JobState) -> None:
    with pytest.raises(StateError, match="earlier start"):
        record.create()


def test_removal_leaves_nothing(record: JobState, tmp_path: Path) -> None:
    record.save_plan({})
    with record.closing(deadline=soon()):
        record.remove()
    assert list((tmp_path / "jobs").iterdir()) == []
    assert jobs(tmp_path) == []


def test_secrets_are_roots_and_markers_are_readable(record: JobState) -> None:
    shared = []

    def share(path: Path) -> None:
        shared.append((path.name != "ready", json.loads(path.read_text())))

    record.publish("ready", {"schema": 1}, share=share)
    assert shared == [(True, {"schema": 1})], "whole, and before anybody can find it"
    modes = {path.name: path.stat().st_mode & 0o777 for path in record.path.iterdir()}
    assert modes == {"ledger": 0o600, "lock": 0o600, "ready": 0o640}
    assert record.path.stat().st_mode & 0o777 == 0o711


def test_failed_starts_are_counted_until_forgotten(tmp_path: Path) -> None:
    job = Job(id=JobId("7.srv"), user="ann", node_index=0, nodes=("n1",), request="")
    assert [attempt(tmp_path, job) for _ in range(3)] == [1, 2, 3]
    forget_attempts(tmp_path, job.key)
    assert attempt(tmp_path, job) == 1


def test_a_start_right_after_a_teardown_is_another_generation(tmp_path: Path) -> None:
    """Her job may be back before a guard looks again: she must not take it for hers, and keep her place for ever."""
    record = JobState(tmp_path, "7.srv")
    assert record.generation == ""
    record.create()
    first = record.generation
    assert first == JobState(tmp_path, "7.srv").generation != ""
    record.remove()
    assert record.generation == ""
    record.create()
    assert record.generation not in ("", first)


def note(record: JobState, text: bytes) -> None:
    with (record.path / "ledger").open("ab") as ledger:
        ledger.write(text)


@pytest.mark.parametrize("cut", [b"[", b'["', b'["take", "fi', b'["back", "file", "/disks/7.srv_1of1.qcow2"'])
def test_a_note_that_a_full_disk_cut_short_spoils_none_that_follows(record: JobState, cut: bytes) -> None:
    with record.taking(DISK, deadline=soon()):
        pass
    note(record, cut)
    with record.taking(GUEST, deadline=soon()):
        pass
    assert record.held() == [GUEST, DISK]
    record.given_back(GUEST)
    record.given_back(DISK)
    with record.closing(deadline=soon()):
        record.remove()


def test_a_line_that_no_full_disk_explains_is_damage(record: JobState) -> None:
    note(record, b'nonsense["take", "file", "/x"]\n')
    with pytest.raises(StateError, match="is damaged"):
        record.held()


def fail_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"vtorque.state.{name}", refuse)


def test_what_is_given_back_on_a_full_disk_is_not_held_any_more(
    record: JobState, monkeypatch: pytest.MonkeyPatch
) -> None:
    with record.taking(DISK, deadline=soon()):
        pass
    fail_to("os.write", monkeypatch)
    record.given_back(DISK)
    assert record.held() == []
    with record.closing(deadline=soon()):
        record.remove()
    assert not record.exists


def test_without_room_for_the_tombstone_no_act_begins_either(
    record: JobState, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to("files.replace", monkeypatch)
    with record.closing(deadline=soon()):
        pass
    assert not (record.path / "closed").exists()
    with pytest.raises(GenerationClosed), record.act(deadline=soon()):
        pytest.fail("the act began")


def test_half_a_line_in_the_ledger_is_a_failure(record: JobState, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:-2]))
    with pytest.raises(OSError, match="No space left"), record.taking(GUEST, deadline=soon()):
        raise AssertionError("nothing may be taken without a record of it")
