# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of phases, what is written down of them, and what is read back from files that were mangled."""

import gzip
import json
import logging
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import a_job, a_site
from vtorque import accounting, follow, names, timings
from vtorque.accounting import Journal, Start
from vtorque.errors import HypervisorError, StateError
from vtorque.model import Job, job_id
from vtorque.submit import JobDirectory
from vtorque.timings import Entry

Note = dict[str, object]


def note(phase: str, seconds: float, **changes: object) -> Note:
    return {"time": 1000.0 + seconds, "schema": 1, "phase": phase, "seconds": seconds, "job": "7.srv", "start": 1000.0,
            **changes}


def written(directory: Path) -> list[Entry]:
    return [entry for day in timings.days(directory) for entry in day]


class TestArithmetic:
    def test_a_phase_is_reached_when_the_last_guest_has_reached_it(self) -> None:
        notes = [note("started", 2.0, rank=1), note("started", 1.0, rank=0), note("begun", 0.5)]
        assert accounting.reached(notes) == {"begun": 0.5, "started": 2.0}
        assert list(accounting.reached(notes)) == ["begun", "started"]

    @pytest.mark.parametrize("event", ["failed", "deleted", "lost", "swept"])
    def test_what_befalls_a_job_is_no_phase(self, event: str) -> None:
        assert accounting.reached([note("begun", 0.5), note(event, 3.0)]) == {"begun": 0.5}

    def test_a_phase_took_as_long_as_it_came_after_the_one_before(self) -> None:
        assert accounting.durations({"begun": 0.5, "planned": 0.75, "ready": 3.0}) == {
            "begun": 0.5, "planned": 0.25, "ready": 2.25,
        }
        assert accounting.durations({"ended": 9.0, "torn-down": 9.5}, since=8.0) == {"ended": 1.0, "torn-down": 0.5}

    @given(st.dictionaries(st.text(), st.integers(0, 10_000)))
    def test_phases_add_up_to_the_whole_start(self, marks: dict[str, int]) -> None:
        in_order = dict(sorted(marks.items(), key=lambda mark: mark[1]))
        took = accounting.durations(in_order)
        assert sum(took.values()) == max(marks.values(), default=0)
        assert all(seconds >= 0 for seconds in took.values())

    @pytest.mark.parametrize(("values", "expected"), [
        ([3.0], 3.0), ([1.0, 2.0], 2.0), ([float(n) for n in range(1, 101)], 95.0),
        ([float(n) for n in range(1, 21)], 19.0), ([5.0, 1.0, 3.0], 5.0),
    ])
    def test_95_of_a_hundred_do_not_exceed_the_95_per_cent(self, values: list[float], expected: float) -> None:
        assert timings.percentile(values, 95) == expected

    def test_timings_are_median_and_95_per_cent_in_order_of_phases(self) -> None:
        starts = [{"begun": 0.5, "ready": 1.0}, {"begun": 0.5, "ready": 4.5}, {"begun": 0.5, "ready": 2.5}]
        begun, ready = timings.timings(starts)
        assert (begun.phase, begun.starts, begun.took_median) == ("begun", 3, 0.5)
        assert (ready.after_median, ready.after_95, ready.took_median, ready.took_95) == (2.5, 4.5, 2.0, 4.0)
        assert timings.table([begun, ready]).splitlines()[2].split() == [
            "ready", "3", "2.000", "s", "4.000", "s", "2.500", "s", "4.500", "s",
        ]


    def test_a_month_does_not_run_into_its_neighbour(self) -> None:
        (ended,) = timings.timings([{"ended": 30 * 86400.0}])
        assert timings.table([ended]).splitlines()[1].split() == ["ended", "1", *["2592000.000", "s"] * 4]


