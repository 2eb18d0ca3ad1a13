# SPDX-License-Identifier: Apache-2.0
"""Which hosts a job gets: `server_priv/nodes`, `-l nodes=`, and what is free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """So many slots on one host: on that one, or on any."""

    slots: int
    host: str = ""


def read(path: Path, *, otherwise: Mapping[str, int]) -> dict[str, int]:
    """Hosts and their slots, as Torque's file says them: `name np=4`, 1 when it does not say."""
    try:
        lines = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return dict(otherwise)
    found = {}
    for name, *words in filter(None, lines):
        said = [word[3:] for word in words if word.startswith("np=") and word[3:].isdecimal()]
        found[name] = int(said[-1]) if said else 1
    return found


def parse(text: str, *, most: int) -> tuple[Chunk, ...]:
    """The chunks that `2:ppn=4+name` asks for, at most so many. Raises ValueError."""
    chunks: list[Chunk] = []
    for part in text.split("+"):
        head, *words = part.split(":")
        ppn = next((word[4:] for word in words if word.startswith("ppn=")), "1")
        if not head or not ppn.isdecimal() or int(ppn) < 1:
            raise ValueError(f"{part[:40]!r} is no node")
        number = int(head) if head.isdecimal() else 1
        if not 0 < number <= most - len(chunks):
            raise ValueError(f"{text[:40]!r} is not for {most} nodes")
        chunks += [Chunk(slots=int(ppn), host="" if head.isdecimal() else head)] * number
    return tuple(chunks)


def choose(chunks: Sequence[Chunk], free: Mapping[str, int]) -> tuple[str, ...] | None:
    """A host for every slot, no two chunks on the same one; nothing when they do not fit now."""
    named = [chunk.host for chunk in chunks if chunk.host]
    if len(set(named)) < len(named):
        return None
    others = {host: slots for host, slots in free.items() if host not in named}
    hosts: list[str] = []
    for chunk in chunks:
        host = chunk.host or next((host for host, slots in others.items() if slots >= chunk.slots), "")
        if free.get(host, 0) < chunk.slots:
            return None
        others.pop(host, None)
        hosts += [host] * chunk.slots
    return tuple(hosts)
