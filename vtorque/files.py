# SPDX-License-Identifier: Apache-2.0
"""Atomic files in root's own directories, and the user's directories as the user himself.

Root never resolves a path that has a component a user can change: everything
below a home goes through `UserSide`, a child that has become the user.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
from pathlib import Path
from typing import Any

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError

_MESSAGE_LIMIT = 64 * 1024
_JOBS = ".vtorque"
_ENDED = "ended"


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


class UserSide:
    """The job's user at work in his own job directory, `~/.vtorque/<request id>`.

    A child that has become the user does what it is told and answers; when it
    does not answer in time (a hung home) it is abandoned and everything later
    is skipped, so that root never waits for a user's file system twice.
    """

    def __init__(self, identity: proc.Identity, home: Path, request_id: str) -> None:
        self._pid, self._socket = proc.fork_as(identity, _Clerk(home, request_id).serve)
        self._usable = True

    def append(self, name: str, text: str, *, deadline: Deadline) -> bool:
        """Add `text` to the file `name` of the job directory; whether it was done."""
        return self._do({"do": "append", "name": name, "text": text}, deadline)

    def remove(self, job: str, *, elements: int, deadline: Deadline) -> bool:
        """Remove the job directory and the symbolic link to it by the job's id; whether it was done.

        One of the `elements` of an array only notes that it has ended; the last one removes.
        """
        return self._do({"do": "remove", "job": job, "elements": elements}, deadline)

    def close(self) -> None:
        """Let the child go; one that hangs in the kernel is left to it."""
        self._socket.close()
        if not self._usable:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0 if self._usable else os.WNOHANG)

    def _do(self, order: dict[str, Any], deadline: Deadline) -> bool:
        if not self._usable:
            return False
        try:
            self._socket.settimeout(deadline.remaining or 0.001)
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            return self._socket.recv(16) == b"done"
        except OSError:
            self._usable = False
            return False


class _Clerk:
    """The child's half of UserSide; everything here runs as the user."""

    def __init__(self, home: Path, request_id: str) -> None:
        self._home = home
        self._request_id = request_id

    def serve(self, orders: socket.socket) -> None:
        with orders.makefile("rb") as lines:
            while line := lines.readline(_MESSAGE_LIMIT):
                try:
                    self._obey(json.loads(line))
                except OSError:
                    orders.sendall(b"failed")
                else:
                    orders.sendall(b"done")

    def _obey(self, order: dict[str, Any]) -> None:
        home = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            jobs = os.open(_JOBS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=home)
        finally:
            os.close(home)
        try:
            if order["do"] == "append":
                self._append(jobs, order["name"], order["text"])
            else:
                self._remove(jobs, order["job"], order["elements"])
        finally:
            os.close(jobs)

    def _was_last(self, jobs: int, name: str, elements: int) -> bool:
        job = os.open(self._request_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=jobs)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(_ENDED, 0o700, dir_fd=job)
            ended = os.open(_ENDED, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=job)
        finally:
            os.close(job)
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=ended))
            return len(os.listdir(ended)) >= elements  # noqa: PTH208
        finally:
            os.close(ended)

    def _append(self, jobs: int, name: str, text: str) -> None:
        job = os.open(self._request_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=jobs)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(name, flags, 0o600, dir_fd=job)
        finally:
            os.close(job)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)

    def _remove(self, jobs: int, name: str, elements: int) -> None:
        # `58[2].srv` is one of `58[].srv`, and the link has the array's name.
        head, bracket, rest = name.partition("[")
        link = f"{head}[{rest[rest.find(']'):]}" if bracket else name
        if elements > 1 and not self._was_last(jobs, name, elements):
            return
        with contextlib.suppress(OSError):
            if os.readlink(link, dir_fd=jobs) == self._request_id:
                os.unlink(link, dir_fd=jobs)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._request_id, dir_fd=jobs)
