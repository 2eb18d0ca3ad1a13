# SPDX-License-Identifier: Apache-2.0
"""When a node takes itself out: its own faults in a row, and no user's doing."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_site
from vtorque import doctor, doctor_service, files, names, service
from vtorque.config import SiteConfig
from vtorque.doctor_checks import Level
from vtorque.errors import (
    Blame,
    GenerationClosed,
    HypervisorError,
    ImageError,
    InternalError,
    NodeBusy,
    NodeOut,
    RequestError,
    TransportError,
    VtorqueError,
)
from vtorque.model import JobId
from vtorque.published import NodeFailed

Fail = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    return a_site(disk_dir=str(tmp_path / "disks"), state_dir=str(tmp_path / "run"), node_failure_limit=3)


@pytest.fixture
def fail(site: SiteConfig) -> Fail:
    def fail(number: int, error: VtorqueError | None = None, *, user: str = "ann", ran: bool = False) -> None:
        job = a_job(id=JobId(f"{number}.srv"), user=user)
        service.failed(site, job, error or HypervisorError("no machine"), ran=ran)

    return fail


def is_out(site: SiteConfig) -> bool:
    try:
        service.require(site, node="n1")
    except NodeOut:
        return True
    return False


def test_a_node_that_fails_three_jobs_in_a_row_is_out_until_somebody_brings_it_back(
    site: SiteConfig, fail: Fail
) -> None:
    for number in (1, 2, 3):
        assert not is_out(site)
        fail(number)
    with pytest.raises(NodeOut) as caught:
        service.require(site, node="n1")
    assert caught.value.one_line().startswith("node n1 takes no jobs with guests since 20")
    assert caught.value.one_line().endswith(
        "Z: 3 jobs in a row failed, the last one 3.srv: no machine (vmgr node return)"
    )
    # A job that was begun before is no proof of what mended it.
    service.succeeded(site)
    assert is_out(site)
    assert service.bring_back(site)
    assert not is_out(site) and service.look(site) == service.Standing()
    assert not service.bring_back(site)


def test_one_job_counts_once_however_often_it_is_started(site: SiteConfig, fail: Fail) -> None:
    for _ in range(9):
        fail(1)
    assert not is_out(site) and len(service.look(site).row) == 1


def test_a_success_begins_the_count_anew(site: SiteConfig, fail: Fail) -> None:
    for number in (1, 2):
        fail(number)
    service.succeeded(site)
    for number in (3, 4):
        fail(number)
    assert not is_out(site)
    fail(5)
    assert is_out(site)


@pytest.mark.parametrize("error", [
    RequestError("no"), NodeBusy("no"), NodeOut("no"), GenerationClosed("no"), ImageError("no"),
    NodeFailed("another's", Blame.NODE),
], ids=lambda error: type(error).__name__)
def test_what_is_not_the_nodes_own_fault_is_not_counted(site: SiteConfig, fail: Fail, error: VtorqueError) -> None:
    for number in range(9):
        fail(number, error, user=f"user{number}")
    assert service.look(site) == service.Standing()


@pytest.mark.parametrize("told", [
    {"error": TransportError("no answer"), "ran": True}, {"error": InternalError("a bug")},
], ids=["guests that do not come up", "a bug"])
def test_what_one_user_could_bring_about_does_not_take_the_node_out(
    site: SiteConfig, fail: Fail, told: dict[str, Any]
) -> None:
    for number in range(9):
        fail(number, **told)
    assert not is_out(site)
    fail(9, **told, user="bob")
    assert is_out(site)


def test_a_limit_of_none_counts_nothing_and_an_administrator_still_decides(site: SiteConfig) -> None:
    never = a_site(disk_dir=site.disk_dir, state_dir=site.state_dir, node_failure_limit=0)
    for number in range(9):
        service.failed(never, a_job(id=JobId(f"{number}.srv")), HypervisorError("no machine"), ran=False)
    assert not is_out(never)
    service.take_out(never, "new memory on Monday")
    assert is_out(never)


def test_the_note_is_roots_alone_and_one_that_is_damaged_is_none(site: SiteConfig, fail: Fail) -> None:
    fail(1)
    note = names.standing(site) / service.NOTE
    assert note.stat().st_mode & 0o777 == 0o600
    note.write_text('{"row": 7}')
    assert service.look(site) == service.Standing()
    fail(1)
    assert len(service.look(site).row) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_an_administrator_notes_is_whose_the_place_is_and_a_file_put_there_meanwhile_is_not(
    site: SiteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place, shadow = names.standing(site), tmp_path / "shadow"
    place.mkdir(parents=True)
    os.chown(place, 64322, 64322)
    shadow.touch()
    write = files.write_all

    def meanwhile(handle: int, data: bytes) -> None:
        """As whoever has the directory could, on a node without fs.protected_hardlinks."""
        write(handle, data)
        (fresh,) = place.glob(".*")
        fresh.unlink()
        fresh.hardlink_to(shadow)

    service.take_out(site, "new memory on Monday")
    note = place / service.NOTE
    assert (note.stat().st_uid, note.stat().st_gid, note.stat().st_mode & 0o777) == (64322, 64322, 0o600)
    monkeypatch.setattr(files, "write_all", meanwhile)
    service.take_out(site, "or on Tuesday")
    assert shadow.samefile(note) and (shadow.stat().st_uid, shadow.stat().st_gid) == (0, 0)


def test_a_disk_that_takes_nothing_is_no_reason_to_forget(
    site: SiteConfig, fail: Fail, tmp_path: Path
) -> None:
    Path(site.disk_dir).write_text("in its place")
    for number in (1, 2, 3):
        fail(number)
    assert is_out(site) and (tmp_path / "run/node" / service.NOTE).exists()
    shutil.rmtree(site.state_dir)
    Path(site.state_dir).write_text("in its place, too")
    fail(4)
    assert not is_out(site)


def test_a_note_on_a_disk_that_is_full_by_now_is_not_taken_for_the_last(
    site: SiteConfig, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(1)
    write = files.replace

    def full(path: Path, data: bytes, **told: Any) -> None:
        if path.is_relative_to(site.disk_dir):
            raise OSError(errno.ENOSPC, "no room", str(path))
        write(path, data, **told)

    monkeypatch.setattr(files, "replace", full)
    for number in (2, 3):
        fail(number)
    assert is_out(site)


def test_the_health_check_says_that_the_node_is_out_and_why(site: SiteConfig, fail: Fail) -> None:
    levels = []
    for number in range(4):
        (finding,) = doctor_service.in_service(site)
        levels.append(finding.level)
        fail(number)
    assert levels == [Level.OK, Level.WARNING, Level.WARNING, Level.ERROR]
    assert "vmgr node return" in finding.hint
    assert doctor.nhc([finding]).startswith("ERROR service: out since 20")
