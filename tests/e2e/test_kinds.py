# SPDX-License-Identifier: Apache-2.0
"""Every kind of job that qsub knows, in real guests; and the commands that look at them."""

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Lab
from tests.e2e.typist import Typist
from vtorque import guestnames
from vtorque.lab import parts

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
PROOF = "cat /sys/class/dmi/id/product_uuid"
KINDS = ("file", "stdin", "arguments", "scripts", "block")


def test_batch_jobs_of_every_kind(the_lab: Lab) -> None:
    """Submitted one after the other without waiting, as users do; each proves where it ran."""
    body = f'{PROOF}\nprintf "%s|" "$PBS_JOBNAME" "$@"\n'
    the_lab.write("kind.sh", f"#!/bin/sh\n#VM {TINY}\n#PBS -l walltime=600\n{body}")
    the_lab.write("before.sh", "#!/bin/sh\necho before $VTORQUE_RANK $PBS_JOBID\n")
    the_lab.write("after.sh", "#!/bin/sh\necho after $VTORQUE_RANK\nexit 9\n")
    commands = {
        "file": "vsub kind.sh",
        "stdin": f"cat kind.sh | sed '/walltime/d' | vsub -vm {TINY} | cat",
        "arguments": "x=$(vsub -F \"a 'b c'\" -N named kind.sh); echo $x",
        "scripts": "vsub -vm vm_prologue=before.sh,vm_epilogue=after.sh,vms_per_node=2 kind.sh",
        "block": "vsub -W block=true kind.sh",
    }
    jobs = {}
    for kind in KINDS:
        done = the_lab.as_user("sh", "-c", commands[kind])
        assert done.returncode == 0, (kind, done.stderr)
        jobs[kind] = done.stdout.decode().strip()
    assert the_lab.state(jobs["block"])["state"] == "C", "qsub has waited"
    ended = {kind: the_lab.ended(job) for kind, job in jobs.items()}
    lines = {kind: each.out.decode().splitlines() for kind, each in ended.items()}
    for kind, job in jobs.items():
        assert str(guestnames.guest_uuid(job, 0)) in lines[kind], (kind, ended[kind])
        assert ended[kind].exit_status == 0
    assert lines["file"][-1] == "kind.sh|"
    assert lines["stdin"][-1] == "STDIN|" and next(the_lab.home.glob(f"STDIN.o{jobs['stdin'].split('.')[0]}"))
    assert lines["arguments"][-1] == "named|a|b c|"
    scripts = lines["scripts"]
    assert scripts[:2] == [f"before {rank} {jobs['scripts']}" for rank in (0, 1)]
    assert scripts[-1] == "after 0" or scripts[-1].endswith("after 0"), scripts
    assert b"vm_epilogue ended with status 9" in ended["scripts"].err


def test_a_failing_vm_prologue_is_the_end_of_the_job(the_lab: Lab) -> None:
    the_lab.write("before.sh", "#!/bin/sh\nexit 12\n")
    ended = the_lab.run("#!/bin/sh\necho never\n", vm=f"{TINY},vm_prologue=before.sh")
    assert (ended.exit_status, ended.out) == (12, b"")
    assert b"vm_prologue ended with status 12" in ended.err


def test_every_element_of_an_array_has_guests_of_its_own(the_lab: Lab) -> None:
    the_lab.write("array.sh", f"#!/bin/sh\n#VM {TINY}\n{PROOF}\necho $PBS_ARRAYID\nexit $PBS_ARRAYID\n")
    done = the_lab.as_user("vsub", "-t", "1-3", "array.sh")
    assert done.returncode == 0, done.stderr
    array = done.stdout.decode().strip()
    number, _, server = array.partition("[].")
    assert (the_lab.home / ".vtorque" / array).is_symlink()
    for index in (1, 2, 3):
        job = f"{number}[{index}].{server}"
        ended = the_lab.ended(job)
        out = next(the_lab.home.glob(f"array.sh*.o{number}-{index}")).read_text().split()
        assert out == [str(guestnames.guest_uuid(job, 0)), str(index)]
        assert ended.exit_status == index
    assert not list((the_lab.home / ".vtorque").iterdir()), "the last one has taken the job directory along"


def test_an_interactive_job_is_a_terminal_in_the_guest(the_lab: Lab) -> None:
    user = Typist(f"vsub -I -vm {TINY}", columns=101, rows=31)
    job = user.until(r"qsub: job (\S+) ready")[1]
    user.types("stty size; echo $TERM $PBS_ENVIRONMENT; cat /sys/class/dmi/id/product_uuid\r")
    user.until(r"31 101\s+vt220 PBS_INTERACTIVE")
    user.until(str(guestnames.guest_uuid(job, 0)))
    # A program in the foreground: before that Ctrl-C would be the shell's own.
    user.types("sh -c 'echo sleep''ing; exec sleep 1000'\r")
    user.until("sleeping\\s")
    user.types("\x03")
    user.until(r"[$] $")
    user.types("echo inter''rupted $?\r")
    user.until("interrupted 130")
    user.types("exit 7\r")
    user.until(f"qsub: job {re.escape(job)} completed")
    user.ends()
    assert the_lab.ended(job).exit_status == 7
    assert not list((the_lab.home / ".vtorque").iterdir())


