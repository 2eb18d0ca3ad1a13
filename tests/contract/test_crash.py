# SPDX-License-Identifier: Apache-2.0
"""Every hook dies, or fails, at an effect it has; the next one leaves nothing of the job.

A sample of all points; `make soak` tries each of them, and kills real processes.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import crash, faults
from tests.crash import CASES
from tests.faults import KILL, KINDS, Fault
from vtorque import files, teardown

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

SEED = int(os.environ.get("VTORQUE_SEED", "61"))
SAMPLED = 36


@pytest.mark.parametrize("hook", CASES)
def test_at_whatever_effect_a_hook_dies_or_fails_the_next_one_leaves_nothing(hook: str) -> None:
    faults.adopt_orphans()
    with crash.stage(Path(f"/var/lib/vtorque-crash-{os.getpid()}"), hook) as meet:
        effects = meet(Fault(kind=KILL, number=0)).effects
        points = [Fault(kind=kind, number=number) for kind in KINDS for number in range(1, effects + 1)]
        for fault in random.Random(f"{SEED} {hook}").sample(points, SAMPLED):
            found = meet(fault)
            assert not found.leaks and not found.wrong, f"seed {SEED}: {hook} met {fault}: {found}"


def half_files_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "forget", lambda path: path.unlink(missing_ok=True))


def nothing_is_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(teardown, "release", lambda *words, **named: None)


@pytest.mark.parametrize("weaken", [half_files_stay, nothing_is_given_back])
def test_a_program_that_is_weaker_is_caught(
    weaken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.adopt_orphans()
    with crash.stage(Path(f"/var/lib/vtorque-crash-{os.getpid()}"), "prologue") as meet:
        effects = meet(Fault(kind=KILL, number=0)).effects
        weaken(monkeypatch)
        assert any(meet(Fault(kind=KILL, number=number)).leaks for number in range(1, effects + 1))
