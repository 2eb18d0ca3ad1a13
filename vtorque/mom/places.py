# SPDX-License-Identifier: Apache-2.0
"""The engine's hosts: where mom's files of each are, and how a process gets there."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtorque import files
from vtorque.errors import CommandError, StateError
from vtorque.job import JobId, job_key
from vtorque.proc import Identity

DEFAULT_ALARM_SECONDS = 300

_NSENTER = ("/usr/bin/nsenter", "--mount", "--net", "--uts")
_RECORD_LIMIT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What to start, where and as whom, for something to run on a host."""

    argv: Sequence[str]
    cwd: Path
    identity: Identity


class Place:
    """A host that is this one, but for the directory of mom's files."""

    def __init__(self, mom_priv: Path) -> None:
        self.mom_priv = mom_priv

    @property
    def inside(self) -> Path:
        """`mom_priv` as the host itself calls it."""
        return self.mom_priv

    @property
    def is_there(self) -> bool:
        """Whether anything can be started on it."""
        return True

    def start(self, what: Start) -> Start:
        """How to start that on the host, said here. Raises CommandError when the host is gone."""
        return what

    def script(self, job: str) -> Path:
        """The job's script on its mother superior; its absence tells a prologue that the job was deleted."""
        return self.mom_priv / "jobs" / f"{job_key(JobId(job))}.SC"

    def task(self, job: str) -> Path:
        """Mom's own record: there once the job runs, on a sister once she has joined it."""
        return self.mom_priv / "jobs" / f"{job_key(JobId(job))}.JB"

    def alarm_seconds(self) -> int:
        """`$prologalarm` of mom's own config file."""
        alarm = self.setting("prologalarm")
        return int(alarm) if alarm.isdecimal() else DEFAULT_ALARM_SECONDS

    def setting(self, name: str) -> str:
        """What mom's own config file says last of `$name`, or nothing."""
        said = ""
        with contextlib.suppress(FileNotFoundError):
            for line in (self.mom_priv / "config").read_text().splitlines():
                words = line.split()
                if len(words) == 2 and words[0] == f"${name}":
                    said = words[1]
        return said

    def turn(self, host: str) -> int | None:
        """A turn in the main loop of the host's mom, over when it is closed; nothing while it is another's.

        Mothers superior fork for their hooks, sisters do not (mom_comm.c:8799-8842).
        """
        handle = os.open(self.mom_priv / f"loop.{host}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle


class NodePlace(Place):
    """A host with namespaces of its own, which are those of a process that its record names."""

    def __init__(self, mom_priv: Path, *, record: Path, inside: Path) -> None:
        super().__init__(mom_priv)
        self._record = record
        self._inside = inside

    @property
    def inside(self) -> Path:
        return self._inside

    @property
    def is_there(self) -> bool:
        return self._keeper() is not None

    def keep(self, pid: int) -> None:
        """From now on this process's namespaces are the host's."""
        about = {"pid": pid, "net": network_of(pid)}
        files.replace(self._record, json.dumps(about).encode(), mode=0o600)

    def start(self, what: Start) -> Start:
        pid = self._keeper()
        if pid is None:
            raise CommandError(f"{self._record.parent.name} is down")
        enter = [*_NSENTER, f"--target={pid}", f"--wdns={what.cwd}", "--"]
        if what.identity.uid == 0:
            return Start(argv=[*enter, *what.argv], cwd=Path("/"), identity=what.identity)
        # Only root enters, so the ids are dropped behind the door.
        user, groups = what.identity, ",".join(map(str, what.identity.groups))
        become = ["/usr/bin/setpriv", f"--reuid={user.uid}", f"--regid={user.gid}"]
        become.append(f"--groups={groups}" if groups else "--clear-groups")
        root = Identity(uid=0, gid=0, groups=(0,))
        return Start(argv=[*enter, *become, *what.argv], cwd=Path("/"), identity=root)

    def _keeper(self) -> int | None:
        """Its process, unless that is gone: its number may be another's by now, its network cannot."""
        try:
            about = json.loads(files.read(self._record, limit=_RECORD_LIMIT))
        except (OSError, StateError):
            return None
        return about["pid"] if network_of(about["pid"]) == about["net"] else None


Places = Callable[[str], Place]
"""The place of each host, by name."""


def here(mom_priv: Path) -> Places:
    """Every host is this one."""
    return lambda host: Place(mom_priv)


def nodes(directory: Path, *, mom_priv: Path) -> Places:
    """Every host has a directory, with its own mom's files and a record of its namespaces."""
    return lambda host: NodePlace(
        directory / host / "mom_priv", record=directory / host / "place.json", inside=mom_priv
    )


def network_of(pid: int) -> str:
    """The name of a process's network namespace, or nothing when it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")  # noqa: PTH115
    return ""