def test_a_script_may_run_on_the_terminal(the_lab: Lab) -> None:
    name = the_lab.write("ask.sh", f"#!/bin/sh\n#VM {TINY}\nprintf 'name? '\nread name\necho hello $name; exit 4\n")
    user = Typist(f"vsub -I -x {name}", columns=80, rows=24)
    job = user.until(r"qsub: job (\S+) ready")[1]
    user.until(r"name\? ")
    user.types("ann\r")
    user.until("hello ann")
    user.ends()
    assert the_lab.ended(job).exit_status == 4


@pytest.fixture
def x_server() -> Iterator[int]:
    """Something that answers at the port of a display; its number."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1] - 6000

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"shown: " + connection.recv(99))

        threading.Thread(target=answer, daemon=True).start()
        yield number
        listener.shutdown(socket.SHUT_RDWR)


def test_windows_are_shown_on_the_users_display(the_lab: Lab, x_server: int) -> None:
    name = the_lab.write(
        "window.sh",
        "#!/bin/bash\nnumber=${DISPLAY#*:}\nexec 3<>/dev/tcp/127.0.0.1/$((6000 + ${number%.*}))\n"
        f"echo a window >&3\nhead -n 1 <&3\necho ${{DISPLAY%%:*}}\n{PROOF}\n",
    )
    done = the_lab.as_user("env", f"DISPLAY=127.0.0.1:{x_server}.0", "vsub", "-X", "-vm", TINY, name)
    ended = the_lab.ended(done.stdout.decode().strip())
    assert ended.out.decode().split("\n")[:2] == ["shown: a window", "localhost"], ended.err
    assert str(guestnames.guest_uuid(ended.id, 0)) in ended.out.decode()


def test_a_running_guest_can_be_looked_at(the_lab: Lab) -> None:
    job = the_lab.submit(the_lab.write("long.sh", "#!/bin/sh\ntouch up\nsleep 1000\n"))
    the_lab.appears("up")
    vmgr = str(parts.PROGRAM / "scripts/vmgr")
    for seen in (the_lab.as_user("vmgr", "ps", "--json"), subprocess.run([vmgr, "ps", "--json"], capture_output=True,
                                                                         check=False)):
        [guest] = json.loads(seen.stdout)
        assert (guest["job"], guest["rank"], guest["vcpus"]) == (job, 0, 1), seen.stderr
    assert guest["cpu_seconds"] > 0 and guest["state"] == "running"
    proof = the_lab.as_user("vmgr", "ssh", job.partition(".")[0], "--", f"{PROOF}; exit 6")
    assert (proof.returncode, proof.stdout.decode().strip()) == (6, str(guestnames.guest_uuid(job, 0))), proof.stderr
    logs = subprocess.run([vmgr, "logs", job], capture_output=True, check=False, text=True)
    assert job in logs.stdout or "start" in logs.stdout, logs.stderr
    console = subprocess.run([vmgr, "console", "--log", job], capture_output=True, check=False, text=True)
    assert "tiny guest is up" in console.stdout, console.stderr
    report = subprocess.run([vmgr, "report", job], capture_output=True, check=False, text=True).stdout
    assert job in report and "PRIVATE KEY" not in report
    assert the_lab.as_user("vmgr", "ssh", "999").returncode == 2
    the_lab.as_user("qdel", job)
    the_lab.ended(job)


def examples() -> list[str]:
    """The commands of the manual's table of keys."""
    rows = [line.split(" | ") for line in (ROOT / "doc/user.md").read_text().splitlines() if line.startswith("| `")]
    return [row[3].rstrip(" |").strip("`") for row in rows if len(row) == 4]


def test_the_manuals_examples_run(the_lab: Lab, debian_image: str, setting: object) -> None:
    assert callable(setting)
    setting(IMG_DEFAULT="tiny.qcow2")
    (the_lab.home / "data.img").write_bytes(b"")
    os.chown(the_lab.home / "data.img", the_lab.uid, -1)
    commands = examples()
    assert len(commands) >= 18
    jobs = []
    for command in commands:
        done = the_lab.as_user("sh", "-c", f"ln -sfn {parts.PROGRAM}/examples examples; {command}")
        assert done.returncode == 0, (command, done.stderr)
        if "--dry-run" not in command:
            jobs.append((command, done.stdout.decode().strip()))
    for command, job in jobs:
        ended = the_lab.ended(job)
        assert ended.exit_status == 0, (command, ended)
        assert f"DMI UUID {guestnames.guest_uuid(job, 0)}\n".encode() in ended.out, (command, ended)
