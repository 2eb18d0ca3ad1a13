# SPDX-License-Identifier: Apache-2.0
"""Counts that no machine changes stay within their budgets; `make bench` measures times as well."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import report, standin
from tests.bench.budgets import BUDGETS, failures

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own hooks, in namespaces"),
]

ROOT = Path(__file__).resolve().parents[2]
COUNTED = {budget.key: budget for budget in BUDGETS if budget.counted}
# What waste in a script or a module does not change: these have a variant of their own below.
UNBURDENED = {"start1.home_files", "epilogue16.alive", "guard.processes", "cluster.growth"}


def measured(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--out", out, *options], cwd=ROOT, check=False,
        stdout=subprocess.DEVNULL, timeout=300,
    )
    found: dict[str, Any] = json.loads((out / "bench.json").read_text())
    return done.returncode, found


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """The whole of `make bench`, with a round of each time."""
    return measured(tmp_path_factory.mktemp("bench"), "--rounds", "1")


@pytest.fixture(scope="module")
def heavier(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    return measured(tmp_path_factory.mktemp("heavier"), "--counts", "--heavier")


@pytest.mark.parametrize("key", COUNTED)
def test_a_count_stays_within_its_budget(ours: tuple[int, dict[str, Any]], key: str) -> None:
    value = ours[1]["values"][key]
    assert COUNTED[key].met(value), f"{COUNTED[key].what}: {value}, the budget is {COUNTED[key].gate:g}"


@pytest.mark.parametrize("key", sorted(COUNTED.keys() - UNBURDENED))
def test_waste_is_noticed(heavier: tuple[int, dict[str, Any]], key: str) -> None:
    assert not COUNTED[key].met(heavier[1]["values"][key])


@pytest.mark.parametrize("key", sorted(UNBURDENED))
def test_what_is_above_a_gate_is_a_failure(key: str) -> None:
    assert failures({key: COUNTED[key].gate}, strict=False) == []
    assert len(failures({key: COUNTED[key].gate + 1}, strict=False)) == 1


def test_exceeding_a_count_fails_the_bench(
    ours: tuple[int, dict[str, Any]], heavier: tuple[int, dict[str, Any]]
) -> None:
    assert (ours[0], heavier[0]) == (0, 1)


def test_every_budget_is_measured_and_where_a_start_goes_is_told(ours: tuple[int, dict[str, Any]]) -> None:
    found = ours[1]
    assert found["values"].keys() == {budget.key for budget in BUDGETS} - {"boot.ratio"}
    told = {name: {label for label, _, _ in spans} for name, spans in found["phases"].items()}
    assert told.keys() == {"start of 1 guest", "start of 16 guests"}
    ours_and_roots = {label for label, _, _ in (*standin.ROOTS_PHASES, *standin.PHASES)}
    for labels in told.values():
        assert (ours_and_roots | {"phase: planned", "phase: ssh"}) - labels == set()


def test_the_three_largest_costs_of_a_start_are_named() -> None:
    spans = [
        ("a", 0.0, 1.0), ("b", 0.0, 2.0), ("c", 0.0, 3.0), ("a", 1.0, 4.0), ("d", 0.0, 0.5), ("phase: x", 0.0, 9.0),
    ]
    assert report.costs({"start": spans}).splitlines()[0].endswith(": a 4000 ms, c 3000 ms, b 2000 ms")


def test_a_time_fails_a_strict_bench_only() -> None:
    assert failures({"hook.ratio": 3.0, "submissions": 1.0}, strict=False) == []
    assert len(failures({"hook.ratio": 3.0, "submissions": 1.0}, strict=True)) == 2


def test_the_whole_life_of_a_job_with_one_guest_takes_these_processes(ours: tuple[int, dict[str, Any]]) -> None:
    """vsub, ssh-keygen, qsub; the hook's shell, which becomes Python, readlink, the program, who looks at the image,
    who has libvirt, who speaks SSH, who plans and writes, who keeps the network, the user's side; the wrapper.

    At the end there are the shell, readlink, the program, who keeps the network and the user's side.
    """
    counts = {name: each["processes"] for name, each in ours[1]["counts"].items()}
    names = ("vsub -vm", "prologue, 1 guest", "wrapper", "epilogue, 1 guest")
    assert [counts[name] for name in names] == [3, 8, 1, 5]


@pytest.mark.parametrize(
    ("name", "packages"),
    [("vsub", set()), ("vsub -vm", set()), ("epilogue, 1 guest", {"libvirt", "libvirtmod"})],
)
def test_only_the_libraries_that_are_needed_are_loaded(
    ours: tuple[int, dict[str, Any]], name: str, packages: set[str]
) -> None:
    counts = ours[1]["counts"]
    assert set(counts[name]["third_party"]) - set(counts["python3 -I -c pass"]["third_party"]) == packages
