# SPDX-License-Identifier: Apache-2.0
"""The scripts by which a batch system asks after a node's health: what they say, and what they do about it."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.runs

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ILL = "ERROR vtorque: bridge br0 is not there"


class Tree:
    """An installation whose doctor says what a test wants, and a scontrol that writes down what it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(SCRIPTS / "slurm", root / "scripts/slurm")
        shutil.copy(SCRIPTS / "node-check", root / "scripts")
        self.told = root / "told"
        self.told.touch()
        self.program("scontrol", f'printf "%s\\n" "$@" >>{self.told}')

    def program(self, name: str, text: str) -> None:
        path = self.root / ("scripts" if name == "vmgr" else "") / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def ask(self, script: str, *words: str) -> str:
        done = subprocess.run(
            [self.root / "scripts" / script, *words], capture_output=True, text=True, check=False,
            env={"PATH": f"{self.root}:/usr/bin:/bin", "SLURMD_NODENAME": "n1"},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(("script", "drains"), [("node-check", False), ("slurm/health-check", True)])
def test_a_node_that_is_ill_says_so_and_slurms_is_drained(tree: Tree, script: str, drains: bool) -> None:
    tree.program("vmgr", f'[ "$*" = "doctor --nhc" ] && echo "{ILL}"')
    assert tree.ask(script) == f"{ILL}\n"
    asked = ["update", "NodeName=n1", "State=DRAIN", f"Reason={ILL}"]
    assert tree.told.read_text().splitlines() == (asked if drains else [])


@pytest.mark.parametrize("script", ["node-check", "slurm/health-check"])
def test_a_node_that_is_well_says_nothing(tree: Tree, script: str) -> None:
    tree.program("vmgr", "echo OK")
    assert tree.ask(script) == ""
    assert tree.told.read_text() == ""


def test_a_doctor_that_dies_is_a_finding_itself(tree: Tree) -> None:
    tree.program("vmgr", "echo no python >&2; exit 1")
    assert tree.ask("node-check") == "ERROR vmgr doctor failed: no python\n"
