# SPDX-License-Identifier: Apache-2.0
"""Nothing lives twice, is promised twice, or outlives its job by more than a sweep; and the simulation would see it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import histories
from vtorque import admission, guard, orphans, sweeping, teardown

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

SEED = int(os.environ.get("VTORQUE_SEED", "61"))
HISTORIES = 8
ROOT = Path(f"/dev/shm/vtorque-histories-{os.getpid()}")


def test_in_no_history_anything_lives_twice_is_promised_twice_or_outlives_its_job() -> None:
    births = faults = 0
    for seed in range(SEED, SEED + HISTORIES):
        found = histories.run(ROOT, seed=seed)
        assert (found.broken, found.outlived) == ([], []), f"seed {seed}"
        births += found.births
        faults += found.faults
    assert births > 10 * HISTORIES and faults > 10 * HISTORIES


def no_promises(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admission, "_valid", lambda root, directory: iter(()))


def no_sweep(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sweeping, "forgotten", lambda node: [])


def no_orphans(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(orphans, "keys", lambda node: [])


def no_release_before_a_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(teardown, "release", lambda *words, **named: None)


def guards_that_never_act(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guard, "_tear_down", lambda *words: None)
    no_sweep(patch)


@pytest.mark.parametrize(
    "weaken", [no_promises, no_sweep, no_orphans, no_release_before_a_start, guards_that_never_act]
)
def test_the_simulation_sees_what_is_wrong(
    weaken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken(monkeypatch)
    for seed in range(SEED, SEED + 5 * HISTORIES):
        found = histories.run(ROOT, seed=seed)
        if found.broken or found.outlived:
            return
    pytest.fail("nothing was noticed")
