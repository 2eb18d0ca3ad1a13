# SPDX-License-Identifier: Apache-2.0
"""Root's audit log: what a line says, and that nothing about it can hold root up or fool who reads it."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vtorque import audit
from vtorque.deadline import Deadline
from vtorque.errors import HypervisorError, StateError
from vtorque.model import Resource
from vtorque.state import JobState

GUEST = Resource(kind="domain", name="7.srv_1of1")


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    yield
    audit.setup("none", Path("/"), step="")
    audit.log.setLevel(logging.NOTSET)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / audit.FILE).read_text().splitlines()]


def test_a_jobs_life_is_in_it_with_whose_it_was_and_on_what(tmp_path: Path) -> None:
    audit.setup("file", tmp_path, step="prologue")
    record = JobState(tmp_path, "7.srv")
    record.create(user="ann", uid=2000)
    with record.taking(GUEST, deadline=Deadline(5)):
        pass
    # The epilogue is another process, and knows no more than what is recorded.
    audit.setup("file", tmp_path, step="epilogue")
    record = JobState(tmp_path, "7.srv")
    for resource in record.held():
        record.given_back(resource)
    record.remove()
    said = lines(tmp_path)
    assert [(each["step"], each["act"], each.get("object")) for each in said] == [
        ("prologue", "begin", None), ("prologue", "take", "7.srv_1of1"), ("epilogue", "give back", "7.srv_1of1"),
        ("epilogue", "end", None),
    ]
    for each in said:
        whose = {"job": "7.srv", "user": "ann", "uid": 2000, "result": "done", "pid": os.getpid()}
        assert each.items() >= whose.items() and each["time"].endswith("Z")


def test_what_the_program_notes_root_writes(tmp_path: Path) -> None:
    told: list[Any] = []
    audit.forward(told.append)
    record = JobState(tmp_path, "7.srv")
    record.create(user="ann", uid=2000)
    with pytest.raises(HypervisorError), record.taking(GUEST, deadline=Deadline(5)):
        raise HypervisorError("no such machine type")
    audit.setup("file", tmp_path, step="prologue")
    for about in told:
        audit.write(json.loads(json.dumps(about)))
    whose = {"job": "7.srv", "user": "ann", "uid": 2000, "step": "prologue", "pid": os.getpid()}
    begun, failed = lines(tmp_path)
    assert begun.items() >= {**whose, "act": "begin", "result": "done"}.items()
    assert failed.items() >= {
        **whose, "act": "take", "kind": "domain", "object": "7.srv_1of1", "result": "failed",
        "reason": "no such machine type",
    }.items()


def test_the_program_chooses_neither_when_nor_who_nor_other_fields(tmp_path: Path) -> None:
    audit.setup("file", tmp_path, step="prologue")
    audit.write({"act": "x", "time": "yesterday", "pid": 1, "step": "root's own", "more": 1})
    (line,) = lines(tmp_path)
    assert line.pop("time").endswith("Z")
    assert line == {"pid": os.getpid(), "step": "prologue", "act": "x"}


@pytest.mark.parametrize("value", [["x"] * 9999, {"a": {"b": "x" * 9999}}, 10 ** 4000, 1.5, None, True])
def test_whatever_the_program_sends_is_one_line_of_bounded_length(tmp_path: Path, value: object) -> None:
    audit.setup("file", tmp_path, step="prologue")
    audit.write(dict.fromkeys(("job", "user", "uid", "act", "kind", "object", "result", "reason"), value))
    assert (tmp_path / audit.FILE).stat().st_size < 4096
    assert len(lines(tmp_path)) == 1


def test_nobody_stops_because_root_hears_of_nothing_any_more(tmp_path: Path) -> None:
    told: list[object] = []

    def gone(about: object) -> None:
        told.append(about)
        raise StateError("what is root for this hook has ended")

    audit.forward(gone)
    record = JobState(tmp_path, "7.srv")
    record.create()
    assert told and record.path.is_dir()


def test_an_act_that_fails_is_in_it_with_the_reason(tmp_path: Path) -> None:
    audit.setup("file", tmp_path, step="prologue")
    record = JobState(tmp_path, "7.srv")
    record.create(user="ann", uid=2000)
    with pytest.raises(HypervisorError), record.taking(GUEST, deadline=Deadline(5)):
        raise HypervisorError("no such machine type")
    assert lines(tmp_path)[-1].items() >= {
        "act": "take", "kind": "domain", "result": "failed", "reason": "no such machine type",
    }.items()


@pytest.mark.parametrize("name", [
    'x"}\n{"time": "now", "act": "forged"}', "\x1b[2J\r\0", "\udcff\udc80", "\U0001f600" * 5000, "\\" * 9999, "é" * 600,
])
def test_a_hostile_name_is_one_line_of_bounded_length_and_plain_ascii(tmp_path: Path, name: str) -> None:
    audit.setup("file", tmp_path, step="prologue")
    audit.note("take", job=name, user=name, uid=1 << 63, thing=Resource(kind=name, name=name), reason=name)
    data = (tmp_path / audit.FILE).read_bytes()
    assert data.count(b"\n") == 1 and len(data) < 4096
    assert data.isascii() and data[:-1].decode().isprintable()
    assert json.loads(data)["act"] == "take"


def test_the_file_is_roots_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    audit.setup("file", tmp_path, step="prologue")
    assert (tmp_path / audit.FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / audit.FILE).symlink_to(tmp_path / "elsewhere")
    audit.setup("file", tmp_path / "links", step="prologue")
    audit.note("take")
    assert not (tmp_path / "elsewhere").exists()


def test_nothing_of_it_gets_into_other_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit.setup("file", tmp_path, step="prologue")
    with caplog.at_level(logging.DEBUG):
        audit.note("take")
    assert caplog.records == [] and len(lines(tmp_path)) == 1


def test_a_full_disk_or_a_missing_directory_fails_nothing(tmp_path: Path) -> None:
    audit.setup("file", tmp_path / "missing", step="prologue")
    audit.note("take")
    (tmp_path / audit.FILE).symlink_to("/dev/full")
    audit.log.handlers[0]._file = os.open("/dev/full", os.O_WRONLY)  # type: ignore[attr-defined]
    audit.note("take")
    assert not (tmp_path / "missing").exists()
