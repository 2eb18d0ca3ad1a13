# SPDX-License-Identifier: Apache-2.0
"""The job's user at work in his own job directory, told by root, who does not go there himself."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtorque import proc
from vtorque.deadline import Deadline

_MESSAGE_LIMIT = 1 << 20
_JOBS = ".vtorque"
_ENDED = "ended"


class UserSide:
    """The user's side of a job: `~/.vtorque/<request id>`.

    A child that has become the user does what it is told and answers; when it
    does not answer in time (a hung home) it is abandoned and everything later
    is skipped, so that root never waits for a user's file system twice.
    """

    def __init__(self, identity: proc.Identity, home: Path, request_id: str) -> None:
        self._pid, self._socket = proc.fork_as(identity, _Clerk(home, request_id).serve)
        self._answers = self._socket.makefile("rb")
        self._usable = True

    @property
    def usable(self) -> bool:
        """Whether it has answered so far."""
        return self._usable

    def append(self, name: str, text: str, *, deadline: Deadline) -> bool:
        """Add `text` to the file `name` of the job directory; whether it was done."""
        return self._do({"do": "append", "name": name, "text": text}, deadline) is not None

    def replace(self, name: str, text: str, *, deadline: Deadline) -> bool:
        """Put a whole file there, which readers see entirely or not at all; whether it was done."""
        return self._do({"do": "replace", "name": name, "text": text}, deadline) is not None

    def read(self, name: str, *, limit: int, deadline: Deadline) -> str | None:
        """A regular file of at most `limit` bytes; nothing when there is none, or no answer."""
        return self._do({"do": "read", "name": name, "limit": limit}, deadline)

    def forget(self, name: str, *, deadline: Deadline) -> bool:
        """Remove a file; whether there is none now."""
        return self._do({"do": "forget", "name": name}, deadline) is not None

    def remove(self, job: str, *, elements: int, if_cancelled: bool, deadline: Deadline) -> bool:
        """Remove the job directory and the symbolic link to it by the job's id; whether it was done.

        One of the `elements` of an array only notes that it has ended; the last one removes. With
        `if_cancelled` nothing is done unless `epilogue.precancel` has noted that the job is not wanted any more.
        """
        order = {"do": "remove", "job": job, "elements": elements, "if_cancelled": if_cancelled}
        return self._do(order, deadline) is not None

    def close(self) -> None:
        """Let the child go; one that hangs in the kernel is left to it."""
        self._answers.close()
        # A copy of it may live on in a child of ours.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if not self._usable:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0 if self._usable else os.WNOHANG)

    def _do(self, order: Mapping[str, Any], deadline: Deadline) -> str | None:
        """The answer's text, empty for most orders; nothing when it was not done."""
        if not self._usable:
            return None
        try:
            self._socket.settimeout(deadline.remaining or 0.001)
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            line = self._answers.readline(2 * _MESSAGE_LIMIT)
            if not line.endswith(b"\n"):
                raise OSError("no answer")
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError):
            self._usable = False
            return None
        return str(answer["text"]) if answer["done"] else None


class _Clerk:
    """The child's half of UserSide; everything here runs as the user."""

    def __init__(self, home: Path, request_id: str) -> None:
        self._home = home
        self._request_id = request_id

    def serve(self, orders: socket.socket) -> None:
        with orders.makefile("rb") as lines:
            while line := lines.readline(2 * _MESSAGE_LIMIT):
                try:
                    answer = {"done": True, "text": self._obey(json.loads(line))}
                except (OSError, UnicodeError):
                    answer = {"done": False, "text": ""}
                orders.sendall(json.dumps(answer).encode() + b"\n")

    def _obey(self, order: dict[str, Any]) -> str:
        home = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            jobs = os.open(_JOBS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=home)
        finally:
            os.close(home)
        try:
            if order["do"] == "remove":
                if _was_cancelled(jobs, order["job"]) or not order["if_cancelled"]:
                    self._remove(jobs, order["job"], order["elements"])
                return ""
            job = os.open(self._request_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=jobs)
        finally:
            os.close(jobs)
        verbs: dict[str, Callable[[int, dict[str, Any]], str]] = {
            "append": _append, "replace": _replace, "read": _read, "forget": _forget,
        }
        try:
            return verbs[order["do"]](job, order)
        finally:
            os.close(job)

    def _remove(self, jobs: int, name: str, elements: int) -> None:
        if elements > 1 and not self._was_last(jobs, name, elements):
            return
        # Of an array the link has the array's name, which Slurm's elements are not told.
        for link in os.listdir(jobs):
            with contextlib.suppress(OSError):
                if os.readlink(link, dir_fd=jobs) == self._request_id:
                    os.unlink(link, dir_fd=jobs)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._request_id, dir_fd=jobs)

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


def _was_cancelled(jobs: int, name: str) -> bool:
    """Whether there was a note of it, which is gone now."""
    try:
        os.unlink(f"{name}.cancelled", dir_fd=jobs)
    except OSError:
        return False
    return True


def _append(job: int, order: Mapping[str, Any]) -> str:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    _write(os.open(order["name"], flags, 0o600, dir_fd=job), order["text"])
    return ""


def _replace(job: int, order: Mapping[str, Any]) -> str:
    new = f".{order['name']}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=job)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    _write(os.open(new, flags, 0o600, dir_fd=job), order["text"])
    os.rename(new, order["name"], src_dir_fd=job, dst_dir_fd=job)
    return ""


def _read(job: int, order: Mapping[str, Any]) -> str:
    handle = os.open(order["name"], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=job)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("not a regular file")
        data = file.read(order["limit"] + 1)
    if len(data) > order["limit"]:
        raise OSError("larger than allowed")
    return data.decode()


def _forget(job: int, order: Mapping[str, Any]) -> str:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(order["name"], dir_fd=job)
    return ""


def _write(handle: int, text: str) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(text.encode())
