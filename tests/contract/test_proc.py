# SPDX-License-Identifier: Apache-2.0
"""The process runner: what it starts is gone when it returns."""

import os
from pathlib import Path

import pytest

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded

pytestmark = pytest.mark.runs


def test_at_the_deadline_the_whole_session_is_gone(tmp_path: Path) -> None:
    for script in ("echo $$ >{0}; sleep 611", "echo $$ >{0}; sleep 612 & echo said"):
        with pytest.raises(DeadlineExceeded):
            proc.run(["/bin/sh", "-c", script.format(tmp_path / "leader")], deadline=Deadline(0.5))
        leader = int((tmp_path / "leader").read_text())
        for _ in Deadline(9.0).ticks(doing="see it gone"):
            if not proc.session_members(leader):
                break


def test_a_failure_says_what_was_said_last() -> None:
    with pytest.raises(CommandError, match="sh failed with exit status 3: the reason"):
        proc.run(["/bin/sh", "-c", "echo first >&2; echo the reason >&2; exit 3"], deadline=Deadline(9.0))
    with pytest.raises(CommandError, match="cannot run /absent: No such file"):
        proc.run(["/absent"], deadline=Deadline(9.0))


def test_output_is_passed_on_as_it_comes_and_kept(capfd: pytest.CaptureFixture[str]) -> None:
    status, printed = proc.call_through(["/bin/sh", "-c", "echo 12.srv; exit 7"], env=os.environ, terminal=False)
    assert (status, printed, capfd.readouterr().out) == (7, b"12.srv\n", "12.srv\n")
    status, printed = proc.call_through(["/bin/sh", "-c", "echo seen; kill -INT $$"], env=os.environ, terminal=True)
    assert (status, printed, capfd.readouterr().out) == (130, b"", "seen\n")
