# SPDX-License-Identifier: Apache-2.0
"""The local engine obeys Torque: every test is a row of its contract, seen from inside a hook."""

import os
import threading
from pathlib import Path

import pytest

from tests.contract.moms import QUICK, USER, Mom, alarm_when, gone, written
from vtorque.mom.life import Life

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="mom is root"),
]


def test_a_prologue_sees_exactly_what_torque_gives_it(mom: Mom) -> None:
    mom.hook("prologue")
    mom.run()
    (seen,) = mom.seen("prologue")
    script = str(mom.home.script("12.srv"))
    assert seen["argv"][1:] == ["12.srv", "games", "games", "two", "nodes=1:ppn=2,other=x", "batch", "acct7", script]
    assert seen["env"] | {"LC_CTYPE": ""} == {
        "PATH": "/bin:/usr/bin", "LANG": "C", "PBS_RESOURCE_NODES": "1:ppn=2", "PBS_NUM_NODES": "1",
        "PBS_NUM_PPN": "2", "PBS_NP": "2", "PBS_NODENUM": "0", "PBS_MSHOST": "n1",
        "PBS_O_WORKDIR": str(mom.user_home), "PBS_NODEFILE": str(mom.home.node_file("12.srv")), "LC_CTYPE": "",
    }
    assert (seen["uid"], seen["gid"], sorted(seen["groups"])) == (0, 0, sorted((USER.pw_gid, 4242)))
    assert (seen["cwd"], seen["umask"], seen["blocked"]) == (str(mom.home.mom_priv), 0o077, 0)
    assert seen["sid"] == seen["pid"]
    assert seen["fds"]["0"] == "/dev/null" and seen["fds"]["1"].endswith("12.srv.OU")
    assert seen["fds"]["2"].endswith("12.srv.ER")


def test_an_epilogue_has_eleven_arguments_and_another_umask(mom: Mom) -> None:
    mom.hook("epilogue")
    mom.run("#!/bin/sh\nexit 5\n")
    (seen,) = mom.seen("epilogue")
    assert len(seen["argv"]) == 12
    assert seen["argv"][6] == "nodes=1:ppn=2,other=x"
    assert seen["argv"][10] == "5"
    assert seen["umask"] == 0o022


def test_precancel_runs_as_the_user_with_signals_blocked(mom: Mom) -> None:
    mom.hook("epilogue.precancel")
    life = Life(mom.home, mom.job("#!/bin/sh\nsleep 100\n"), timing=QUICK)
    threading.Timer(0.5, life.delete).start()
    life.run()
    (seen,) = mom.seen("epilogue.precancel")
    assert (seen["uid"], seen["cwd"]) == (USER.pw_uid, str(mom.user_home))
    assert seen["blocked"] & 0x14003 == 0x14003


def test_sister_hooks_run_first_and_their_epilogues_have_no_output(mom: Mom) -> None:
    for kind in ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel"):
        mom.hook(kind)
    mom.run(hosts=("n1", "n2"), resources={"nodes": "2"})
    order = [each["kind"] for each in mom.seen()]
    assert order == ["prologue.parallel", "prologue", "epilogue.parallel", "epilogue"]
    begin, end = mom.seen("prologue.parallel")[0], mom.seen("epilogue.parallel")[0]
    assert begin["env"]["PBS_NODENUM"] == "1" and "PBS_NODEFILE" not in begin["env"]
    assert begin["fds"]["1"] == "/dev/null" and begin["umask"] == 0o022
    assert (end["argv"][5], end["argv"][10]) == ("0", "0")
    assert end["blocked"] & 0x14003 == 0x14003


