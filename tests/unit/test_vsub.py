# SPDX-License-Identifier: Apache-2.0
"""What vsub does before and around qsub, in this process."""

import pwd
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vtorque import proc, submit
from vtorque.cli import vmsubmit, vsub
from vtorque.errors import RequestError

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_user_without_an_account_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr("os.getuid", lambda: 5001)
    with pytest.raises(RequestError, match=r"^uid 5001 has no account here$"):
        vsub.own_account()


@pytest.mark.parametrize("number", NUMBERS)
def test_whatever_ends_it_while_keys_are_made_leaves_nothing(
    handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    vmsubmit._hear_signals()
    monkeypatch.setattr(proc, "run", lambda *words, **named: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt) as caught, submit.job_directory(tmp_path, "0" * 16):
        pass
    assert caught.value.args == (number,) and list((tmp_path / ".vtorque").iterdir()) == []


def test_what_is_ignored_stays_so(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    vmsubmit._hear_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_disk_that_is_full_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(proc, "run", lambda *words, **named: None)
    with pytest.raises(OSError, match="full") as caught, submit.job_directory(tmp_path, "0" * 16):
        raise OSError(28, "full")
    assert caught.value.filename == str(tmp_path / ".vtorque" / ("0" * 16))
