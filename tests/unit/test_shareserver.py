# SPDX-License-Identifier: Apache-2.0
"""The server of a share: without every one of its walls it does not start."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from vtorque import shareserver


class Kernel:
    """System calls that are noted and done by nobody; those named in `refuses` fail."""

    def __init__(self, *refuses: str) -> None:
        self._refuses = refuses
        self.done: list[str] = []

    def prctl(self, option: int, *more: object) -> int:
        return self._answer({38: "no_new_privs", 22: "seccomp", 47: "ambient capability"}[option])

    def unshare(self, flags: int) -> int:
        return self._answer("user namespace" if flags == 0x10000000 else "mount namespace")

    def mount(self, source: bytes, target: bytes, *more: object) -> int:
        return self._answer("private mounts" if source == b"none" else "bind mount")

    def syscall(self, *arguments: object) -> int:
        return self._answer("attributes of the mount")

    def capset(self, *arguments: object) -> int:
        return self._answer("capabilities")

    def _answer(self, what: str) -> int:
        self.done.append(what)
        return -1 if what in self._refuses else 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What was executed in the end, by a process that may take on any ids."""
    executed: list[list[str]] = []
    ids = {"uid": 0, "gid": 0}
    groups: list[int] = []
    monkeypatch.setattr(os, "setgroups", lambda new: groups.__setitem__(slice(None), new))
    for kind in ids:
        monkeypatch.setattr(os, f"setres{kind}", lambda *new, kind=kind: ids.update({kind: new[0]}))
        monkeypatch.setattr(os, f"getres{kind}", lambda kind=kind: (ids[kind],) * 3)
    monkeypatch.setattr(os, "getgroups", lambda: list(groups))
    monkeypatch.setattr(os, "umask", lambda mask: 0)
    monkeypatch.setattr(os, "execv", lambda program, argv: executed.append(argv))
    give_order(monkeypatch, tmp_path)
    return executed


def give_order(monkeypatch: pytest.MonkeyPatch, directory: Path, *, more: str = "mapped\n", **changes: object) -> None:
    order = {
        "uid": 2000, "gid": 2001, "groups": [3000, 2001], "directory": str(directory), "readonly": True,
        "keep_groups": True, "argv": ["/usr/lib/virtiofsd", "--fd=3"],
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(order | changes) + "\n" + more))


def serve(monkeypatch: pytest.MonkeyPatch, *refuses: str) -> Kernel:
    kernel = Kernel(*refuses)
    monkeypatch.setattr(shareserver, "_libc", kernel)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(os, "dup2", lambda old, new: os.close(old) if new else None)
        shareserver.main()
    return kernel


WALLS = ["no_new_privs", "user namespace", "mount namespace", "private mounts", "bind mount",
         "attributes of the mount", "capabilities", "ambient capability", "seccomp"]


def test_the_server_starts_behind_all_its_walls(monkeypatch: pytest.MonkeyPatch, started: list[list[str]]) -> None:
    assert list(dict.fromkeys(serve(monkeypatch).done)) == WALLS
    assert started == [["/usr/lib/virtiofsd", "--fd=3"]]


@pytest.mark.parametrize("wall", WALLS)
def test_without_one_of_its_walls_it_does_not(
    monkeypatch: pytest.MonkeyPatch, started: list[list[str]], wall: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve(monkeypatch, wall)
    assert isinstance(ended.value.code, str)
    assert started == []


@pytest.mark.parametrize("call", ["setgroups", "setresgid", "setresuid"])
def test_nor_as_somebody_else(monkeypatch: pytest.MonkeyPatch, started: list[list[str]], call: str) -> None:
    monkeypatch.setattr(os, call, lambda *ids: None)
    with pytest.raises(SystemExit, match="the ids were not taken on"):
        serve(monkeypatch)
    assert started == []


def test_nor_when_root_has_gone_before_the_maps_were_written(
    monkeypatch: pytest.MonkeyPatch, started: list[list[str]], tmp_path: Path
) -> None:
    give_order(monkeypatch, tmp_path, more="")
    with pytest.raises(SystemExit, match="1"):
        serve(monkeypatch)
    assert started == []


def test_a_program_that_keeps_groups_by_itself_is_not_filtered(
    monkeypatch: pytest.MonkeyPatch, started: list[list[str]], tmp_path: Path
) -> None:
    give_order(monkeypatch, tmp_path, keep_groups=False, readonly=False)
    assert "seccomp" not in serve(monkeypatch).done
    assert started


def test_a_program_that_cannot_be_executed_is_named(
    monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    def refuse(program: str, argv: list[str]) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "execv", refuse)
    with pytest.raises(SystemExit, match="/usr/lib/virtiofsd: No such file or directory"):
        serve(monkeypatch)
