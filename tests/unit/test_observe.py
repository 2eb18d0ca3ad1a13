# SPDX-License-Identifier: Apache-2.0
"""What root and a job's user see of its guests, and what nobody gets to see."""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import KEY, a_job, a_plan, a_request
from vtorque import markers, observe, orders, published, report
from vtorque.backends.hypervisor import Usage
from vtorque.cli import vmgr_guests
from vtorque.errors import RequestError, StateError
from vtorque.model import Guest, JobId

ME = os.getuid()
NOW = 2_000_000_000.0


def record(root: Path, job: str = "7.srv", *, ready: bool = True, planned: bool = True, vms: int = 1) -> Path:
    """What root's prologue leaves of a job."""
    plan = a_plan(job=a_job(id=JobId(job)), request=a_request(vms_per_node=vms))
    path = root / "jobs" / plan.job.key
    path.mkdir(parents=True)
    if planned:
        (path / "plan.json").write_text(json.dumps(orders.plain(plan)))
    if ready:
        guests = [Guest(vm=vm, address=f"10.0.0.{vm.rank + 1}", host_key=KEY) for vm in plan.vms]
        (path / "ready").write_text(json.dumps(markers.ready_marker(plan, [published.peer(guest) for guest in guests])))
    return path


def link(home: Path, job: str) -> Path:
    directory = home / ".vtorque" / f"request-of-{job}"
    directory.mkdir(parents=True)
    directory.with_name(job).symlink_to(directory.name)
    return directory


def seen(root: Path) -> list[observe.Recorded]:
    return observe.all_jobs(root, owner=ME)


def mine(root: Path, home: Path, *, owner: int = ME) -> list[observe.Recorded]:
    return observe.own_jobs(root, home, user="ann", owner=owner)


def lines(job: observe.Recorded, look: observe.Look | None = None) -> list[observe.Guest]:
    return observe.guests(job, node="n1", look=look, now=NOW)


def running(name: str) -> Usage:
    return Usage(state="running", cpu_seconds=3.21, memory_mib=1000)


def test_root_sees_every_job_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for job in ("12.srv", "7.srv", "58[2].srv"):
        record(tmp_path, job)
    assert [job.id for job in seen(tmp_path)] == ["7.srv", "12.srv", "58[2].srv"]
    (line,) = lines(seen(tmp_path)[0], running)
    assert (line.user, line.rank, line.state, line.address) == ("ann", 0, "running", "10.0.0.1")
    assert (line.vcpus, line.memory_mib, line.cpu_seconds) == (2, 1024, 3.2)


def test_nothing_recorded_is_no_jobs(tmp_path: Path) -> None:
    assert seen(tmp_path) == [] and mine(tmp_path, tmp_path) == []


def test_a_user_sees_the_jobs_of_his_own_directory_and_no_plan(tmp_path: Path) -> None:
    home = tmp_path / "home"
    record(tmp_path, "7.srv")
    record(tmp_path, "8.srv")
    link(home, "7.srv")
    link(home, "9.srv")
    waiting, = [job for job in mine(tmp_path, home) if job.id == "9.srv"]
    assert (waiting.ready, waiting.begun) == (None, None)
    (job,) = [job for job in mine(tmp_path, home) if job.ready]
    (line,) = lines(job)
    assert (line.job, line.user, line.state, line.vcpus, line.memory_mib) == ("7.srv", "ann", "ready", 2, None)


@pytest.mark.skipif(ME != 0, reason="only root can leave another's marker")
def test_a_marker_that_is_neither_roots_nor_the_programs_is_not_believed(tmp_path: Path) -> None:
    marker = record(tmp_path) / "ready"
    link(tmp_path, "7.srv")
    for owner, believed in ((0, True), (8001, True), (8002, False)):
        os.chown(marker, owner, -1)
        (job,) = mine(tmp_path, tmp_path, owner=8001)
        assert (job.ready is not None) is believed


@pytest.mark.parametrize("change", [{"boot_id": "x"}, {"schema": 9}, {"job": "8.srv"}])
def test_a_marker_of_another_boot_version_or_job_is_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    path = record(tmp_path) / "ready"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    link(tmp_path, "7.srv")
    (job,) = mine(tmp_path, tmp_path)
    assert job.ready is None


def test_a_user_finds_the_elements_of_his_array(tmp_path: Path) -> None:
    record(tmp_path, "58[2].srv")
    record(tmp_path, "58[977].srv")
    directory = link(tmp_path, "58[].srv")
    found = observe.find("58[2]", mine(tmp_path, tmp_path))
    assert found.id == "58[2].srv" and found.directory is not None
    assert found.directory.resolve() == directory.resolve()
    assert observe.find("58[977].srv", mine(tmp_path, tmp_path)).ready


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_a_plan_that_is_just_being_written_is_a_job_that_starts(tmp_path: Path, damage: str) -> None:
    (record(tmp_path, ready=False) / "plan.json").write_text(damage)
    (line,) = lines(seen(tmp_path)[0], running)
    assert (line.job, line.rank, line.state) == ("7.srv", None, "starting")


