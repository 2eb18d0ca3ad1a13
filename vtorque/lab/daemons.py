# SPDX-License-Identifier: Apache-2.0
"""Daemons that the lab starts itself, and knows again by pid, program and start time."""

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded

_STOP_SECONDS = 15.0
_START_TIME, _STATE = 19, 0


class Daemon:
    """One daemon that stays in the foreground of a session of its own; its output is a log file."""

    def __init__(self, name: str, argv: Sequence[str], *, directory: Path, umask: int = 0o022) -> None:
        self.name = name
        self._argv = tuple(argv)
        self._record = directory / f"{name}.json"
        self.log = directory / f"{name}.log"
        self._umask = umask

    def start(self) -> None:
        """Start it unless it runs."""
        if self.is_running():
            return
        with self.log.open("ab") as log:
            child = proc.spawn(
                self._argv, stdin=proc.DEVNULL, stdout=log.fileno(), stderr=log.fileno(),
                env=proc.CLEAN_ENV, cwd=Path("/"), umask=self._umask,
            )
        pid = proc.detach(child)
        about = {"pid": pid, "start": _fields(pid)[_START_TIME]}
        files.replace(self._record, json.dumps(about).encode(), mode=0o600)

    def is_running(self) -> bool:
        """Whether the process that was started lives. One that nobody reaped is dead."""
        return self.pid is not None

    def stop(self, *, number: signal.Signals = signal.SIGTERM, patience: float = _STOP_SECONDS) -> None:
        """Stop it, first politely, after `patience` seconds with its whole session."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)
            with contextlib.suppress(DeadlineExceeded):
                for _ in Deadline(patience).ticks(doing=f"stop {self.name}"):
                    if self.pid is None:
                        break
            proc.kill_session(pid)
        self._record.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)

    def require(self, ready: Path, *, deadline: Deadline) -> None:
        """Wait until `ready` exists; CommandError with the end of its log when it dies instead."""
        for _ in deadline.ticks(doing=f"start {self.name}"):
            if ready.exists():
                return
            if not self.is_running():
                last = (self.log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise CommandError(f"{self.name} did not start: {last}", hint=f"see {self.log}")

    @property
    def pid(self) -> int | None:
        """The process that was started, if it lives."""
        try:
            about = json.loads(files.read(self._record, limit=4096))
            fields = _fields(about["pid"])
        except (OSError, KeyError):
            return None
        return about["pid"] if fields[_START_TIME] == about["start"] and fields[_STATE] != "Z" else None


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; proc(5) counts that as the third."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
