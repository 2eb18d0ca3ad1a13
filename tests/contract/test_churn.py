# SPDX-License-Identifier: Apache-2.0
"""A few jobs at a time, some of which meet faults: nothing is left, promised twice, or grows. `make soak` does more."""

import os
from pathlib import Path

import pytest

from tests.churn import churn

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]


def test_jobs_come_and_go_and_leave_a_node_as_it_was() -> None:
    found = churn(Path(f"/var/lib/vtorque-churn-{os.getpid()}"), jobs=40, at_once=4, seed=61)
    assert found.lives == 40 and found.faults >= 4
    assert (found.left, found.twice) == ((), ())
    assert max(found.more_descriptors) <= 0
