# SPDX-License-Identifier: Apache-2.0
"""Whose a file has to be, and its mode, for the daemons to run it: set where they are not, and later given back.

Nothing here looks at a file system. What others own or may write is mended only
where it is our own: of the site's own hooks it may be somebody's who waits for root to run it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtorque.errors import ConfigError
from vtorque.install.steps import Made, Step, Verb

_OTHERS_WRITE, _NO_SPECIAL = 0o022, 0o777


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Whose a file or directory is, its mode, and the digest of a file by which it is known again."""

    uid: int
    mode: int
    digest: str

    def __str__(self) -> str:
        return f"{'root' if self.uid == 0 else f'uid {self.uid}'}'s, mode {self.mode:04o}"

    def wanted(self, bits: int) -> "Held":
        """Root's, with these bits, and writable by nobody else. What is made root's is never set-uid."""
        if self.uid == 0 and self.mode & bits == bits and not self.mode & _OTHERS_WRITE:
            return self
        return Held(uid=0, mode=(self.mode & _NO_SPECIAL | bits) & ~_OTHERS_WRITE, digest=self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Of what is at `path` now and will be at `stays` in the end: root's, with at least `bits` of a mode."""

    path: Path
    stays: Path
    bits: int
    is_sites: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What was otherwise before an installation."""

    path: Path
    was: Held
    now: Held

    def is_at(self, held: Held | None) -> bool:
        """Whether that is still the same, also when a call was cut short between its owner and its mode."""
        return held is not None and held.digest == self.was.digest and held.uid in (self.was.uid, self.now.uid) and (
            held.mode & _NO_SPECIAL in (self.was.mode & _NO_SPECIAL, self.now.mode & _NO_SPECIAL)
        )


def to_install(
    demands: Sequence[Demand], held: Mapping[Path, Held], before: Sequence[Mended], *, force: bool
) -> tuple[tuple[Step, ...], tuple[Mended, ...]]:
    """What makes everything be as demanded, and the record of it with that of earlier calls.

    Raises ConfigError for a hook of the site's own that mom has refused so far
    because others own it or may write it; with `force` it becomes root's.
    """
    known = {each.path: each for each in before}
    steps = []
    for demand in demands:
        there = held.get(demand.path)
        if there is None or there == (wanted := there.wanted(demand.bits)):
            continue
        if demand.is_sites and not force:
            _refuse(demand.path, there)
        earlier = known.get(demand.stays)
        was = earlier.was if earlier is not None and earlier.was.digest == there.digest else there
        known[demand.stays] = Mended(path=demand.stays, was=was, now=wanted)
        steps.append(_set(demand.path, there, wanted))
    return tuple(steps), tuple(known.values())


def to_uninstall(
    mended: Sequence[Mended], made: Sequence[Made], held: Mapping[Path, Held], restored: Sequence[Path]
) -> tuple[Step, ...]:
    """What gives back owners and modes, once everything else is done: by then `restored` are back at their places.

    What is not the same file any more stays as it is.
    """
    kept = {each.path: each.before for each in made if each.kept}
    steps = []
    for each in mended:
        for path in (each.path, kept.get(each.path, each.path)):
            there = held.get(path)
            if there is not None and each.is_at(there) and there != each.was:
                steps.append(_set(each.path if each.path in restored else path, there, each.was))
                break
    return tuple(steps)


def _refuse(path: Path, there: Held) -> None:
    hint = "look at what it does, and make it root's and writable by nobody else, or --force"
    if there.uid != 0:
        raise ConfigError(f"{path} belongs to uid {there.uid}: mom does not run it, and ours would", hint=hint)
    if there.mode & _OTHERS_WRITE:
        raise ConfigError(f"{path} is writable by others: mom does not run it, and ours would", hint=hint)


def _set(path: Path, there: Held, wanted: Held) -> Step:
    return Step(verb=Verb.SET, path=path, other=f"{there}", uid=wanted.uid, mode=wanted.mode)
