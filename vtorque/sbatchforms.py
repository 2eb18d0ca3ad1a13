# SPDX-License-Identifier: Apache-2.0
"""Values of qsub's options in the words of sbatch: times, dependencies, variables, names of files.

The rules of the left side are in qsub(1) of Torque and OpenPBS, those of the
right side in sbatch(1) of Slurm 22.05.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from vtorque.errors import RequestError

_TIME = re.compile(r"(?:(?:(?:([0-9]+):)?([0-9]+):)?([0-9]+):)?([0-9]+)(?:\.[0-9]*)?", re.ASCII)
_DATE = re.compile(
    r"(?:(?:(?:([0-9]{2})?([0-9]{2}))?([0-9]{2}))?([0-9]{2}))?([0-9]{2})([0-9]{2})(?:\.([0-9]{2}))?", re.ASCII
)
# Of two figures for a year, those above are of the last century (cvtdate).
_LAST_OF_THIS_CENTURY = 68
_MONTHS = 12

_JOB = re.compile(r"([0-9]{1,10})(?:\[([0-9]{0,7})\])?(?:\.[A-Za-z0-9.-]*)?(?:@[A-Za-z0-9.-]*)?", re.ASCII)
_DEPEND = {
    "after": "after", "afterok": "afterok", "afternotok": "afternotok", "afterany": "afterany",
    "afterstartarray": "after", "afterokarray": "afterok", "afternotokarray": "afternotok",
    "afteranyarray": "afterany",
}

# Commas divide, but not between quotes and not behind a backslash.
_VARIABLE = re.compile(r"""(?:[^,"'\\]|"[^"]*"|'[^']*'|\\.|\\$)+""", re.DOTALL)
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'|\\(.)""", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*:", re.ASCII)
_IN_PATH = re.compile(r"\$\{(\w+)\}|\$(\w+)|(\^array_index\^)|(%)|(\$)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who submits, from where, and when. `is_directory` answers for an absolute path."""

    user: str
    home: str
    directory: str
    now: datetime
    is_directory: Callable[[str], bool]


def here(*, user: str, home: str, directory: str) -> Place:
    """This machine, now."""
    return Place(user=user, home=home, directory=directory, now=datetime.now(), is_directory=os.path.isdir)


def unsupported(what: str, *, hint: str = "") -> RequestError:
    """The refusal of what Slurm has not."""
    return RequestError(f"{what} has no counterpart in Slurm", hint=hint)


def time_limit(text: str) -> str:
    """`HH:MM:SS` of seconds or `[[[DD:]HH:]MM:]SS[.ms]`; RequestError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise RequestError(f"{text[:40]!r} is not a time", hint="like 2:00:00, or seconds")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"


def begin(text: str, now: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS` of `[[[[CC]YY]MM]DD]hhmm[.SS]`; RequestError.

    What is left out is taken so that the time lies ahead (cvtdate, as qsub(1) of Torque has it).
    """
    match = _DATE.fullmatch(text)
    if match is None:
        raise RequestError(f"-a {text[:40]!r} is not a time", hint="like 2130, or 202612241800")
    century, short, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
    try:
        clock = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        if match[4] is None:
            return _stamp(clock + timedelta(days=(hour, minute) <= (now.hour, now.minute)))
        year = now.year
        if match[3] is None:
            month = now.month + (day < now.day)
            year, month = (year, month) if month <= _MONTHS else (year + 1, 1)
        elif match[2] is None:
            year += month < now.month
        else:
            year = short + 100 * (century or (20 if short <= _LAST_OF_THIS_CENTURY else 19))
        return _stamp(clock.replace(year=year, month=month, day=day))
    except ValueError as error:
        raise RequestError(f"-a {text}: {error}") from None


def _stamp(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def dependency(text: str) -> str:
    """sbatch's list of dependencies, all of which have to be met; RequestError."""
    found = []
    for part in text.split(","):
        kind, *jobs = part.strip().split(":")
        if kind == "singleton" and not jobs:
            found.append(kind)
            continue
        if kind not in _DEPEND:
            raise unsupported(f"-W depend={part[:80]}", hint=f"there are {' '.join(_DEPEND)} singleton")
        if not jobs:
            raise RequestError(f"-W depend={part[:80]}: no job is named")
        found.append(":".join([_DEPEND[kind], *map(_job, jobs)]))
    return ",".join(found)


def _job(text: str) -> str:
    """`12` of `12.srv` and of the whole array `12[].srv`; `12_3` of `12[3].srv`."""
    match = _JOB.fullmatch(text)
    if match is None:
        raise RequestError(f"-W depend=: {text[:80]!r} is not a job's id")
    return f"{match[1]}_{match[2]}" if match[2] else match[1]


def variables(lists: Sequence[str]) -> dict[str, str | None]:
    """What -v sends along, with no value for those that have the one of the environment; RequestError."""
    found: dict[str, str | None] = {}
    for text in lists:
        for entry in _VARIABLE.findall(text):
            name, given, amount = entry.partition("=")
            if _IDENTIFIER.fullmatch(name.strip()) is None:
                raise RequestError(f"-v {entry[:80]!r}: {name.strip()[:40]!r} is not the name of a variable")
            found[name.strip()] = _QUOTED.sub(_unquoted, amount) if given else None
    return found


def _unquoted(match: re.Match[str]) -> str:
    return next(part for part in match.groups() if part is not None)


def default_file(kind: str, *, array: bool) -> str:
    """`<job name>.o<id>`, of an array's elements `<job name>.o<id>-<index>`; `kind` is o or e."""
    return f"%x.{kind}%A-%a" if array else f"%x.{kind}%j"


def file_name(text: str, option: str, place: Place, *, array: bool, moved: bool) -> str:
    """The pattern of sbatch for a path of -o or -e; RequestError.

    A directory gets the default name in it. Relative paths are those of the
    directory of submission; when the job is `moved` to another one they have
    to be absolute, for Slurm's are those of the job's.
    """
    if _HOST.match(text):
        raise unsupported(f"-{option} {text[:80]}: a host", hint="Slurm writes where the job runs: name a shared path")
    if text.startswith("~") and not text.startswith("~/"):
        raise RequestError(f"-{option} {text[:80]}: whose home is meant is not known here", hint="write out the path")
    if "\\" in text + place.directory + place.home:
        raise unsupported(f"-{option} {text[:80]}: a backslash in a path")
    pattern = _IN_PATH.sub(lambda match: _symbol(match, option, place, array=array), text)
    if text.startswith("~/"):
        pattern = literal(place.home) + pattern[1:]
    absolute = PurePosixPath(literal(place.directory), pattern)
    if text.endswith("/") or place.is_directory(str(absolute).replace("%%", "%")):
        pattern = str(PurePosixPath(pattern, default_file(option, array=array)))
        absolute = PurePosixPath(literal(place.directory), pattern)
    return str(absolute) if moved else pattern


def literal(text: str) -> str:
    """Text that stands for itself in a pattern."""
    return text.replace("%", "%%")


def _symbol(match: re.Match[str], option: str, place: Place, *, array: bool) -> str:
    """What sbatch, or vsub, puts in the place of a variable that the server would have replaced."""
    if match[4]:
        return "%%"
    name = match[1] or match[2] or match[3]
    known = {
        "PBS_JOBID": "%A_%a" if array else "%j", "PBS_JOBNAME": "%x",
        "PBS_O_WORKDIR": literal(place.directory),
        **dict.fromkeys(("HOME", "PBS_O_HOME"), literal(place.home)),
        **dict.fromkeys(("USER", "LOGNAME", "PBS_O_LOGNAME"), literal(place.user)),
        **dict.fromkeys(("PBS_ARRAYID", "PBS_ARRAY_INDEX", "^array_index^"), "%a" if array else ""),
    }
    if name not in known:
        raise unsupported(f"-{option}: {match[0]} in a path")
    return known[name]
