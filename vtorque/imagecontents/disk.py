# SPDX-License-Identifier: Apache-2.0
"""An image as the disk that a guest sees, its partitions, and what each of them holds. Only reads."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

Read = Callable[[int, int], bytes]
"""So many bytes from there on, fewer behind the end."""

_HEADER = struct.Struct(">4sIQIIQIIQ")
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1
_SECTOR = 512
_MOST_PARTITIONS = 128
_EXTENDED = (0x05, 0x0F, 0x85)
_GPT = 0xEE
# Where, what, which.
_KNOWN = (
    (1080, b"\x53\xef", "ext"), (0, b"XFSB", "XFS"), (0x10040, b"_BHRfS_M", "btrfs"), (0, b"LUKS\xba\xbe", "LUKS"),
    (512, b"LABELONE", "LVM"), (0, b"hsqs", "squashfs"), (0, b"ReIsErFs", "reiserfs"), (4086, b"SWAPSPACE2", "swap"),
)


def reader(handle: int, image_format: str) -> Read:
    """How to read the disk in an image that imageformat.look has accepted."""
    if image_format == "raw":
        return lambda offset, length: os.pread(handle, length, offset)
    return _Qcow2(handle).read


def partitions(read: Read) -> list[Read]:
    """The parts of a disk that may hold a file system; the whole of it when it has no partition table."""
    table = read(0, _SECTOR)
    if kind(read) or table[510:512] != b"\x55\xaa":
        return [read]
    if any(table[446 + 16 * number + 4] == _GPT for number in range(4)):
        return [_part(read, start * _SECTOR) for start in _gpt(read)]
    return [_part(read, start * _SECTOR) for start in _mbr(read, table)]


def kind(read: Read) -> str:
    """What a partition holds, as far as its first bytes say; empty when that is not known."""
    for offset, magic, name in _KNOWN:
        if read(offset, len(magic)) == magic:
            return name
    return ""


def _part(read: Read, start: int) -> Read:
    return lambda offset, length: read(start + offset, length)


def _gpt(read: Read) -> Iterator[int]:
    head = read(_SECTOR, _SECTOR)
    if head[:8] != b"EFI PART":
        return
    table, number, size = struct.unpack_from("<QII", head, 72)
    if not 128 <= size <= 4096:
        return
    for index in range(min(number, _MOST_PARTITIONS)):
        entry = read(table * _SECTOR + index * size, 48)
        if len(entry) == 48 and entry[:16].strip(b"\0"):
            yield struct.unpack_from("<Q", entry, 32)[0]


def _mbr(read: Read, table: bytes) -> Iterator[int]:
    for kind_of, start in _entries(table):
        if kind_of not in _EXTENDED:
            yield start
            continue
        here = start
        for _ in range(_MOST_PARTITIONS):
            (logical, offset), (more, further) = (*_entries(read(here * _SECTOR, _SECTOR)), (0, 0), (0, 0))[:2]
            if logical:
                yield here + offset
            if more not in _EXTENDED:
                break
            here = start + further


def _entries(table: bytes) -> list[tuple[int, int]]:
    """Type and first sector of each partition of a table in a sector; those without a type are none."""
    if table[510:512] != b"\x55\xaa":
        return []
    found = [struct.unpack_from("<B3xI", table, 446 + 16 * number + 4) for number in range(4)]
    return [(kind_of, start) for kind_of, start in found if kind_of]


class _Qcow2:
    """A qcow2 without a backing file, as docs/interop/qcow2.txt of QEMU says."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        _, version, _, _, self._bits, self._size, _, entries, offset = _HEADER.unpack(os.pread(handle, 48, 0))
        self._zeros = version > 2
        self._cluster = 1 << self._bits
        self._l1 = struct.unpack(f">{entries}Q", os.pread(handle, entries * 8, offset))
        self._l2 = lru_cache(64)(self._read_l2)
        self._inflated = lru_cache(64)(self._inflate)

    def read(self, offset: int, length: int) -> bytes:
        data, end = b"", min(offset + length, self._size)
        while offset < end:
            index, within = divmod(offset, self._cluster)
            count = min(end - offset, self._cluster - within)
            data += self._part(index, within, count)
            offset += count
        return data

    def _part(self, index: int, within: int, count: int) -> bytes:
        table, number = divmod(index, self._cluster // 8)
        where = self._l1[table] & _OFFSET
        entry = self._l2(where)[number] if where else 0
        if entry & _COMPRESSED:
            return self._inflated(entry)[within:within + count]
        if not entry & _OFFSET or (self._zeros and entry & _ZERO):
            return bytes(count)
        return os.pread(self._handle, count, (entry & _OFFSET) + within).ljust(count, b"\0")

    def _read_l2(self, where: int) -> tuple[int, ...]:
        data = os.pread(self._handle, self._cluster, where).ljust(self._cluster, b"\0")
        return struct.unpack(f">{self._cluster // 8}Q", data)

    def _inflate(self, entry: int) -> bytes:
        width = 62 - (self._bits - 8)
        offset = entry & ((1 << width) - 1)
        sectors = (entry >> width & ((1 << self._bits - 8) - 1)) + 1
        data = os.pread(self._handle, sectors * _SECTOR - offset % _SECTOR, offset)
        return zlib.decompressobj(-12).decompress(data, self._cluster).ljust(self._cluster, b"\0")
