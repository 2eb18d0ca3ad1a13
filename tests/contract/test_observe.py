# SPDX-License-Identifier: Apache-2.0
"""vmgr's looks at guests: over libvirt's test driver, as root and as a job's user, and through OpenSSH itself."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import ports, program
from tests.builders import KEY, a_job, a_plan, a_request, a_site, an_account
from tests.fakes.hypervisor import FakeHypervisor
from vtorque import accounting, markers, orders, published, request
from vtorque.accounting import Journal
from vtorque.backends.hypervisor.inspector import Inspector
from vtorque.backends.transport import keys
from vtorque.cli import vmgr_guests
from vtorque.deadline import Deadline
from vtorque.files import give
from vtorque.model import Group, Guest, Resource
from vtorque.state import JobState

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="builds root's record of a job"),
]

USER = "uucp"
XML = """\
<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>
<memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>
"""
RUNNER = """\
import argparse, sys
sys.path.insert(0, {root!r})
from vtorque.cli import vmgr_guests
from vtorque.errors import RequestError
parser = argparse.ArgumentParser(prog="vmgr")
vmgr_guests.add(parser.add_subparsers(required=True))
arguments = parser.parse_args()
try:
    sys.exit(arguments.act(arguments))
except RequestError as error:
    sys.exit(sys.stderr.write("vmgr: " + error.one_line() + chr(10)) and 2)
"""
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\r\nQUJDREVGR0hJSktMTU5PUA==\r\n-----END OPENSSH PRIVATE KEY-----\r\n"


class Scene:
    """A node with one job in one guest, which libvirt's test driver says is running."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root, self.home = root, home
        program.copy_to(root, ("vtorque", "templates"))
        for name in ("etc", "log", "disks"):
            (root / name).mkdir()
        (root / "log").chmod(0o750)
        (root / "vmgr.py").write_text(RUNNER.format(root=str(root)))
        self.user = pwd.getpwnam(USER)
        site = a_site(state_dir=str(root / "run"), disk_dir=str(root / "disks"), timeout=77)
        wanted = a_request()
        self.plan = a_plan(
            job=a_job(id="12.lab", user=USER, request=request.encode(wanted)), request=wanted, site=site,
            account=an_account(name=USER, uid=self.user.pw_uid, group=Group(name=USER, gid=self.user.pw_gid),
                               groups=(Group(name=USER, gid=self.user.pw_gid),), home=home),
        )
        (root / "node.xml").write_text(f"<node>{XML.format(name=self.plan.vms[0].name, uuid=uuid4())}</node>")
        (root / "etc/vtorque.yaml").write_text(
            f"STATE_DIR: {root}/run\nDISK_DIR: {root}/disks\nLOG_DIR: {root}/log\nTIMEOUT: 77\n"
            f"LIBVIRT_URI: test://{root}/node.xml\n"
        )
        self.state = JobState(root / "run", self.plan.job.key)
        self._record()
        self._directory(wanted.request_id)
        self.console = self.plan.vms[0].console
        self.console.parent.mkdir(parents=True)
        self.console.write_bytes(b"booting \x1b[31mred\r\n" + SECRET.encode() + b"login:\r\n")
        self.log("12.lab", "start: 0.52 s")
        self.log("13.lab", "another's")

    def _record(self) -> None:
        self.state.create()
        self.state.save_plan(orders.plain(self.plan))
        with self.state.taking(Resource(kind="domain", name=self.plan.vms[0].name), deadline=Deadline(5)):
            pass
        guest = Guest(vm=self.plan.vms[0], address="127.0.0.1", host_key=KEY)
        self.state.publish(
            "ready", markers.ready_marker(self.plan, [published.peer(guest)]),
            share=lambda path: give(path, uid=0, gid=self.user.pw_gid, mode=0o640),
        )

    def _directory(self, request_id: str) -> None:
        directory = self.home / ".vtorque" / request_id
        directory.mkdir(parents=True)
        directory.with_name("12.lab").symlink_to(request_id)
        (directory / "key").write_text(SECRET)
        (directory / "phases").write_text('{"time": 0, "phase": "planned"}\n{"time": 2, "phase": "ready"}\n')
        for path in (self.home / ".vtorque", directory, *directory.iterdir()):
            path.chmod(0o700)
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def log(self, job: str, message: str) -> None:
        entry = {"time": "2026-01-01T00:00:00.000Z", "level": "info", "job": job, "message": message,
                 "details": f"other=vt1.{'A' * 30} key=QUJD"}
        with (self.root / "log/vtorque.log").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def start(self, *words: str, user: bool = False) -> "subprocess.Popen[bytes]":
        who: dict[str, Any] = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if user else {}
        return subprocess.Popen(
            [sys.executable, "-I", "-B", self.root / "vmgr.py", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}, **who,
        )

    def vmgr(self, *words: str, user: bool = False) -> tuple[int, str, str]:
        child = self.start(*words, user=user)
        out, err = child.communicate(timeout=60)
        return child.returncode, out.decode(), err.decode()


