# SPDX-License-Identifier: Apache-2.0
"""What several suites of the contract run under."""

from pathlib import Path

import pytest

from tests.contract.moms import Mom


@pytest.fixture
def mom(tmp_path: Path) -> Mom:
    """An engine in a scratch directory."""
    return Mom(tmp_path)
