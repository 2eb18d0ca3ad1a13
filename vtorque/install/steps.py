# SPDX-License-Identifier: Apache-2.0
"""What has to be done to a file tree, as data: from what is there, and back to what was there.

Nothing here looks at a file system. Everything is decided again at every call
from what is there now, so that a call that was cut short is finished, or
undone, by the next one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vtorque.errors import ConfigError
from vtorque.install.parts import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is at a path: its inode to tell names of one file, `target` of a link, or the digest of a file.

    `is_ours` says that a link leads to a hook of a vtorque, of whatever version.
    """

    inode: int = 0
    target: str = ""
    digest: str = ""
    is_directory: bool = False
    is_ours: bool = False

    @property
    def exists(self) -> bool:
        """Whether there is anything, a link that dangles included."""
        return self.inode != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What an installation puts somewhere; `kept` says that `aside` beside it is what was there before."""

    path: Path
    aside: str
    kept: bool
    target: str
    digest: str

    @property
    def before(self) -> Path:
        """Where what was there before is kept."""
        return self.path.with_name(self.aside)


class Verb(StrEnum):
    """What a step does; each can be done twice."""

    MAKE = "make"
    KEEP = "keep"
    LINK = "link"
    WRITE = "write"
    RESTORE = "restore"
    REMOVE = "remove"
    UNMAKE = "unmake"
    SET = "set"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change: `other` is the name at which something is kept, what a link leads to, or how it was set before."""

    verb: Verb
    path: Path
    other: str = ""
    text: str = ""
    mode: int = 0
    uid: int = 0

    def __str__(self) -> str:
        match self.verb:
            case Verb.KEEP:
                return f"keep     {self.path} as {self.other}"
            case Verb.LINK:
                return f"link     {self.path} -> {self.other}"
            case Verb.WRITE:
                return f"write    {self.path}, root's, mode {self.mode:04o}"
            case Verb.MAKE:
                return f"make     {self.path}, a directory of root's, mode {self.mode:04o}"
            case Verb.RESTORE:
                return f"restore  {self.path} from {self.other}"
            case Verb.REMOVE:
                return f"remove   {self.path}"
            case Verb.UNMAKE:
                return f"remove   {self.path}, if nothing is left in it"
            case Verb.SET:
                owner = f"uid {self.uid}" if self.uid else "root"
                return f"set      {self.path} to {owner}'s, mode {self.mode:04o}; it is {self.other}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to do in this order, what is made by it and by earlier calls, and what an administrator should know."""

    steps: tuple[Step, ...]
    made: tuple[Made, ...]
    notes: tuple[str, ...]


Sight = Mapping[Path, Seen]
_NOTHING = Seen()


def digest(data: bytes) -> str:
    """By which a file is known again."""
    return hashlib.sha256(data).hexdigest()


def temporary(path: Path) -> Path:
    """Where something is made before it takes its place; whatever is there was left by a call that was cut short."""
    return path.with_name(f".{path.name}.vtorque")


def paths(items: Sequence[Item], made: Sequence[Made]) -> set[Path]:
    """All that has to be looked at before anything can be decided."""
    ends = {(each.path, each.aside) for each in items} | {(each.path, each.aside) for each in made}
    return {each for path, aside in ends
            for each in (path, path.with_name(aside), temporary(path), *path.parents)}