def test_states_come_from_the_hypervisor_and_the_marker(tmp_path: Path) -> None:
    record(tmp_path / "a", ready=False)
    record(tmp_path / "b")
    (starting,), (ready,) = seen(tmp_path / "a"), seen(tmp_path / "b")
    stopped = Usage(state="stopped", cpu_seconds=0, memory_mib=1)
    assert [lines(starting, look)[0].state for look in (None, running, lambda name: None)] == [
        "starting", "starting", "planned"
    ]
    assert [lines(ready, look)[0].state for look in (None, running, lambda name: None, lambda name: stopped)] == [
        "ready", "running", "gone", "stopped"
    ]


def test_a_failed_job_has_a_line_with_the_reason_and_nothing_a_terminal_would_obey(tmp_path: Path) -> None:
    path = record(tmp_path, ready=False, planned=False)
    (path / "failed").write_text(json.dumps({"schema": 1, "reason": "no\x1b[2J room", "blame": "node"}))
    (job,) = seen(tmp_path)
    (line,) = lines(job, running)
    assert (line.state, line.reason, line.rank) == ("failed", "no^[[2J room", None)
    with pytest.raises(RequestError, match="no guests: no"):
        observe.ready_guest(job, 0)


@pytest.mark.parametrize("text", ["58[2].srv", "58[2]", "58-2.srv", "58-2"])
def test_a_job_is_named_as_people_name_it(text: str) -> None:
    assert observe.is_meant(text, "58[2].srv")
    assert not observe.is_meant(text, "58[3].srv") and not observe.is_meant("58", "58[2].srv")


def test_a_job_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as none:
        observe.find("12", seen(tmp_path))
    assert none.value.brief == "no job 12 on this node" and "qstat -n" in none.value.hint
    for job in ("123.srv", "9.lab", "9.srv"):
        record(tmp_path, job)
    with pytest.raises(RequestError) as near:
        observe.find("124.srv", seen(tmp_path))
    assert near.value.hint == "did you mean 123.srv?"
    with pytest.raises(RequestError) as far:
        observe.find("\x1b", seen(tmp_path))
    assert "\x1b" not in far.value.brief and far.value.hint == "known here: 9.lab, 9.srv, 123.srv"
    with pytest.raises(RequestError, match=r"9 may be any of 9\.lab, 9\.srv"):
        observe.find("9", seen(tmp_path))


def test_a_rank_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    record(tmp_path, vms=2)
    (job,) = seen(tmp_path)
    assert observe.ready_guest(job, 1)["address"] == "10.0.0.2"
    assert observe.planned_guest(job, 1)["name"] == "7.srv_2of2"
    for of in (observe.ready_guest, observe.planned_guest):
        with pytest.raises(RequestError) as error:
            of(job, 2)
        assert error.value.hint == "ranks here: 0, 1"


def test_the_table_lines_up_and_the_json_has_null_for_what_is_not_known(tmp_path: Path) -> None:
    record(tmp_path, vms=2)
    os.utime(tmp_path / "jobs/7.srv/plan.json", (NOW - 3700, NOW - 3700))
    found = lines(seen(tmp_path)[0])
    head, first, second = observe.table(found).splitlines()
    assert head.split() == ["JOB", "USER", "RANK", "NODE", "STATE", "ADDRESS", "VCPUS", "PINS", "MEMORY", "CPU", "AGE"]
    assert first.split() == ["7.srv", "ann", "0", "n1", "ready", "10.0.0.1", "2", "1,2", "1G", "-", "01:01:40"]
    assert head.index("ADDRESS") == first.index("10.0") == second.index("10.0")
    one = json.loads(observe.as_json(found))[0]
    assert list(one) == ["job", "user", "rank", "name", "hostname", "node", "state", "address", "vcpus",
                         "memory_mib", "cpu_seconds", "age_seconds", "cpus", "reason"]
    assert (one["age_seconds"], one["cpu_seconds"], one["reason"]) == (3700, None, None)


def test_a_table_is_a_line_for_each_guest_whatever_was_written_down_of_it(tmp_path: Path) -> None:
    record(tmp_path, vms=1)
    (line,) = lines(seen(tmp_path)[0])
    forged = replace(line, address="fe80::1%\x1b]0;owned\x07\n99.srv  root  0  n1  running  10.0.0.1", user="a\u202eb")
    head, only = observe.table([forged]).splitlines()
    assert head.startswith("JOB") and only.startswith("7.srv  a?b") and only.isprintable()
    assert "fe80::1%?]0;owned? 99.srv root" in only