def test_all_sisters_begin_at_once_and_end_at_once(mom: Mom) -> None:
    """Each waits for the other: one after the other they would wait for ever."""
    for kind in ("prologue.parallel", "epilogue.parallel"):
        for host, other in (("n2", "n3"), ("n3", "n2")):
            mine, its = (mom.home.path / f"{kind}-{each}" for each in (host, other))
            mom.sister_hook(host, kind, (
                f"import time\nopen({str(mine)!r}, 'w')\n"
                f"while not os.path.exists({str(its)!r}):\n    time.sleep(0.01)"
            ))
    mom.hook("prologue")
    mom.hook("epilogue")
    assert mom.run_on("n1", "n1", "n2", "n3").job.exit_status == 0
    order = [each["kind"] for each in mom.seen()]
    assert set(order[:2]) == {"prologue.parallel n2", "prologue.parallel n3"} and order[2] == "prologue"
    assert set(order[3:5]) == {"epilogue.parallel n2", "epilogue.parallel n3"} and order[5:] == ["epilogue"]
    assert [mom.seen(f"prologue.parallel {host}")[0]["env"]["PBS_NODENUM"] for host in ("n2", "n3")] == ["1", "2"]
    assert mom.seen("prologue.parallel n3")[0]["cwd"] == str(mom.place("n3").mom_priv)


def test_a_sister_knows_a_job_from_its_join_to_its_end(mom: Mom) -> None:
    record = mom.place("n2").task("12.srv")
    for kind in ("prologue.parallel", "epilogue.parallel"):
        mom.sister_hook("n2", kind, f"open({str(mom.log)!r} + sys.argv[0][-17:-9], 'w').write(str({exists(record)}))")
    mom.hook("prologue", f"print({exists(record)}, flush=True)")
    mom.hook("epilogue", f"print({exists(record)}, flush=True)")
    mom.run_on("n1", "n2", script=f"#!/bin/sh\n[ -e {record} ] && echo in the job\n")
    assert mom.output() == "True\nin the job\nFalse\n"
    assert {path.read_text() for path in mom.log.parent.glob("seenprologue")} == {"False"}
    assert {path.read_text() for path in mom.log.parent.glob("seenepilogue")} == {"True"}
    assert not mom.place("n2").script("12.srv").exists()


def exists(path: Path) -> str:
    return f"os.path.exists({str(path)!r})"


def test_no_sister_gets_an_epilogue_when_the_prologue_fails(mom: Mom) -> None:
    """mom_comm.c:3960-3984: the job is purged, and what its prologue made stays."""
    record = mom.place("n2").task("12.srv")
    mom.sister_hook("n2", "prologue.parallel")
    mom.sister_hook("n2", "epilogue.parallel")
    mom.hook("prologue", "sys.exit(1)")
    mom.hook("epilogue", f"print({exists(record)})")
    assert mom.run_on("n1", "n2").job.exit_status == -2
    assert [each["kind"] for each in mom.seen()] == ["prologue.parallel n2", "prologue", "epilogue"]
    assert mom.home.output("12.srv", "OU").exists() or not mom.output()
    assert not record.exists()


def test_a_sister_that_fails_starts_the_job_anew_and_nobody_waits_for_the_others(mom: Mom) -> None:
    """The other's prologue goes on beside the epilogue, and her next one waits for it."""
    once, slow, again = (mom.home.path / name for name in ("once", "slow", "again"))
    # The first time she fails while the other is at it; the second time she lets her go on.
    mom.sister_hook("n2", "prologue.parallel", (
        f"import time\nif {exists(once)}:\n    open({str(again)!r}, 'w')\n    sys.exit()\nopen({str(once)!r}, 'w')\n"
        f"while not {exists(slow)}:\n    time.sleep(0.01)\nsys.exit(1)"
    ))
    mom.sister_hook("n3", "prologue.parallel", (
        f"import time\nassert not {exists(slow)}\nopen({str(slow)!r}, 'w')\n"
        f"while not {exists(again)}:\n    time.sleep(0.01)\ntime.sleep(0.2)\nos.unlink({str(slow)!r})"
    ))
    for host in ("n2", "n3"):
        mom.sister_hook(host, "epilogue.parallel")
    mom.hook("prologue")
    mom.hook("epilogue", f"print({exists(slow)}, sys.argv[10])")
    assert mom.run_on("n1", "n2", "n3", script="#!/bin/sh\necho ran\n").job.exit_status == 0
    assert mom.output() == "True -3\nran\nFalse 0\n"
    order = [each["kind"] for each in mom.seen()]
    assert [order.count(kind) for kind in ("prologue.parallel n3", "prologue", "epilogue.parallel n3", "epilogue")] == [
        2, 1, 1, 2,
    ]


