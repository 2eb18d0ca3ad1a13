# SPDX-License-Identifier: Apache-2.0
"""The process runner: what it starts is gone when it returns."""

import contextlib
import functools
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vtorque import foreground, proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded

pytestmark = pytest.mark.runs


def test_at_the_deadline_the_whole_session_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "leader"

    class Begun(Deadline):
        """Time is up when it has begun, however late that is."""

        @property
        def remaining(self) -> float:
            for _ in Deadline(30).ticks(doing="see it begin"):
                if file.exists() and file.stat().st_size:
                    break
            return 0.1

    for script in ("echo $$ >{0}; sleep 611", "echo $$ >{0}; sleep 612 & echo said"):
        file.unlink(missing_ok=True)
        with pytest.raises(DeadlineExceeded):
            proc.run(["/bin/sh", "-c", script.format(file)], deadline=Begun(0.5))
        leader = int(file.read_text())
        for _ in Deadline(9.0).ticks(doing="see it gone"):
            if not proc.session_members(leader):
                break


def test_a_failure_says_what_was_said_last() -> None:
    with pytest.raises(CommandError, match="sh failed with exit status 3: the reason"):
        proc.run(["/bin/sh", "-c", "echo first >&2; echo the reason >&2; exit 3"], deadline=Deadline(9.0))
    with pytest.raises(CommandError, match="cannot run /absent: No such file"):
        proc.run(["/absent"], deadline=Deadline(9.0))


def test_output_is_passed_on_as_it_comes_and_kept(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["/bin/sh", "-c", "echo 12.srv; exit 7"]
    status, printed, _ = foreground.call_through(words, env=os.environ, terminal=False)
    assert (status, printed, capfd.readouterr().out) == (7, b"12.srv\n", "12.srv\n")
    command = ["/bin/sh", "-c", "echo seen; kill -INT $$"]
    status, printed, _ = foreground.call_through(command, env=os.environ, terminal=True)
    assert (status, printed, capfd.readouterr().out) == (130, b"", "seen\n")


def test_an_interrupt_ends_the_whole_session_too(tmp_path: Path) -> None:
    class Interrupted(Deadline):
        @property
        def remaining(self) -> float:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proc.run(["/bin/sh", "-c", "echo $$ > leader; sleep 100"], cwd=tmp_path, deadline=Interrupted(9.0))
    with contextlib.suppress(FileNotFoundError, ValueError):
        leader = int((tmp_path / "leader").read_text())
        for _ in Deadline(9.0).ticks(doing="see it gone"):
            if not proc.session_members(leader):
                break


def test_who_is_born_while_a_session_is_killed_is_killed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = {1 << 30}
    killed: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        if not killed:
            alive.add(pid + 1)
        killed.append((pid, number))
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(proc, "session_members", lambda leader: sorted(alive))
    proc.kill_session(1 << 30)
    assert killed == [(1 << 30, signal.SIGKILL), ((1 << 30) + 1, signal.SIGKILL)]


def test_of_a_session_the_leader_is_killed_first_and_a_flood_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(proc, "session_members", lambda leader: [7, 8, 9])
    proc.kill_session(8)
    assert killed == [8, 7, 9]
    monkeypatch.setattr(proc, "session_members", lambda leader: [len(killed)])
    proc.kill_session(8)


def test_ctrl_c_is_left_to_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    def shown(data: bytes) -> bytes:
        signal.raise_signal(signal.SIGINT)
        return data

    words = ["/bin/sh", "-c", "echo cleared"]
    assert foreground.call_through(words, env=os.environ, terminal=False, shown=shown) == (0, b"cleared\n", "")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_command_that_is_not_there_is_named() -> None:
    for start in (foreground.call, functools.partial(foreground.call_through, terminal=True)):
        with pytest.raises(CommandError, match="cannot run /absent: No such file"):
            start(["/absent"], env={})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_is_to_end_us_before_the_command_is_there_reaches_it(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen

    def slow(*words: Any, **named: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(*words, **named)

    monkeypatch.setattr(subprocess, "Popen", slow)
    told = foreground.call_through(["/usr/bin/sleep", "60"], env=os.environ, terminal=False)
    assert told == (128 + number, b"", "") and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_we_ignore_the_command_ignores_as_well() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        told = foreground.call_through(["/bin/sh", "-c", "kill -INT $$; echo on"], env=os.environ, terminal=False)
        assert told == (0, b"on\n", "") and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
