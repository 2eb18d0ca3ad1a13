# SPDX-License-Identifier: Apache-2.0
"""What `vsub --wait` shows of a job."""

import json
from pathlib import Path

import pytest

from vtorque import follow
from vtorque.job import JobId


def note(path: Path, phase: str) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"time": 1.0, "phase": phase}) + "\n")


@pytest.mark.parametrize("gone", [False, True])
def test_what_was_noted_since_the_last_look_is_shown_though_the_directory_is_gone(tmp_path: Path, gone: bool) -> None:
    phases = tmp_path / "phases"
    note(phases, "started")

    def ask(job: str) -> tuple[int, bytes]:
        note(phases, "running")
        note(phases, "ended")
        if gone:
            phases.unlink()
        return 0, b"    job_state = C\n    exit_status = 3\n"

    shown: list[str] = []
    end = follow.until_done(JobId("7.srv"), phases, ask=ask, show=lambda phase, seconds: shown.append(phase))
    assert shown == ["started", "running", "ended", "done"]
    assert end.exit_status == 3


def test_a_job_that_never_had_a_directory_is_followed_all_the_same(tmp_path: Path) -> None:
    shown: list[str] = []
    follow.until_done(
        JobId("7.srv"), tmp_path / "phases", ask=lambda job: (0, b"job_state = C\n"),
        show=lambda phase, seconds: shown.append(phase),
    )
    assert shown == ["done"]


def test_a_qstat_that_fails_is_asked_again(tmp_path: Path) -> None:
    answers = [(0, b"job_state = R\n"), (111, b""), (1, b""), (0, b"job_state = C\nexit_status = 4\n")]
    end = follow.until_done(
        JobId("7.srv"), tmp_path / "phases", ask=lambda job: answers.pop(0), show=lambda phase, seconds: None,
    )
    assert (end.exit_status, answers) == (4, [])


@pytest.mark.parametrize("status", follow.GONE)
def test_of_a_job_that_nobody_knows_any_more_that_is_said(tmp_path: Path, status: int) -> None:
    shown: list[str] = []
    end = follow.until_done(
        JobId("7.srv"), tmp_path / "phases", ask=lambda job: (status, b""),
        show=lambda phase, seconds: shown.append(phase),
    )
    assert (end.exit_status, shown) == (1, [])
    assert end.comment == "the batch system no longer knows job 7.srv: its exit status is unknown"
