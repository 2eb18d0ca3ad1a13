# SPDX-License-Identifier: Apache-2.0
"""Root's record of phases: what hooks leave there over fakes, whoever dies, whoever forges, whoever writes at once."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_shape
from tests.contract.test_lifecycle import USER, Book, Scene
from tests.fakes.guest import FakeSession, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from tests.unit.test_metrics import parse
from vtorque import accounting, accounts, config, demand, guard, guestnames, lifecycle, metrics, request, timings
from vtorque.accounting import Journal
from vtorque.cli import vmgr
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.timings import Entry

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

FORK = multiprocessing.get_context("fork")
ROTATION = Path(__file__).resolve().parents[2] / "contrib/logrotate.d/vtorque"
START = ["begun", "image", "planned", "defined", "started", "first-packet", "ssh", "cloud-init", "ready"]
END = ["ended", "torn-down"]
WRITERS, LINES = 8, 1000


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path("/var/lib") / f"vtorque-accounting-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    accounts.account(USER, min_uid=1)
    yield path
    shutil.rmtree(path)


class Accounted(Scene):
    """A node that accounts; every hook is a process of its own."""

    def prologue(self, **changes: Any) -> None:
        self.anew()
        super().prologue(**changes)

    def epilogue(self, status: int = 0) -> None:
        self.anew()
        super().epilogue(status)

    def anew(self, *, ago: float = 0.0) -> None:
        journal = Journal(self.root / "accounting", node="n1", begun=time.time() - ago, days=1)
        self.node = replace(self.node, journal=journal)

    def entries(self) -> list[Entry]:
        return timings.of_job(self.root / "accounting", lambda job: True)

    def phases(self) -> list[str]:
        return [entry["phase"] for entry in self.entries()]


def test_a_job_leaves_a_line_for_every_phase_from_its_prologue_to_its_end(root: Path) -> None:
    scene = Accounted(root)
    scene.prologue()
    scene.epilogue(status=7)
    entries = scene.entries()
    assert scene.phases() == START + END
    assert len({entry["start"] for entry in entries}) == 1, "all of them belong to one start"
    assert [entry["phase"] for entry in entries if entry.get("word")] == ["cloud-init"]
    seconds = [entry["seconds"] for entry in entries]
    assert seconds == sorted(seconds)
    by_phase = {entry["phase"]: entry for entry in entries}
    assert by_phase["ended"]["exit_status"] == 7
    assert {name: by_phase["planned"][name] for name in ("image", "guests", "vcpus", "memory_mib")} == {
        "image": "a.qcow2", "guests": 1, "vcpus": 1, "memory_mib": 64,
    }
    scene.epilogue()
    assert scene.phases() == START + END, "an epilogue that finds nothing says nothing"


def test_of_several_guests_each_has_its_own_lines(root: Path) -> None:
    scene = Accounted(root)
    scene.request = scene.request._replace(vms_per_node=3)
    scene.job = scene.job._replace(request=request.encode(scene.request))

    def answer(rank: int) -> FakeSession:
        return FakeSession(f"ready {guestnames.guest_uuid(scene.job.id, rank)}\n".encode())

    scene.node = replace(
        scene.node, addresses=lambda guests, deadline: Book(()), shape=a_shape(),
        transport=FakeTransport({f"10.0.1.{rank}": partial(answer, rank) for rank in range(3)}),
    )
    scene.prologue()
    scene.epilogue()
    for phase in ("defined", "started", "first-packet", "ssh", "cloud-init"):
        assert sorted(entry["rank"] for entry in scene.entries() if entry["phase"] == phase) == [0, 1, 2], phase
    (start,) = timings.last(timings.days(root / "accounting"), 10)
    assert list(start) == START + END


@pytest.mark.parametrize(("site", "says", "failure"), [
    ({"fail_at": 1}, b"", "HypervisorError"), ({}, b"failed: \x1b[2J forged\n", "GuestError"),
    ({}, b"refused: forged\n", "RequestError"),
])
def test_a_failed_start_says_its_class_and_nothing_that_the_guest_said(
    root: Path, site: dict[str, Any], says: bytes, failure: str
) -> None:
    scene = Accounted(root, says=says, **site)
    scene.prologue()
    scene.epilogue()
    (failed,) = [entry for entry in scene.entries() if entry["phase"] == "failed"]
    assert failed["class"] == failure
    assert failed["blame"] == ("user" if failure == "RequestError" else "node")
    assert scene.phases()[-3:] == ["failed", *END]
    assert "forged" not in json.dumps(scene.entries())


def test_after_a_killed_prologue_the_epilogue_ends_the_same_start(root: Path) -> None:
    class Deadly(FakeHypervisor):
        def create(self, domain_xml: str, *, deadline: Deadline) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    scene = Accounted(root)
    scene.node = replace(scene.node, hypervisor=Deadly())
    child = FORK.Process(target=scene.prologue)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    scene.node = replace(scene.node, hypervisor=scene.hypervisor)
    scene.epilogue()
    assert scene.phases() == ["begun", "image", "planned", "defined", *END]
    assert len({entry["start"] for entry in scene.entries()}) == 1


def test_a_requeued_job_has_a_start_for_each_time(root: Path) -> None:
    scene = Accounted(root, says=b"failed: cannot mount\n", requeue_limit=2)
    scene.anew()
    at_once = Deadline(60, sleep=lambda seconds: None)
    with pytest.raises(VtorqueError, match="cannot mount"):
        lifecycle.prologue(scene.job, scene.node, scene.launch, deadline=at_once)
    scene.prologue()
    scene.epilogue()
    assert len({entry["start"] for entry in scene.entries()}) == 2


class Home:
    """A user's side that takes everything and keeps nothing."""

    usable = True

    def replace(self, name: str, text: str, *, deadline: Deadline) -> bool:
        return True

    def forget(self, name: str, *, deadline: Deadline) -> bool:
        return True

    def read(self, name: str, *, limit: int, deadline: Deadline) -> str | None:
        return None


