# SPDX-License-Identifier: Apache-2.0
"""What must not decide how a job ends: a home that is full or away, and output that nobody takes."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vtorque import run
from vtorque.backends.transport.sshsession import OutputLost
from vtorque.cli import jobrun
from vtorque.model import JobId


def failing(number: int) -> Callable[..., Any]:
    def fail(*words: object, **named: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def bridge(tmp_path: Path) -> jobrun._Bridge:
    made = object.__new__(jobrun._Bridge)
    made._directory, made._lost, made._job = tmp_path, "", JobId("7.srv")
    made._about = SimpleNamespace(elements=1)  # type: ignore[assignment]
    return made


def test_a_full_home_takes_no_note(bridge: jobrun._Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge._note("running")
    (noted,) = bridge._directory.iterdir()
    before = noted.read_text()
    monkeypatch.setattr(Path, "open", failing(errno.ENOSPC))
    bridge._note("ended")
    monkeypatch.undo()
    assert noted.read_text() == before


def test_a_home_that_was_away_for_a_moment_tells_of_a_lost_guest_afterwards(
    bridge: jobrun._Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, closed = threading.Event(), threading.Event()
    real = os.scandir

    def stale(path: Any = ".") -> Any:
        if str(path) == str(bridge._directory) and not looked.is_set():
            looked.set()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path)

    monkeypatch.setattr(os, "scandir", stale)
    watching = threading.Thread(target=bridge._watch, args=(SimpleNamespace(close=closed.set),))
    watching.start()
    assert looked.wait(20)
    # As guards do: it is there whole, or not at all.
    (bridge._directory / "new").write_text("lost guest vn2-1\n")
    (bridge._directory / "new").rename(bridge._directory / "lost.1")
    watching.join(20)
    assert (closed.is_set(), bridge._lost) == (True, "lost guest vn2-1")


@pytest.mark.parametrize(("status", "expected"), [(0, run.ExitStatus.LOST), (3, 3)])
def test_output_that_nobody_takes_is_told_and_is_no_success(
    status: int, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(*words: object, **named: object) -> int:
        raise OutputLost("output was lost: No space left on device", status)

    monkeypatch.setattr(run, "script", lose)
    assert jobrun._run(SimpleNamespace(), b"") == expected
    assert capsys.readouterr().err == "vtorque: output was lost: No space left on device\n"
