# SPDX-License-Identifier: Apache-2.0
"""What jobs have left that no ledger tells of, looked for while other jobs come and go."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_site
from tests.fakes.node import a_node
from vtorque import orphans


def test_a_job_that_ends_while_it_is_looked_at_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job's epilogue removes a directory between the moment it is listed and the one it is read."""
    node = a_node(a_site(state_dir=str(tmp_path / "run"), disk_dir=str(tmp_path / "disks")))
    for key in ("1.srv", "2.srv", "3.srv"):
        overlay = tmp_path / f"disks/{key}/{key}_1of1.qcow2"
        overlay.parent.mkdir(parents=True)
        overlay.touch()
    read = os.listdir

    def late(path: Any) -> list[str]:
        if isinstance(path, Path) and path.name == "2.srv":
            shutil.rmtree(path, ignore_errors=True)
        return read(path)

    monkeypatch.setattr(os, "listdir", late)
    assert orphans.keys(node) == ["1.srv", "3.srv"]
