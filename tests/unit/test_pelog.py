# SPDX-License-Identifier: Apache-2.0
"""What root makes of the program's end, and where it looks for its own files."""

import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from vtorque import cli, proc
from vtorque.cli import pbshook, pelog, rooted
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, InternalError, StateError


class Ended:
    """A program that has ended so, or could not begin."""

    def __init__(self, said: int | Exception) -> None:
        self._said = said
        self.is_dismissed = False
        self.patience = 0.0

    def run(self, wanted: object, *, patience: float = 0.0, **named: object) -> int:
        self.patience = patience
        if isinstance(self._said, Exception):
            raise self._said
        return self._said

    def dismiss(self) -> None:
        self.is_dismissed = True


def a_call(system: str, name: str) -> pelog.Call:
    return pelog.Call(
        system=system, name=name, hook=Path("/spool/prologue"), arguments=("7.srv", "ann"),
        environ={"SLURM_JOB_ID": "7", "SLURM_JOB_USER": "ann"}, directory=Path("/"), umask=0o22,
    )


@pytest.mark.parametrize(("system", "name", "said", "status"), [
    ("torque", "prologue", 0, 0), ("torque", "prologue", 3, 3), ("torque", "epilogue", 3, 3),
    ("slurm", "slurm-prolog", 1, 1), ("slurm", "slurm-prolog", 3, 0),
    # Who was killed has counted nothing. A status of 1 throws a job of Torque's away.
    ("torque", "prologue", -9, 0), ("torque", "prologue", 1, 0), ("torque", "prologue.parallel", 2, 0),
    ("torque", "epilogue", -9, 3), ("torque", "epilogue", 1, 3), ("slurm", "slurm-epilog", -9, 1),
])
def test_a_hook_ends_as_the_program_has_unless_that_says_nothing(
    system: str, name: str, said: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    program: Any = Ended(said)
    assert pelog._own_part(a_call(system, name), program, Deadline(20.0)) == status
    told = capsys.readouterr().err
    assert 20.0 < program.patience < 25.0, "it stops by itself before, and mom kills us after that"
    assert (f"vtorque: the program ended with status {said}" in told) == (said != status)


def test_a_program_that_root_cannot_stand_by_is_let_go(capsys: pytest.CaptureFixture[str]) -> None:
    program: Any = Ended(ConfigError("there is no user 'qemu'"))
    assert pelog._own_part(a_call("torque", "prologue"), program, Deadline(20.0)) == 0
    assert program.is_dismissed and "there is no user 'qemu'" in capsys.readouterr().err
    assert pelog._own_part(a_call("torque", "epilogue"), None, Deadline(20.0)) == 0


EVENT = b'{"event": "execjob_begin", "job": {"id": "7.srv", "user": "ann"}}'


def test_an_event_whose_program_has_said_nothing_is_not_accepted_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooted, "Program", lambda *words, **named: Ended(0))
    pbshook._run(EVENT, 0.0)
    monkeypatch.setattr(rooted, "Program", lambda *words, **named: Ended(-9))
    with pytest.raises(InternalError, match="the program ended with status -9"):
        pbshook._run(EVENT, 0.0)


@pytest.mark.parametrize("text", [b"", b"x", b"7", b"[]", b"{}", b'{"event": "execjob_begin", "job": {"id": "7"}}'])
def test_an_event_that_makes_no_sense_begins_nothing(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rooted, "Program")
    with pytest.raises(StateError, match="the hook said nothing that this version understands"):
        pbshook._run(text, 0.0)


def test_its_files_are_in_its_tree_or_where_they_were_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.where() == str(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(cli, "_TREE", str(tmp_path))
    assert cli.where() == f"{sysconfig.get_path('data')}/share/vtorque"


def test_a_process_that_is_gone_is_nobodys() -> None:
    assert proc._uids(os.getpid()) == {os.getuid()}
    assert proc._uids(1 << 22) == set()
