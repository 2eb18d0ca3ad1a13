# SPDX-License-Identifier: Apache-2.0
"""The local engine's mom in a scratch directory, and hooks that tell what they see."""

import contextlib
import json
import os
import pwd
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded
from vtorque.mom import hooks
from vtorque.mom.life import Life, Timing
from vtorque.mom.places import Place
from vtorque.mom.spool import Home, JobRecord

USER = pwd.getpwnam("games")
QUICK = Timing(kill_delay=0.3, walltime_grace=0.3)

# Appends what a hook sees of itself to a file, one JSON object a run.
SPY = """\
#!/usr/bin/python3
import json, os, signal, sys
fds = {{n: (os.readlink(f"/proc/self/fd/{{n}}") if os.path.exists(f"/proc/self/fd/{{n}}") else None) for n in range(3)}}
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
umask = os.umask(0)
seen = dict(kind="{kind}", argv=sys.argv, env=dict(os.environ), cwd=os.getcwd(), umask=umask, uid=os.getuid(),
            gid=os.getgid(), groups=os.getgroups(), sid=os.getsid(0), pid=os.getpid(), fds=fds,
            blocked=int(status["SigBlk"], 16))
with open("{log}", "a") as log:
    log.write(json.dumps(seen) + "\\n")
{body}
"""


def alarm_when(monkeypatch: pytest.MonkeyPatch, happened: Callable[[], object]) -> None:
    """A hook's alarm goes off as soon as something has happened, however slow the machine is."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (1000 if happened() else 0))
    monkeypatch.setattr(hooks, "time", clock)


def written(path: Path) -> bool:
    """Whether there is something in a file by now."""
    return path.exists() and path.stat().st_size > 0


def gone(pid: int) -> bool:
    """Whether a process that was killed has died, or does in a while."""
    with contextlib.suppress(DeadlineExceeded):
        for _ in Deadline(30).ticks(doing="see it die"):
            if not Path(f"/proc/{pid}/exe").exists():
                return True
    return False


class Mom:
    """An engine in a scratch directory, and a job in it."""

    def __init__(self, path: Path) -> None:
        path.chmod(0o755)
        # pytest's own directories, not those that they are in.
        for parent in path.parents[:-2]:
            parent.chmod(0o755)
        self.home = Home(path / "torque")
        self.home.prepare()
        self.log = path / "seen"
        self.log.touch()
        self.log.chmod(0o666)
        self.user_home = path / "home"
        self.user_home.mkdir()
        os.chown(self.user_home, USER.pw_uid, USER.pw_gid)

    def hook(self, kind: str, body: str = "", *, text: str = "", mode: int = 0o755) -> Path:
        path = self.home.mom_priv / kind
        path.write_text(text or SPY.format(kind=kind, log=self.log, body=body))
        path.chmod(mode)
        return path

    def job(self, script: str = "#!/bin/sh\nexit 0\n", **changes: Any) -> JobRecord:
        record = replace(
            JobRecord(
                id="12.srv", owner=USER.pw_name, group="games", uid=USER.pw_uid, gid=USER.pw_gid,
                groups=(USER.pw_gid, 4242), home=str(self.user_home), login_shell="/bin/bash", name="two",
                directory=str(self.user_home), hosts=("n1", "n1"), resources={"nodes": "1:ppn=2", "other": "x"},
                account="acct7", output_path=str(self.user_home / "two.o12"),
                error_path=str(self.user_home / "two.e12"),
            ),
            **changes,
        )
        path = self.home.script(record.id)
        path.write_text(script)
        path.chmod(0o700)
        os.chown(path, USER.pw_uid, USER.pw_gid)
        return self.home.save(record)

    def run(self, script: str = "#!/bin/sh\nexit 0\n", **changes: Any) -> JobRecord:
        return Life(self.home, self.job(script, **changes), timing=QUICK).run()

    def place(self, host: str) -> Place:
        """Hosts n2 and on: no namespaces, but a mom_priv for each."""
        path = self.home.mom_priv if host == "n1" else self.home.path / host
        (path / "jobs").mkdir(parents=True, exist_ok=True)
        return Place(path)

    def run_on(self, *hosts: str, script: str = "#!/bin/sh\nexit 0\n") -> Life:
        """The life of a job on several hosts, over."""
        job = self.job(script, hosts=hosts, resources={"nodes": str(len(hosts))})
        life = Life(self.home, job, timing=QUICK, place=self.place)
        life.run()
        return life

    def sister_hook(self, host: str, kind: str, body: str = "") -> None:
        path = self.place(host).mom_priv / kind
        path.write_text(SPY.format(kind=f"{kind} {host}", log=self.log, body=body))
        path.chmod(0o755)

    def seen(self, kind: str = "") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [each for each in found if kind in ("", each["kind"])]

    def output(self, letter: str = "o") -> str:
        path = self.user_home / f"two.{letter}12"
        return path.read_text() if path.exists() else ""