def test_a_sisters_guard_goes_on_with_the_start_on_her_own_node(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "user_side", lambda wanted, node: contextlib.nullcontext(Home()))
    scene = Accounted(root)
    job = scene.job._replace(nodes=(), spool_script=None)
    scene.anew(ago=30)
    lifecycle.prologue_parallel(job, scene.node, scene.launch, deadline=Deadline(60))
    scene.anew()
    guarding = threading.Thread(target=guard.watch, args=(scene.guards[0], scene.node))
    guarding.start()
    for _ in Deadline(30).ticks(doing="wait for the guard"):
        if "ready" in scene.phases():
            break
    scene.anew()
    lifecycle.epilogue_parallel(job, scene.node, deadline=Deadline(60))
    guarding.join(30)
    assert scene.phases() == START + END
    assert len({entry["start"] for entry in scene.entries()}) == 1
    assert all(entry["seconds"] >= 30 for entry in scene.entries())


def test_who_is_swept_is_accounted_for_under_his_own_name(root: Path) -> None:
    scene = Accounted(root)
    scene.prologue()
    scene.anew()
    assert lifecycle.sweep(scene.node, deadline=Deadline(60)) == ["7.srv"]
    swept = scene.entries()[-1]
    assert (swept["phase"], swept["job"], swept["user"]) == ("swept", "7.srv", USER)
    assert swept["start"] == scene.entries()[0]["start"]


def test_a_record_that_cannot_be_written_fails_no_job(root: Path) -> None:
    scene = Accounted(root)
    (root / "accounting").touch()
    scene.prologue()
    assert scene.markers() == {"ready"}
    scene.epilogue()
    assert scene.left() == []


def test_hooks_count_for_prometheus(root: Path) -> None:
    scene = Accounted(root, prometheus_file=str(root / "vtorque.prom"))
    scene.prologue()
    metrics.publish(scene.node)

    def value(name: str, *labels: str) -> float:
        return parse((root / "vtorque.prom").read_text())[name, frozenset(labels)]

    assert value("vtorque_guests_running") == 1
    scene.epilogue()
    metrics.publish(scene.node)
    assert value("vtorque_guests_running") == 0
    for phase in START + END:
        assert value("vtorque_phase_seconds_count", f'phase="{phase}"') == 1, phase
    text = (root / "vtorque.prom").read_text()
    assert "7.srv" not in text and USER not in text


def at_once(journal: Journal) -> Callable[[int], None]:
    return lambda number: journal.note("ssh", rank=number)


def in_two_pieces(journal: Journal) -> Callable[[int], None]:
    """Not how it is done: others come between the pieces."""
    def write(number: int) -> None:
        line = json.dumps({"time": 1.0, "schema": 1, "phase": "ssh", "seconds": 0.0, "job": "7.srv", "rank": number})
        path = journal._directory
        assert path is not None
        with (path / "20260101").open("ab", buffering=0) as file:
            file.write(line[:20].encode())
            os.sched_yield()
            file.write(line[20:].encode() + b"\n")

    return write


