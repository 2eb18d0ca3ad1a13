# SPDX-License-Identifier: Apache-2.0
"""Follow a job to its end: the phases it notes in its directory, and the batch system's own word."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vtorque import foreground
from vtorque.deadline import Deadline
from vtorque.errors import CommandError
from vtorque.job import JobId

_FOREVER_SECONDS = 366 * 86400.0
# Nobody tells a user's process that a job has ended, and each look is a process and a question to the server.
_LONGEST_PAUSE_SECONDS = 2.0
# Torque reports 256 plus the signal for a job whose shell a signal killed.
_SIGNAL_BASE = 256
_HISTORY = 35
GONE = (153, _HISTORY)
"""What qstat exits with when the server does not know the job (PBSE_UNKJOBID, 15001 & 255), or OpenPBS's only as
history (PBSE_HISTJOBID, 15139 & 255)."""

# Completed in Torque; finished, and finished as an element of an array, in OpenPBS.
_OVER = frozenset("CFX")
_FIELD = r"^[ \t]*{}[ \t]*=[ \t]*(.*)$"

Show = Callable[[str, float], None]
Ask = Callable[[str], tuple[int, bytes]]
"""qstat's exit status for a job, and what `qstat -f` prints of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job ended, as a shell would say it, and the batch system's comment on it."""

    exit_status: int
    comment: str


def until_done(
    job: JobId, phases: Path, *, ask: Ask, show: Show
) -> End:
    """Show every phase as it begins, until the batch system says that the job is completed."""
    start = time.time()
    state = ""
    with contextlib.closing(_Record(phases)) as record:
        for _ in Deadline(_FOREVER_SECONDS).ticks(
            doing=f"follow job {job}", first=0.2, longest=_LONGEST_PAUSE_SECONDS
        ):
            record.show_new(start, show)
            status, printed = ask(job)
            if status not in (0, *GONE):
                # The server cannot be reached, or is busy: the job is none the worse, and qstat has said why.
                continue
            text = printed.decode(errors="replace")
            now = _field("job_state", text)
            if now != state and now in ("Q", "H"):
                show("queued" if now == "Q" else "held", time.time() - start)
            state = now
            if not now or now in _OVER:
                break
        record.show_new(start, show)
    if status in GONE:
        return End(exit_status=1, comment=f"the batch system no longer knows job {job}: its exit status is unknown")
    show("done", time.time() - start)
    return End(exit_status=_status(_field("exit_status", text)), comment=_field("comment", text))


def qstat(program: str, env: Mapping[str, str]) -> Ask:
    """Questions for Torque's and OpenPBS's servers, and the local engine's."""

    def ask(job: str) -> tuple[int, bytes]:
        status, printed = foreground.call([program, "-f", job], env=env)
        # To Torque's qstat -x is something else.
        return foreground.call([program, "-x", "-f", job], env=env) if status == _HISTORY else (status, printed)

    return ask


def is_over(job: str, *, ask: Ask) -> bool:
    """Whether the batch system knows nothing of the job, or that it is completed; CommandError when it is not there."""
    status, printed = ask(job)
    if status == 0:
        return says_over(printed)
    if status in GONE:
        return True
    raise CommandError(f"qstat failed with exit status {status}: whether job {job} is over is not known")


def says_over(printed: bytes) -> bool:
    """Whether `qstat -f` shows a job that is completed, or an array of which all elements are."""
    states = _all("job_state", printed.decode(errors="replace"))
    return bool(states) and _OVER.issuperset(states)


class _Record:
    """What a job has noted; also what it noted last, when its directory went before anybody looked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: IO[str] | None = None
        self._seen = 0

    def show_new(self, start: float, show: Show) -> None:
        lines = self._lines()
        for line in lines[self._seen:]:
            entry = json.loads(line)
            # What each guest did is for a report; that the job is queued the batch system says itself.
            if "guests" not in entry and entry["phase"] != "queued":
                show(str(entry["phase"]), max(0.0, float(entry["time"]) - start))
        self._seen = max(self._seen, len(lines))

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    def _lines(self) -> list[str]:
        try:
            # Opened anew each time: what another node has written a file server shows for certain only then (nfs(5)).
            file = self._path.open()
        except OSError:
            if self._held is None:
                return []
        else:
            self.close()
            self._held = file
        try:
            self._held.seek(0)
            return self._held.read().splitlines()
        except OSError:
            # ESTALE: another node has removed it.
            return []


def _field(name: str, text: str) -> str:
    return next(iter(_all(name, text)), "")


def _all(name: str, text: str) -> list[str]:
    return [value.strip() for value in re.findall(_FIELD.format(re.escape(name)), text, re.MULTILINE | re.IGNORECASE)]


def _status(text: str) -> int:
    number = int(text) if re.fullmatch(r"-?[0-9]{1,4}", text) else 1
    if number >= _SIGNAL_BASE:
        return 128 + (number - _SIGNAL_BASE)
    return number if number >= 0 else 1