@pytest.fixture
def scene() -> Iterator[Scene]:
    root, home = Path("/var/lib") / f"vtorque-observe-{os.getpid()}", Path(pwd.getpwnam(USER).pw_dir)
    if home.exists():
        pytest.skip(f"{home} is in use")
    root.mkdir(mode=0o755)
    home.mkdir(mode=0o755)
    try:
        yield Scene(root, home)
    finally:
        shutil.rmtree(root)
        shutil.rmtree(home)


@pytest.mark.parametrize("kind", ["fake", "libvirt"])
def test_usage_is_told_of_domains_that_exist(kind: str) -> None:
    hypervisor: FakeHypervisor | Inspector = FakeHypervisor() if kind == "fake" else Inspector("test:///default")
    assert hypervisor.usage("a", deadline=Deadline(30)) is None
    hypervisor.create(XML.format(name="a", uuid=uuid4()), deadline=Deadline(30))
    used = hypervisor.usage("a", deadline=Deadline(30))
    assert used is not None and (used.state, used.memory_mib) == ("running", 64) and used.cpu_seconds >= 0
    hypervisor.destroy("a", deadline=Deadline(30))


def test_root_sees_all_that_is_known_and_the_user_what_he_may_read(scene: Scene) -> None:
    status, out, _ = scene.vmgr("ps", "--json")
    (line,) = json.loads(out)
    assert status == 0 and line["cpu_seconds"] is not None
    assert (line["job"], line["user"], line["state"], line["memory_mib"]) == ("12.lab", USER, "running", 1024)
    status, out, err = scene.vmgr("ps", user=True)
    head, row = out.splitlines()
    assert status == 0 and head.startswith("JOB") and err == ""
    assert row.split()[:9] == ["12.lab", USER, "0", "n1", "ready", "127.0.0.1", "2", "1,2", "-"]
    (scene.home / ".vtorque/12.lab").unlink()
    assert scene.vmgr("ps", user=True)[1] == ""


def test_without_libvirt_root_still_sees_what_is_recorded(scene: Scene) -> None:
    path = scene.root / "etc/vtorque.yaml"
    path.write_text(path.read_text().replace("node.xml", "absent.xml"))
    status, out, err = scene.vmgr("ps")
    assert status == 0 and "ready" in out and "vmgr: cannot list guests: " in err


def test_what_is_not_there_is_status_2_with_a_hint(scene: Scene) -> None:
    for words, user, says in (
        (("logs", "99"), False, "no job 99 on this node (known here: 12.lab)"),
        (("ssh", "12.lab", "3"), True, "no guest of rank 3 on this node (ranks here: 0)"),
        (("ssh", "12", "--", "echo", "a b"), False, f"su - {USER} -c"),
        (("ssh", "12", "ls"), True, "a command comes after --"),
        (("ssh",), True, "usage: vmgr ssh JOB"),
        (("console", "12"), True, "root's to read"),
        (("report", "12", "-o", "/etc/passwd"), False, "cannot write /etc/passwd: File exists"),
    ):
        status, out, err = scene.vmgr(*words, user=user)
        assert (status, out) == (2, "") and says in err and err.count("\n") == 1, err


