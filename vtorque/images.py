# SPDX-License-Identifier: Apache-2.0
"""The catalogue of authorised images, a look into their headers, and overlays on them.

Beside `NAME` lies its entry `NAME.json`. Trust comes from the directory being
root's own, not from hashing gigabytes before each job; `vmgr image verify`
compares the digests.
"""

import difflib
import hashlib
import json
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import ImageError, RequestError, StateError
from vtorque.model import Image

_SCHEMA = 1
_ENTRY_LIMIT = 64 * 1024
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", re.ASCII)
_REQUIRED = {"schema", "name", "distro", "arch", "sha256", "description"}
_OPTIONAL = {"kernel", "kernel_sha256", "initrd", "initrd_sha256", "cmdline"}

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an image's own header says: its format and its size as a disk, in bytes."""

    format: str
    size: int


def find(directory: Path, name: str) -> Image:
    """The catalogue's entry for an image; RequestError when there is none, ImageError when it is broken."""
    if _FILE_NAME.fullmatch(name) is None:
        raise RequestError(f"{name[:80]!r} is not the name of an image")
    try:
        text = files.read(directory / f"{name}.json", limit=_ENTRY_LIMIT)
    except FileNotFoundError:
        known = names(directory)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
        raise RequestError(f"image {name} is not in the catalogue", hint=hint) from None
    except StateError as error:
        raise ImageError(str(error)) from error
    try:
        return _entry(directory, name, json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ImageError(f"the catalogue entry of {name} is broken: {error}") from error


def names(directory: Path) -> list[str]:
    """Names of all images in the catalogue."""
    try:
        return sorted(path.name.removesuffix(".json") for path in directory.glob("*.json"))
    except OSError as error:
        raise ImageError(f"cannot read the image directory {directory}: {error.strerror}") from error


def publish(directory: Path, entry: dict[str, Any], sources: dict[str, Path]) -> Image:
    """Put an image into the catalogue: its files by name from `sources`, the entry last.

    Digests are filled in. A reader sees the old image or the new one.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    complete = {"schema": _SCHEMA, **entry}
    for key in ("name", "kernel", "initrd"):
        if key in entry:
            complete["sha256" if key == "name" else f"{key}_sha256"] = digest(sources[entry[key]])
    for name, source in sources.items():
        source.chmod(0o644)
        source.replace(directory / name)
    path = directory / f"{entry['name']}.json"
    files.replace(path, json.dumps(complete, indent=1, sort_keys=True).encode() + b"\n", mode=0o644)
    return find(directory, str(entry["name"]))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_trusted(image: Image) -> None:
    """Refuse an image when anybody but root could have put it, or a part of it, there (ConfigError)."""
    files.require_trusted(image.path.with_name(f"{image.name}.json"))
    for path in (image.path, image.kernel, image.initrd):
        if path is not None:
            files.require_trusted(path)


def inspect(path: Path) -> Header:
    """What the image really is, from its first bytes; ImageError when it is not safe to open.

    The ending of the name declares the format; QEMU is never asked to guess.
    No header may make QEMU open another file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"cannot open image {path}: {error.strerror}") from error
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ImageError(f"image {path} is not a regular file")
        head = os.pread(handle, _HEADER_LIMIT, 0)
    finally:
        os.close(handle)
    try:
        if path.suffix == ".qcow2":
            return _qcow2(head, about.st_size)
        return _raw(head, about.st_size)
    except ImageError as error:
        raise ImageError(f"image {path.name}: {error.brief}") from None


def make_overlay(image: Image, overlay: Path, *, deadline: Deadline) -> None:
    """A disk of the image's size that holds what differs from it; the image itself stays untouched."""
    base_format = "qcow2" if image.path.suffix == ".qcow2" else "raw"
    proc.run(
        [
            "/usr/bin/qemu-img", "create", "-q", "-f", "qcow2",
            "-F", base_format, "-b", image.path, overlay,
        ],
        deadline=deadline,
    )


def _entry(directory: Path, name: str, data: dict[str, Any]) -> Image:
    keys = set(data)
    if missing := _REQUIRED - keys:
        raise ValueError(f"{sorted(missing)[0]} is missing")
    if unknown := keys - _REQUIRED - _OPTIONAL:
        raise ValueError(f"{sorted(unknown)[0]} is unknown")
    if data["schema"] != _SCHEMA or data["name"] != name:
        raise ValueError("it is of another schema or of another image")
    if not all(isinstance(value, str) for key, value in data.items() if key != "schema"):
        raise ValueError("every value must be text")
    return Image(
        name=name,
        distro=data["distro"],
        arch=data["arch"],
        path=directory / name,
        sha256=data["sha256"],
        description=data["description"],
        kernel=_beside(directory, data.get("kernel")),
        initrd=_beside(directory, data.get("initrd")),
        cmdline=data.get("cmdline", ""),
    )


def _beside(directory: Path, name: str | None) -> Path | None:
    if name is None:
        return None
    if _FILE_NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a file name")
    return directory / name


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
