# SPDX-License-Identifier: Apache-2.0
"""What root's accounting files tell: the phases of one job, and how long each took in the last jobs."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtorque import accounting, files
from vtorque.errors import StateError

Entry = Mapping[str, Any]

# Every entry begins like this, and no text inside of one can.
_FIRST = b'{"time": '
_NEEDED: Mapping[str, Any] = {"time": (int, float), "seconds": (int, float), "phase": str, "job": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A phase in the last starts: when it was reached, and how long it took; seconds, median and 95 %."""

    phase: str
    starts: int
    after_median: float
    after_95: float
    took_median: float
    took_95: float


def entries(data: bytes) -> Iterator[Entry]:
    """The whole lines of an accounting file; of one that was cut short what follows it is not lost."""
    for line in data.split(b"\n"):
        text = line[line.rfind(_FIRST):] if _FIRST in line else b""
        try:
            entry = json.loads(text)
            if entry["schema"] == accounting.SCHEMA and all(isinstance(entry[key], _NEEDED[key]) for key in _NEEDED):
                yield entry
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def days(directory: Path) -> Iterator[list[Entry]]:
    """The entries of each day, the newest day first. Raises StateError, PermissionError."""
    for path in accounting.day_files(directory):
        try:
            yield list(entries(_read(path)))
        except FileNotFoundError:
            continue


def of_job(directory: Path, wanted: Callable[[str], bool]) -> list[Entry]:
    """The entries of the jobs that are wanted, in order of time."""
    found = [entry for day in days(directory) for entry in day if wanted(entry["job"])]
    return sorted(found, key=lambda entry: entry["time"])


def last(each_day: Iterable[Sequence[Entry]], number: int) -> list[dict[str, float]]:
    """For each of the last starts when it reached each phase; of those that have begun since the first day."""
    starts: dict[tuple[str, float], list[Entry]] = {}
    for day in each_day:
        for entry in day:
            starts.setdefault((entry["job"], entry.get("start", 0)), []).append(entry)
        if sum(map(_is_whole, starts.values())) >= number:
            break
    whole = [key for key in sorted(starts, key=lambda key: key[1], reverse=True) if _is_whole(starts[key])]
    return [accounting.reached(starts[key]) for key in whole[:number]]


def timings(starts: Iterable[Mapping[str, float]]) -> list[Timing]:
    """Median and 95 % of each phase, in the order in which they are reached."""
    after: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {}
    for marks in starts:
        for phase, seconds in accounting.durations(marks).items():
            after.setdefault(phase, []).append(marks[phase])
            took.setdefault(phase, []).append(seconds)
    found = [
        Timing(
            phase=phase, starts=len(after[phase]), after_median=_median(after[phase]),
            after_95=percentile(after[phase], 95), took_median=_median(took[phase]),
            took_95=percentile(took[phase], 95),
        )
        for phase in after
    ]
    return sorted(found, key=lambda each: each.after_median)


def percentile(values: Sequence[float], percent: int) -> float:
    """The least of the values that so many per cent of them do not exceed."""
    return sorted(values)[max(0, math.ceil(percent * len(values) / 100) - 1)]


def table(found: Sequence[Timing]) -> str:
    """The timings to read, in seconds."""
    head = f"{'PHASE':<14}{'STARTS':>7}{'TOOK':>14}{'95 %':>14}{'REACHED':>14}{'95 %':>14}\n"
    return head + "".join(
        f"{each.phase:<14}{each.starts:>7}"
        + "".join(f"{seconds:>12.3f} s" for seconds in (
            each.took_median, each.took_95, each.after_median, each.after_95
        )) + "\n"
        for each in found
    )


def job_text(found: Iterable[Entry]) -> str:
    """The entries of a job: time, node, seconds since its prologue began, phase, guest, and what else there is."""
    lines = []
    for entry in found:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry["time"]))
        rank = f"rank {entry['rank']}" if "rank" in entry else "-"
        more = [f"{name}={entry[name]}" for name in ("image", "guests", "vcpus", "memory_mib", "class", "blame",
                                                     "exit_status") if name in entry]
        more += ["the guest's word"] if entry.get("word") == accounting.GUEST else []
        line = f"{stamp} {entry.get('node') or '-'} {entry['seconds']:10.3f} s  {entry['phase']:<13} {rank:<8}"
        lines.append("".join(each if each.isprintable() else "?" for each in " ".join([line, *more])).rstrip() + "\n")
    return "".join(lines)


def _read(path: Path) -> bytes:
    # To an array of bytes that somebody has packed there is no end.
    limit = accounting.DAY_BYTES
    if path.suffix != ".gz":
        return files.read(path, limit=limit)
    import gzip

    try:
        with gzip.open(path) as file:
            return file.read(limit)
    except (EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise StateError(f"cannot read {path}: {error}") from error


def _is_whole(start: Iterable[Entry]) -> bool:
    return any(entry["phase"] == "begun" for entry in start)


def _median(values: Sequence[float]) -> float:
    in_order, half = sorted(values), len(values) // 2
    return round((in_order[half] + in_order[~half]) / 2, 3)