def test_logs_are_roots_log_or_the_users_phases(scene: Scene) -> None:
    out = scene.vmgr("logs", "12")[1]
    assert out.splitlines()[0] == "2026-01-01T00:00:00.000Z info    start              - 0.52 s"
    assert "another's" not in out
    assert scene.vmgr("logs", "12", user=True) == (0, "1970-01-01T00:00:00Z planned\n1970-01-01T00:00:02Z ready\n", "")


def test_a_job_that_is_over_is_still_in_roots_log(scene: Scene) -> None:
    assert "another's" in scene.vmgr("logs", "13")[1]
    assert "another's" in scene.vmgr("report", "13.lab")[1]
    assert scene.vmgr("logs", "13", user=True)[0] == 2


def test_following_a_log_ends_when_the_job_is_gone(scene: Scene) -> None:
    child = scene.start("logs", "-f", "12")
    assert child.stdout is not None and b"0.52 s" in child.stdout.readline()
    scene.log("12.lab", "the last word")
    shutil.rmtree(scene.state.path)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 0 and b"the last word" in out


def test_the_console_is_printed_or_followed_until_the_job_is_gone_or_someone_interrupts(scene: Scene) -> None:
    assert scene.vmgr("console", "12", "--log")[1].encode() == scene.console.read_bytes()
    (scene.state.path / "ready").rename(scene.root / "ready")
    for end in ("gone", "interrupted"):
        child = scene.start(*(("console", "12") if end == "gone" else ("logs", "12", "--what", "console", "-f")))
        assert child.stdout is not None and child.stdout.readline().startswith(b"booting")
        with scene.console.open("ab") as file:
            file.write(f"{end}\n".encode())
        while child.stdout.readline() != f"{end}\n".encode():
            pass
        if end == "interrupted":
            child.send_signal(signal.SIGINT)
        else:
            (scene.state.path / "plan.json").rename(scene.root / "plan.json")
        assert child.communicate(timeout=30) == (b"", b"") and child.returncode == 0
        if end == "gone":
            (scene.root / "plan.json").rename(scene.state.path / "plan.json")


def test_on_a_terminal_the_console_sends_nothing_that_it_would_obey(scene: Scene) -> None:
    done = subprocess.run(
        ["/usr/bin/script", "-qec", f"{sys.executable} -I -B {scene.root}/vmgr.py console 12 --log", "/dev/null"],
        capture_output=True, check=True, stdin=subprocess.DEVNULL,
    )
    assert b"booting red\r\n" in done.stdout and b"\x1b" not in done.stdout


def test_a_console_that_is_a_link_is_not_followed(scene: Scene) -> None:
    scene.console.unlink()
    scene.console.symlink_to("/etc/shadow")
    status, out, _ = scene.vmgr("console", "12", "--log")
    assert status != 0 and out == ""


def test_a_report_holds_everything_but_secrets(scene: Scene) -> None:
    path = scene.root / "report.txt"
    assert scene.vmgr("report", "12", "-o", str(path)) == (0, "", "")
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    for part in ("12.lab", "running", '"host_key"', '"image"', '"did", "domain"', "1970-01-01T00:00:02Z ready",
                 "0.52 s", "login:", "TIMEOUT: 77", socket.gethostname()):
        assert part in text, part
    for secret in ("QUJD", scene.plan.job.request, "AAAAAAAAAA", "public_key", "another's", "\x1b", "\r"):
        assert secret not in text, secret
    status, mine, _ = scene.vmgr("report", "12", user=True)
    assert status == 0 and "1970-01-01T00:00:02Z ready" in mine and "not readable" in mine
    assert "QUJD" not in mine and "login:" not in mine


def test_a_report_tells_of_phases_even_when_all_else_is_gone(scene: Scene) -> None:
    journal = Journal(scene.root / "log/accounting", node="n1", begun=time.time() - 5)
    for job in (scene.plan.job, a_job(id="14.lab", user=USER)):
        journal.begin(job)
        journal.note("cloud-init", rank=0, word=accounting.GUEST)
    text = scene.vmgr("report", "12")[1]
    assert text.count(" begun") == 1 and "5." in text and "rank 0   the guest's word" in text
    status, over, _ = scene.vmgr("report", "14")
    assert status == 0 and "job 14.lab" in over and over.count(" begun") == 1
    assert "begun" not in scene.vmgr("report", "12", user=True)[1]
    assert scene.vmgr("report", "14", user=True)[0] == 2


