# SPDX-License-Identifier: Apache-2.0
"""An image is known before QEMU opens it: a child without rights looks, and what it saw is what is used.

An image lies where only root can put anything, and is reached without following
any link. The descriptor that the child reads says which file that is and when it last changed; a file
of another identity at the same path is refused before a guest is started on it.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vtorque import confined, files, imageheader, overlay
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, ImageError
from vtorque.imageformat import FORMATS, LARGEST, OTHERWISE
from vtorque.imageheader import Header

Look = Callable[[int, Deadline], bytes | str]
"""Has a child look at the image behind a descriptor, and says what that has to say."""


class Probed(NamedTuple):
    """An image that may be used: its header, and the identity of the file that was looked at."""

    header: Header
    path: Path
    identity: tuple[int, ...]

    def require_same(self) -> None:
        """Refuse when there is another file at the path now, or it has changed (ImageError)."""
        try:
            now = _identity(os.lstat(self.path))
        except OSError as error:
            raise ImageError(f"image {self.path} is gone: {error.strerror}") from error
        if now != self.identity:
            raise ImageError(f"image {self.path} has changed since it was inspected", hint="start the job again")


def _look_here(handle: int, deadline: Deadline) -> bytes:
    return confined.look_at_image(handle, deadline=deadline)


def probe(
    path: Path, *, name: str = "", deadline: Deadline, trusted: bool = False, look: Look = _look_here
) -> Probed:
    """What the image at `path` is, as the ending of `name` (or of the file) says; ImageError when it is not safe.

    With `trusted` the file has to lie where only root, or we, can change it (ConfigError).
    """
    with _trusted(path) if trusted else imageheader.opened(path) as (handle, about):
        declared = imageheader.declared(name or path.name)
        size = _said(handle, declared, name or path.name, look, deadline)
        identity = _identity(about)
        if _identity(os.fstat(handle)) != identity:
            raise ImageError(f"image {path} changed while it was inspected")
    return Probed(header=Header(format=declared, size=size), path=path, identity=identity)


def make_overlay(base: Probed, handle: int, *, size_mib: int = 0) -> None:
    """Make an empty file a disk that holds what differs from the image, of its size unless one is given."""
    overlay.write(handle, base=base.path, base_format=base.header.format, size=size_mib << 20 or base.header.size)


@contextlib.contextmanager
def _trusted(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    try:
        with files.opened_trusted(path, owner=os.geteuid()) as handle:
            yield handle, os.fstat(handle)
    except FileNotFoundError:
        raise ImageError(f"image {path} is missing") from None


def _said(handle: int, declared: str, name: str, look: Look, deadline: Deadline) -> int:
    try:
        size, refused = _understood(look(handle, deadline), declared)
    except (CommandError, ValueError) as error:
        raise ImageError(f"image {name} cannot be inspected", details=str(error)) from error
    if refused:
        raise ImageError(f"image {name}: {refused}")
    return size


def _understood(answer: bytes | str, declared: str) -> tuple[int, str]:
    """The size, or why the image is refused. ValueError: the child is not believed when it says anything else."""
    found = json.loads(answer)
    if not isinstance(found, dict) or found.get("format") not in FORMATS:
        raise ValueError("an answer that makes no sense")
    match found:
        case {"format": other} if other != declared:
            return 0, OTHERWISE[declared]
        case {"size": int(size)} if type(size) is int and 0 < size <= LARGEST and size % 512 == 0:
            return size, ""
        case {"refused": str(why)} if why and why.isascii() and why.isprintable():
            return 0, why
    raise ValueError("an answer that makes no sense")


def _identity(about: os.stat_result) -> tuple[int, ...]:
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
