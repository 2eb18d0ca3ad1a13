# SPDX-License-Identifier: Apache-2.0
"""Facts of Torque that the engine shows by itself; `doc/contract.md` numbers them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contract.moms import QUICK, SPY, USER, Mom, alarm_when, written
from vtorque.mom import hooks, rules, shell
from vtorque.mom import life as lives
from vtorque.mom.hooks import Hook
from vtorque.mom.life import Life, Timing
from vtorque.mom.places import Places
from vtorque.mom.rules import NOT_ALLOWED, SUCCESS
from vtorque.mom.spool import JobRecord

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="mom is root"),
]

PATIENCE = 30.0
HERE = ("prologue", "prologue.user", "epilogue.user", "epilogue", "epilogue.precancel")
SISTERS = ("prologue.parallel", "prologue.user.parallel", "epilogue.user.parallel", "epilogue.parallel")
OWN = ("prologue.job", "epilogue.job")
BLOCKED = 0x14003


def the_users_own(mom: Mom, kind: str, body: str = "") -> str:
    """A script that `-l prologue=` or `-l epilogue=` names."""
    path = mom.user_home / kind
    path.write_text(SPY.format(kind=kind, log=mom.log, body=body))
    path.chmod(0o700)
    os.chown(path, USER.pw_uid, USER.pw_gid)
    return str(path)


def presetup(mom: Mom, body: str = "") -> None:
    path = mom.hook("presetup", body)
    (mom.home.mom_priv / "config").write_text(f"$presetup_prologue {path}\n")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Mom:
    """All hooks have seen a job on two hosts that was deleted while it ran."""
    mom = Mom(tmp_path_factory.mktemp("everything"))
    presetup(mom)
    for kind in HERE:
        mom.hook(kind)
    for kind in SISTERS:
        mom.sister_hook("n2", kind)
    own = {name.removesuffix(".job"): the_users_own(mom, name) for name in OWN}
    up = mom.user_home / "up"
    job = mom.job(
        f"#!/bin/sh\ntouch {up}\nsleep 1000\n", hosts=("n1", "n1", "n2"),
        resources={"nodes": "2", **own}, variables={"MINE": "x"},
    )
    deleted(mom, job, up, place=mom.place)
    return mom


def by_kind(mom: Mom) -> dict[str, dict[str, Any]]:
    """What each kind of hook saw."""
    return {each["kind"].removesuffix(" n2"): each for each in mom.seen()}


def lived(life: Life, mark: Path, act: Callable[[], None]) -> Life:
    """A life, over, in which something was done as soon as a file was there."""

    def watch() -> None:
        end = time.monotonic() + PATIENCE
        while not mark.exists() and time.monotonic() < end:
            time.sleep(0.02)
        act()

    watcher = threading.Thread(target=watch)
    watcher.start()
    life.run()
    watcher.join()
    return life


def deleted(mom: Mom, job: JobRecord, mark: Path, *, timing: Timing = QUICK, place: Places | None = None) -> Life:
    """The life of a job that is deleted when a file appears, over."""
    life = Life(mom.home, job, timing=timing, place=place)
    return lived(life, mark, life.delete)


def lasting(mark: Path, until: str) -> str:
    """The body of a hook that leaves a mark and goes on until something is so."""
    return f"import time\nopen({str(mark)!r}, 'w')\nwhile not ({until}):\n    time.sleep(0.02)"


def the_result(mom: Mom, kind: str = "prologue", **changes: Any) -> int:
    """What mom makes of the hook file that is there."""
    hook = Hook(mom.home, kind, mom.job(**changes))
    hook.start()
    while (result := hook.poll()) is None:
        time.sleep(0.01)
    return result


class TestOrder:
    def test_all_hooks_run_in_torques_order_each_where_it_belongs(self, everything: Mom) -> None:
        assert [each["kind"] for each in everything.seen()] == [
            "presetup", "prologue.parallel n2", "prologue.user.parallel n2", "prologue", "prologue.user",
            "prologue.job", "epilogue.precancel", "epilogue.user.parallel n2", "epilogue.parallel n2",
            "epilogue.job", "epilogue.user", "epilogue",
        ]

    def test_two_jobs_hooks_on_one_sister_take_turns_because_they_block_her_mom(self, mom: Mom) -> None:
        """While one runs, the node starts nothing and reports nothing."""
        busy = mom.home.path / "busy"
        mom.sister_hook("n2", "prologue.parallel", (
            f"import time\nassert not os.path.exists({str(busy)!r})\nopen({str(busy)!r}, 'w')\n"
            f"time.sleep(0.3)\nos.unlink({str(busy)!r})"
        ))
        jobs = [mom.job(id=f"{number}.srv", hosts=("n1", "n2"), resources={"nodes": "2"}) for number in (12, 13)]
        lives = [Life(mom.home, job, timing=QUICK, place=mom.place) for job in jobs]
        threads = [threading.Thread(target=life.run) for life in lives]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [[run.result for run in life.history] for life in lives] == [[SUCCESS], [SUCCESS]]

    def test_all_of_the_start_shares_one_budget_and_what_still_runs_is_not_stopped(
        self, mom: Mom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each hook is within its own limit, both together are not (mom_main.c:5713-5726)."""
        (mom.home.mom_priv / "config").write_text("$prologalarm 100\n")
        ended, first, second = mom.home.path / "ended", mom.user_home / "first", mom.user_home / "second"
        # As mom sees it each of them takes a minute.
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 60 * (first.exists() + second.exists()))
        for module in (hooks, lives):
            monkeypatch.setattr(module, "time", clock)
        mom.hook("prologue", text=f"#!/bin/sh\ntouch {first}\n")
        mom.hook("prologue.user", text=(
            f"#!/bin/sh\n[ -e {ended} ] && exit\ntouch {second}\nuntil [ -e {ended} ]; do sleep 0.1; done\n"
        ))
        mom.hook("epilogue", f"open({str(ended)!r}, 'w')")
        life = Life(mom.home, mom.job("#!/bin/sh\nexit 5\n"), timing=QUICK)
        assert life.run().exit_status == 5
        assert [each["argv"][10] for each in mom.seen("epilogue")] == ["-3", "5"]
        ran = [(run.kind, run.result) for run in life.history]
        assert ran.count(("prologue.user", SUCCESS)) == 2, "it waited for its own epilogue"
        # It may be gone before the epilogue that it has waited for is.
        assert [each for each in ran if each[0] != "prologue.user"][:2] == [
            ("prologue", SUCCESS), ("epilogue", SUCCESS)]


