# SPDX-License-Identifier: Apache-2.0
"""The lab itself: repeatable, repairable, and not for somebody else's things."""

import json
import subprocess

import pytest

from tests.e2e.conftest import PREFIX, Lab
from vtorque import lab
from vtorque.errors import StateError
from vtorque.lab import parts

pytestmark = pytest.mark.e2e


def pids() -> dict[str, int]:
    return {path.stem: json.loads(path.read_text())["pid"] for path in parts.ROOT.glob("*.json")}


def test_up_again_changes_nothing(the_lab: Lab) -> None:
    before = pids()
    lab.up(PREFIX, progress=print)
    assert pids() == before and {"dnsmasq", "ganesha", "pbs_mom"} <= set(before)


def test_up_repairs_what_died(the_lab: Lab) -> None:
    subprocess.run(["/bin/kill", "-KILL", str(pids()["dnsmasq"])], check=True)
    while parts.Network().is_up():
        pass
    assert lab.status(PREFIX)[f"bridge {parts.BRIDGE}"] is False
    lab.up(PREFIX, progress=print)
    assert all(lab.status(PREFIX).values())


def test_what_has_the_labs_names_and_is_not_the_labs_is_refused(the_lab: Lab) -> None:
    with pytest.raises(StateError, match="that is not the lab's"):
        parts.refuse_foreign(recorded=False)


def test_status_is_for_scripts_too(the_lab: Lab) -> None:
    done = subprocess.run([parts.PROGRAM / "scripts/vmgr", "lab", "status", "--json"], capture_output=True, check=True)
    assert set(json.loads(done.stdout).values()) == {True}
