# SPDX-License-Identifier: Apache-2.0
"""Atomic files in root's own directories, and the user's directories as the user himself.

Root never resolves a path that has a component a user can change: everything
below a home goes through `UserSide`, a child that has become the user.
"""

import contextlib
import os
import stat
from pathlib import Path

from vtorque.errors import ConfigError, StateError


def directory(path: Path, *, mode: int) -> None:
    """Make a directory of root's own and what is missing above it, all of `mode` whatever the umask is."""
    if path.is_dir():
        return
    directory(path.parent, mode=mode)
    path.mkdir(exist_ok=True)
    path.chmod(mode)


def write_new(path: Path, data: bytes, *, mode: int, group: int = -1) -> None:
    """Create `path`, which must not exist, with `mode` and, when given, the numeric `group`."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchown(handle, -1, group)
        os.fchmod(handle, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view):]
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, data: bytes, *, mode: int, group: int = -1) -> None:
    """Put `data` at `path` in one step: a reader sees the old file or the new one, whole."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    write_new(fresh, data, mode=mode, group=group)
    fresh.rename(path)


def give(path: Path, *, uid: int, gid: int) -> None:
    """Make a file of root's own belong to others; through a descriptor, so that no link is followed."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(handle, uid, gid)
    finally:
        os.close(handle)


def read(path: Path, *, limit: int, owner: int | None = None) -> bytes:
    """The regular file at `path`, refusing links, other owners and more than `limit` bytes.

    Raises FileNotFoundError, or StateError when the file is not what it should be.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise StateError(f"{path} is not a regular file")
        if owner is not None and about.st_uid != owner:
            raise StateError(f"{path} belongs to uid {about.st_uid}, not {owner}")
        data = b""
        while len(data) <= limit and (part := os.read(handle, limit + 1 - len(data))):
            data += part
    finally:
        os.close(handle)
    if len(data) > limit:
        raise StateError(f"{path} is larger than {limit} bytes")
    return data


def require_trusted(path: Path, *, owner: int = 0) -> None:
    """Refuse `path` when it, or any directory above it, belongs to or is writable by others.

    Raises ConfigError that names the offender and the command that mends it.
    """
    for each in (path, *path.parents):
        about = each.lstat()
        if stat.S_ISLNK(about.st_mode):
            raise ConfigError(f"{each} is a symbolic link", hint="name the real path")
        if about.st_uid not in (0, owner):
            raise ConfigError(f"{each} belongs to uid {about.st_uid}", hint=f"chown root {each}")
        if about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX:
            raise ConfigError(f"{each} is writable by others", hint=f"chmod go-w {each}")
