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

from vtorque.errors import ImageError

# QEMU's docs/interop/qcow2.txt: magic, version, backing offset, backing size,
# cluster bits, size, crypt method, L1 size, L1 table offset, refcount table offset.
_QCOW2 = struct.Struct(">4sIQIIQIIQQ")
_QCOW2_V3 = struct.Struct(">QQQII")  # three feature words, refcount order, header length
_QCOW2_V3_OFFSET = 72
_QCOW2_MAGIC = b"QFI\xfb"
_DIRTY_OR_CORRUPT = 0b11
_EXTENSION = struct.Struct(">II")
_EXTENSION_END, _EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE = 0, 0xE2792ACA, 0x44415441
_HEADER_LIMIT = 1 << 16
# What QEMU would take for another format than raw if it were asked to guess.
_FOREIGN_MAGICS = (
    _QCOW2_MAGIC, b"QED\0", b"KDMV", b"COWD", b"# Disk DescriptorFile", b"vhdxfile", b"conectix",
    b"<<< ", b"LUKS\xba\xbe", b"WithoutFreeSpace", b"WithouFreSpacExt", b"Bochs Virtual HD Image",
    b"\x7f\x10\xda\xbe",
)
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
    open another file.
    """
    with opened(path) as (handle, about):
        head = os.pread(handle, _HEADER_LIMIT, 0)
    name = name or path.name
    try:
        if name.endswith(".qcow2"):
            return _qcow2(head, about.st_size)
        return _raw(head, about.st_size)
    except ImageError as error:
        raise ImageError(f"image {name}: {error.brief}", hint=error.hint) from None


def disk_bytes(path: Path) -> int:
    """The size of an image as a disk; 0 when it cannot be read, or not on this machine."""
    try:
        return inspect(path).size
    except ImageError:
        return 0


def is_qcow2(path: Path) -> bool:
    """Whether the file begins as qcow2 does; that says nothing about the rest of it."""
    with opened(path) as (handle, _):
        return os.pread(handle, len(_QCOW2_MAGIC), 0) == _QCOW2_MAGIC


def backing_file(path: Path) -> str:
    """The file that a qcow2 is an overlay on, as its header spells it; empty for any other file."""
    with opened(path) as (handle, _):
        head = os.pread(handle, _QCOW2.size, 0)
        if len(head) < _QCOW2.size or head[:4] != _QCOW2_MAGIC:
            return ""
        _, _, offset, length, *_ = _QCOW2.unpack(head)
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


def _qcow2(head: bytes, file_size: int) -> Header:
    if len(head) < _QCOW2.size or head[:4] != _QCOW2_MAGIC:
        raise ImageError("is not qcow2, as its name says")
    _, version, backing, _, bits, size, crypt, l1_size, l1_offset, refcounts = _QCOW2.unpack_from(head)
    if version not in (2, 3):
        raise ImageError(f"is of qcow2 version {version}")
    if backing != 0:
        raise ImageError("has a backing file")
    if crypt != 0:
        raise ImageError("is encrypted")
    if not 9 <= bits <= 21 or size == 0 or size % 512:
        raise ImageError("has an impossible geometry")
    if l1_size > 4 << 20 or not 0 < l1_offset < file_size or not 0 < refcounts < file_size:
        raise ImageError("has tables outside the file")
    if version == 3:
        _qcow2_features(head)
    return Header(format="qcow2", size=size)


def _qcow2_features(head: bytes) -> None:
    if len(head) < _QCOW2_V3_OFFSET + _QCOW2_V3.size:
        raise ImageError("is cut short")
    incompatible, _, _, _, length = _QCOW2_V3.unpack_from(head, _QCOW2_V3_OFFSET)
    if incompatible & _DIRTY_OR_CORRUPT:
        raise ImageError("was not closed properly, or is marked corrupt")
    if incompatible:
        raise ImageError("needs an external data file or another feature that is not allowed")
    while length + _EXTENSION.size <= len(head):
        kind, size = _EXTENSION.unpack_from(head, length)
        if kind == _EXTENSION_END:
            return
        if kind in (_EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE):
            raise ImageError("names another file in its header")
        length += _EXTENSION.size + (size + 7 & ~7)
    raise ImageError("has a header without an end")


def _raw(head: bytes, file_size: int) -> Header:
    if file_size == 0 or file_size % 512:
        raise ImageError("is empty or not a whole number of sectors")
    for magic in _FOREIGN_MAGICS:
        if head.startswith(magic):
            raise ImageError("is not raw, as its name says")
    if head[64:68] == _FOREIGN_MAGICS[-1]:
        raise ImageError("is not raw, as its name says")
    return Header(format="raw", size=file_size)
