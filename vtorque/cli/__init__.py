# SPDX-License-Identifier: Apache-2.0
"""Commands: argv, environment, exit status; nothing else."""

from pathlib import Path

_TREE = Path(__file__).resolve().parents[2]


def _installed() -> Path:
    import sysconfig  # which a tree has no need of

    return Path(sysconfig.get_path("data"), "share", "vtorque")


PREFIX = _TREE if (_TREE / "templates" / "job-wrapper.sh").is_file() else _installed()
"""Where scripts and templates lie: in the tree that this file is part of, or where setup.py put them."""
