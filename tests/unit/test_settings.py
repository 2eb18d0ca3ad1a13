# SPDX-License-Identifier: Apache-2.0
"""What root takes of a configuration that the program has read for it."""

from typing import Any

import pytest

from tests.builders import a_site
from vtorque import settings
from vtorque.settings import Settings

TOLD: dict[str, Any] = {name: getattr(a_site(), name) for name in Settings.__annotations__}


def test_a_configuration_is_what_was_told_and_no_more() -> None:
    told = TOLD | {"bridge": "br7", "min_uid": 5, "more": "x"}
    found = settings.understood(told)
    assert vars(found) == TOLD | {"bridge": "br7", "min_uid": 5}


@pytest.mark.parametrize("name", Settings.__annotations__)
@pytest.mark.parametrize("value", [None, 1.5, ["x"], {}, True, 7, "x"])
def test_what_is_of_another_kind_is_none(name: str, value: object) -> None:
    if type(value) is type(TOLD[name]):
        assert getattr(settings.understood(TOLD | {name: value}), name) == value
        return
    with pytest.raises(ValueError, match=f"{name.upper()} is "):
        settings.understood(TOLD | {name: value})


def test_a_part_that_is_missing_is_missed() -> None:
    with pytest.raises(ValueError, match="STATE_DIR is None"):
        settings.understood({name: value for name, value in TOLD.items() if name != "state_dir"})
