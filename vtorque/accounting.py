# SPDX-License-Identifier: Apache-2.0
"""Where the time of each job went on this node: root's own record, a line of JSON a phase, a file a day.

Like the batch system's own accounting it is named after the day, by local time. It holds what root has
seen and nothing that a user could write into it; what only a guest says is marked as its word.
"""

import contextlib
import errno
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from vtorque import files
from vtorque.errors import StateError, VtorqueError
from vtorque.job import Job

log = logging.getLogger(__name__)

SCHEMA = 1
GUEST = "guest"
"""Whose word a phase is, when it is not root's own."""

DAY_BYTES = 64 << 20
"""A day's file takes no more lines then; 100,000 starts fit in."""
TOTAL_BYTES = 1 << 30

# In no phase: they say how a start ended, not where its time went.
_EVENTS = frozenset(("failed", "deleted", "lost", "swept"))
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BEGUN = "begun"
_BEGUN_LIMIT = 1 << 16
_TEXT_LIMIT = 256
_DAY_SECONDS = 86400
_DIGITS = 8


class Start(NamedTuple):
    """The start of a job that phases belong to: when its prologue was called, in seconds of the epoch."""

    job: str
    user: str
    begun: float


class Journal:
    """The phases that one process of root's notes. Whatever happens to the record, the job goes on.

    Without a directory they are only kept in memory.
    """

    def __init__(
        self, directory: Path | None = None, *, node: str = "", begun: float | None = None, days: int = 1
    ) -> None:
        # One clock for all that a process notes: the wall clock may be stepped meanwhile.
        self._wall, self._clock = time.time(), time.monotonic()
        self.begun = self._wall if begun is None else begun
        self.notes: list[dict[str, object]] = []
        self._directory, self._node, self._days = directory, node, days
        self._start: Start | None = None
        self._since = 0.0
        self._is_well = True

    def begin(self, job: Job) -> None:
        """What follows belongs to a start of this job that began with this process."""
        self._start, self._since = Start(job.id, job.user, self.begun), 0.0
        self.note("begun")

    def keep(self, record: Path) -> None:
        """Leave in the job's record when its start began, for the processes that come after this one."""
        try:
            files.write_new(record / _BEGUN, json.dumps(self._start).encode(), mode=0o600)
        except OSError as error:
            log.warning("the time at which a start began is not kept: %s", error)

    def resume(self, job: Job, record: Path, *, marker: str = "") -> None:
        """What follows belongs to the start that is kept in `record`; the phase before it ended with the `marker`."""
        self._start = start(record, otherwise=Start(job.id, job.user, self.begun))
        since = self._now()
        with contextlib.suppress(OSError):
            since = (record / marker).lstat().st_mtime if marker else since
        self._since = since - self._start.begun

    def note(
        self, phase: str, *, rank: int | None = None, word: str = "", start: Start | None = None,
        facts: Mapping[str, str | int] | None = None,
    ) -> None:
        """A phase has been reached just now: by the guest of that rank, or by the job; by whose `word`, if not root's.

        `start` is that of another job than the one this process is about; `facts` are more to be kept.
        """
        start = start or self._start
        if start is None:
            return
        now = self._now()
        entry: dict[str, object] = {
            "time": round(now, 3), "schema": SCHEMA, "phase": phase, "seconds": round(max(0.0, now - start.begun), 3),
            "job": start.job[:_TEXT_LIMIT], "user": start.user[:_TEXT_LIMIT], "node": self._node,
            "start": round(start.begun, 3), **(facts or {}),
        }
        entry |= {name: value for name, value in (("rank", rank), ("word", word)) if value not in (None, "")}
        self.notes.append(entry)
        if self._directory is not None:
            try:
                self._append(self._directory, json.dumps(entry).encode() + b"\n", now)
            except OSError as error:
                if self._is_well:
                    log.warning("phases are not accounted for in %s: %s", self._directory, error.strerror)
                self._is_well = False

    def failed(self, error: VtorqueError, *, is_deleted: bool = False) -> None:
        """The start has failed, or its job was deleted. Only the log says why in words: they may be the guest's."""
        facts = {"class": type(error).__name__, "blame": error.blame.value}
        self.note("deleted" if is_deleted else "failed", facts=facts)

    def mark(self, phase: str) -> dict[str, object]:
        """A phase as the job's user is told of it."""
        now = self._now()
        begun = self.begun if self._start is None else self._start.begun
        return {"time": round(now, 3), "phase": phase, "seconds": round(max(0.0, now - begun), 3)}

    def taken(self) -> tuple[list[dict[str, object]], dict[str, float]]:
        """What was noted since this was asked last, and the seconds that each phase of it took."""
        notes, self.notes = self.notes, []
        marks = reached(notes)
        took = durations(marks, since=self._since)
        self._since = max((self._since, *marks.values()))
        return notes, took

    def _now(self) -> float:
        return self._wall + time.monotonic() - self._clock

    def _append(self, directory: Path, line: bytes, now: float) -> None:
        path = directory / time.strftime("%Y%m%d", time.localtime(now))
        try:
            handle = os.open(path, _FLAGS)
        except FileNotFoundError:
            files.directory(directory, mode=0o750)
            handle = os.open(path, _FLAGS | os.O_CREAT, 0o640)
            os.fchmod(handle, 0o640)
            forget(directory, days=self._days, now=now)
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode) or about.st_size + len(line) > DAY_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            # One write: lines of processes that write at the same time stay whole.
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)


