# SPDX-License-Identifier: Apache-2.0
"""The guest's mpirun: the real one with the job's node file, unless the user knows better."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.runs

WRAPPER = Path(__file__).resolve().parents[2] / "templates-vm/mpirun.sh"


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """Two directories on PATH: ours, and one with a real mpirun that says how it was called."""
    for place in ("own", "real"):
        (tmp_path / place).mkdir()
    (tmp_path / "own/mpirun").write_bytes(WRAPPER.read_bytes())
    (tmp_path / "real/mpirun").write_text('#!/bin/sh\nprintf "%s|" "$@"\necho "$PATH" >&2\nexit 7\n')
    for path in (tmp_path / "own/mpirun", tmp_path / "real/mpirun"):
        path.chmod(0o755)
    (tmp_path / "nodes").write_text("v1\n")
    return tmp_path


def call(guest: Path, *words: str, node_file: str | None = "nodes") -> tuple[int, str]:
    path = f"{guest}/own:{guest}/real:/usr/bin:/bin"
    environment = {"PATH": path} | ({"PBS_NODEFILE": str(guest / node_file)} if node_file else {})
    done = subprocess.run([guest / "own/mpirun", *words], env=environment, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_the_node_file_is_added(guest: Path) -> None:
    assert call(guest, "-np", "4", "prog", "a b") == (7, f"-machinefile|{guest}/nodes|-np|4|prog|a b|")


@pytest.mark.parametrize("option", ["-H", "--host", "-hostfile", "--hostfile", "-machinefile", "-f"])
def test_the_users_own_hosts_stand(guest: Path, option: str) -> None:
    assert call(guest, option, "x", "prog") == (7, f"{option}|x|prog|")


def test_without_a_node_file_nothing_is_added(guest: Path) -> None:
    assert call(guest, "prog", node_file=None) == (7, "prog|")
    assert call(guest, "prog", node_file="absent") == (7, "prog|")


def test_without_a_real_one_it_says_so(guest: Path) -> None:
    (guest / "real/mpirun").unlink()
    assert call(guest, "prog") == (127, "")