class TestLastStarts:
    def test_the_last_of_them_are_taken_even_over_midnight(self) -> None:
        new = [note("begun", 0.1, job="9.srv", start=3000.0), note("ended", 90.0, job="8.srv", start=2000.0)]
        old = [note("begun", 0.2, job="8.srv", start=2000.0), note("begun", 0.3)]
        assert timings.last([new, old], 2) == [{"begun": 0.1}, {"begun": 0.2, "ended": 90.0}]

    def test_no_more_days_are_read_than_it_takes(self) -> None:
        def days() -> list[list[Entry]]:
            raise AssertionError("an older day was read")

        def each() -> object:
            yield [note("begun", 0.1)]
            yield days()

        assert timings.last(each(), 1) == [{"begun": 0.1}]  # type: ignore[arg-type]

    def test_a_job_that_was_requeued_has_two_starts(self) -> None:
        day = [note("begun", 0.1), note("begun", 0.2, start=1060.0)]
        assert timings.last([day], 10) == [{"begun": 0.2}, {"begun": 0.1}]

    def test_an_end_without_a_beginning_is_no_start(self) -> None:
        assert timings.last([[note("ended", 5.0)]], 10) == []


class TestJournal:
    def test_each_phase_is_a_line_with_the_time_and_the_seconds_since_the_start(self, tmp_path: Path) -> None:
        begun = time.time() - 5
        journal = Journal(tmp_path, node="n1", begun=begun)
        journal.begin(a_job())
        journal.note("ssh", rank=1)
        journal.note("cloud-init", rank=1, word=accounting.GUEST)
        first, ssh, setup = written(tmp_path)
        assert (first["phase"], first["job"], first["user"], first["node"]) == ("begun", "7.srv", "ann", "n1")
        assert first["start"] == round(begun, 3) and "rank" not in first and "word" not in first
        assert first["seconds"] >= 5 and abs(first["time"] - begun - first["seconds"]) < 0.01
        assert (ssh["rank"], "word" in ssh) == (1, False)
        assert setup["word"] == "guest"

    def test_the_file_is_named_after_the_day_and_for_root_and_its_group_only(self, tmp_path: Path) -> None:
        directory = tmp_path / "accounting"
        before = time.strftime("%Y%m%d")
        Journal(directory).begin(a_job())
        (file,) = directory.iterdir()
        assert file.name in (before, time.strftime("%Y%m%d"))
        assert (file.stat().st_mode & 0o777, directory.stat().st_mode & 0o777) == (0o640, 0o750)

    def test_before_a_job_is_known_nothing_is_noted(self, tmp_path: Path) -> None:
        Journal(tmp_path / "a").note("begun")
        assert not (tmp_path / "a").exists()

    def test_a_later_process_goes_on_with_the_start_that_was_kept(self, tmp_path: Path) -> None:
        journal = Journal(begun=time.time() - 60)
        journal.begin(a_job())
        journal.keep(tmp_path)
        later = Journal()
        later.resume(a_job(), tmp_path)
        later.note("ended")
        assert later.notes[0]["start"] == journal.notes[0]["start"]
        assert float(str(later.notes[0]["seconds"])) >= 60

    @pytest.mark.parametrize("kept", [None, b"", b"[1]", b"7", b'["a","b","c"]', b"x" * 100_000, b'{"a": 1}'])
    def test_without_what_was_kept_a_process_begins_with_itself(self, tmp_path: Path, kept: bytes | None) -> None:
        if kept is not None:
            (tmp_path / "begun").write_bytes(kept)
        assert accounting.start(tmp_path, otherwise=Start("7.srv", "ann", 5.0)) == ("7.srv", "ann", 5.0)

    def test_what_a_process_has_noted_is_taken_once_with_what_each_phase_took(self, tmp_path: Path) -> None:
        journal = Journal(begun=time.time() - 5)
        journal.begin(a_job())
        notes, took = journal.taken()
        assert [each["phase"] for each in notes] == ["begun"] and took["begun"] >= 5
        journal.note("ready")
        notes, took = journal.taken()
        assert [each["phase"] for each in notes] == ["ready"] and took["ready"] < 5
        assert journal.taken() == ([], {})

    def test_a_user_is_told_of_guests_as_of_one(self) -> None:
        notes = [note("begun", 0.1), note("ssh", 1.0, rank=0), note("ssh", 2.0, rank=1),
                 note("cloud-init", 3.0, rank=0, word="guest")]
        assert accounting.of_guests(notes) == [
            {"time": 1002.0, "phase": "ssh", "seconds": 2.0, "guests": 2},
            {"time": 1003.0, "phase": "cloud-init", "seconds": 3.0, "word": "guest", "guests": 1},
        ]

    def test_a_failure_is_told_by_class_not_in_words_that_may_be_the_guests(self) -> None:
        journal = Journal()
        journal.begin(a_job())
        journal.failed(HypervisorError("guest said: forged"))
        assert (journal.notes[1]["class"], journal.notes[1]["blame"]) == ("HypervisorError", "node")
        assert "forged" not in json.dumps(journal.notes)


