# SPDX-License-Identifier: Apache-2.0
"""Jobs in real guests: what a script sees and says is what it would on bare metal."""

import itertools
import pwd
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab
from vtorque import guestnames, timings
from vtorque.lab import parts

pytestmark = pytest.mark.e2e

SSH = f"{22:04X}"
PROOF = "cat /sys/class/dmi/id/product_uuid\n"


def test_the_example_runs_in_a_debian_guest(the_lab: Lab, debian_image: str) -> None:
    example = str(parts.PROGRAM / "examples/hello.sh")
    done = the_lab.as_user("vsub", "--wait", "-vm", f"img={debian_image}", example)
    job = done.stdout.decode().strip()
    ended = the_lab.ended(job)
    assert done.returncode == ended.exit_status == 0, done.stderr
    text = ended.out.decode()
    assert f"DMI UUID {guestnames.guest_uuid(job, 0)}\n" in text
    for group in ("vtlab", *parts.GROUPS):
        assert f"({group})" in text
    assert f"{parts.ADDRESS}:/home/{parts.USER} /home/{parts.USER}" in " ".join(text.split())
    assert ended.err == b""
    written = the_lab.home / "hello-from-guest.txt"
    assert written.stat().st_uid == the_lab.uid
    phases = [line.split()[-1] for line in done.stderr.decode().splitlines()]
    assert phases[-6:] == ["planned", "started", "ready", "running", "ended", "done"]


def test_the_debian_guest_lets_nobody_else_in(the_lab: Lab, debian_image: str) -> None:
    ended = the_lab.run(
        "#!/bin/bash\nhostname\n/usr/sbin/sshd -V 2>/dev/null\ngrep -h . /etc/ssh/sshd_config.d/*\n"
        "grep -c '^root:[!*]' /etc/passwd /etc/shadow 2>/dev/null\n"
        "ls -l /etc/ssh/ssh_host_*_key\nid -u\nsu root -c id </dev/null\nwc -c </etc/machine-id\n",
        vm=f"img={debian_image}",
    )
    text = ended.out.decode()
    for line in ("PasswordAuthentication no", "PermitRootLogin no", f"AllowUsers {parts.USER}"):
        assert line in text
    assert "uid=0" not in text
    assert [line for line in text.splitlines() if line.startswith("-rw")] == [
        line for line in text.splitlines() if line.endswith("/etc/ssh/ssh_host_ed25519_key") and "root root" in line
    ]


def test_a_job_runs_over_the_connection_by_which_its_guest_was_proven(the_lab: Lab) -> None:
    """The guest sees whom it talks to, and here the kernel tells who has made that end: root's child, not the user."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(makers, over)
        try:
            ended = the_lab.run("#!/bin/sh\ncat /proc/net/tcp\n")
        finally:
            over.set()
    assert ended.exit_status == 0
    (port,) = {
        peer[-4:] for own, peer, state, _ in connections(ended.out.decode()) if (own[-4:], state) == (SSH, "01")
    }
    assert seen.result()[port] == {str(pwd.getpwnam("nobody").pw_uid)}


def makers(over: threading.Event) -> dict[str, set[str]]:
    """Our ports of connections to SSH, and the numeric users who have made each, until it is over."""
    found: dict[str, set[str]] = {}
    while not over.wait(0.05):
        for own, peer, state, uid in connections(Path("/proc/net/tcp").read_text()):
            if (peer[-4:], state) == (SSH, "01"):
                found.setdefault(own[-4:], set()).add(uid)
    return found


def connections(table: str) -> Iterator[tuple[str, str, str, str]]:
    """Our address, the other side's, the state and the owner, of proc_net_tcp(5)."""
    for line in table.splitlines()[1:]:
        _, own, peer, state, _, _, _, uid, *_ = line.split()
        yield own, peer, state, uid


def test_root_accounts_for_every_phase_of_a_job(the_lab: Lab) -> None:
    ended = the_lab.run("#!/bin/sh\nexit 3\n")
    accounts = timings.of_job(parts.ROOT / "log/accounting", ended.id.__eq__)
    phases = [entry["phase"] for entry in accounts]
    assert phases[:5] == ["begun", "image", "planned", "defined", "started"]
    assert phases[-3:] == ["ready", "ended", "torn-down"]
    assert {"first-packet", "announced", "ssh", "cloud-init"} <= set(phases[5:-3])
    assert {entry["phase"] for entry in accounts if entry.get("word") == "guest"} == {"announced", "cloud-init"}
    assert [entry["exit_status"] for entry in accounts if entry["phase"] == "ended"] == [3]
    assert all(before["time"] <= after["time"] for before, after in itertools.pairwise(accounts))


