# SPDX-License-Identifier: Apache-2.0
"""Job scripts run with and without a guest, in namespaces: `both_ways` does it.

Without one mom's shell runs the script. With one, `run-job` does behind a real sshd on loopback: all the
way through mom, wrapper and `jobrun`, or over a connection that many scripts share. The user, his home
and the files are the same on both sides, so nothing but how it is run can make a difference.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench import world
from tests.bench.world import JOB, REPOSITORY, UID, USER, World
from tests.builders import a_plan
from tests.contract import jobscripts
from tests.contract.jobscripts import ODD_NAME, Case
from vtorque import files, markers, published, run, submit
from vtorque.backends.batch import front
from vtorque.backends.transport.session import Session
from vtorque.backends.transport.ssh import Ssh
from vtorque.deadline import Deadline
from vtorque.model import Guest
from vtorque.mom import rules
from vtorque.mom.shell import Attendance, Shell, Timing, Wishes
from vtorque.mom.spool import Home, JobRecord
from vtorque.submit import JobFile

_NAMESPACES = ("/usr/bin/unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
WEAKER = {
    "run-job.sh": (
        ("set -u\n", "set -u\ntrap '' INT\n"),
        (" SHLVL SSH_CLIENT ", " "),
        ("2>&5", "2>&4"),
        ("exec -a", "exec"),
        ('exit "$status"\n', 'exit "$((status % 128))"\n'),
        ("printf '%s\\n' \"$command\"", "printf '%s\\n' \"$command\" x"),
    ),
    "sshd.conf": (("AcceptEnv SHLVL\n", ""),),
}
"""What makes a file of the guest's worse, in ways that are noticed."""