def test_a_user_sees_the_seconds_of_each_phase_in_order_of_time(scene: Scene) -> None:
    phases = scene.home / ".vtorque" / scene.plan.request.request_id / "phases"
    with phases.open("a") as file:
        file.write('{"time": 1, "phase": "cloud-init", "seconds": 0.5, "word": "guest", "guests": 2}\n')
    parts = scene.vmgr("report", "12", user=True)[1].partition("--- phases")[2].splitlines()[1:4]
    assert parts == [
        "1970-01-01T00:00:00Z planned", "1970-01-01T00:00:01Z cloud-init after 0.500 s (the guest's word)",
        "1970-01-01T00:00:02Z ready",
    ]


def test_an_element_of_an_array_has_phases_of_its_own(scene: Scene) -> None:
    directory = scene.home / ".vtorque" / scene.plan.request.request_id
    (directory / "phases").rename(directory / "phases.12.lab")
    assert "Z planned\n" in scene.vmgr("logs", "12", user=True)[1]


def test_phases_are_read_as_the_user_who_cannot_lead_root_elsewhere(scene: Scene) -> None:
    phases = scene.home / ".vtorque" / scene.plan.request.request_id / "phases"
    secret = scene.root / "secret"
    secret.write_text('{"time": 0, "phase": "stolen"}\n')
    secret.chmod(0o600)
    phases.unlink()
    phases.symlink_to(secret)
    text = scene.vmgr("report", "12")[1]
    assert "stolen" not in text and "Permission denied" in text


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[int, dict[str, str], Path]]:
    """OpenSSH's daemon on loopback: its port, what a marker would say of it, and the key it lets in."""
    port = ports.free()
    host, user = keys.make(), keys.make()
    for name, text in (("host", host.private), ("key", user.private), ("authorized", user.public + "\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", tmp_path / "config"], stderr=subprocess.DEVNULL)
    for _ in Deadline(10).ticks(doing="start sshd"):
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield port, {"address": "127.0.0.1", "host_key": host.public}, tmp_path / "key"
    process.terminate()
    process.wait()


def known_hosts() -> set[Path]:
    return set(Path("/tmp").glob("vmgr-ssh-*"))


def enter(daemon: tuple[int, dict[str, str], Path], *command: str, **changes: str) -> int:
    port, guest, key = daemon
    before = known_hosts()
    status = vmgr_guests.enter({**guest, **changes}, user="root", key=key, command=command, seconds=5, port=port)
    assert known_hosts() <= before
    return status


def test_a_command_in_the_guest_its_output_and_its_status(
    daemon: tuple[int, dict[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert enter(daemon, "echo", "out;", "echo err >&2; exit 7") == 7
    assert capfd.readouterr() == ("out\n", "err\n")


def test_another_machine_at_the_address_gets_no_login(
    daemon: tuple[int, dict[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert enter(daemon, "echo", "in", host_key=KEY) == 255
    out, err = capfd.readouterr()
    assert out == "" and "Host key verification failed" in err


def test_what_ends_vmgr_ends_ssh_and_leaves_no_known_hosts(daemon: tuple[int, dict[str, str], Path]) -> None:
    before = known_hosts()
    pid = os.fork()
    if pid == 0:
        status = 99
        with contextlib.suppress(BaseException):
            status = enter(daemon, "sleep", "60")
        os._exit(status)
    for _ in Deadline(10).ticks(doing="start ssh"):
        if known_hosts() - before:
            break
    time.sleep(1)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (255, 128 + signal.SIGTERM)
    assert known_hosts() == before


def test_nothing_of_the_plan_depends_on_the_marker(scene: Scene) -> None:
    """A job that starts has a console and no login yet."""
    (scene.state.path / "ready").unlink()
    assert scene.vmgr("console", "12", "--log")[0] == 0
    assert "starting" in scene.vmgr("ps")[1]
    assert "no guests on this node" in scene.vmgr("ssh", "12", user=True)[2]
    assert scene.vmgr("ps", user=True)[1] == ""


def test_a_front_end_has_no_guests_and_no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    assert vmgr_guests._jobs(a_site(state_dir=str(tmp_path))) == []