def test_names_of_nodes_make_pbs_num_nodes_zero(mom: Mom) -> None:
    mom.hook("prologue")
    mom.run(resources={"nodes": "n1:ppn=2"})
    env = mom.seen("prologue")[0]["env"]
    assert (env["PBS_NUM_NODES"], env["PBS_NUM_PPN"]) == ("0", "1")


@pytest.mark.parametrize(("body", "status", "ran"), [("", 0, True), ("sys.exit(1)", -2, False)])
def test_verdicts_run_and_abort(mom: Mom, body: str, status: int, ran: bool) -> None:
    mom.hook("prologue", body)
    mom.hook("epilogue")
    ended = mom.run("#!/bin/sh\necho ran\n")
    assert ended.exit_status == status
    assert ("ran" in mom.output()) is ran
    assert mom.seen("epilogue")[0]["argv"][10] == str(status)


def test_an_aborted_job_delivers_no_output(mom: Mom) -> None:
    mom.hook("prologue", text="#!/bin/sh\necho why >&2\nexit 1\n")
    mom.run()
    assert not list(mom.user_home.iterdir())


@pytest.mark.parametrize("body", ["os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 11)"])
def test_a_prologue_killed_by_a_signal_counts_as_success(mom: Mom, body: str) -> None:
    mom.hook("prologue", body)
    assert mom.run("#!/bin/sh\necho ran\n").exit_status == 0
    assert mom.output() == "ran\n"


def test_no_hook_and_a_dangling_link_are_successes(mom: Mom) -> None:
    (mom.home.mom_priv / "prologue").symlink_to("/nonexistent/prologue")
    assert mom.run("#!/bin/sh\necho ran\n").exit_status == 0
    assert mom.output() == "ran\n"


@pytest.mark.parametrize("failing", ["sys.exit(3)", "sys.exit(255)"])
def test_any_other_status_starts_the_job_anew_at_once(mom: Mom, failing: str) -> None:
    once = mom.user_home.parent / "once"
    first = f"if not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w')\n    {failing}"
    mom.hook("prologue", f"print('try')\n{first}")
    mom.hook("epilogue")
    assert mom.run("#!/bin/sh\nexit 4\n").exit_status == 4
    assert len(mom.seen("prologue")) == 2
    assert [each["argv"][10] for each in mom.seen("epilogue")] == ["-3", "4"]
    assert mom.output() == "try\ntry\n", "the output of all tries adds up"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o655, 0o355])
def test_a_file_that_mom_would_not_run_is_a_failure(mom: Mom, mode: int) -> None:
    path = mom.hook("prologue", mode=mode)
    threading.Timer(0.5, lambda: path.chmod(0o755)).start()
    assert mom.run().exit_status == 0
    assert len(mom.seen("prologue")) == 1


def test_a_hook_of_somebody_else_is_not_run(mom: Mom) -> None:
    path = mom.hook("prologue")
    os.chown(path, USER.pw_uid, -1)
    threading.Timer(0.5, lambda: os.chown(path, 0, -1)).start()
    mom.run()
    assert len(mom.seen("prologue")) == 1


def test_the_alarm_kills_the_whole_session_and_starts_anew(mom: Mom, monkeypatch: pytest.MonkeyPatch) -> None:
    once, child = mom.user_home.parent / "once", mom.user_home.parent / "child"
    first = f"[ -e {once} ] && exit 0\ntouch {once}\nsleep 100 &\necho $! >{child}\nwait\n"
    mom.hook("prologue", text=f"#!/bin/sh\n{first}")
    alarm_when(monkeypatch, lambda: written(child))
    assert mom.run().exit_status == 0
    assert gone(int(child.read_text()))