class TestFailures:
    def test_after_a_sisters_failure_her_node_gets_no_epilogue_and_the_mother_superior_runs_hers(
        self, mom: Mom
    ) -> None:
        once = mom.home.path / "once"
        mom.sister_hook("n2", "prologue.parallel",
                        f"if not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w')\n    sys.exit(2)")
        mom.sister_hook("n2", "epilogue.parallel")
        for kind in ("prologue", "epilogue.user", "epilogue"):
            mom.hook(kind)
        mom.run_on("n1", "n2")
        order = [(each["kind"], each["argv"][10] if each["kind"].startswith("epi") else "") for each in mom.seen()]
        assert order[:3] == [("prologue.parallel n2", ""), ("epilogue.user", "-3"), ("epilogue", "-3")]
        assert [kind for kind, _ in order[3:]] == [
            "prologue.parallel n2", "prologue", "epilogue.parallel n2", "epilogue.user", "epilogue",
        ]

    @pytest.mark.parametrize("status", [1, 2, 255])
    def test_any_status_of_a_sisters_prologue_but_zero_starts_the_job_anew(self, mom: Mom, status: int) -> None:
        once = mom.home.path / "once"
        mom.sister_hook("n2", "prologue.parallel",
                        f"if not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w')\n    sys.exit({status})")
        assert mom.run_on("n1", "n2").job.exit_status == 0
        assert len(mom.seen("prologue.parallel n2")) == 2

    def test_the_output_of_a_prologue_that_fails_stays_in_the_spool(self, mom: Mom) -> None:
        mom.hook("prologue", text="#!/bin/sh\necho why >&2\nexit 1\n")
        mom.run()
        assert mom.home.output("12.srv", "ER").read_text() == "why\n"
        assert not list(mom.user_home.iterdir())

    @pytest.mark.parametrize("kind", ["prologue", "prologue.user"])
    def test_verdicts_are_the_same_for_the_users_kind(self, mom: Mom, kind: str) -> None:
        mom.hook(kind, "sys.exit(1)")
        assert mom.run().exit_status == -2

    def test_the_users_own_prologue_has_the_same_verdicts(self, mom: Mom) -> None:
        own = the_users_own(mom, "prologue.job", "sys.exit(1)")
        assert mom.run(resources={"nodes": "1", "prologue": own}).exit_status == -2

    def test_a_hook_that_cannot_be_looked_at_has_the_error_as_its_status(self, mom: Mom) -> None:
        path = mom.home.mom_priv / "prologue"
        path.symlink_to(path)
        result = the_result(mom)
        assert rules.verdict(result) is rules.Verdict.REQUEUE and result > 1

    @pytest.mark.parametrize("kind", ["epilogue", "epilogue.user", "epilogue.precancel"])
    def test_the_status_of_what_runs_at_the_end_changes_nothing(self, mom: Mom, kind: str) -> None:
        mom.hook(kind, "sys.exit(9)")
        assert mom.run("#!/bin/sh\nexit 4\n").exit_status == 4

    def test_a_sisters_epilogue_that_fails_changes_nothing(self, mom: Mom) -> None:
        mom.sister_hook("n2", "epilogue.parallel", "sys.exit(9)")
        assert mom.run_on("n1", "n2", script="#!/bin/sh\nexit 4\n").job.exit_status == 4

    def test_an_epilogue_has_the_alarm_of_a_prologue(self, mom: Mom) -> None:
        (mom.home.mom_priv / "config").write_text("$prologalarm 1\n")
        mom.hook("epilogue", text="#!/bin/sh\nsleep 1000\n")
        job = mom.job("#!/bin/sh\nexit 4\n")
        life = Life(mom.home, job, timing=QUICK)
        assert life.run().exit_status == 4
        assert [(run.kind, run.result) for run in life.history] == [("epilogue", rules.TIMED_OUT)]

    @pytest.mark.parametrize(("alarm", "seconds"), [(300, 290), (15, 5), (11, 1), (10, 10), (5, 5)])
    def test_a_hook_is_killed_ten_seconds_before_the_alarm_when_that_is_longer(self, alarm: int, seconds: int) -> None:
        assert rules.hook_seconds(alarm) == seconds


