# SPDX-License-Identifier: Apache-2.0
"""A file tree as an installation's steps see and change it, below `root`: `/`, or where an image of a node is."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from vtorque import files
from vtorque.errors import StateError
from vtorque.install.modes import Held
from vtorque.install.steps import Seen, Step, Verb, digest, temporary

ROOT = Path("/")
"""A node's own, while vtorque runs there."""

_LIMIT = 1 << 20
_LINKS = 16


def inside(root: Path, path: Path) -> Path:
    """Where a node's absolute path is."""
    return root / path.relative_to(path.anchor)


def look(root: Path, paths: Iterable[Path]) -> dict[Path, Seen]:
    """What is at each of a node's paths."""
    return {path: seen for path in paths if (seen := _look(root, path)).exists}


def perform(step: Step, root: Path) -> None:
    """Do a step, durably; nobody ever finds something half done at its path, or nothing where there was a hook."""
    path = inside(root, step.path)
    fresh = temporary(path)
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    match step.verb:
        case Verb.MAKE:
            path.mkdir(mode=step.mode, exist_ok=True)
        case Verb.KEEP:
            # Not a rename: until ours takes its place, it goes on to be the hook.
            os.link(path, path.with_name(step.other), follow_symlinks=False)
        case Verb.LINK:
            fresh.symlink_to(step.other)
            fresh.rename(path)
        case Verb.WRITE:
            files.write_new(fresh, step.text.encode(), mode=step.mode)
            fresh.rename(path)
        case Verb.RESTORE:
            path.with_name(step.other).rename(path)
        case Verb.REMOVE:
            path.unlink(missing_ok=True)
        case Verb.UNMAKE:
            # Others may have put something there since.
            with contextlib.suppress(OSError):
                path.rmdir()
        case Verb.SET:
            _set(path, step)
    sync(path.parent)


def leads_to_a_hook(root: Path, path: Path) -> bool:
    """Whether a link, or a chain of links, ends at a hook of this or another vtorque below `root`."""
    real = inside(root, follow(root, path))
    scripts = next((each for each in real.parents if each.name == "scripts"), None)
    return scripts is not None and real.is_file() and all(
        (scripts / each).is_file() for each in ("hook", "../vtorque/cli/pelog.py")
    )


def follow(root: Path, path: Path) -> Path:
    """Where a link, or a chain of links, leads to on the node."""
    for _ in range(_LINKS):
        real = inside(root, path)
        if not real.is_symlink():
            break
        path = Path(os.path.normpath(path.parent / real.readlink()))
    return path


def siblings(root: Path, path: Path) -> list[str]:
    """The names beside a link that it, or a chain of links, leads through."""
    found = []
    here = inside(root, path).parent.resolve()
    for _ in range(_LINKS):
        real = inside(root, path)
        if not real.is_symlink():
            break
        path = Path(os.path.normpath(path.parent / real.readlink()))
        if inside(root, path).parent.resolve() == here:
            found.append(path.name)
    return found


def held(root: Path, paths: Iterable[Path]) -> dict[Path, Held]:
    """Whose each of a node's files and directories is; nothing of links, and of what is not there."""
    return {path: found for path in paths if (found := _held(inside(root, path))) is not None}


def below(root: Path, path: Path) -> Iterator[Path]:
    """A directory of the node and all that is in it, outer ones first."""
    for directory, _, names in os.walk(inside(root, path)):
        here = Path("/", Path(directory).relative_to(root))
        yield here
        yield from (here / name for name in names)


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _held(real: Path) -> Held | None:
    try:
        about = real.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(about.st_mode):
        return Held(uid=about.st_uid, mode=stat.S_IMODE(about.st_mode), digest="")
    if not stat.S_ISREG(about.st_mode):
        return None
    with real.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return Held(uid=about.st_uid, mode=stat.S_IMODE(about.st_mode), digest=content)


def _set(path: Path, step: Step) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # In this order: a change of owner takes set-uid away.
        os.fchown(handle, step.uid, -1)
        os.fchmod(handle, step.mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def _look(root: Path, path: Path) -> Seen:
    real = inside(root, path)
    try:
        about = real.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Seen()
    if stat.S_ISLNK(about.st_mode):
        # What leads to the hook beside it led to the site's own before that became ours.
        is_ours = leads_to_a_hook(root, path) and not siblings(root, path)
        return Seen(inode=about.st_ino, target=str(real.readlink()), is_ours=is_ours)
    if not stat.S_ISREG(about.st_mode):
        return Seen(inode=about.st_ino, is_directory=True)
    try:
        text = files.read(real, limit=_LIMIT)
    except StateError:
        # Larger than anything of ours.
        return Seen(inode=about.st_ino)
    return Seen(inode=about.st_ino, digest=digest(text))
