# SPDX-License-Identifier: Apache-2.0
"""The Makefile: what its targets start, with the words that their descriptions promise."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("words", "last"), [
    (["coverage"], "-m tests.coverage"),
    (["coverage", "TESTS=tests/unit"], "-m tests.coverage tests/unit"),
    (["mutation", "MODULES=units orders"], "-m tests.mutation units orders"),
    (["soak", "SEED=3", "EVERY=2"], "-m tests.soak --seed 3 --every 2"),
    (["bench"], "-m tests.bench"),
    (["bench", "STRICT=1", "REAL=1"], "-m tests.bench --real --strict"),
    (["test"], "-m pytest -n 2 --dist loadgroup"),
])
def test_a_target_starts_what_it_says_with_what_it_is_given(words: list[str], last: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True, text=True,
        # Whoever runs us may be a make that was given other words.
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip().splitlines()[-1].strip() == f"/usr/bin/python3 {last}"
    assert "install-packages tests" not in done.stdout


def test_those_who_test_have_the_account_that_hooks_run_as() -> None:
    done = subprocess.run(["make", "--dry-run", "test-deps"], cwd=ROOT, check=True, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin"})
    assert done.stdout.strip().splitlines()[-1].strip() == "contrib/make-account"
