# SPDX-License-Identifier: Apache-2.0
"""What the job's user does in his own job directory when `UserSide` asks for it: all of this runs as him."""

import contextlib
import fnmatch
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MESSAGE_LIMIT = 1 << 20
"""Half the length of an order or an answer, in bytes."""

_JOBS = ".vtorque"
_ENDED = "ended"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Clerk:
    """A home, and a line of JSON for each thing to be done in a job directory there, `~/.vtorque/<request id>`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def serve(self, orders: socket.socket) -> None:
        """Obey until nobody asks any more."""
        with orders.makefile("rb") as lines:
            while line := lines.readline(2 * MESSAGE_LIMIT):
                try:
                    answer = {"done": True, "text": self._obey(json.loads(line))}
                except (OSError, UnicodeError):
                    answer = {"done": False, "text": ""}
                orders.sendall(json.dumps(answer).encode() + b"\n")

    def _obey(self, order: dict[str, Any]) -> str:
        home = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            jobs = os.open(_JOBS, _DIRECTORY, dir_fd=home)
        finally:
            os.close(home)
        try:
            _require_inside(order)
            if order["do"] == "remove":
                if _was_cancelled(jobs, order["job"]) or not order["if_cancelled"]:
                    _remove(jobs, order)
                return ""
            job = os.open(order["request"], _DIRECTORY, dir_fd=jobs)
        finally:
            os.close(jobs)
        verbs: dict[str, Callable[[int, dict[str, Any]], str]] = {
            "append": _append, "replace": _replace, "read": _read, "forget": _forget,
        }
        try:
            return verbs[order["do"]](job, order)
        finally:
            os.close(job)


def _require_inside(order: Mapping[str, Any]) -> None:
    """Whoever asks has no business outside of the request's own directory."""
    if not order["request"].isalnum() or any("/" in order.get(word, "") for word in ("name", "job")):
        raise OSError("what is asked for is no name")


def _remove(jobs: int, order: Mapping[str, Any]) -> None:
    request = order["request"]
    if order["elements"] > 1 and not _was_last(jobs, request, order["job"], order["elements"]):
        return
    # Of an array the link has the array's name, which Slurm's elements are not told.
    for link in os.listdir(jobs):
        with contextlib.suppress(OSError):
            if os.readlink(link, dir_fd=jobs) == request:
                os.unlink(link, dir_fd=jobs)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(request, dir_fd=jobs)


def _was_last(jobs: int, request: str, name: str, elements: int) -> bool:
    job = os.open(request, _DIRECTORY, dir_fd=jobs)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(_ENDED, 0o700, dir_fd=job)
        ended = os.open(_ENDED, _DIRECTORY, dir_fd=job)
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
    for name in fnmatch.filter(os.listdir(job), order["name"]):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=job)
    return ""


def _write(handle: int, text: str) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(text.encode())