class TestDeletion:
    def test_precancel_comes_first_and_the_users_prologue_starts_all_the_same(self, mom: Mom) -> None:
        mark, over = mom.home.path / "begun", mom.home.path / "over"
        for kind in ("epilogue.precancel", "prologue.user", "epilogue.user"):
            mom.hook(kind)
        mom.hook("epilogue", f"open({str(over)!r}, 'w')")
        mom.hook("prologue", lasting(mark, f"os.path.exists({str(over)!r})"))
        life = deleted(mom, mom.job("#!/bin/sh\necho ran\n"), mark)
        assert [run.kind for run in life.history] == [
            "epilogue.precancel", "epilogue.user", "epilogue", "prologue", "prologue.user",
        ]
        assert (life.job.exit_status, life.job.state, "ran" in mom.output()) == (0, "C", False)

    def test_sisters_run_their_epilogues_meanwhile(self, mom: Mom) -> None:
        mark, over = mom.home.path / "begun", mom.home.path / "over"
        mom.hook("prologue", lasting(mark, f"os.path.exists({str(over)!r})"))
        for kind in SISTERS:
            mom.sister_hook("n2", kind, f"open({str(over)!r}, 'w')" if kind == "epilogue.parallel" else "")
        job = mom.job(hosts=("n1", "n2"), resources={"nodes": "2"})
        life = deleted(mom, job, mark, place=mom.place)
        assert [run.kind for run in life.history] == [
            "prologue.parallel", "prologue.user.parallel", "epilogue.user.parallel", "epilogue.parallel", "prologue",
        ]

    def test_a_job_deleted_while_its_sister_begins_it_never_gets_to_its_prologue(self, mom: Mom) -> None:
        mark = mom.home.path / "begun"
        mom.hook("prologue")
        # Its script goes when it is ended.
        script = mom.home.script("12.srv")
        mom.sister_hook("n2", "prologue.parallel", lasting(mark, f"not os.path.exists({str(script)!r})"))
        mom.sister_hook("n2", "epilogue.parallel")
        life = deleted(mom, mom.job(hosts=("n1", "n2"), resources={"nodes": "2"}), mark, place=mom.place)
        assert [run.kind for run in life.history] == ["prologue.parallel", "epilogue.parallel"]

    def test_a_prologue_that_ends_before_the_kill_starts_the_job(self, mom: Mom) -> None:
        """A short one even ends by itself."""
        mark = mom.home.path / "begun"
        mom.hook("epilogue.precancel")
        mom.hook("prologue", lasting(mark, f"'epilogue.precancel' in open({str(mom.log)!r}).read()"))
        job = mom.job("#!/bin/sh\necho ran\n")
        assert deleted(mom, job, mark, timing=replace(QUICK, kill_delay=PATIENCE)).job.exit_status == 0
        assert mom.output() == "ran\n"
        assert len(mom.seen("epilogue.precancel")) == 1

    def test_a_running_job_gets_precancel_then_term_and_ends_with_271(self, mom: Mom) -> None:
        up = mom.user_home / "up"
        mom.hook("epilogue.precancel")
        mom.hook("epilogue")
        life = deleted(mom, mom.job(f"#!/bin/sh\ntouch {up}\nsleep 1000\n"), up)
        assert [run.kind for run in life.history] == ["epilogue.precancel", "epilogue"]
        assert (life.job.exit_status, mom.seen("epilogue")[0]["argv"][10]) == (256 + signal.SIGTERM, "271")

    def test_what_a_job_does_because_it_is_to_end_is_not_ended_with_it(
        self, mom: Mom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def slowly(pid: int, number: int, kill: Callable[[int, int], None] = os.kill) -> None:
            kill(pid, number)
            time.sleep(0.1)

        monkeypatch.setattr(os, "kill", slowly)
        up, told = mom.user_home / "up", mom.user_home / "told"
        script = f"#!/bin/sh\ntrap 'sleep 0.5 && touch {told}; exit' TERM\ntouch {up}\nwhile :; do sleep 0.1; done\n"
        deleted(mom, mom.job(script), up, timing=replace(QUICK, kill_delay=PATIENCE))
        assert told.exists()

    def test_a_machine_that_stands_still_takes_nothing_of_the_time_that_a_trap_has(
        self, mom: Mom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        up, begun, told = (mom.user_home / name for name in ("up", "begun", "told"))
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (100 if begun.exists() else 0))
        monkeypatch.setattr(shell, "time", clock)
        trap = f"touch {begun}; sleep 0.5; touch {told}; exit"
        script = f"#!/bin/sh\ntrap '{trap}' TERM\ntouch {up}\nwhile :; do sleep 0.1; done\n"
        deleted(mom, mom.job(script), up, timing=replace(QUICK, kill_delay=PATIENCE))
        assert told.exists()

    def test_qrerun_is_the_epilogue_with_271_and_the_whole_start_again_without_precancel(self, mom: Mom) -> None:
        up, task = mom.user_home / "up", mom.home.task("12.srv")
        mom.hook("epilogue.precancel")
        mom.hook("prologue", f"print(os.path.exists({str(task)!r}), flush=True)")
        for kind in ("epilogue.user", "epilogue"):
            mom.hook(kind)
        job = mom.job(f"#!/bin/sh\n[ -e {up} ] && echo again && exit 3\ntouch {up}\nsleep 1000\n")
        life = Life(mom.home, job, timing=QUICK)
        assert lived(life, up, life.rerun).job.exit_status == 3
        assert [run.kind for run in life.history] == 2 * ["prologue", "epilogue.user", "epilogue"]
        assert [each["argv"][10] for each in mom.seen("epilogue")] == ["271", "3"]
        assert mom.output() == "False\nFalse\nagain\n"


# Until it has its session it is killed like everybody else.
SURVIVING = """\
setsid sleep 1000 >/dev/null 2>&1 &
until [ "$(cut -d' ' -f6 /proc/$!/stat)" = $! ]; do :; done
echo $! >>{}
"""


class TestSurvivors:
    @pytest.fixture
    def survivor(self, mom: Mom) -> Iterator[Path]:
        path = mom.home.path / "survivor"
        yield path
        for pid in path.read_text().split():
            os.kill(int(pid), signal.SIGKILL)

    def test_what_a_prologue_leaves_running_is_never_killed(self, mom: Mom, survivor: Path) -> None:
        mom.hook("prologue", text=(
            f"#!/bin/sh\nsleep 1000 >/dev/null 2>&1 &\necho $! >{survivor}\n{SURVIVING.format(survivor)}"
        ))
        assert mom.run().exit_status == 0
        assert all(Path(f"/proc/{pid}/exe").exists() for pid in survivor.read_text().split())

    def test_a_process_in_a_session_of_its_own_survives_the_alarm(
        self, mom: Mom, survivor: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alarm_when(monkeypatch, lambda: written(survivor))
        mom.hook("epilogue", text=(
            f"#!/bin/sh\n{SURVIVING.format(survivor)}sleep 1000\n"
        ))
        mom.run()
        assert Path(f"/proc/{survivor.read_text().strip()}/exe").exists()

    def test_a_process_in_a_session_of_its_own_survives_its_job(self, mom: Mom, survivor: Path) -> None:
        survivor.touch()
        survivor.chmod(0o666)
        mom.run(f"#!/bin/sh\n{SURVIVING.format(survivor)}")
        assert Path(f"/proc/{survivor.read_text().strip()}/exe").exists()


@pytest.mark.parametrize("row", [f"2.{number}" for number in range(12)])
def test_every_argument_is_where_torque_puts_it(everything: Mom, row: str) -> None:
    mom, place = everything, int(row.removeprefix("2."))
    job = f"{mom.home.mom_priv}/jobs/12.srv.SC"
    resources = f"nodes=2,prologue={mom.user_home}/prologue.job,epilogue={mom.user_home}/epilogue.job"
    start: list[str] = ["12.srv", "games", "games", "two", resources, "batch", "acct7", job]
    end = ["12.srv", "games", "games", "two", "", resources, "cput=00:00:00", "batch", "acct7", "271", job]
    for kind, each in by_kind(mom).items():
        own = kind in OWN
        sister = kind.endswith(".parallel")
        mom_priv = mom.place("n2").mom_priv if sister else mom.home.mom_priv
        wanted = [f"{mom.user_home if own else mom_priv}/{kind}", *(end if kind.startswith("epilogue") else start)]
        if kind == "presetup":
            wanted.append("n1,n2")
        if sister:
            wanted[-1] = f"{mom_priv}/jobs/12.srv.SC"
        assert len(each["argv"]) == len(wanted), kind
        said = each["argv"][place] if place < len(wanted) else ""
        if kind.startswith("epilogue") and place == 5:
            assert (said == "0") is sister and said.isdecimal(), kind
        elif kind.startswith("epilogue") and place == 10:
            # While precancel runs there is no status yet.
            assert said == ("0" if sister or kind.endswith("precancel") else "271"), kind
        else:
            assert said == (wanted[place] if place < len(wanted) else ""), kind


ROOT, AS_USER = (0, 0), (USER.pw_uid, USER.pw_gid)
# Who, where ("~" the user's home), umask, output, blocked signals.
ROWS = {
    "presetup": (ROOT, "mom_priv", 0o022, "null", 0),
    "prologue": (ROOT, "mom_priv", 0o077, "spool", 0),
    "prologue.user": (AS_USER, "~", 0o077, "spool", 0),
    "prologue.job": (AS_USER, "~", 0o077, "spool", 0),
    "prologue.parallel": (ROOT, "mom_priv", 0o022, "null", 0),
    "prologue.user.parallel": (AS_USER, "~", 0o022, "null", 0),
    "epilogue": (ROOT, "mom_priv", 0o022, "spool", 0),
    "epilogue.user": (AS_USER, "~", 0o022, "spool", 0),
    "epilogue.job": (AS_USER, "~", 0o022, "spool", 0),
    "epilogue.parallel": (ROOT, "mom_priv", 0o022, "closed", BLOCKED),
    "epilogue.user.parallel": (AS_USER, "~", 0o022, "closed", BLOCKED),
    "epilogue.precancel": (AS_USER, "~", 0o022, "null", BLOCKED),
}


@pytest.mark.parametrize("kind", ROWS)
def test_every_hook_runs_as_its_row_says(everything: Mom, kind: str) -> None:
    mom, seen = everything, by_kind(everything)[kind]
    who, where, umask, output, blocked = ROWS[kind]
    mom_priv = mom.place("n2").mom_priv if kind.endswith(".parallel") else mom.home.mom_priv
    assert (seen["uid"], seen["gid"]) == who
    assert (4242 in seen["groups"]) is (who == AS_USER or kind in ("prologue", "epilogue"))
    assert seen["cwd"] == str(mom.user_home if where == "~" else mom_priv)
    assert (seen["umask"], seen["blocked"] & BLOCKED) == (umask, blocked)
    assert seen["sid"] == seen["pid"]
    streams = [seen["fds"]["1"], seen["fds"]["2"]]
    assert seen["fds"]["0"] == "/dev/null"
    assert streams == {
        "null": ["/dev/null"] * 2, "closed": [None, None],
        "spool": [str(mom.home.output("12.srv", "OU")), str(mom.home.output("12.srv", "ER"))],
    }[output]


def test_only_the_mother_superior_has_a_node_file_and_nobody_a_job_id_a_home_or_the_users_variables(
    everything: Mom
) -> None:
    for kind, seen in by_kind(everything).items():
        sister = kind.endswith(".parallel")
        assert ("PBS_NODEFILE" in seen["env"]) is (not sister and kind != "presetup"), kind
        assert seen["env"]["PBS_NODENUM"] == ("1" if sister else "0")
        assert (seen["env"]["PBS_MSHOST"], seen["env"]["PBS_NP"]) == ("n1", "3")
        assert seen["env"].keys().isdisjoint({"PBS_JOBID", "HOME", "USER", "LOGNAME", "SHELL", "MINE"}), kind


class TestFiles:
    @pytest.mark.parametrize(("mode", "result"), [
        (0o500, 0), (0o755, 0), (0o4755, 0), (0o775, -1), (0o757, -1), (0o655, -1), (0o355, -1), (0o444, -1),
    ])
    def test_the_owner_reads_and_executes_and_nobody_else_writes(self, mom: Mom, mode: int, result: int) -> None:
        mom.hook("prologue", mode=mode)
        assert the_result(mom) == result

    def test_the_owner_is_root_and_the_group_does_not_matter(self, mom: Mom) -> None:
        path = mom.hook("prologue")
        os.chown(path, 0, USER.pw_gid)
        assert the_result(mom) == SUCCESS
        os.chown(path, USER.pw_uid, 0)
        assert the_result(mom) == NOT_ALLOWED

    def test_the_users_kind_must_be_readable_for_him(self, mom: Mom) -> None:
        mom.hook("prologue.user", mode=0o700)
        assert the_result(mom, "prologue.user") == NOT_ALLOWED

    def test_the_users_own_script_must_be_his(self, mom: Mom) -> None:
        own = Path(the_users_own(mom, "prologue.job"))
        resources = {"nodes": "1", "prologue": own.name}
        assert the_result(mom, "prologue.job", resources=resources) == SUCCESS
        os.chown(own, 0, 0)
        assert the_result(mom, "prologue.job", resources=resources) == NOT_ALLOWED

    def test_a_directory_is_no_hook(self, mom: Mom) -> None:
        (mom.home.mom_priv / "prologue").mkdir(mode=0o755)
        assert the_result(mom) == NOT_ALLOWED

    def test_with_reduced_checks_any_executable_file_is_run(self, mom: Mom) -> None:
        path = mom.hook("prologue", mode=0o777)
        (mom.home.mom_priv / "config").write_text("$reduce_prolog_checks true\n")
        os.chown(path, USER.pw_uid, -1)
        assert the_result(mom) == SUCCESS
        path.chmod(0o644)
        assert the_result(mom) == NOT_ALLOWED

    @pytest.mark.parametrize(("mode", "owner", "result"), [(0o755, 0, 0), (0o755, USER.pw_uid, -1), (0o777, 0, -1)])
    def test_of_a_link_only_the_target_counts(self, mom: Mom, mode: int, owner: int, result: int) -> None:
        target = mom.hook("target", mode=mode)
        os.chown(target, owner, -1)
        link = mom.home.mom_priv / "prologue"
        link.symlink_to(target)
        os.chown(link, USER.pw_uid, -1, follow_symlinks=False)
        assert the_result(mom) == result
        assert [each["argv"][0] for each in mom.seen()] == ([str(link)] if result == SUCCESS else [])

    def test_directories_above_are_not_looked_at(self, mom: Mom) -> None:
        anybodys = mom.home.path / "anybodys"
        anybodys.mkdir()
        anybodys.chmod(0o777)
        mom.hook("../anybodys/hook")
        (mom.home.mom_priv / "prologue").symlink_to(anybodys / "hook")
        assert the_result(mom) == SUCCESS

    def test_its_size_does_not_matter(self, mom: Mom) -> None:
        mom.hook("prologue", text="#!/bin/sh\nexit 7\n" + "#" * 5_000_000)
        assert the_result(mom) == 7

    @pytest.mark.parametrize("text", ["", "echo no shebang\n", "#!/nowhere/sh\n", "#!/bin/sh\r\nexit 0\r\n"],
                             ids=["empty", "no shebang", "bad interpreter", "CRLF"])
    def test_what_cannot_be_executed_is_a_failure(self, mom: Mom, text: str) -> None:
        path = mom.hook("prologue")
        path.write_text(text)
        assert the_result(mom) == 255

    def test_env_finds_the_systems_python(self, mom: Mom) -> None:
        mom.hook("prologue", text="#!/usr/bin/env python3\nimport sys\nsys.exit(3)\n")
        assert the_result(mom) == 3


def test_a_prologue_may_rewrite_the_jobs_script(mom: Mom) -> None:
    mom.hook("prologue", text='#!/bin/sh\nprintf "#!/bin/sh\\nexit 6\\n" >"$8"\n')
    assert mom.run("#!/bin/sh\nexit 1\n").exit_status == 6


def test_the_jobs_own_record_is_not_there_during_its_prologue_and_on_a_sister_no_script(mom: Mom) -> None:
    files = "print(*sorted(os.listdir(sys.argv[8].rpartition('/')[0])), flush=True)"
    mom.hook("prologue", files)
    mom.sister_hook("n2", "prologue.parallel", f"open({str(mom.log) + '2'!r}, 'w').write(str(os.listdir("
                    "sys.argv[8].rpartition('/')[0])))")
    mom.run_on("n1", "n2")
    assert (mom.output(), Path(f"{mom.log}2").read_text()) == ("12.srv.SC\n", "[]")


def test_the_return_of_presetup_means_nothing(mom: Mom) -> None:
    presetup(mom, "sys.exit(1)")
    assert mom.run("#!/bin/sh\nexit 4\n").exit_status == 4
    assert len(mom.seen("presetup")) == 1


def test_a_script_in_python_runs_through_its_own_interpreter_without_input(mom: Mom) -> None:
    script = "#!/usr/bin/python3\nimport sys\nprint(sys.argv[1:], repr(sys.stdin.read()))\n"
    mom.run(script, arguments="a b")
    assert mom.output() == "['a', 'b'] ''\n"