def start(record: Path, *, otherwise: Start) -> Start:
    """The start that is kept in a job's record, or where there is none what is known `otherwise`."""
    with contextlib.suppress(OSError, StateError, ValueError, TypeError):
        job, user, begun = json.loads(files.read(record / _BEGUN, limit=_BEGUN_LIMIT))
        return Start(str(job), str(user), float(begun))
    return otherwise


def day_files(directory: Path) -> list[Path]:
    """The files of each day, the newest first: `YYYYMMDD`, and what logrotate made of it."""
    try:
        names = sorted((path.name for path in directory.iterdir()), reverse=True)
    except FileNotFoundError:
        return []
    # Eight digits, and nothing or an ending.
    return [directory / name for name in names if len(day := name.partition(".")[0]) == _DIGITS and day.isdecimal()]


def forget(directory: Path, *, days: int, now: float) -> None:
    """Remove the files that are older than so many days, and the oldest of what is more than TOTAL_BYTES."""
    oldest = time.strftime("%Y%m%d", time.localtime(now - days * _DAY_SECONDS))
    total = 0
    for path in day_files(directory):
        total += path.lstat().st_size
        if path.name[:_DIGITS] < oldest or total > TOTAL_BYTES:
            path.unlink(missing_ok=True)


def reached(notes: Iterable[Mapping[str, object]]) -> dict[str, float]:
    """When each phase was reached by the last guest, in seconds since the prologue's start; in order of time."""
    marks: dict[str, float] = {}
    for note in notes:
        phase, seconds = str(note["phase"]), note["seconds"]
        if phase not in _EVENTS and isinstance(seconds, int | float):
            marks[phase] = max(marks.get(phase, 0.0), float(seconds))
    return dict(sorted(marks.items(), key=lambda mark: mark[1]))


def of_guests(notes: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """For each phase of guests among the notes when the last one reached it, as the job's user is told of it."""
    last: dict[object, Mapping[str, object]] = {}
    ranks: dict[object, set[object]] = {}
    for note in notes:
        if "rank" in note:
            last[note["phase"]] = note
            ranks.setdefault(note["phase"], set()).add(note["rank"])
    names = ("time", "phase", "seconds", "word")
    return [{name: note[name] for name in names if name in note} | {"guests": len(ranks[phase])}
            for phase, note in last.items()]


def durations(marks: Mapping[str, float], *, since: float = 0.0) -> dict[str, float]:
    """How long each of the phases `reached` took: since the one before it, the first of all since `since`."""
    took = {}
    for phase, seconds in marks.items():
        took[phase] = max(0.0, seconds - since)
        since = max(since, seconds)
    return took