_ROOT = Path("/mnt/stage")
# asm/unistd_64.h
_RT_SIGACTION = 13
_SECONDS = 600.0
_SHOWN = 2000
_PAUSE_SECONDS = 0.003
_BASHRC = "echo this is read by an interactive shell only\n"
# A shell names the process that a signal ended.
_PROCESS = re.compile(rb"(line [0-9]+:) +[0-9]+ ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a script ended, and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes

    def naming(self, script: Path) -> "Ended":
        """The same wherever the script was."""
        streams = (each.replace(bytes(script), b"SCRIPT") for each in (self.stdout, self.stderr))
        stdout, stderr = (_PROCESS.sub(rb"\1 PROCESS ", each) for each in streams)
        return replace(self, stdout=stdout, stderr=stderr)

    def shown(self) -> list[Any]:
        """Small enough for a message, and different when anything is."""
        return [self.status, *(
            [len(each), each[:_SHOWN].decode(errors="backslashreplace"), hashlib.sha256(each).hexdigest()]
            for each in (self.stdout, self.stderr)
        )]


class Stage(World):
    """A node and its only guest, which is the node; `weakened` names a file that is worse than ours."""

    def __init__(self, root: Path, *, weakened: str = "") -> None:
        self._weakened = weakened
        super().__init__(root)
        self._ready()

    def _install(self) -> None:
        for name in ("vtorque", "scripts", "templates", "templates-vm"):
            (self.prefix / name).mkdir(parents=True)
            subprocess.run(["/usr/bin/mount", "--bind", REPOSITORY / name, self.prefix / name], check=True)
        if self._weakened:
            path = self.prefix / "templates-vm" / self._weakened
            worse = self.root / self._weakened
            worse.write_text(_worse(path.read_text(), WEAKER[self._weakened]))
            subprocess.run(["/usr/bin/mount", "--bind", worse, path], check=True)
        places = {"root": self.root, "prefix": self.prefix}
        world._write(self.prefix / "etc/vtorque.yaml", world._CONFIGURATION.format(**places))
        world._write(self.root / "guest", world._GUEST.format(**places), mode=0o755)

    def _spool(self) -> None:
        passwd = Path("/etc/passwd")
        passwd.write_text(passwd.read_text().replace(f":{self.home}:/bin/sh", f":{self.home}:/bin/bash"))
        world._write(self.home / ".bashrc", _BASHRC)
        # The farm's daemon is not configured by a seed.
        about = (self.prefix / "templates-vm/sshd.conf").read_text().splitlines()
        accepted = [line for line in about if line.startswith("AcceptEnv")]
        world._write(self.root / "sshd.d/guest.conf", "\n".join(accepted) + "\n")
        for name in ("unreadable", ODD_NAME):
            (self.home / name).mkdir()
        (self.home / "link").symlink_to(ODD_NAME)
        (self.home / "unreadable").chmod(0o311)
        for path in self.home.iterdir():
            os.chown(path, UID, UID)

    def _ready(self) -> None:
        """What a prologue leaves."""
        guest = Guest(vm=a_plan().vms[0], address="127.0.1.1", host_key=(self.root / "key.pub").read_text())
        peer = published.peer(guest)
        state = self.root / "run/jobs" / JOB
        state.mkdir(parents=True)
        (state / "ready").write_text(json.dumps(markers.ready_marker(a_plan(), [peer])))


class Ways:
    """The ways to run a case, each with its own spool."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._guests = run.proven(stage.root / "run/jobs" / JOB, JOB)
        self._key = (stage.root / "key").read_text()

    def connected(self) -> Session:
        """A connection to the guest."""
        return Ssh().open("127.0.1.1", user=USER, key=self._key, host_key=self._guests.peers[0].host_key,
                          deadline=Deadline(20))

    def bare(self, case: Case, spool: str) -> Ended:
        """As mom does."""
        home, job = self._job(case, spool)
        _put(home.script(JOB), case.script)
        return _mom(home, job).naming(home.script(JOB))

    def guest(self, case: Case, spool: str, session: Session) -> Ended:
        """As `jobrun` does, over a connection that is there; the script is where mom would have it."""
        home, job = self._job(case, spool)
        _put(home.script(JOB), case.script)
        environ = rules.job_environment(job, node_file=home.node_file(JOB))
        batch = front.Torque().job_environment(environ)
        order = run.order(
            environment=run.job_environment(environ, batch, case.variables, self._guests),
            directory=job.work_directory, shell=case.shell, files={},
            command=[str(home.script(JOB)), *_words(case.arguments)],
        )
        out, err = bytearray(), bytearray()
        status = run.script(session, order, stdout=out.extend, stderr=err.extend)
        return Ended(status=status, stdout=bytes(out), stderr=bytes(err)).naming(home.script(JOB))

    def whole(self, case: Case, spool: str) -> Ended:
        """All the way: mom, wrapper, `jobrun`, the guest."""
        home, job = self._job(case, spool)
        request = secrets.token_hex(8)
        directory = self._stage.home / ".vtorque" / request
        about = JobFile(script="job.sh", shell=case.shell, exported=tuple(case.variables), interactive=False, x11=False,
                        elements=1)
        world._write(directory / "job.json", about.text().decode())
        world._write(directory / "key", self._key, mode=0o600)
        (directory / "script").mkdir()
        for path in (directory.parent, directory, *directory.iterdir()):
            os.chown(path, UID, UID)
        script = directory / "script/job.sh"
        _put(script, case.script)
        template = (self._stage.prefix / "templates/job-wrapper.sh").read_bytes()
        command = [str(self._stage.prefix / "scripts/jobrun"), request]
        _put(home.script(JOB), submit.wrapper(template, directives=b"", command=command))
        return _mom(home, job).naming(script)

    def _job(self, case: Case, spool: str) -> tuple[Home, JobRecord]:
        home = Home(self._stage.root / "spool" / spool)
        home.prepare()
        user = str(self._stage.home)
        return home, JobRecord(
            id=JOB, owner=USER, group=USER, uid=UID, gid=UID, groups=(UID,), home=user, login_shell="/bin/bash",
            name="job", directory=user, hosts=("n1",), resources={"nodes": "1"}, variables=case.variables,
            shell=case.shell, arguments=os.fsdecode(case.arguments), work_directory=f"{user}/{case.directory}",
        )


def _worse(text: str, changes: Sequence[tuple[str, str]]) -> str:
    for before, after in changes:
        assert before in text, f"{before!r} is there no more"
        text = text.replace(before, after, 1)
    return text


def _words(arguments: bytes) -> list[str]:
    """What the shell that reads the script's path makes of them."""
    return shlex.split(os.fsdecode(arguments))


def _put(path: Path, text: bytes) -> None:
    files.write_new(path, text, mode=0o700)
    os.chown(path, UID, UID)


def _mom(home: Home, job: JobRecord) -> Ended:
    by = Attendance(pause=lambda: time.sleep(_PAUSE_SECONDS), precancel=lambda: None, started=lambda session: None)
    status = Shell(home, job, line=None, wishes=Wishes(), timing=Timing(), by=by).run()
    return Ended(status=status, stdout=home.output(JOB, "OU").read_bytes(), stderr=home.output(JOB, "ER").read_bytes())


def compared(stage: Stage, kinds: Mapping[str, Mapping[str, Case]]) -> Iterator[tuple[str, list[Any]]]:
    """Each case by name, and how it ended without a guest and with one."""
    ways = Ways(stage)
    with contextlib.closing(ways.connected()) as session, ThreadPoolExecutor(max_workers=1) as pool:
        for kind, cases in kinds.items():
            for number, (name, case) in enumerate(cases.items()):
                spool = f"{kind}-{number}"
                (stage.home / ".bash_profile").write_bytes(case.profile)
                bare = pool.submit(ways.bare, case, f"{spool}-bare")
                other = ways.whole(case, spool) if case.whole else ways.guest(case, spool, session)
                yield name, [bare.result().shown(), other.shown()]


def both_ways(out: Path, *options: str) -> dict[str, tuple[list[Any], list[Any]]]:
    """Run it, in namespaces that take with them whatever is left; what came out, by the case's name."""
    command = [*_NAMESPACES, sys.executable, "-m", "tests.contract.fidelity", str(out), *options]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=_SECONDS)
    found: dict[str, tuple[list[Any], list[Any]]] = json.loads(out.read_text())
    return found


def _default_signals() -> None:
    """Whoever started the tests may have had some ignored, which a child inherits: a shell's `&` INT and QUIT,
    make even 32 and 33, which the C library lets nobody have back. So the kernel is asked itself.
    """
    default = ctypes.create_string_buffer(32)
    for number in range(1, 65):
        ctypes.CDLL(None).syscall(_RT_SIGACTION, number, default, None, 8)


def _main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.contract.fidelity", allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--long", action="store_true", help="all cases, and as large as can be")
    parser.add_argument("--only", action="append", help="this kind; may be repeated")
    parser.add_argument("--weakened", choices=[*WEAKER], default="", help="the guest has a worse one of this")
    options = parser.parse_args(argv)
    _default_signals()
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt"], check=True)
    _ROOT.mkdir(mode=0o755)
    kinds = jobscripts.kinds(long=options.long)
    chosen = {name: kinds[name] for name in options.only or kinds}
    found = dict(compared(Stage(_ROOT, weakened=options.weakened), chosen))
    options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1:])
