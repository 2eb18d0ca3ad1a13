# SPDX-License-Identifier: Apache-2.0
"""Root in the whole life of a job, seen by strace: nothing in a user's home, no secret where others look."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vtorque import privileged

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own hooks, in namespaces"),
]

PROGRAMS = {"/usr/bin/python3", "/usr/bin/readlink", "/usr/bin/setpriv"}

ROOT = Path(__file__).resolve().parents[2]


def life(out: Path, *options: str) -> dict[str, Any]:
    subprocess.run(
        [sys.executable, "-m", "tests.contract.footprint", str(out), *options], cwd=ROOT, check=True, timeout=200
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return life(tmp_path_factory.mktemp("life") / "found")


@pytest.fixture(scope="module")
def weakened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return life(tmp_path_factory.mktemp("weakened") / "found", "--weakened")


def test_a_job_with_two_guests_runs_to_its_end(ours: dict[str, Any]) -> None:
    assert ours["statuses"] == [0, 0, 0] and ours["guests"] == [] and ours["calls"] > 1000


def test_the_job_runs_over_the_connection_by_which_its_guest_was_proven(ours: dict[str, Any]) -> None:
    """It is there before the job is, the guest sees it come from the same port, and one process has kept it."""
    ran = {address: port for _, port, address, _ in ours["jobs"]}
    assert ran.keys() == {"127.0.1.1", "127.0.1.2"} and ours["before"] == [ran["127.0.1.1"]]
    kept = [json.loads(line)["object"] for line in ours["audit"] if '"keeper"' in line and '"take"' in line]
    assert len(kept) == 1


def test_root_opens_and_looks_at_nothing_below_the_home(ours: dict[str, Any], weakened: dict[str, Any]) -> None:
    assert ours["in_home"] == []
    assert weakened["in_home"]


def test_no_secret_is_in_a_command_line_or_an_environment(ours: dict[str, Any], weakened: dict[str, Any]) -> None:
    assert ours["executed"] == []
    assert len(weakened["executed"]) == 2


def test_secrets_are_in_the_state_directory_for_their_owner_only(
    ours: dict[str, Any], weakened: dict[str, Any]
) -> None:
    """Seeds: a guest's host key, and root's own to log in with until the guest is proven. Not in logs, not at home."""
    assert ours["held"] == {f"run/seeds/7.srv_{rank}of2.iso": "600" for rank in (1, 2)}
    assert weakened["held"].keys() > ours["held"].keys() | {"log/vtorque.log"}
    assert "644" in weakened["held"].values()


def test_root_starts_no_program_but_these_and_changes_nothing_of_the_hosts(
    ours: dict[str, Any], weakened: dict[str, Any]
) -> None:
    """No user's shell, no modprobe, no systemctl, and each by its whole path."""
    own = re.compile(r"/var/lib/vtorque-bench-[0-9-]+/(?:vtorque/scripts|torque/mom_priv)/[a-z.-]+")
    assert {path for path in ours["programs"] if not own.fullmatch(path)} <= PROGRAMS
    assert "/bin/true" in weakened["programs"]


def test_nothing_is_made_where_everybody_may_write(ours: dict[str, Any], weakened: dict[str, Any]) -> None:
    assert ours["in_public"] == []
    assert weakened["in_public"]


def test_secrets_are_gone_afterwards(ours: dict[str, Any], weakened: dict[str, Any]) -> None:
    assert ours["left"] == {}
    assert weakened["left"]


def test_what_root_ran_is_what_the_list_says(ours: dict[str, Any], weakened: dict[str, Any]) -> None:
    """A function that ran as root is in a module of the list, and in none of those that run as somebody else."""
    listed = {each.name for each in privileged.modules(ROOT / "vtorque") if each.runs_as == "root"}
    ran = {_name(path) for path, _ in ours["ran"]}
    assert len(ran) > 20 and ran <= listed
    assert {_name(path) for path, _ in weakened["ran"]} - listed >= {"userclerk", "backends.transport.speaker"}


def test_the_audit_log_has_the_jobs_whole_life(ours: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in ours["audit"]]
    assert {line["job"] for line in lines} == {"7.srv"}
    assert {(line["user"], line["uid"], line["result"]) for line in lines} == {("vtbench", 64321, "done")}
    taken = [(line["kind"], line["object"]) for line in lines if line["act"] == "take"]
    assert {kind for kind, _ in taken} >= {"directory", "file", "domain"}
    assert sorted(taken) == sorted((line["kind"], line["object"]) for line in lines if line["act"] == "give back")
    assert [line["act"] for line in lines if line["act"] in ("begin", "publish", "end")] == ["begin", "publish", "end"]
    assert {line["step"] for line in lines} == {"prologue", "epilogue"}


def _name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
