# SPDX-License-Identifier: Apache-2.0
"""The elements of a job array: what `qsub -t` asks for."""

import re
from dataclasses import dataclass

# Torque leaves it to max_job_array_size; every element is a script and a record on this one machine.
_MOST_ELEMENTS = 1000
_PART = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_LIMIT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """Numbers of elements, and how many may run at once; 0 for all."""

    indices: tuple[int, ...]
    limit: int


def parse(text: str) -> Array:
    """The array that `1-3,7%2` asks for. Raises ValueError."""
    ranges, percent, limit = text.partition("%")
    if percent and _LIMIT.fullmatch(limit) is None:
        raise ValueError(f"{limit[:40]!r} is not how many elements may run at once")
    indices: set[int] = set()
    for part in ranges.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is not an element or a range of them: like 1-3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= _MOST_ELEMENTS:
            raise ValueError(f"{part[:40]!r} is not a range of at most {_MOST_ELEMENTS} elements")
        indices.update(range(first, last + 1))
    if len(indices) > _MOST_ELEMENTS:
        raise ValueError(f"an array has at most {_MOST_ELEMENTS} elements, not {len(indices)}")
    return Array(indices=tuple(sorted(indices)), limit=int(limit or 0))