@pytest.mark.parametrize(("writer", "is_whole"), [(at_once, True), (in_two_pieces, False)])
def test_of_processes_that_write_at_the_same_time_no_line_is_torn(
    tmp_path: Path, writer: Callable[[Journal], Callable[[int], None]], is_whole: bool
) -> None:
    def work() -> None:
        journal = Journal(tmp_path)
        journal._start = accounting.Start("7.srv", "ann", journal.begun)
        write = writer(journal)
        for number in range(LINES):
            write(number)

    children = [FORK.Process(target=work) for _ in range(WRITERS)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    lines = b"".join(path.read_bytes() for path in accounting.day_files(tmp_path)).splitlines()
    ranks = []
    for line in lines:
        try:
            ranks.append(json.loads(line)["rank"])
        except ValueError:
            continue
    assert (sorted(ranks) == sorted(list(range(LINES)) * WRITERS)) is is_whole


def test_days_that_logrotate_has_compressed_are_read_and_go_with_their_age(root: Path) -> None:
    where = root / "accounting"
    journal = Journal(where)
    journal.begin(a_job())
    (today,) = where.iterdir()
    day = today.rename(where / "20260101")
    for path in (where, day):
        os.chown(path, *accounts.program())
    (root / "rotate").write_text(ROTATION.read_text().replace("/var/log/vtorque", str(root)))
    (root / "rotate").chmod(0o644)
    subprocess.run(["/usr/sbin/logrotate", "-f", "-s", root / "state", root / "rotate"], check=True)
    assert [path.name for path in where.iterdir()] == ["20260101.1.gz"]
    about = (where / "20260101.1.gz").stat()
    assert (about.st_mode & 0o777, about.st_uid, about.st_gid) == (0o640, *accounts.program())
    assert [entry["phase"] for day in timings.days(where) for entry in day] == ["begun"]
    accounting.forget(where, days=400, now=time.mktime((2027, 12, 1, 0, 0, 0, 0, 0, -1)))
    assert list(where.iterdir()) == []


def test_a_log_that_is_rotated_stays_whose_it_was(root: Path) -> None:
    log, audit = root / "vtorque.log", root / "audit.log"
    for path, mode, ids in ((log, 0o640, accounts.program()), (audit, 0o600, (0, 0))):
        path.write_text("{}\n")
        path.chmod(mode)
        os.chown(path, *ids)
    (root / "rotate").write_text(ROTATION.read_text().replace("/var/log/vtorque", str(root)))
    (root / "rotate").chmod(0o644)
    subprocess.run(["/usr/sbin/logrotate", "-f", "-s", root / "state", root / "rotate"], check=True)
    for path in (log, audit):
        kept, now = path.with_name(f"{path.name}.1.gz").stat(), path.stat()
        assert now.st_size == 0 and kept.st_size > 0
        assert (kept.st_mode, kept.st_uid, kept.st_gid) == (now.st_mode, now.st_uid, now.st_gid)
    assert (log.stat().st_uid, audit.stat().st_uid) == (accounts.program()[0], 0)


class TestCommands:
    @pytest.fixture
    def configured(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (root / "vtorque.yaml").write_text(f"ACCOUNTING_DIR: {root}/accounting\n")
        monkeypatch.setattr(config, "find", lambda prefix: root / "vtorque.yaml")
        return root

    def test_timings_are_those_of_the_last_starts(self, configured: Path, capsys: pytest.CaptureFixture[str]) -> None:
        scene = Accounted(configured)
        for _ in range(3):
            scene.prologue()
            scene.epilogue()
        assert vmgr.main(["show", "timings", "--last", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert sorted(each["phase"] for each in found) == sorted(START + END)
        assert {each["starts"] for each in found} == {2}
        assert vmgr.main(["show", "timings"]) == 0
        table = capsys.readouterr().out.splitlines()
        assert len(table) == len(START + END) + 1 and table[1].split()[:2] == ["begun", "3"]

    def test_a_node_without_jobs_says_so(self, configured: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert vmgr.main(["show", "timings"]) == 0
        assert "no start is accounted for" in capsys.readouterr().err
        assert vmgr.main(["show", "timings", "--json"]) == 0
        assert capsys.readouterr().out == "[]\n"

    def test_fewer_than_one_start_is_a_wrong_usage(self, configured: Path) -> None:
        assert vmgr.main(["show", "timings", "--last", "0"]) == 2
