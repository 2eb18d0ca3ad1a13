# SPDX-License-Identifier: Apache-2.0
"""Atomic files in root's own directories, and the user's directories as the user himself.

Root never resolves a path that has a component a user can change: everything
below a home goes through `UserSide`, a child that has become the user.
"""

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vtorque.errors import ConfigError, StateError

if TYPE_CHECKING:
    from vtorque.deadline import Deadline

_UMASK = threading.Lock()


def directory(path: Path, *, mode: int) -> None:
    """Make a directory of root's own, of `mode` whatever the umask is, and what is missing above it.

    Through what is above everybody may pass: other things of ours are there, too.
    """
    if path.is_dir():
        return
    directory(path.parent, mode=mode | 0o111)
    with contextlib.suppress(FileExistsError):
        new_directory(path, mode=mode)


def new_directory(path: Path, *, mode: int) -> None:
    """Make one, which must not exist (FileExistsError), of `mode` whatever the umask is.

    What another thread creates meanwhile has to be given its mode, too, as everything here is.
    """
    # Of two threads the second would take the first one's for what was there before, and leave us without any.
    with _UMASK:
        # Whoever is killed must not leave one of another mode, which would stay so.
        before = os.umask(0)
        try:
            path.mkdir(mode=mode)
        finally:
            os.umask(before)


def write_new(path: Path, data: bytes, *, mode: int, durable: bool = True) -> None:
    """Create `path`, which must not exist, with `mode`.

    What is not `durable` may be empty after a power failure.
    """
    with created(path, mode=mode, durable=durable) as handle:
        write_all(handle, data)


@contextlib.contextmanager
def created(path: Path, *, mode: int, durable: bool = True) -> Iterator[int]:
    """A descriptor to write what `write_new` creates."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(handle, mode)
        yield handle
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def hand_over(path: Path, *, mode: int, uid: int, gid: int) -> None:
    """Make a directory of root's that belongs to another account, and what a version before that left there as well.

    What is above it has to be root's. ConfigError when it is anybody else's, or no directory.
    """
    if not path.exists():
        directory(path, mode=mode)
    about = path.lstat()
    if about.st_uid == uid:
        return
    if about.st_uid != 0 or not stat.S_ISDIR(about.st_mode):
        raise ConfigError(f"{path} is no directory of root's", hint=f"mv {path} {path}.old")
    # From below: as long as it is root's nobody else can put something there.
    for _, _, entries, handle in os.fwalk(path, topdown=False, follow_symlinks=False):
        for name in entries:
            # What a job's user was shown he still is.
            was = os.stat(name, dir_fd=handle, follow_symlinks=False)
            ids = (uid if was.st_uid == 0 else -1, gid if was.st_gid == 0 else -1)
            os.chown(name, *ids, dir_fd=handle, follow_symlinks=False)
        os.fchown(handle, uid, gid)


def write_all(handle: int, data: bytes) -> None:
    """Write every byte to a descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view):]


def replace(
    path: Path, data: bytes, *, mode: int, owner: tuple[int, int] = (-1, -1),
    ready: "Callable[[Path], None] | None" = None,
) -> None:
    """Put `data` at `path` in one step: a reader sees the old file or the new one, whole, its `owner`'s and `ready`."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with created(fresh, mode=mode) as handle:
        # Not by its name, at which an owner of the directory could put another's.
        os.fchown(handle, *owner)
        write_all(handle, data)
    if ready is not None:
        ready(fresh)
    fresh.rename(path)


def forget(path: Path) -> None:
    """Remove what `replace` wrote, if anything, and what it left when it was killed; nobody may write meanwhile."""
    path.unlink(missing_ok=True)
    import glob  # a submission does without

    for half in path.parent.glob(f".{glob.escape(path.name)}.*"):
        half.unlink(missing_ok=True)


def give(path: Path, *, uid: int = -1, gid: int = -1, mode: int | None = None) -> None:
    """Make a file or a socket of root's own belong to others, or change its `mode`; OSError when it is a link."""
    # Of this kind, because a socket cannot be opened otherwise; it is changed by its own name in /proc.
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISLNK(os.fstat(handle).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        give_handle(handle, uid=uid, gid=gid)
        if mode is not None:
            os.chmod(f"/proc/self/fd/{handle}", mode)  # noqa: PTH101
    finally:
        os.close(handle)


def give_handle(handle: int, *, uid: int = -1, gid: int = -1) -> None:
    """Make what a descriptor is of, which may be of the kind that only names it, belong to others."""
    os.chown(f"/proc/self/fd/{handle}", uid, gid)


def lock(handle: int, *, how: int = fcntl.LOCK_EX, doing: str, deadline: "Deadline") -> None:
    """Lock what a descriptor is of, alone unless `how` says otherwise; DeadlineExceeded."""
    for _ in deadline.ticks(doing=doing):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            break


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
        if owner is not None and about.st_uid not in (0, owner):
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
        _require_ours(each, each.lstat(), owner)


def require_private(path: Path, *, owner: int = 0) -> None:
    """Refuse `path`, which need not exist, when anybody but root and `owner` can put something there, or replace it.

    In a directory like /tmp, everybody's to write with the sticky bit, root's own is safe, and what is missing is not.
    """
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    require_trusted(there, owner=owner)
    _require_ours(there, there.lstat(), owner, unless=0)


@contextlib.contextmanager
def opened_trusted(path: Path, *, owner: int = 0) -> Iterator[int]:
    """A descriptor to read the regular file at the absolute `path`, under the same conditions.

    From the root down every directory is held while the next name is looked up
    in it, so that what was found fit is what is opened. Raises ConfigError,
    or OSError when it cannot be opened.
    """
    above = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _require_ours(Path("/"), os.fstat(above), owner)
        for each in (*reversed(path.parents[:-1]), path):
            below = os.open(each.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            os.close(above)
            above = below
            _require_ours(each, os.fstat(above), owner)
        if not stat.S_ISREG(os.fstat(above).st_mode):
            raise ConfigError(f"{path} is not a regular file")
        # The very file that is held, whatever its name leads to by now.
        handle = os.open(f"/proc/self/fd/{above}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(above)
    try:
        yield handle
    finally:
        os.close(handle)


def _require_ours(path: Path, about: os.stat_result, owner: int, *, unless: int = stat.S_ISVTX) -> None:
    if stat.S_ISLNK(about.st_mode):
        raise ConfigError(f"{path} is a symbolic link", hint="name the real path")
    if about.st_uid not in (0, owner):
        raise ConfigError(f"{path} belongs to uid {about.st_uid}", hint=f"chown root {path}")
    if about.st_mode & 0o022 and not about.st_mode & unless:
        raise ConfigError(f"{path} is writable by others", hint=f"chmod go-w {path}")