def test_a_deleted_jobs_epilogue_runs_beside_its_prologue(mom: Mom) -> None:
    over = mom.home.path / "over"
    mom.hook("prologue", f"import time\nwhile not {exists(over)}:\n    time.sleep(0.05)\n"
             "print('script there:', os.path.exists(sys.argv[8]))")
    mom.hook("epilogue", f"print('epilogue', 1, flush=True)\nopen({str(over)!r}, 'w')")
    life = Life(mom.home, mom.job("#!/bin/sh\necho ran\n"), timing=QUICK)
    threading.Timer(0.5, life.delete).start()
    ended = life.run()
    assert ended.exit_status == 0
    assert mom.output() == "epilogue 1\nscript there: False\n"
    assert [run.kind for run in life.history] == ["epilogue", "prologue"]


def test_the_job_is_a_login_shell_that_reads_a_path(mom: Mom) -> None:
    ended = mom.run(
        '#!/bin/bash\nps -o args= -p $PPID\necho "$1"\ncat\npwd\numask\n'
        'echo "$PBS_ENVIRONMENT $PBS_JOBID $MINE"\nexit 3\n',
        arguments="'a b'", variables={"MINE": "x"},
    )
    assert ended.exit_status == 3
    assert mom.output() == f"-bash\na b\n{mom.user_home}\n0077\nPBS_BATCH 12.srv x\n"


def test_a_shell_killed_by_a_signal_is_256_more(mom: Mom) -> None:
    assert mom.run("#!/bin/sh\nkill -KILL $PPID\n").exit_status == 256 + 9


def test_a_script_killed_by_a_signal_is_seen_through_its_shell(mom: Mom) -> None:
    assert mom.run("#!/bin/sh\nkill -KILL $$\n").exit_status == 137


def test_walltime_is_said_and_ends_the_job(mom: Mom) -> None:
    ended = mom.run("#!/bin/sh\nsleep 100\n", resources={"nodes": "1", "walltime": "00:00:01"})
    assert ended.exit_status == -11
    assert mom.output("e").startswith("=>> PBS: job killed: walltime ")


def test_what_is_left_of_the_jobs_session_is_killed(mom: Mom) -> None:
    mom.run("#!/bin/sh\nsleep 1000 &\necho $!\n")
    assert gone(int(mom.output()))


@pytest.mark.parametrize(("join", "letter"), [("oe", "o"), ("eo", "e")])
def test_joined_outputs_are_one_file(mom: Mom, join: str, letter: str) -> None:
    mom.run("#!/bin/sh\necho out; echo err >&2\n", join=join)
    assert mom.output(letter) == "out\nerr\n"


def test_outputs_are_the_users_and_private(mom: Mom) -> None:
    mom.run("#!/bin/sh\necho x\n")
    about = (mom.user_home / "two.o12").stat()
    assert (about.st_uid, about.st_mode & 0o777) == (USER.pw_uid, 0o600)


def test_outputs_that_cannot_be_delivered_are_kept(mom: Mom) -> None:
    mom.run("#!/bin/sh\necho x\n", output_path="/proc/nowhere/o")
    assert (mom.home.undelivered() / "12.srv.OU").read_text() == "x\n"


def test_an_entry_that_does_not_fit_is_dropped_without_a_word(mom: Mom) -> None:
    mom.hook("prologue")
    mom.run(resources={"nodes": "1", "other": "y" * 2040, "walltime": "00:01:00"})
    assert mom.seen("prologue")[0]["argv"][5] == "nodes=1,walltime=00:01:00"


def test_mom_knows_a_job_by_its_files_while_it_lives(mom: Mom) -> None:
    script, task = mom.home.script("12.srv"), mom.home.task("12.srv")
    mom.hook("prologue", f"print(os.path.exists({str(script)!r}), os.path.exists({str(task)!r}))")
    mom.run(f"#!/bin/sh\n[ -e {script} ] && [ -e {task} ] && echo both\n")
    assert mom.output() == "True False\nboth\n"
    assert not script.exists() and not task.exists()


def test_the_sequence_never_repeats(mom: Mom) -> None:

    numbers = [int(mom.home.next_id("srv").partition(".")[0]) for _ in range(50)]
    assert numbers == list(range(1, 51))
