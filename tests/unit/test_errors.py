# SPDX-License-Identifier: Apache-2.0
"""Every failure says whose fault it is, in one line."""

import inspect

import pytest

from vtorque import errors
from vtorque.errors import Blame, InternalError, RequestError, VtorqueError

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, VtorqueError) and kind is not VtorqueError
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_only_a_request_is_the_users_fault(kind: type[VtorqueError]) -> None:
    others = Blame.BUG if kind is InternalError else Blame.NODE
    assert kind.blame is (Blame.USER if issubclass(kind, RequestError) else others)


def test_the_way_out_follows_the_thing_in_brackets() -> None:
    assert VtorqueError("no image x", hint="vmgr image list").one_line() == "no image x (vmgr image list)"
    assert VtorqueError("no image x").one_line() == "no image x"


def test_details_are_for_the_log_alone() -> None:
    error = VtorqueError("no image x", details="/opt/x: ENOENT")
    assert "ENOENT" not in error.one_line() and "ENOENT" not in str(error)
    assert error.details == "/opt/x: ENOENT"


@pytest.mark.parametrize(("error", "says", "blame"), [
    (RequestError("no"), "no", Blame.USER),
    (PermissionError(13, "Permission denied", "/run/x"), "/run/x: Permission denied", Blame.NODE),
    (OSError(28, "No space left on device"), "a file of root: No space left on device", Blame.NODE),
    (KeyError("x"), "internal error: KeyError('x')", Blame.BUG),
])
def test_whatever_was_raised_has_somebody_to_blame(error: Exception, says: str, blame: Blame) -> None:
    found = errors.known(error)
    assert (found.one_line(), found.blame) == (says, blame)
