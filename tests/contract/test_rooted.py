# SPDX-License-Identifier: Apache-2.0
"""How the program begins: what it has to say before root believes that it is there, and what root makes of the rest."""

import ctypes
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_site
from vtorque import accounts, become
from vtorque.cli import family, rooted
from vtorque.cli.rooted import Program, Refused
from vtorque.errors import ConfigError, InternalError
from vtorque.proc import Identity

pytestmark = [pytest.mark.runs, pytest.mark.skipif(os.getuid() != 0, reason="the program is another account")]

Life = Callable[[socket.socket], int]


@pytest.fixture(autouse=True)
def logs_are_closed() -> Iterator[None]:
    """What root opens for a hook is its to the end; here others fork after it."""
    yield
    rooted._close_logs()


def saying(text: bytes) -> Life:
    def live(orders: socket.socket) -> int:
        orders.sendall(text)
        return 0

    return live


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_who_is_refused_says_why_and_how_long_a_hook_may_take() -> None:
    """The site's own hook has its time though our configuration is broken."""
    def live(orders: socket.socket) -> int:
        family.refuse(orders, ConfigError("etc/vtorque.yaml:1: X: no\netc/vtorque.yaml:2: Y: no"), seconds=77.0)
        return 0

    before = children()
    with pytest.raises(Refused) as refused:
        Program(live, step="test")
    assert refused.value.brief.splitlines() == ["etc/vtorque.yaml:1: X: no", "etc/vtorque.yaml:2: Y: no"]
    assert refused.value.seconds == 77.0 and children() == before


@pytest.mark.parametrize("text", [
    b"", b"\n", b"{}\n", b"[]\n", b"7\n", b"\xff\n", b'{"failed": ""}\n', b'{"failed": "", "seconds": "x"}\n',
    b'{"failed": "", "seconds": null, "site": 7}\n', b'{"failed": "x", "seconds": null}\n', b"[" * 90000 + b"\n",
], ids=range(11))
def test_a_first_word_that_makes_no_sense_is_no_beginning(text: bytes) -> None:
    before = children()
    with pytest.raises(InternalError, match="does not begin"):
        Program(saying(text), step="test")
    assert children() == before


@pytest.mark.parametrize("change", [
    {"state_dir": 7}, {"min_uid": "1000"}, {"debug_default": 1}, {"bridge": None}, {"qemu_user": ["root"]},
])
def test_a_setting_of_another_kind_is_no_configuration(change: dict[str, Any]) -> None:
    site = {**vars(a_site()), **change}
    word = json.dumps({"failed": "", "site": site, "seconds": 30.0}).encode() + b"\n"
    with pytest.raises(InternalError, match="does not begin"):
        Program(saying(word), step="test")


def test_the_program_is_its_account_before_it_has_said_a_word(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def live(orders: socket.socket) -> int:
        status = Path("/proc/self/status").read_text()
        told = {line.partition(":")[0]: line.split()[1:] for line in status.splitlines()}
        family.refuse(orders, ConfigError(json.dumps({name: told[name] for name in ("Uid", "Gid", "Groups", "CapEff",
                                                                                    "CapBnd", "NoNewPrivs")})))
        return 0

    with pytest.raises(Refused) as refused:
        Program(live, step="test")
    seen = json.loads(refused.value.brief)
    uid, gid = map(str, accounts.program())
    assert (seen["Uid"], seen["Gid"], seen["Groups"]) == ([uid] * 4, [gid] * 4, [])
    assert (seen["CapEff"], seen["NoNewPrivs"]) == (["0000000000000000"], ["1"])


def test_what_an_older_version_noted_and_what_is_in_the_way_are_seen_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o711)
    site = a_site(state_dir=str(tmp_path / "run"), disk_dir=str(tmp_path / "disks"), log_dir=str(tmp_path / "log"))
    program = Identity(*accounts.program(), groups=())
    for place, mode in (("disks", 0o711), ("run", 0o711), ("log", 0o700)):
        (tmp_path / place).mkdir(mode=mode)
    (tmp_path / "disks/service.json").write_text("{}")
    (tmp_path / "run/guards").write_text("in its place")
    rooted.prepare(site, program)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o711, "or nobody could say anything"
    note = tmp_path / "disks/node/service.json"
    assert (note.read_text(), note.stat().st_uid, note.parent.stat().st_uid) == ("{}", program.uid, program.uid)
    assert not (tmp_path / "disks/service.json").exists()
    assert "run/guards cannot be the program's" in caplog.text
    assert (tmp_path / "run/jobs").stat().st_uid == program.uid
    assert (tmp_path / "run/guards").stat().st_uid == 0


def test_who_outlives_its_parent_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *words: killed.append(words))
    try:
        become._die_with(os.getppid())
        assert killed == []
        become._die_with(-1)
        assert killed == [(os.getpid(), signal.SIGKILL)]
    finally:
        # prctl(2), PR_SET_PDEATHSIG.
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)


def test_what_is_wrong_after_its_beginning_ends_the_program_and_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o711)
    site = a_site(log_dir=str(tmp_path / "log"), state_dir=str(tmp_path / "run"), qemu_user="no-such-user")

    def live(orders: socket.socket) -> int:
        family.begin(orders, site)
        return 0

    before = children()
    program = rooted.Program(live, step="test")
    with pytest.raises(ConfigError, match="no-such-user"):
        program.run(rooted.Wanted(starts=True, talks=True))
    program.dismiss()
    assert children() == before


def test_a_program_that_is_stopped_holds_no_hook_for_ever(tmp_path: Path) -> None:
    """All programs are of one account: who took one over can stop the others. It does the same to one that hangs."""
    tmp_path.chmod(0o711)
    site = a_site(log_dir=str(tmp_path / "log"), state_dir=str(tmp_path / "run"), qemu_user="root")

    def live(orders: socket.socket) -> int:
        family.begin(orders, site)
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    assert rooted.Program(live, step="test").run(rooted.Wanted(), patience=0.5) == -signal.SIGKILL


def test_a_program_that_ends_in_time_is_not_waited_for_longer(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    site = a_site(log_dir=str(tmp_path / "log"), state_dir=str(tmp_path / "run"), qemu_user="root")

    def live(orders: socket.socket) -> int:
        family.begin(orders, site)
        return 3

    threads = threading.active_count()
    assert rooted.Program(live, step="test").run(rooted.Wanted(), patience=600.0) == 3
    assert threading.active_count() == threads
