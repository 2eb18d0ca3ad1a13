# SPDX-License-Identifier: Apache-2.0
"""Install, run a job through what was installed, uninstall: then every file is as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.installed import NAMESPACES

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="it installs what is root's"),
]

ROOT = Path(__file__).resolve().parents[2]
HOOKS = {"torque": "/torque/mom_priv/prologue", "slurm": "/etc/slurm/vtorque/prolog",
         "openpbs": "/etc/vtorque/openpbs-hook.json"}


def lived(tmp_path: Path, system: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.contract.installed", system, out], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(out.read_text())
    return told


def different(told: dict[str, Any], then: str) -> set[str]:
    """The paths that were otherwise before the installation."""
    before, after = told["before"], told[then]
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.parametrize("system", HOOKS)
def test_install_then_a_job_then_uninstall_leaves_every_file_as_it_was(tmp_path: Path, system: str) -> None:
    told = lived(tmp_path, system)
    assert any(name.endswith(HOOKS[system]) for name in different(told, "installed"))
    assert (told["said"], told["domains"]) == ("0 ran\n", [])
    calls = [line.split()[0].rpartition("/")[2] for line in told["sites"]]
    assert calls == {"torque": ["prologue.orig", "epilogue.orig"], "slurm": ["prolog.orig", "epilog.orig"],
                     "openpbs": []}[system]
    assert different(told, "after") == set()
    (name,) = different(told, "weakened")
    assert name.endswith("/torque/mom_priv/epilogue"), "one mode that is not as it was is noticed"
