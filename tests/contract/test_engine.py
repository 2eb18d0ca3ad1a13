# SPDX-License-Identifier: Apache-2.0
"""The local engine as users meet it: a real one, real qsub, qstat, qdel, qrls and qrerun, and real terminals."""

import contextlib
import fcntl
import json
import os
import pty
import pwd
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="mom is root"),
]

ROOT = Path(__file__).resolve().parents[2]
USER = pwd.getpwnam("games")
# How long anything may take before a test gives up; no test says how long it has to take.
PATIENCE = 60.0
# Not below pytest's own directory, where the user may not go.
PLACE = Path("/var/lib") / f"vtorque-engine-{os.getpid()}"
SPY = """\
#!/usr/bin/python3
import json, os, sys
seen = dict(kind="{kind}", argv=sys.argv, env=dict(os.environ), tty=[os.isatty(n) for n in range(3)],
            there=os.path.exists(sys.argv[-1]))
with open("{log}", "a") as log:
    log.write(json.dumps(seen) + "\\n")
{body}
"""
Run = subprocess.CompletedProcess[str]


class Engine:
    """An installation, a pbs_mom that runs in it, and a user with a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = root / "vtorque"
        for name in ("vtorque", "scripts", "templates"):
            shutil.copytree(ROOT / name, self.prefix / name, ignore=shutil.ignore_patterns("__pycache__"))
        (self.prefix / "etc").mkdir()
        (self.prefix / "etc/vtorque.yaml").write_text(f"BATCH_SYSTEM: local\nTORQUE_HOME: {root}/torque\n")
        self.log = root / "seen"
        self.log.touch()
        self.log.chmod(0o666)
        self.work = root / "work"
        self.work.mkdir()
        os.chown(self.work, USER.pw_uid, USER.pw_gid)
        self.temporary = root / "tmp"
        self.temporary.mkdir(mode=0o755)
        self.temporary.chmod(0o1777)
        self.home = root / "torque"
        self._mom: subprocess.Popen[bytes] | None = None

    def start(self, nodes: str = "here np=4\n") -> None:
        (self.home / "server_priv").mkdir(parents=True, exist_ok=True)
        self.has(nodes)
        command = self.command("pbs_mom", "--home", str(self.home))
        # Like a daemon that a shell started in the background: Ctrl-C means nothing to it.
        self._mom = subprocess.Popen(
            command, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
        )
        until(lambda: (self.home / "server_priv/pbs_mom.pid").exists(), "the engine is up")

    def has(self, nodes: str) -> None:
        """From now on the engine has these nodes."""
        (self.home / "server_priv/nodes").write_text(nodes)

    def stop(self) -> None:
        if self._mom is not None:
            self._mom.terminate()
            assert self._mom.wait(PATIENCE) == 0

    def command(self, name: str, *words: str) -> list[str]:
        return [str(self.prefix / "scripts/local" / name), *words]

    def run(self, name: str, *words: str, stdin: str = "", **env: str) -> Run:
        return subprocess.run(
            self.command(name, *words), input=stdin, capture_output=True, text=True, cwd=self.work,
            env=environment(**env), timeout=PATIENCE, **IDENTITY,
        )

    def submit(self, *words: str, script: str = "#!/bin/sh\n", **env: str) -> str:
        done = self.run("qsub", *BASICS, "-d", str(self.work), *words, stdin=script, **env)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    def jobs(self, job: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("qstat", "--json", job).stdout)
        return found

    def done(self, job: str) -> list[dict[str, Any]]:
        until(lambda: all(each["state"] == "C" for each in self.jobs(job)), f"{job} is completed")
        return self.jobs(job)

    def running(self, job: str) -> None:
        until(lambda: self.jobs(job)[0]["session"] > 0, f"{job} runs")

    def hook(self, kind: str, body: str = "") -> None:
        path = self.home / "mom_priv" / kind
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SPY.format(kind=kind, log=self.log, body=body))
        path.chmod(0o755)

    def seen(self, kind: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [each for each in found if each["kind"] == kind]

    def read(self, name: str) -> str:
        return (self.work / name).read_text()


IDENTITY: dict[str, Any] = {"user": USER.pw_uid, "group": USER.pw_gid, "extra_groups": []}
# The account has no shell that it could log in with.
BASICS = ("-S", "/bin/bash")


def environment(**more: str) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "TERM": "vt220", "HOME": USER.pw_dir, "TMPDIR": f"{PLACE}/tmp", **more}


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it did not come to pass that {what}"
        time.sleep(0.05)


class Terminal:
    """A user at a terminal, with qsub in it."""

    def __init__(self, command: list[str], *, cwd: Path, rows: int = 37, columns: int = 91) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.resize(rows, columns)
        self.text = ""
        self.qsub = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=environment(),
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **IDENTITY,
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def was_read(self) -> bool:
        """Whether nothing of what was typed waits for a reader."""
        return struct.unpack("i", fcntl.ioctl(self.slave, termios.FIONREAD, bytes(4))) == (0,)

    def until(self, pattern: str) -> "re.Match[str]":
        """The first match in what is shown; what is in front of it and itself is not looked at again."""
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.text)) is None:
            assert time.monotonic() < end, f"{pattern!r} is not in {self.text!r}"
            self._read()
        self.text = self.text[found.end():]
        return found

    def _read(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                self.text += os.read(self.master, 4096).decode(errors="replace")

    def job(self) -> str:
        return self.until(r"qsub: waiting for job (\S+) to start\r\n")[1]

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE
        while (status := self.qsub.poll()) is None:
            assert time.monotonic() < end, f"qsub goes on: {self.text!r}"
            self._read()
        self._read()
        return status

    def close(self) -> None:
        if self.qsub.poll() is None:
            self.qsub.kill()
        self.qsub.wait()
        for handle in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(handle)


@pytest.fixture
def engine() -> Iterator[Engine]:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(mode=0o755)
    made = Engine(PLACE)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(PLACE)


@pytest.fixture
def at_terminal(engine: Engine) -> Iterator[Any]:
    made: list[Terminal] = []

    def start(*words: str, **more: Any) -> Terminal:
        command = engine.command("qsub", "-I", *BASICS, "-d", str(engine.work), *words)
        made.append(Terminal(command, cwd=engine.work, **more))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


def test_an_array_is_a_job_for_every_element(engine: Engine) -> None:
    engine.hook("prologue")
    job = engine.submit("-t", "1-3,7", "-N", "arr", script='#!/bin/sh\necho "$PBS_ARRAYID $PBS_JOBID $PBS_JOBNAME"\n')
    assert job == "1[].lab"
    ended = engine.done(job)
    assert [(each["id"], each["name"], each["exit_status"]) for each in ended] == [
        (f"1[{index}].lab", f"arr-{index}", 0) for index in (1, 2, 3, 7)
    ]
    assert sorted(path.name for path in engine.work.iterdir()) == sorted(
        f"arr.{letter}1-{index}" for letter in "oe" for index in (1, 2, 3, 7)
    )
    assert engine.read("arr.o1-7") == "7 1[7].lab arr-7\n"


def test_an_elements_hooks_see_a_job_of_its_own(engine: Engine) -> None:
    engine.hook("prologue")
    engine.done(engine.submit("-t", "2", "-N", "arr"))
    (seen,) = engine.seen("prologue")
    assert (seen["argv"][1], seen["argv"][4]) == ("1[2].lab", "arr-2")
    assert seen["argv"][8] == f"{engine.home}/mom_priv/jobs/1-2.lab.SC"
    assert seen["env"]["PBS_NODEFILE"] == f"{engine.home}/aux/1[2].lab"
    assert "PBS_ARRAYID" not in seen["env"]


def test_so_many_elements_run_at_once_and_no_more(engine: Engine) -> None:
    script = f"#!/bin/sh\necho + >>{engine.work}/log; sleep 0.3; echo - >>{engine.work}/log\n"
    engine.done(engine.submit("-t", "1-5%2", script=script))
    now = most = 0
    for line in engine.read("log").splitlines():
        now += 1 if line == "+" else -1
        most = max(most, now)
    assert most <= 2


def test_elements_that_wait_for_one_another_run_at_once(engine: Engine) -> None:
    script = (
        f"#!/bin/sh\ncd {engine.work}; touch here$PBS_ARRAYID\n"
        "while [ ! -e here1 ] || [ ! -e here2 ]; do sleep 0.1; done\n"
    )
    assert [each["exit_status"] for each in engine.done(engine.submit("-t", "1-2%2", script=script))] == [0, 0]


def test_what_a_limit_keeps_back_keeps_nobody_else_back(engine: Engine) -> None:
    array = engine.submit("-t", "1-2%1", script="#!/bin/sh\nsleep 1000\n")
    engine.running("1[1]")
    assert engine.done(engine.submit())[0]["exit_status"] == 0
    assert [each["state"] for each in engine.jobs(array)] == ["R", "Q"]
    assert engine.run("qdel", "1[]").returncode == 0
    engine.done(array)


def test_qdel_takes_one_element_or_all(engine: Engine) -> None:
    job = engine.submit("-t", "1-3", script="#!/bin/sh\nsleep 1000\n")
    engine.running("1[2]")
    assert engine.run("qdel", "1[2]").returncode == 0
    assert engine.done("1[2].lab")[0]["comment"] == "deleted"
    assert [each["state"] == "C" for each in engine.jobs(job)] == [False, True, False]
    assert engine.run("qdel", "1[].lab").returncode == 0
    engine.done(job)
    assert engine.run("qdel", "1[]").returncode == 153


def test_qstat_shows_elements(engine: Engine) -> None:
    engine.done(engine.submit("-t", "4-5"))
    assert engine.run("qstat", "-f", "1[]").stdout.count("Job Id: ") == 2
    assert "job_array_id = 5" in engine.run("qstat", "-f", "1[5]").stdout
    assert Counter(re.findall(r"1\[\d\]\.lab", engine.run("qstat").stdout)) == {"1[4].lab": 1, "1[5].lab": 1}


@pytest.mark.parametrize("text", ["", "3-1", "a", "1-", "1,,2", "1%0", "1%x", "1-100000", "0-5000", "-1"])
def test_an_array_that_makes_no_sense_is_refused(engine: Engine, text: str) -> None:
    assert engine.run("qsub", f"-t{text}" if text else "-t", *([""] if not text else [])).returncode == 2


def test_an_interactive_job_is_no_array(engine: Engine) -> None:
    done = engine.run("qsub", "-I", "-t", "1-2")
    assert (done.returncode, "interactive job can not be job array" in done.stderr) == (2, True)


def test_an_interactive_job_is_a_login_shell_on_a_terminal_of_its_own(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal()
    job = terminal.job()
    terminal.until(f"qsub: job {job} ready\r\n\r\n")
    terminal.type("stty size; echo =$TERM=$PBS_ENVIRONMENT=$0=$PBS_JOBID=; tty; ps -o tty= -p $$\n")
    terminal.until("37 91\r\n")
    terminal.until(f"=vt220=PBS_INTERACTIVE=-bash={job}=\r\n")
    theirs, controlling = terminal.until(r"/dev/(pts/\d+)\r\n[^\r]*?(\S+)\r\n").groups()
    assert theirs == controlling != os.ttyname(terminal.slave).removeprefix("/dev/")
    terminal.type("exit 5\n")
    terminal.until(f"\r\nqsub: job {job} completed\r\n")
    assert terminal.wait() == 0, "as Torque's qsub -I"
    (ended,) = engine.done(job)
    assert (ended["exit_status"], ended["interactive"]) == (5, True)
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert not list(engine.temporary.iterdir()), "qsub leaves nothing behind"
    assert not list(engine.work.glob("*.o*")), "what went to the terminal goes to no file"


def test_the_terminal_is_the_controlling_one_of_the_jobs_session(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal()
    job = terminal.job()
    terminal.type("echo =$(ps -o sid= -p $$)=$$=; exec </dev/tty && exit 7\n")
    session, shell = terminal.until(r"= *(\d+)=(\d+)=\r\n").groups()
    assert session == shell
    terminal.wait()
    assert engine.done(job)[0]["exit_status"] == 7


def test_ctrl_c_interrupts_what_runs_and_not_the_job(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal()
    job = terminal.job()
    terminal.type("echo pre''pared; sleep 1000; echo after=$?=\n")
    terminal.until("prepared\r\n")
    until(lambda: "sleep" in processes(engine.jobs(job)[0]["session"]), "sleep runs")
    terminal.type("\x03")
    terminal.until(r"\^C")
    terminal.type("echo still=$((6 * 7))=\n")
    # The end of input means something to the shell only while she waits for a line.
    terminal.until(r"still=42=[^$]*\$ ")
    terminal.type("\x04")
    terminal.wait()
    assert engine.done(job)[0]["exit_status"] == 0, "of the last command, which was not interrupted"


def processes(session: int) -> str:
    listed = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True).stdout
    # Who takes care of orphans here may take his time to bury them.
    return "".join(line for line in listed.splitlines() if "<defunct>" not in line)


def test_the_job_learns_of_a_new_size(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal()
    terminal.job()
    terminal.type("trap 'stty size' WINCH; echo pre''pared\n")
    terminal.until("prepared\r\n")
    terminal.resize(50, 132)
    # bash runs the trap when the next command is done.
    terminal.type("sleep 0.2\n")
    terminal.until("50 132\r\n")
    terminal.type("exit\n")
    assert terminal.wait() == 0


def test_the_users_own_control_characters_hold_in_the_job(engine: Engine, at_terminal: Any) -> None:
    script = engine.work / "show"
    script.write_text("#!/bin/sh\nstty -a\n")
    script.chmod(0o755)
    os.chown(script, USER.pw_uid, -1)
    command = ["/bin/sh", "-c", 'stty erase "^H"; exec "$@"', "sh", *engine.command("qsub", "-I", "-x", *BASICS)]
    terminal = Terminal([*command, "-d", str(engine.work), str(script)], cwd=engine.work)
    try:
        terminal.until(r"erase = \^H;")
        assert terminal.wait() == 0
    finally:
        terminal.close()


def test_much_goes_both_ways_whole(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal()
    job = terminal.job()
    terminal.type("stty -echo; seq 1 60000 | sed 's/^/n/'; echo e''nd\n")
    seen = terminal.until(r"(?s)n1\r\n.*\r\nend\r\n")[0]
    assert seen.splitlines()[:-1] == [f"n{number}" for number in range(1, 60001)]
    terminal.type("exit\n")
    terminal.wait()
    assert engine.done(job)[0]["exit_status"] == 0


def test_the_prologue_has_the_users_terminal_and_the_epilogue_has_none(engine: Engine, at_terminal: Any) -> None:
    engine.hook("prologue", "print('booting')")
    engine.hook("epilogue", "print('never seen')")
    terminal = at_terminal()
    job = terminal.job()
    terminal.until(f"qsub: job {job} ready\r\n\r\nbooting\r\n")
    terminal.type("exit 3\n")
    terminal.wait()
    assert "never seen" not in terminal.text
    engine.done(job)
    (before,), (after,) = engine.seen("prologue"), engine.seen("epilogue")
    assert (before["tty"], after["tty"]) == ([False, True, True], [False, False, False])
    assert (before["there"], after["argv"][10]) == (True, "3")


def test_keys_typed_while_the_prologue_runs_reach_the_shell(engine: Engine, at_terminal: Any) -> None:
    engine.hook("prologue", "import time\nprint('booting', flush=True)\n"
                f"while not os.path.exists('{engine.work}/go'):\n    time.sleep(0.05)")
    terminal = at_terminal()
    terminal.until("booting\r\n")
    terminal.type("echo typed=$((40 + 2))=; exit\n")
    (engine.work / "go").touch()
    terminal.until("typed=42=")
    assert terminal.wait() == 0


@pytest.mark.parametrize("status", [1, 3])
def test_a_failing_prologue_ends_an_interactive_job(engine: Engine, at_terminal: Any, status: int) -> None:
    engine.hook("prologue", f"print('no guest')\nsys.exit({status})")
    terminal = at_terminal()
    job = terminal.job()
    terminal.until("no guest\r\n")
    terminal.until(f"qsub: job {job} completed\r\n")
    assert terminal.wait() == 0
    assert engine.done(job)[0]["exit_status"] == -2
    assert len(engine.seen("prologue")) == 1, "it is never started anew"


def test_qdel_from_elsewhere_ends_an_interactive_job(engine: Engine, at_terminal: Any) -> None:
    engine.hook("epilogue.precancel")
    terminal = at_terminal()
    job = terminal.job()
    terminal.type("echo pre''pared\n")
    terminal.until("prepared\r\n")
    assert engine.run("qdel", job).returncode == 0
    terminal.until(f"qsub: job {job} completed\r\n")
    assert terminal.wait() == 0
    assert engine.done(job)[0]["comment"] == "deleted"
    assert len(engine.seen("epilogue.precancel")) == 1


def test_a_job_deleted_while_it_waits_lets_qsub_go(engine: Engine, at_terminal: Any) -> None:
    engine.submit("-l", "nodes=1:ppn=4", script="#!/bin/sh\nsleep 1000\n")
    terminal = at_terminal()
    job = terminal.job()
    assert engine.run("qdel", job).returncode == 0
    terminal.until(f"qsub: job {job} apparently deleted")
    assert terminal.wait() == 1
    engine.run("qdel", "1")


def test_ctrl_c_at_a_waiting_qsub_asks_before_it_deletes(engine: Engine, at_terminal: Any) -> None:
    engine.submit("-l", "nodes=1:ppn=4", script="#!/bin/sh\nsleep 1000\n")
    terminal = at_terminal()
    job = terminal.job()
    terminal.type("\x03")
    terminal.until(r"Do you wish to terminate the job and exit \(y\|\[n\]\)\? ")
    terminal.type("n\n")
    terminal.until("n\r\n")
    # Another Ctrl-C would take the answer out of the line before it is read.
    until(terminal.was_read, "qsub has read the answer")
    assert engine.jobs(job)[0]["state"] == "Q"
    terminal.type("\x03")
    terminal.until(r"\(y\|\[n\]\)\? ")
    terminal.type("y\n")
    terminal.until(f"Job {job} is being deleted")
    assert terminal.wait() == 0
    engine.done(job)
    engine.run("qdel", "1")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_job_whose_qsub_is_gone_gets_a_hangup(engine: Engine, at_terminal: Any, number: int) -> None:
    engine.hook("epilogue")
    terminal = at_terminal()
    job = terminal.job()
    waiting = a_script(engine, "trap 'touch hup; exit 9' HUP; echo prepared; while :; do sleep 0.1; done\n")
    terminal.type(f"exec sh {waiting}\n")
    terminal.until("prepared\r\n")
    terminal.qsub.send_signal(number)
    (ended,) = engine.done(job)
    assert (engine.work / "hup").exists()
    assert (ended["exit_status"], engine.seen("epilogue")[0]["argv"][10]) == (9, "9")
    if number != signal.SIGKILL:
        assert not list(engine.temporary.iterdir())
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_what_ignores_the_hangup_is_killed(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal()
    job = terminal.job()
    terminal.type("trap '' HUP TERM; nohup sleep 1000 & trap '' HUP; echo pre''pared; while :; do sleep 1; done\n")
    terminal.until("prepared\r\n")
    terminal.qsub.kill()
    (ended,) = engine.done(job)
    assert ended["exit_status"] == 256 + signal.SIGKILL
    assert processes(ended["session"]) == ""


def test_a_tilde_and_a_dot_end_qsub(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal()
    job = terminal.job()
    terminal.type("echo a~.b pre''pared\n")
    terminal.until("a~.b prepared\r\n")
    terminal.type("~.")
    assert terminal.wait() == 0
    engine.done(job)


def test_a_qsub_that_died_in_the_queue_is_not_waited_for(engine: Engine, at_terminal: Any) -> None:
    blocking = engine.submit("-l", "nodes=1:ppn=4", script="#!/bin/sh\nsleep 1000\n")
    terminal = at_terminal()
    job = terminal.job()
    terminal.qsub.kill()
    terminal.qsub.wait()
    engine.run("qdel", blocking)
    (ended,) = engine.done(job)
    assert (ended["exit_status"], ended["comment"]) == (-1, "qsub does not wait for the job any more")


def a_script(engine: Engine, text: str) -> str:
    path = engine.work / "script"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_of_a_script_only_the_directives_count(engine: Engine, at_terminal: Any) -> None:
    terminal = at_terminal(a_script(engine, "#!/bin/sh\n#PBS -N mine -v SHOWN=yes\necho ra''n\n"))
    job = terminal.job()
    terminal.type("echo =$PBS_JOBNAME=$SHOWN=\n")
    terminal.until("=mine=yes=\r\n")
    terminal.type("exit\n")
    terminal.until("completed")
    assert "ran" not in terminal.text
    engine.done(job)


def test_with_x_the_script_is_the_job(engine: Engine, at_terminal: Any) -> None:
    script = a_script(engine, '#!/bin/sh\ntty; echo "=$1=$2="; read answer; echo "got $answer"; exit 6\n')
    terminal = at_terminal("-x", "-F", "'a b' c", script)
    job = terminal.job()
    terminal.until(r"/dev/pts/\d+\r\n=a b=c=\r\n")
    terminal.type("hello\n")
    terminal.until("got hello\r\n")
    terminal.until(f"qsub: job {job} completed")
    assert (terminal.wait(), engine.done(job)[0]["exit_status"]) == (0, 6)


def test_with_x_no_terminal_is_needed(engine: Engine) -> None:
    script = a_script(engine, "#!/bin/sh\nstty size\ncat\nexit 4\n")
    done = engine.run("qsub", "-I", "-x", *BASICS, "-d", ".", script, stdin="one\ntwo")
    assert done.returncode == 0
    assert "ready\n\n" in done.stdout and "20 80\n" in done.stdout and done.stdout.count("one\ntwo") == 2
    assert engine.done("1")[0]["exit_status"] == 4


def test_without_x_a_terminal_is_needed(engine: Engine) -> None:
    done = engine.run("qsub", "-I")
    assert (done.returncode, "must be a terminal" in done.stderr) == (1, True)
    assert engine.run("qstat").stdout == ""


def test_x_needs_a_script_and_an_interactive_job(engine: Engine) -> None:
    assert engine.run("qsub", "-I", "-x").returncode == 2
    assert engine.done(engine.submit("-x"))[0]["exit_status"] == 0


def test_the_engine_goes_nowhere_that_the_user_could_not(engine: Engine) -> None:
    forbidden = engine.root / "secret"
    forbidden.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(forbidden / "socket"))
        (forbidden / "socket").chmod(0o777)
        listener.listen()
        other.bind(str(engine.root / "roots"))
        (engine.root / "roots").chmod(0o777)
        other.listen()
        for path in (forbidden / "socket", engine.root / "roots", engine.root / "nothing"):
            (ended,) = engine.done(submit_by_hand(engine, str(path)))
            assert ended["exit_status"] == -1
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        peer, _ = other.accept()
        with peer:
            peer.settimeout(PATIENCE)
            assert peer.recv(1) == b"", "root's own socket is told nothing"


ORDER = {
    "do": "submit", "script": "", "name": "x", "directory": "/", "resources": {}, "variables": {}, "queue": "batch",
    "account": "", "shell": "/bin/sh", "arguments": "", "work_directory": "/", "join": "n", "output": "", "error": "",
    "interactive": True,
}


def submit_by_hand(engine: Engine, path: str) -> str:
    program = "import json,socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); " \
              "s.sendall(sys.argv[2].encode()+b'\\n'); print(json.loads(s.makefile().readline())['id'])"
    order = json.dumps(ORDER | {"terminal": path})
    done: Run = subprocess.run(
        [sys.executable, "-c", program, str(engine.home / "server.sock"), order],
        capture_output=True, text=True, check=True, timeout=PATIENCE, **IDENTITY,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("end", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $PPID", 128 + 9)])
def test_a_blocking_qsub_exits_as_the_job_does(engine: Engine, end: str, status: int) -> None:
    done = engine.run("qsub", *BASICS, "-d", ".", "-W", "block=true", stdin=f"#!/bin/sh\n{end}\n")
    assert (done.returncode, done.stdout) == (status, "1.lab\n")
    assert engine.jobs("1")[0]["state"] == "C"


def test_a_blocking_qsub_waits_for_every_element(engine: Engine) -> None:
    script = "#!/bin/sh\n#PBS -W block=true\nexit $PBS_ARRAYID\n"
    assert engine.run("qsub", *BASICS, "-d", ".", "-t", "0-3", stdin=script).returncode == 3


def test_ctrl_c_ends_a_blocking_qsub_and_leaves_the_job(engine: Engine) -> None:
    script = a_script(engine, "#!/bin/sh\nsleep 1000\n")
    waiting = subprocess.Popen(
        engine.command("qsub", *BASICS, "-d", ".", "-W", "block=true", script), stdout=subprocess.PIPE,
        cwd=engine.work, env=environment(), **IDENTITY,
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"1.lab\n"
    engine.running("1")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(PATIENCE) == 130
    waiting.stdout.close()
    assert engine.jobs("1")[0]["state"] == "R"
    engine.run("qdel", "1")


def test_a_held_job_waits_for_qrls(engine: Engine) -> None:
    job = engine.submit("-h")
    assert engine.done(engine.submit())[0]["id"] == "2.lab"
    assert "job_state = H" in engine.run("qstat", "-f", job).stdout
    assert engine.run("qrls", job).returncode == 0
    assert engine.done(job)[0]["exit_status"] == 0


def as_root(engine: Engine, *words: str) -> Run:
    return subprocess.run(engine.command(*words), capture_output=True, text=True, env=environment(), timeout=PATIENCE)


def test_a_job_that_is_rerun_starts_all_over_and_ends(engine: Engine) -> None:
    for kind in ("prologue", "epilogue", "epilogue.precancel"):
        engine.hook(kind)
    job = engine.submit("-N", "again", script="#!/bin/sh\n[ -e up ] && echo again && exit 3\ntouch up\nsleep 1000\n")
    until(lambda: (engine.work / "up").exists(), "it runs")
    assert as_root(engine, "qrerun", job).returncode == 0
    (ended,) = engine.done(job)
    assert (ended["exit_status"], engine.read(f"again.o{job.partition('.')[0]}")) == (3, "again\n")
    assert [each["argv"][10] for each in engine.seen("epilogue")] == ["271", "3"]
    assert (len(engine.seen("prologue")), engine.seen("epilogue.precancel")) == (2, [])


def test_qrerun_is_for_managers_and_for_jobs_that_run(engine: Engine) -> None:
    job = engine.submit("-h")
    assert as_root(engine, "qrerun", job).returncode == 170
    engine.run("qrls", job)
    engine.done(job)
    assert as_root(engine, "qrerun", job).returncode == 170
    running = engine.submit(script="#!/bin/sh\nsleep 1000\n")
    engine.running(running)
    assert engine.run("qrerun", running).returncode == 159
    engine.run("qdel", running)
    engine.done(running)


@pytest.mark.parametrize("words", [
    "-a 1200", "-D /", "-E", "-i x", "-J 1", "-K 3", "-k oe", "-L tasks=1", "-n", "-P root", "-T x", "-u root",
    "-W depend=afterok:1", "-W umask=022", "-W stagein=a@b:c", "-W interactive=true", "--wait", "--version", "-j x",
])
def test_what_the_engine_does_not_do_is_refused_by_name(engine: Engine, words: str) -> None:
    done = engine.run("qsub", *words.split())
    assert done.returncode == 2
    assert words.split()[0] in done.stderr
    assert engine.run("qstat").stdout == ""


def test_an_unknown_attribute_is_refused_as_torque_does(engine: Engine) -> None:
    assert engine.run("qsub", "-W", "foo=bar").returncode == 154


def test_what_makes_no_difference_here_is_overlooked(engine: Engine) -> None:
    job = engine.submit("-mabe", "-Mme@x", "-p5", "-rn", "-cnone", "-f", "-b3", "-kn", "-Wx=y")
    assert engine.done(job)[0]["exit_status"] == 0


@pytest.mark.parametrize(("words", "status"), [("-l vm=1", 189), ("-q other", 172), ("-l walltime=soon", 166),
                                               ("-l nodes=9", 190), ("-X", 2), ("-d /nowhere", 2)])
def test_refusals_have_torques_exit_status(engine: Engine, words: str, status: int) -> None:
    assert engine.run("qsub", *words.split()).returncode == status


def test_a_script_that_is_no_text_is_refused(engine: Engine) -> None:
    assert engine.run("qsub", stdin="#!/bin/sh\r\n\r\n").returncode == 1
    assert engine.run("qsub", "/nowhere/script").returncode == 1


def test_vms_options_mean_nothing_to_a_plain_qsub(engine: Engine) -> None:
    assert engine.run("qsub", "-vm", "vcpus=2", a_script(engine, "#!/bin/sh\n")).returncode == 2
    job = engine.submit("-vm", script='#!/bin/sh\n#VM vcpus=2\n#PBS -N v\necho "$m"\n', m="mine")
    engine.done(job)
    assert engine.read("v.o1") == "mine\n"


def test_x11_takes_the_display_along(engine: Engine) -> None:
    job = engine.submit("-X", "-N", "d", script='#!/bin/sh\necho "$DISPLAY $XAUTHORITY"\n', DISPLAY=":7",
                        XAUTHORITY="/x")
    engine.done(job)
    assert engine.read("d.o1") == ":7 /x\n"


def test_names_prefixes_and_silence(engine: Engine) -> None:
    script = "#!/bin/sh\n#QQ -N other\n#PBS -N plain\n"
    assert engine.done(engine.submit(script=script))[0]["name"] == "plain"
    assert engine.done(engine.submit("-C", "#QQ", script=script))[0]["name"] == "other"
    assert engine.done(engine.submit(script=script, PBS_DPREFIX="#QQ"))[0]["name"] == "other"
    assert engine.done(engine.submit("-C", "", script=script))[0]["name"] == "STDIN"
    assert engine.submit("-z", "-") == ""
    assert engine.done("5")[0]["name"] == "STDIN"
    assert engine.run("qsub", "-N", "a b").returncode == 2


def test_outputs_go_where_they_are_sent(engine: Engine) -> None:
    (engine.work / "sub").mkdir()
    os.chown(engine.work / "sub", USER.pw_uid, -1)
    script = "#!/bin/sh\necho out\necho err >&2\n"
    held = engine.submit("-h", "-N", "a", "-o", "sub", "-e", "$PBS_JOBID.err", script=script)
    assert engine.jobs(held)[0]["error_path"] == f"{engine.work}/$PBS_JOBID.err"
    engine.run("qrls", held)
    (ended,) = engine.done(held)
    assert (engine.read("sub/a.o1"), engine.read("1.lab.err")) == ("out\n", "err\n")
    assert ended["error_path"] == f"{engine.work}/1.lab.err"
    (joined,) = engine.done(engine.submit("-j", "oe", "-o", f"host:{engine.work}/both", script=script))
    assert (engine.read("both"), joined["error_path"]) == ("out\nerr\n", joined["output_path"])
    engine.done(engine.submit("-t", "1-2", "-o", "all", "-e", "sub", "-N", "b", script=script))
    assert sorted(path.name for path in engine.work.glob("all*")) == ["all-1", "all-2"]
    assert sorted(path.name for path in (engine.work / "sub").glob("b.*")) == ["b.e3-1", "b.e3-2"]


def test_a_job_works_where_it_is_told_to(engine: Engine) -> None:
    (engine.work / "sub").mkdir()
    script = '#!/bin/sh\npwd\necho "$PBS_O_WORKDIR"\n'
    engine.done(engine.submit("-d", "sub", "-N", "d", script=script))
    engine.done(engine.submit("-w", f"{engine.work}/sub", "-N", "w", script=script))
    engine.done(engine.run("qsub", *BASICS, "-N", "h", stdin=script).stdout.strip())
    sub, work = f"{engine.work}/sub", str(engine.work)
    assert engine.read("d.o1").splitlines() == [sub, work]
    assert engine.read("w.o2").splitlines() == [sub, sub]
    assert engine.read("h.o3").splitlines() == [USER.pw_dir, work]


def test_a_job_whose_shell_cannot_start_ends_and_says_why(engine: Engine) -> None:
    (ended,) = engine.done(engine.submit("-S", "/no/shell", "-N", "s"))
    assert ended["exit_status"] == -2
    assert "cannot run" in engine.read("s.e1")


@pytest.mark.parametrize(("request_", "hosts"), [
    ("1", "a"), ("2", "a+b"), ("2:ppn=2", "a+a+c+c"), ("1:ppn=3", "c+c+c"), ("c:ppn=2", "c+c"), ("b+a", "b+a"),
    ("c+1", "c+a"), ("1:ppn=2+1", "a+a+b"), ("3", "a+b+c"), ("a+2", "a+b+c"), ("b:big:ppn=1", "b"),
])
def test_every_chunk_gets_a_node_of_its_own(engine: Engine, request_: str, hosts: str) -> None:
    engine.has("# as Torque writes it\na np=2 gpus=1\nb\n\nc np=3\n")
    job = engine.submit("-l", f"nodes={request_}", "-N", "spread", script='#!/bin/sh\ncat "$PBS_NODEFILE"\n')
    assert "+".join(engine.done(job)[0]["hosts"]) == hosts
    assert engine.read("spread.o1").split() == hosts.split("+")
    assert f"exec_host = {hosts}\n" in engine.run("qstat", "-f", job).stdout


def test_nodes_that_there_are_not_are_refused(engine: Engine) -> None:
    engine.has("a np=2\nb\n")
    for words in ("3", "a+a", "x", "0", "1:ppn=3", "2:ppn=2", "b:ppn=2", "", "a+", "1:ppn=0", "9" * 5000):
        done = engine.run("qsub", *BASICS, "-l", f"nodes={words}", stdin="#!/bin/sh\n")
        assert (done.returncode, "cannot locate feasible nodes" in done.stderr) == (190, True), words[:20]


def test_a_job_goes_where_there_is_room_and_waits_when_there_is_none(engine: Engine) -> None:
    engine.has("a np=2\nb np=1\n")
    sleep = "#!/bin/sh\nsleep 1000\n"
    first, second, third = (engine.submit("-l", f"nodes={each}", script=sleep) for each in ("1", "2", "1"))
    for job in (first, second):
        engine.running(job)
    last = engine.submit()
    assert [engine.jobs(job)[0]["hosts"] for job in (first, second, third, last)] == [["a"], ["a", "b"], [], []]
    assert engine.run("qdel", second).returncode == 0
    engine.running(third)
    assert engine.done(last)[0]["hosts"] == ["b"]
    assert engine.run("qdel", first).returncode == engine.run("qdel", third).returncode == 0
    for job in (first, third):
        engine.done(job)
