# SPDX-License-Identifier: Apache-2.0
"""The post of a job's guard on this node: a file that whoever stands there has locked."""

import fcntl
import os
from pathlib import Path

from vtorque import files


def take(root: Path, key: str) -> int | None:
    """Take the post: a descriptor to be kept open, and handed on.

    Nothing when it is taken: the job is looked after, whatever mom knows of it.
    """
    path = _path(root, key)
    files.directory(path.parent, mode=0o700)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink:
            return handle
        # Somebody has cleared it away meanwhile, and the next one would not find us there.
        os.close(handle)


def is_taken(root: Path, key: str) -> bool:
    """Whether the job has a guard on this node; a post where nobody stands any more is cleared away."""
    if not _path(root, key).exists():
        return False
    handle = take(root, key)
    if handle is None:
        return True
    try:
        leave(root, key)
    finally:
        os.close(handle)
    return False


def leave(root: Path, key: str) -> None:
    """Clear the post away; for whoever has taken it."""
    _path(root, key).unlink(missing_ok=True)


def all_keys(root: Path) -> list[str]:
    """Keys of the jobs that have a post, taken or not."""
    directory = _path(root, "")
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def _path(root: Path, key: str) -> Path:
    return root / "guards" / key
