# SPDX-License-Identifier: Apache-2.0
"""The post of a job's guard: one stands there, and where nobody does any more nothing is left."""

import fcntl
import os
from pathlib import Path

import pytest

from vtorque import guardpost


def test_a_post_is_taken_by_one_until_she_leaves(tmp_path: Path) -> None:
    assert not guardpost.is_taken(tmp_path, "7.srv") and guardpost.all_keys(tmp_path) == []
    handle = guardpost.take(tmp_path, "7.srv")
    assert handle is not None and guardpost.take(tmp_path, "7.srv") is None
    assert guardpost.is_taken(tmp_path, "7.srv") and guardpost.all_keys(tmp_path) == ["7.srv"]
    os.close(handle)
    assert guardpost.all_keys(tmp_path) == ["7.srv"]
    assert not guardpost.is_taken(tmp_path, "7.srv") and guardpost.all_keys(tmp_path) == []


def test_a_post_that_is_cleared_away_while_one_takes_it_is_taken_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    cleared: list[int] = []

    def clearing(handle: int, how: int) -> None:
        if not cleared:
            guardpost.leave(tmp_path, "7.srv")
            cleared.append(handle)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", clearing)
    handle = guardpost.take(tmp_path, "7.srv")
    assert handle is not None and cleared
    assert os.fstat(handle).st_ino == (tmp_path / "guards/7.srv").stat().st_ino
    os.close(handle)
