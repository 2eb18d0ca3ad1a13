# SPDX-License-Identifier: Apache-2.0
"""Files that are disk images: what their headers say, so that QEMU need not guess, their digests, copies."""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtorque import imageformat
from vtorque.errors import ImageError
from vtorque.imageformat import QCOW2_MAGIC

# As far as where the backing file's name is.
_QCOW2 = struct.Struct(">4sIQI")
# QEMU's own limit (docs/interop/qcow2.txt).
_LONGEST_BACKING = 1023
_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an image's own header says: its format and its size as a disk, in bytes."""

    format: str
    size: int


def inspect(path: Path, *, name: str = "") -> Header:
    """What the image really is, from its first bytes; ImageError when it is not safe to open.

    The ending of the name (of `name`, if the file is not called that yet)
    declares the format; QEMU is never asked to guess. No header may make QEMU
    open another file. For whoever has only his own rights; root's hooks have
    imageprobe.
    """
    name = name or path.name
    with opened(path) as (handle, _):
        try:
            return Header(format=declared(name), size=imageformat.look(handle, declared(name)))
        except imageformat.Refused as error:
            raise ImageError(f"image {name}: {error}") from None


def declared(name: str) -> str:
    """The format that an image of that name is of."""
    return "qcow2" if name.endswith(".qcow2") else "raw"


def disk_bytes(path: Path) -> int:
    """The size of an image as a disk; 0 when it cannot be read, or not on this machine."""
    try:
        return inspect(path).size
    except ImageError:
        return 0


def backing_file(path: Path) -> str:
    """The file that a qcow2 is an overlay on, as its header spells it; empty for any other file."""
    with opened(path) as (handle, _):
        head = os.pread(handle, _QCOW2.size, 0)
        if len(head) < _QCOW2.size or head[:4] != QCOW2_MAGIC:
            return ""
        _, _, offset, length = _QCOW2.unpack(head)
        if not 0 < offset < 1 << 32 or length > _LONGEST_BACKING:
            return ""
        return os.fsdecode(os.pread(handle, length, offset))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib  # 7 ms that vsub must not pay for

    with opened(path) as (handle, _), open(handle, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a regular file, with holes where the source has holes or zeros."""
    with opened(source) as (handle, about), target.open("xb", buffering=0) as file:
        position = 0
        while (position := _next_data(handle, position)) < about.st_size:
            block = os.pread(handle, _BLOCK, position)
            if not block:
                break
            if block != _ZEROS[:len(block)]:
                file.seek(position)
                view = memoryview(block)
                while view:
                    view = view[file.write(view):]
            position += len(block)
        file.truncate(about.st_size)
        now = os.fstat(handle)
    if (now.st_size, now.st_mtime_ns) != (about.st_size, about.st_mtime_ns):
        raise ImageError(f"{source} changed while it was copied")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of the regular file at `path`, which must be no link, and what fstat says of it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = "it is a symbolic link" if path.is_symlink() else error.strerror
        raise ImageError(f"cannot open image {path}: {why}") from error
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ImageError(f"image {path} is not a regular file")
        yield handle, about
    finally:
        os.close(handle)


def _next_data(handle: int, position: int) -> int:
    try:
        return os.lseek(handle, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(handle).st_size
