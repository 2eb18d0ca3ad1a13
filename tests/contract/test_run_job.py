# SPDX-License-Identifier: Apache-2.0
"""`run-job`, the guest's half of a job, under every shell that a guest may have as /bin/sh."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtorque import run

pytestmark = pytest.mark.runs

RUN_JOB = Path(__file__).resolve().parents[2] / "templates-vm/run-job.sh"
SHELLS = {"dash": ["/bin/dash"], "bash": ["/bin/bash", "--posix"], "busybox": ["/bin/busybox", "ash"]}


class Job:
    """One run of run-job."""

    def __init__(self, shell: list[str], text: bytes) -> None:
        self.process = subprocess.Popen(
            [*shell, str(RUN_JOB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": "/"},
        )
        self.tell(text)

    def tell(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> tuple[int, bytes, bytes]:
        assert self.process.stdout is not None and self.process.stderr is not None
        out, err = self.process.stdout.read(), self.process.stderr.read()
        status = self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()
        return status, out, err


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    yield SHELLS[request.param]


def script(directory: Path, body: str) -> str:
    path = directory / "job script"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def text(command: list[str], directory: str = "/", **environment: str) -> bytes:
    return run.order(environment=environment, directory=directory, shell="/bin/bash", command=command, files={})


def test_status_streams_directory_and_arguments(shell: list[str], tmp_path: Path) -> None:
    path = script(tmp_path, 'pwd; echo "$1|$2"; echo err >&2; exit 7')
    status, out, err = Job(shell, text([path, "it's", "a  b"], str(tmp_path))).end()
    assert (status, out, err) == (7, f"{tmp_path}\nit's|a  b\n".encode(), b"err\n")


def test_every_byte_of_the_environment_arrives(shell: list[str], tmp_path: Path) -> None:
    value = "x y'\"\\\n$(touch /nonexistent/x)`:`\t\udce9 ü"
    path = script(tmp_path, 'printf %s "$VALUE"; env | grep -c VTORQUE_')
    _, out, _ = Job(shell, text([path], VALUE=value)).end()
    assert out == os.fsencode(value) + b"0\n"


def test_the_script_has_no_input_and_roots_umask(shell: list[str], tmp_path: Path) -> None:
    status, out, _ = Job(shell, text([script(tmp_path, "cat; umask")])).end()
    assert (status, out) == (0, b"0077\n")


def test_a_directory_that_is_not_there_is_said(shell: list[str], tmp_path: Path) -> None:
    _, out, err = Job(shell, text([script(tmp_path, "pwd")], "/no/such")).end()
    assert out == b"/\n"
    assert err == b"vtorque: /no/such does not exist in the guest, the job starts in /\n"


@pytest.mark.parametrize("name", ["SEGV", "KILL", "TERM"])
def test_death_by_signal_is_what_a_login_shell_makes_of_it(shell: list[str], tmp_path: Path, name: str) -> None:
    path = script(tmp_path, f"kill -{name} $$")
    bare = subprocess.run(["/bin/bash", "-l"], input=f"'{path}'\n".encode(), capture_output=True, check=False)
    assert Job(shell, text([path])).end()[0] == bare.returncode


@pytest.mark.parametrize("name", ["USR1", "INT", "QUIT"])
def test_signals_reach_the_script(shell: list[str], tmp_path: Path, name: str) -> None:
    body = f"trap 'echo caught; exit 9' {name}; echo up; while :; do sleep 0.05; done"
    job = Job(shell, text([script(tmp_path, body)]))
    assert job.line() == b"up\n"
    job.tell(f"{name}\n".encode())
    status, out, _ = job.end()
    assert (status, out) == (9, b"caught\n")


def test_when_the_node_hangs_up_the_job_is_killed(shell: list[str], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    job = Job(shell, text([script(tmp_path, f"trap '' TERM HUP; echo $$ >{pid}; echo up; while :; do sleep 1; done")]))
    assert job.line() == b"up\n"
    job.hang_up()
    job.end()
    assert not alive(int(pid.read_text()))


@pytest.mark.parametrize("first", ["", "set -m; "], ids=["in-its-group", "in-a-group-of-its-own"])
def test_what_the_script_left_in_its_session_is_killed(shell: list[str], tmp_path: Path, first: str) -> None:
    pid = tmp_path / "pid"
    status, out, _ = Job(shell, text([script(tmp_path, f"{first}sleep 1000 & echo $! >{pid}; echo end")])).end()
    assert (status, out) == (0, b"end\n")
    assert not alive(int(pid.read_text()))


def test_without_bash_the_login_shell_is_one_all_the_same(tmp_path: Path) -> None:
    """A guest of busybox and little else."""
    for name in ("sh", "setsid", "head", "id"):
        (tmp_path / name).symlink_to("/bin/busybox")
    (tmp_path / ".profile").write_text("SAID=profile; export SAID\n")
    order = run.order(
        environment={"HOME": str(tmp_path)}, directory="/", shell="/bin/dash", files={},
        command=[script(tmp_path, 'echo "$SAID $1"; exit 7'), "a b"],
    )
    job = Job(["/usr/bin/env", f"PATH={tmp_path}", "/bin/busybox", "ash"], order)
    assert job.end() == (7, b"profile a b\n", b"")


def alive(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True
