# SPDX-License-Identifier: Apache-2.0
"""The snippet for /etc/profile.d, read by the shells that read it."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.runs

SNIPPET = Path(__file__).resolve().parents[2] / "contrib" / "99-mikelangelo-hpc_stack.sh"


def after(path: str, *, shell: str) -> list[str]:
    """PATH and VTORQUE_DIR after the snippet was read twice; nothing may be printed meanwhile."""
    script = '. "$1"; . "$1"; printf "%s\\n" "$PATH" "$(/usr/bin/env | /bin/grep ^VTORQUE_DIR=)"'
    done = subprocess.run(
        [shell, "-euc", script, "shell", SNIPPET],
        env={"PATH": path}, capture_output=True, text=True, check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_the_commands_come_last_on_path_and_once(shell: str) -> None:
    path, directory = after("/usr/bin:/bin", shell=shell)
    assert path == "/usr/bin:/bin:/opt/vtorque/scripts"
    assert directory == "VTORQUE_DIR=/opt/vtorque"


def test_an_empty_path_gets_no_empty_entry() -> None:
    assert after("", shell="/bin/sh")[0] == "/opt/vtorque/scripts"