HOSTILE = (
    'a\n{"time": 1, "schema": 1, "phase": "begun", "seconds": 0, "job": "8.srv"}', 'a"}\r\n', "\x00\x1b[2J\udcff",
    "x" * 100_000, '", "job": "8.srv',
)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_forges_a_line_or_a_field(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path)
    journal.begin(a_job(user=name))
    journal.note("planned", facts={"image": name[:1000]})
    (day,) = timings.days(tmp_path)
    assert [(entry["phase"], entry["job"]) for entry in day] == [("begun", "7.srv"), ("planned", "7.srv")]
    assert all(len(line) < 4096 for line in next(tmp_path.iterdir()).read_bytes().splitlines())


def test_no_name_gets_past_a_line_that_is_read_to_a_terminal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, node="n\x1b[2J")
    journal.begin(a_job())
    journal.note("planned", facts={"image": "i\n2026 forged"})
    text = timings.job_text(written(tmp_path))
    assert "\x1b" not in text and text.count("\n") == 2


class TestTrouble:
    @pytest.fixture
    def journal(self, tmp_path: Path) -> Journal:
        return Journal(tmp_path / "accounting")

    def two(self, journal: Journal) -> None:
        journal.begin(a_job())
        journal.note("planned")

    def test_a_directory_that_cannot_be_made_is_said_once_and_stops_nobody(
        self, tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "accounting").touch()
        self.two(journal)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert str(tmp_path / "accounting") in caplog.text

    def test_a_full_disk_is_said_once_and_stops_nobody(
        self, journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "write", lambda handle, data: len(data) // 2)
        self.two(journal)
        assert len(caplog.records) == 1 and "No space left" in caplog.text

    def test_a_day_that_is_full_takes_no_more(
        self, tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal.begin(a_job())
        monkeypatch.setattr(accounting, "DAY_BYTES", next((tmp_path / "accounting").iterdir()).stat().st_size)
        journal.note("planned")
        assert [entry["phase"] for entry in written(tmp_path / "accounting")] == ["begun"]
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("kind", ["link", "fifo"])
    def test_what_is_no_file_is_not_written_to(self, tmp_path: Path, journal: Journal, kind: str) -> None:
        today = tmp_path / "accounting" / time.strftime("%Y%m%d")
        today.parent.mkdir()
        if kind == "link":
            today.symlink_to(tmp_path / "other")
        else:
            os.mkfifo(today)
        self.two(journal)
        assert not (tmp_path / "other").exists()


class TestReading:
    def test_a_line_that_was_cut_short_takes_no_other_along(self) -> None:
        whole = json.dumps(note("begun", 1.0))
        torn = json.dumps(note("planned", 2.0))[:40]
        data = f"{torn}{whole}\n{whole}\n{torn}\n\nx\n7\n".encode()
        assert [entry["phase"] for entry in timings.entries(data)] == ["begun", "begun"]

    @pytest.mark.parametrize("changes", [
        {"schema": 2}, {"phase": 7}, {"seconds": "1"}, {"job": None}, {"time": []},
    ])
    def test_what_is_no_entry_of_this_schema_is_passed_over(self, changes: Note) -> None:
        assert list(timings.entries(json.dumps(note("begun", 1.0) | changes).encode())) == []

    @given(st.binary(max_size=200))
    def test_nothing_that_is_in_a_file_stops_the_reader(self, data: bytes) -> None:
        assert list(timings.entries(b'{"time": ' + data)) == []

    def test_a_day_that_was_compressed_is_read_as_well_and_the_newest_day_first(self, tmp_path: Path) -> None:
        (tmp_path / "20260102").write_text(json.dumps(note("begun", 2.0)) + "\n")
        with gzip.open(tmp_path / "20260101.1.gz", "wt") as file:
            file.write(json.dumps(note("begun", 1.0)) + "\n")
        assert [entry["seconds"] for entry in written(tmp_path)] == [2.0, 1.0]

    def test_a_day_that_is_damaged_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "20260101.1.gz").write_bytes(b"no gzip")
        with pytest.raises(StateError, match="20260101"):
            written(tmp_path)

    def test_a_directory_that_is_not_there_holds_nothing(self, tmp_path: Path) -> None:
        assert written(tmp_path / "none") == []


class TestRetention:
    NOW = time.mktime((2026, 6, 30, 12, 0, 0, 0, 0, -1))

    def left(self, directory: Path, *names: str, days: int) -> set[str]:
        for name in names:
            (directory / name).write_bytes(b"x" * 1000)
        accounting.forget(directory, days=days, now=self.NOW)
        return {path.name for path in directory.iterdir()}

    def test_files_older_than_their_days_go_and_nothing_else(self, tmp_path: Path) -> None:
        names = ("20260630", "20260628", "20260627", "20260101.1.gz", "notes", "20250101x", "2025")
        assert self.left(tmp_path, *names, days=2) == {"20260630", "20260628", "notes", "20250101x", "2025"}

    def test_the_oldest_go_when_all_are_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accounting, "TOTAL_BYTES", 2500)
        names = ("20260630", "20260629", "20260628", "20260627")
        assert self.left(tmp_path, *names, days=400) == {"20260630", "20260629"}

    def test_a_new_day_makes_them_go(self, tmp_path: Path) -> None:
        (tmp_path / "20010101").touch()
        journal = Journal(tmp_path, days=400)
        journal.begin(a_job())
        assert [path.name for path in tmp_path.iterdir()] == [path.name for path in accounting.day_files(tmp_path)]
        assert not (tmp_path / "20010101").exists()