def to_install(items: Sequence[Item], seen: Sight, made: Sequence[Made], *, force: bool) -> Changes:
    """What makes `items` be there. `made` is what earlier installations have made.

    Raises ConfigError where something of the site would be lost, or begin to run;
    of the second kind `force` makes an exception.
    """
    known = {each.path: each for each in made}
    steps: list[Step] = []
    notes = []
    for item in items:
        there, beside = seen.get(item.path, _NOTHING), seen.get(item.path.with_name(item.aside), _NOTHING)
        earlier = known.get(item.path)
        as_wanted = there.exists and (there.target, there.digest) == (item.target, _digest(item))
        mine = _is_mine(there, earlier) or (item.is_hook and there.is_ours)
        if there.exists and not mine and not item.is_hook:
            if as_wanted:
                # The site's own doing, and so it stays for ever.
                continue
            if earlier is not None and not (earlier.kept and beside.inode in (0, there.inode)):
                notes.append(f"{item.path} was changed since, and stays")
                continue
        _refuse(item, there, beside, earlier, mine=mine, force=force)
        if there.exists and not mine and there.inode != beside.inode:
            steps.append(Step(verb=Verb.KEEP, path=item.path, other=item.aside))
        if not as_wanted:
            steps.append(_put(item))
        foreign = there.exists and not mine
        kept = earlier.kept or foreign if earlier is not None else foreign or beside.exists
        known[item.path] = Made(
            path=item.path, aside=item.aside, kept=kept, target=item.target, digest=_digest(item)
        )
    return Changes(
        steps=(*_directories(steps, seen), *steps), made=tuple(known.values()), notes=tuple(notes)
    )


def to_uninstall(
    made: Sequence[Made], directories: Sequence[Path], seen: Sight, *, force: bool
) -> Changes:
    """What makes everything be as it was before. With `force` also where somebody has changed ours since.

    `directories` were made by installations, outer ones first.
    """
    halves = [temporary(each.path) for each in made]
    steps = [Step(verb=Verb.REMOVE, path=path) for path in halves if seen.get(path, _NOTHING).exists]
    notes: list[str] = []
    for each in reversed(made):
        there, before = seen.get(each.path, _NOTHING), seen.get(each.before, _NOTHING)
        mine = _is_mine(there, each) or there.is_ours
        if each.kept and before.exists:
            if there.inode == before.inode:
                # Cut short before ours took its place.
                steps.append(Step(verb=Verb.REMOVE, path=each.before))
            elif mine or force or not there.exists:
                steps.append(Step(verb=Verb.RESTORE, path=each.path, other=each.aside))
            else:
                notes.append(f"{each.path} was changed since, and stays; {each.before} is what was there before")
        elif mine or (there.exists and force and not each.kept):
            if each.kept:
                notes.append(f"{each.before} is gone, which was {each.path} before")
            steps.append(Step(verb=Verb.REMOVE, path=each.path))
        elif there.exists and not each.kept:
            notes.append(f"{each.path} was changed since, and stays")
    gone = [Step(verb=Verb.UNMAKE, path=path) for path in reversed(directories)
            if seen.get(path, _NOTHING).exists]
    return Changes(steps=(*steps, *gone), made=(), notes=tuple(notes))


def _refuse(item: Item, there: Seen, beside: Seen, earlier: Made | None, *, mine: bool, force: bool) -> None:
    before = item.path.with_name(item.aside)
    if there.is_directory:
        raise ConfigError(f"{item.path} is a directory", hint="move it away")
    if not beside.exists or beside.inode == there.inode:
        return
    if there.exists and not mine:
        hint = f"move one of them away; {item.aside} is what ours runs"
        raise ConfigError(f"{item.path} is not ours, and {before} is there already", hint=hint)
    if not there.exists and earlier is None and not force:
        says = "would begin to run" if item.is_hook else "would be taken for what was there before"
        raise ConfigError(f"there is {before}, but no {item.path}: it {says}", hint="move it away, or --force")


def _is_mine(there: Seen, made: Made | None) -> bool:
    return made is not None and there.exists and (there.target, there.digest) == (made.target, made.digest)


def _digest(item: Item) -> str:
    return "" if item.target else digest(item.text.encode())


def _put(item: Item) -> Step:
    if item.target:
        return Step(verb=Verb.LINK, path=item.path, other=item.target)
    return Step(verb=Verb.WRITE, path=item.path, text=item.text, mode=item.mode)


def _directories(steps: Sequence[Step], seen: Sight) -> list[Step]:
    """What is missing above, outer ones first."""
    above = {path for step in steps for path in step.path.parents}
    missing = sorted(path for path in above if not seen.get(path, _NOTHING).exists)
    return [Step(verb=Verb.MAKE, path=path, mode=0o755) for path in missing]