def test_status_streams_environment_and_directory_are_those_of_bare_metal(the_lab: Lab) -> None:
    script = (
        "#!/bin/bash\n" + PROOF +
        'printf "to out\\n"; printf "to err\\n" >&2\npwd\nprintf "%s|" "$MARK" "$OWN" "$PBS_JOBID" "$PBS_O_WORKDIR" '
        '"$PBS_NP" "$DISTRO"\nprintf "\\n"\ncat "$PBS_NODEFILE"\numask\nid -u\ncat\n'
        'head -c 300000 /dev/zero | tr "\\0" x\nhead -c 300000 /dev/zero | tr "\\0" y >&2\nexit 3\n'
    )
    ended = the_lab.run(script, "-v", "MARK,OWN=x y", "-l", "nodes=1:ppn=1")
    lines = ended.out.split(b"\n")
    assert ended.exit_status == 3
    assert lines[0].decode() == str(guestnames.guest_uuid(ended.id, 0))
    assert lines[1:3] == [b"to out", str(the_lab.home).encode()]
    marks = f"a'b \" c|x y|{ended.id}|{the_lab.home}|1|SLG|"
    assert lines[3].decode() == marks
    assert lines[5:7] == [b"0077", str(the_lab.uid).encode()]
    assert lines[7] == b"x" * 300000
    assert ended.err == b"to err\n" + b"y" * 300000


@pytest.mark.parametrize(("body", "status"), [("kill -SEGV $$", 139), ("kill -KILL $$", 137), ("exit 255", 255)])
def test_death_by_signal_and_high_statuses_are_exact(the_lab: Lab, body: str, status: int) -> None:
    assert the_lab.run(f"#!/bin/bash\n{body}\n").exit_status == status


def test_term_reaches_the_script_at_once_and_a_trap_runs(the_lab: Lab) -> None:
    job = the_lab.submit(the_lab.write("trap.sh", "#!/bin/bash\ntrap 'echo caught' TERM\ntouch up\nsleep 1000\n"))
    the_lab.appears("up")
    assert the_lab.as_user("qdel", job).returncode == 0
    ended = the_lab.ended(job)
    assert ended.out == b"caught\n"
    assert ended.exit_status == 271, "the node's own shell took the signal, as on bare metal"


def test_a_script_that_ignores_term_is_gone_after_the_kill_delay(the_lab: Lab) -> None:
    job = the_lab.submit(str(parts.PROGRAM / "examples/stubborn.sh"))
    the_lab.appears("stubborn-is-up")
    the_lab.as_user("qdel", job)
    ended = the_lab.ended(job)
    assert ended.exit_status == 271
    assert ended.out.startswith(b"up\n") and b"not yet" in ended.out


def test_a_script_that_fails_is_reported_as_it_failed(the_lab: Lab) -> None:
    ended = the_lab.ended(the_lab.submit(str(parts.PROGRAM / "examples/fails.sh")))
    assert (ended.exit_status, ended.out, ended.err) == (3, b"", b"about to fail\n")


def test_walltime_ends_the_script_in_the_guest(the_lab: Lab) -> None:
    ended = the_lab.run("#!/bin/bash\nsleep 1000\n", "-l", "walltime=10")
    assert ended.exit_status == -11
    assert b"walltime" in ended.err and b"exceeded limit 10" in ended.err


def test_two_guests_on_one_node(the_lab: Lab) -> None:
    ended = the_lab.run("#!/bin/bash\n" + PROOF + 'cat "$PBS_NODEFILE"\n', vm="img=tiny.qcow2,ram=192M,vms_per_node=2")
    lines = ended.out.decode().splitlines()
    assert lines[0] == str(guestnames.guest_uuid(ended.id, 0))
    assert [line.rpartition("-")[2] for line in lines[1:]] == ["1", "2"]


def test_a_job_without_a_request_is_an_ordinary_job(the_lab: Lab) -> None:
    name = the_lab.write("plain.sh", "#!/bin/bash\ncat /sys/class/dmi/id/product_name 2>/dev/null\nhostname\nexit 4\n")
    done = the_lab.as_user("vsub", "-l", "nodes=1", name)
    ended = the_lab.ended(done.stdout.decode().strip())
    assert ended.exit_status == 4
    assert ended.out.decode().strip().splitlines()[-1] == the_lab.as_user("hostname").stdout.decode().strip()