@pytest.mark.parametrize(("given_", "expected"), [
    ({}, "/var/log/vtorque/accounting"), ({"log_dir": "/l"}, "/l/accounting"), ({"accounting_dir": "/a"}, "/a"),
])
def test_files_are_beside_the_log_unless_the_site_says_otherwise(given_: dict[str, str], expected: str) -> None:
    assert str(names.accounting(a_site(**given_))) == expected


class TestUsersSide:
    def test_a_job_that_was_submitted_is_noted_as_queued(self, tmp_path: Path) -> None:
        directory = JobDirectory(path=tmp_path / "0123456789abcdef")
        directory.path.mkdir()
        directory.submitted("7.srv")
        (line,) = directory.phases.read_text().splitlines()
        assert json.loads(line)["phase"] == "queued"
        assert (tmp_path / "7.srv").readlink() == Path(directory.path.name)

    def test_whoever_follows_a_job_is_shown_neither_its_guests_nor_what_the_batch_system_says(
        self, tmp_path: Path
    ) -> None:
        lines = [{"time": 1, "phase": "queued"}, {"time": 2, "phase": "started", "seconds": 0.5},
                 {"time": 3, "phase": "ssh", "seconds": 1.5, "guests": 2}, {"time": 4, "phase": "ready"}]
        (tmp_path / "phases").write_text("".join(json.dumps(line) + "\n" for line in lines))
        shown: list[str] = []
        follow.until_done(
            job_id("7.srv"), tmp_path / "phases", ask=lambda job: (0, b"job_state = C\nexit_status = 0\n"),
            show=lambda phase, seconds: shown.append(phase),
        )
        assert shown == ["started", "ready", "done"]


def test_a_job_without_a_name_is_noted_as_it_is() -> None:
    journal = Journal()
    job: Job = a_job(user="")
    journal.begin(job)
    assert journal.notes[0]["user"] == ""
