# SPDX-License-Identifier: Apache-2.0
"""Slurm's short form of many host names: `cn[001-003,7],login1` (hostlist.c)."""

import re
from collections.abc import Iterator

MOST = 1 << 16
"""So many names a list may stand for: MAX_RANGE of hostlist.c is 65,536."""

_LONGEST = 1 << 16
# HIGHEST_DIMENSIONS of slurm.h.
_MOST_BRACKETS = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)
# A name as far as its first brackets, what is in them, and the rest.
_BRACKETS = re.compile(r"([^\[\]]*)\[([^\[\]]*)\](.*)", re.ASCII)
# Commas between names, not those in brackets.
_COMMA = re.compile(r",(?![^\[]*\])")


def expand(text: str) -> tuple[str, ...]:
    """All names of a list, in its order; of several brackets the last counts fastest.

    Raises ValueError when it is no list of host names, or stands for more than `MOST`.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"a host list has {len(text)} characters, more than {_LONGEST}")
    names: list[str] = []
    for part in _COMMA.split(text):
        if part.count("[") > _MOST_BRACKETS:
            raise ValueError(f"{part[:80]!r} in a host list has more than {_MOST_BRACKETS} brackets")
        for name in _names(part):
            if _NAME.fullmatch(name) is None:
                raise ValueError(f"{name[:80]!r} in a host list is not a host name")
            names.append(name)
            if len(names) > MOST:
                raise ValueError(f"a host list stands for more than {MOST} hosts")
    return tuple(names)


def _names(part: str) -> Iterator[str]:
    found = _BRACKETS.fullmatch(part)
    if found is None:
        yield part
        return
    head, ranges, rest = found.groups()
    for number in _numbers(ranges):
        for tail in _names(rest):
            yield f"{head}{number}{tail}"


def _numbers(ranges: str) -> Iterator[str]:
    for each in ranges.split(","):
        found = _RANGE.fullmatch(each)
        if found is None:
            raise ValueError(f"{each[:80]!r} in a host list is not a range of numbers")
        first, last = found[1], found[2] or found[1]
        # `001-003` keeps its zeros, `8-11` has none.
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}d}"
