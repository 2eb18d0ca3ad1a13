# SPDX-License-Identifier: Apache-2.0
"""The site's own hook beside ours: there, not there, or in a state in which mom would fail every job."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vtorque import chain
from vtorque.errors import StateError


def test_a_hook_of_the_sites_own_is_found(tmp_path: Path) -> None:
    own = tmp_path / "prologue.orig"
    own.touch(mode=0o500)
    assert chain.original(tmp_path / "prologue") == own


def test_none_and_a_link_that_dangles_are_none(tmp_path: Path) -> None:
    assert chain.original(tmp_path / "prologue") is None
    (tmp_path / "prologue.orig").symlink_to("missing")
    assert chain.original(tmp_path / "prologue") is None


@pytest.mark.parametrize("make", [lambda path: path.touch(mode=0o644), Path.mkdir], ids=["not executable", "directory"])
def test_one_that_mom_could_not_run_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "prologue.orig")
    with pytest.raises(StateError, match=r"prologue\.orig is not executable") as refusal:
        chain.original(tmp_path / "prologue")
    assert refusal.value.hint == f"chmod 755 {tmp_path}/prologue.orig"
