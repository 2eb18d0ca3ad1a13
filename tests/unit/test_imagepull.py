# SPDX-License-Identifier: Apache-2.0
"""A download whose child, which talks to strangers, says what it likes; and one that is not alone."""

import fcntl
from pathlib import Path
from typing import Any

import pytest

from vtorque import imagepull
from vtorque.deadline import Deadline
from vtorque.errors import ImageError
from vtorque.servant import Gone

OPENED = {"status": 200, "reason": "OK", "length": 4, "chunked": False, "headers": {}}


class Child:
    """A child that gives these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.dismissed = False

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def dismiss(self) -> None:
        self.dismissed = True


def pull(monkeypatch: pytest.MonkeyPatch, target: Path, *answers: Any) -> tuple[str, Child]:
    """Why it failed, and the child afterwards."""
    child = Child(*answers)
    monkeypatch.setattr(imagepull, "Servant", lambda *words, **more: child)
    with pytest.raises(ImageError) as failure:
        imagepull.pull(
            "http://host/a.img", target, sha256=None, progress=lambda done, total: None, deadline=Deadline(60)
        )
    return failure.value.one_line(), child


@pytest.mark.parametrize("answers", [
    [None], [[]], [{}], [{**OPENED, "length": "much"}], [{**OPENED, "headers": None}], [{**OPENED, "status": "x"}],
    [OPENED, None], [OPENED, [4, True]], [OPENED, [-1, False, ""]], [OPENED, [1 << 40, False, ""]],
    [OPENED, ["4", True, ""]],
], ids=str)
def test_what_makes_no_sense_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[Any]
) -> None:
    why, child = pull(monkeypatch, tmp_path / "a.img", *answers)
    assert why == "cannot download http://host/a.img: what does so for us makes no sense"
    assert child.dismissed and not (tmp_path / "a.img").exists()


@pytest.mark.parametrize("answers", [[Gone("killed")], [OPENED, Gone("killed")]], ids=["at once", "later"])
def test_a_child_that_ends_ends_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[Any]
) -> None:
    why, child = pull(monkeypatch, tmp_path / "a.img", *answers)
    assert why == "cannot download http://host/a.img: what does so for us has ended"
    assert child.dismissed


def test_a_part_that_another_pull_finishes_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def finishing(handle: int, how: int) -> None:
        for part in tmp_path.iterdir():
            part.rename(tmp_path / "a.img")
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", finishing)
    assert "another pull is writing" in pull(monkeypatch, tmp_path / "a.img")[0]
    assert (tmp_path / "a.img").read_bytes() == b""
