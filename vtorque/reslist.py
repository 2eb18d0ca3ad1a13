# SPDX-License-Identifier: Apache-2.0
"""What stands behind -l: entries, chunks of nodes, sizes, times. Torque's and OpenPBS's words.

Nothing third-party is loaded for it: a job without guests needs it as well.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_COUNT = r"[0-9]{1,7}"
# A size of Torque or OpenPBS: bytes or words, with a prefix (pbs_ifl: decode_size).
_SIZE = r"([0-9]{1,15})([kmgtp]?)([bw]?)"
_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_WORD_BYTES = 8

Options = Sequence[tuple[str, str]]


class Chunk(NamedTuple):
    """`2:ppn=4:fast`, or `hostA`: how many nodes, the host if one is named, `key=value` parts and plain words."""

    nodes: int
    host: str
    pairs: dict[str, str]
    words: tuple[str, ...]


def entries(options: Options) -> dict[str, str]:
    """Everything that -l says; the last one of a name counts."""
    found: dict[str, str] = {}
    for letter, text in options:
        for entry in text.split(",") if letter == "l" else ():
            key, _, amount = entry.partition("=")
            if key.strip():
                found[key.strip()] = amount.strip()
    return found


def value(options: Options, name: str) -> str:
    """The value of a resource in -l, the last one given; empty when there is none."""
    return entries(options).get(name, "")


def chunks(text: str) -> list[Chunk]:
    """`2:ppn=4+hostA#shared` without what stands behind the `#`; a name counts as one node."""
    found = []
    for chunk in text.partition("#")[0].split("+") if text else ():
        head, *parts = chunk.split(":")
        counted = re.fullmatch(_COUNT, head, re.ASCII) is not None
        named = not counted and "=" not in head
        pairs = dict(part.partition("=")[::2] for part in (head, *parts) if "=" in part)
        found.append(Chunk(
            nodes=int(head) if counted else 1,
            host=head if named else "",
            pairs=pairs,
            words=tuple(part for part in parts if "=" not in part),
        ))
    return found


def count(text: str) -> int | None:
    """A whole number, or nothing for what the batch system itself will complain of."""
    return int(text) if re.fullmatch(_COUNT, text, re.ASCII) else None


def size_bytes(text: str) -> int | None:
    """Bytes of a size, or nothing when it is none."""
    match = re.fullmatch(_SIZE, text, re.ASCII | re.IGNORECASE)
    if match is None:
        return None
    return (int(match[1]) << _SHIFT[match[2].lower()]) * (_WORD_BYTES if match[3].lower() == "w" else 1)


def mib(text: str) -> int | None:
    """MiB of a size, rounded down, or nothing for what the batch system itself will complain of."""
    amount = size_bytes(text)
    return None if amount is None else amount >> 20