def test_a_terminal_obeys_nothing_that_a_guest_prints_however_it_is_cut() -> None:
    said = "a\r\n\x1b[0;32mOK\x1b[0m\t\x1b]0;title\x07 \x9b2J caf\u00e9\x1b\x1b[m[31m\u202e\rb\x1b".encode()
    whole = "a\nOK\t^[]0;title^G <009B>2J caf\u00e9^[[31m<202E>^Mb^["
    for size in (1, 2, 3, 5, len(said)):
        terminal = report.Terminal()
        shown = "".join(terminal.show(said[at:at + size]) for at in range(0, len(said), size)) + terminal.show(b"")
        assert shown == whole


PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nQUJDREVGR0hJSktMTU5PUA==\n-----END OPENSSH PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"a\n{PRIVATE}\nb", json.dumps({"x": PRIVATE, "y": "QUJD"}), f"a\n{PRIVATE[:60]}",
        f"a\n[ 1.2] ci: {PRIVATE[36:]}\nb", "key=QUJD a", 'ssh_key = "QUJD b"', "apikey='QUJD'", "PASSWORD: QUJD",
        "other=vt1.QUJDREVGR0hJSktMTU5PUA x",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    assert "QUJD" in text
    shown = report.redacted(text)
    assert "QUJD" not in shown.partition('"y"')[0] and "removed]" in shown


def test_what_is_no_secret_stays() -> None:
    text = "host_key: ssh-ed25519\nmonkey business\nkeys: 3\nA" + "b" * 40 + "\n"
    assert report.redacted(text) == text


def test_log_entries_of_the_job_only_each_a_line_that_cannot_be_forged() -> None:
    entries = [
        {"time": "T1", "level": "info", "job": "7.srv", "guest": "g", "message": "start: 0.52 s"},
        {"time": "T2", "level": "info", "job": "8.srv", "message": "no"},
        {"time": "T3", "level": "error", "job": "7.srv", "message": "a\nT9 forged\x1b[2J", "details": "d1\nd2"},
    ]
    text = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries) + b"garbage\n[]\n{"
    cut = [text[at:at + 7] for at in range(0, len(text), 7)]
    assert [report.log_text(entry).splitlines() for entry in report.log_entries(cut, "7.srv".__eq__)] == [
        ["T1 info    start              g 0.52 s"],
        ["T3 error   -                  - a T9 forged^[[2J", "    d1", "    d2"],
    ]


def test_phases_that_are_none_are_passed_over() -> None:
    said = [b'{"time": 0, "phase": "plan', b'ned"}\n{"time": 1, "phase": "\x1b"}\n7\n{"time": 1e99, "phase": ""}\nx']
    assert list(report.phases_text(said)) == ["1970-01-01T00:00:00Z planned\n"]


def test_a_file_is_followed_from_before_it_is_there_over_its_rotation_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def steps() -> Iterator[bool]:
        yield True
        path.write_bytes(b"a")
        yield True
        path.write_bytes(b"ab")
        path.rename(tmp_path / "log.1")
        path.write_bytes(b"c")
        yield True
        with path.open("ab") as file:
            file.write(b"d")
        yield False

    going = steps()
    assert b"".join(report.tail(path, going=lambda: next(going))) == b"abcd"
    assert b"".join(report.tail(path, going=None)) == b"cd"


def test_a_file_that_is_not_there_or_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(report.tail(tmp_path / "none", going=None))
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(StateError):
            list(report.tail(tmp_path / name, going=None))


def test_ssh_looks_at_no_file_of_the_users_and_takes_no_option_from_the_command() -> None:
    argv = vmgr_guests.ssh_command(
        "10.0.0.1", user="ann", key=Path("/h 1/50%/key"), known_hosts=Path("/tmp/k"), command=["-x", "y"],
        terminal=False, seconds=5,
    )
    assert argv[:3] == ["/usr/bin/ssh", "-F", "none"]
    assert argv[-4:] == ["--", "10.0.0.1", "-x", "y"]
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", 'IdentityFile="/h 1/50%%/key"', "IdentityAgent=none",
            'UserKnownHostsFile="/tmp/k"', "IdentitiesOnly=yes", "LogLevel=ERROR", "-T"} <= set(argv)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["7"], ["7"]), (["7", "--", "1"], ["7", "--", "1"]), (["7", "1", "--", "ls", "-l", "--", "x"],) * 2,
        (["7", "--", "--json", "-h"],) * 2,
    ],
)
def test_everything_after_ssh_is_left_to_it(words: list[str], left: list[str]) -> None:
    parser = argparse.ArgumentParser()
    vmgr_guests.add(parser.add_subparsers())
    assert parser.parse_args(["ssh", *words]).words == left
