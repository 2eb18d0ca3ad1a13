# SPDX-License-Identifier: Apache-2.0
"""The program as an administrator installs it: a copy, compiled as doc/admin.md tells."""

import compileall
import shutil
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("vtorque", "scripts", "templates", "templates-vm")


def copy_to(place: Path, parts: Sequence[str] = PARTS) -> None:
    """Compiled where it comes from, once for all copies."""
    compileall.compile_dir(ROOT / "vtorque", quiet=1)
    for name in parts:
        shutil.copytree(ROOT / name, place / name)
