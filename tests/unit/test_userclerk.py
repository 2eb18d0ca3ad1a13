# SPDX-License-Identifier: Apache-2.0
"""What the job's user does for whoever asks: all of it in his own job directory, and nothing outside."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import an_account
from tests.fakes.node import a_clerk
from vtorque.deadline import Deadline
from vtorque.userside import UserSide

REQUEST = "0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".vtorque" / REQUEST).mkdir(parents=True)
    (tmp_path / "precious").write_text("his")
    (tmp_path / ".vtorque" / "precious").write_text("his, too")
    return tmp_path


@contextlib.contextmanager
def side(home: Path, request: str = REQUEST) -> Iterator[UserSide]:
    with contextlib.closing(UserSide(a_clerk(an_account(home=home)), request)) as found:
        yield found


def tree(home: Path) -> dict[str, str]:
    return {str(path.relative_to(home)): path.read_text() for path in home.rglob("*") if path.is_file()}


def soon() -> Deadline:
    return Deadline(20)


def test_what_is_written_is_in_the_jobs_own_directory(home: Path) -> None:
    with side(home) as his:
        assert his.append("a", "1", deadline=soon()) and his.append("a", "2", deadline=soon())
        assert his.read("a", limit=9, deadline=soon()) == "12"
        assert his.read("b", limit=9, deadline=soon()) is None
    assert tree(home)[f".vtorque/{REQUEST}/a"] == "12"


@pytest.mark.parametrize("request_id", ["..", ".", "", "../..", f"{REQUEST}/..", "../.vtorque"])
@pytest.mark.parametrize("verb", [
    {"do": "append", "name": "precious", "text": "x"}, {"do": "read", "name": "precious", "limit": 99},
    {"do": "forget", "name": "*"}, {"do": "remove", "job": "7.srv", "elements": 1, "if_cancelled": False},
    {"do": "remove", "job": "7.srv", "elements": 2, "if_cancelled": False},
])
def test_no_other_directory_is_a_jobs(home: Path, request_id: str, verb: dict[str, Any]) -> None:
    before = tree(home)
    assert not asked(home, {**verb, "request": request_id})["done"]
    assert tree(home) == before


@pytest.mark.parametrize("name", ["../precious", "../../precious", "/etc/hostname", "../new", "a/../../new"])
@pytest.mark.parametrize("verb", [
    {"do": "append", "text": "x"}, {"do": "replace", "text": "x"}, {"do": "read", "limit": 9999},
])
def test_no_file_of_his_elsewhere_is_the_jobs(home: Path, name: str, verb: dict[str, Any]) -> None:
    before = tree(home)
    assert not asked(home, {**verb, "name": name, "request": REQUEST})["done"]
    assert tree(home) == before


def test_no_job_is_called_like_a_file_elsewhere(home: Path) -> None:
    (home / "precious.cancelled").touch()
    for elements in (1, 2):
        order = {"do": "remove", "job": "../precious", "elements": elements, "if_cancelled": True, "request": REQUEST}
        assert not asked(home, order)["done"]
    assert (home / "precious.cancelled").exists()


def asked(home: Path, order: dict[str, Any]) -> dict[str, Any]:
    """What the clerk answers whoever asks him directly."""
    with a_clerk(an_account(home=home)) as orders, orders.makefile("rb") as answers:
        orders.settimeout(20)
        orders.sendall(json.dumps(order).encode() + b"\n")
        found: dict[str, Any] = json.loads(answers.readline())
        return found
