# SPDX-License-Identifier: Apache-2.0
"""A file tree as an installation's steps see and change it, below `root`: `/`, or where an image of a node is."""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from vtorque import files
from vtorque.errors import StateError
from vtorque.install.steps import Seen, Step, Verb, digest, temporary

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
    sync(path.parent)


def leads_to_a_hook(root: Path, path: Path) -> bool:
    """Whether a link, or a chain of links, ends at a hook of this or another vtorque below `root`."""
    for _ in range(_LINKS):
        real = inside(root, path)
        if not real.is_symlink():
            break
        path = Path(os.path.normpath(path.parent / real.readlink()))
    scripts = next((each for each in real.parents if each.name == "scripts"), None)
    return scripts is not None and real.is_file() and all(
        (scripts / each).is_file() for each in ("hook", "../vtorque/cli/pelog.py")
    )


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
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
        return Seen(inode=about.st_ino, target=str(real.readlink()), is_ours=leads_to_a_hook(root, path))
    if not stat.S_ISREG(about.st_mode):
        return Seen(inode=about.st_ino, is_directory=True)
    try:
        text = files.read(real, limit=_LIMIT)
    except StateError:
        # Larger than anything of ours.
        return Seen(inode=about.st_ino)
    return Seen(inode=about.st_ino, digest=digest(text))
