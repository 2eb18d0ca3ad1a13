# SPDX-License-Identifier: Apache-2.0
"""An ext2, ext3 or ext4 file system, read only, as Documentation/filesystems/ext4 of Linux says.

Nothing in it is believed: a number that cannot be is Unreadable, and everything has a limit.
"""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from vtorque.imagecontents.disk import Read

_ROOT = 2
_RECOVER = 0x4
# File types in entries, extents, 64 bits, multiple mount protection, flexible groups, attributes in inodes,
# a seed of checksums, large directories.
_READABLE = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000
_EXTENTS = 0x80000
_EXTENT_MAGIC = 0xF30A
_DEEPEST = 5
_MOST_LINKS = 20
_LONGEST_LINK = 4096
_LARGEST_DIRECTORY = 64 << 20
_MOST_INODES = 2_000_000


class Unreadable(Exception):
    """The file system cannot be looked into; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inode:
    """A file as its inode says: its mode, owner, size in bytes, and where its data are."""

    mode: int
    uid: int
    size: int
    flags: int
    blocks: bytes


class Ext4:
    """The files of one file system; paths are absolute, and links lead nowhere but into it."""

    def __init__(self, read: Read) -> None:
        self._read = read
        head = read(1024, 1024)
        if len(head) < 1024 or head[56:58] != b"\x53\xef":
            raise Unreadable("no ext4")
        self._first, log_size = struct.unpack_from("<II", head, 20)
        (self._per_group,) = struct.unpack_from("<I", head, 40)
        revision, self._inode_size = struct.unpack_from("<I8xH", head, 76)
        (features,) = struct.unpack_from("<I", head, 96)
        (descriptor,) = struct.unpack_from("<H", head, 254)
        if features & _RECOVER:
            raise Unreadable("ext4 that was not unmounted cleanly")
        if unknown := features & ~_READABLE:
            raise Unreadable(f"ext4 with feature {unknown & -unknown:#x}")
        self._descriptor = descriptor if features & 0x80 else 32
        if not revision:
            self._inode_size = 128
        if log_size > 6 or not self._per_group or self._inode_size not in (128, 256, 512, 1024, 2048, 4096) \
                or self._descriptor not in (32, 64, 128, 256, 512, 1024):
            raise Unreadable("ext4 with an impossible superblock")
        self._block = 1024 << log_size
        self._table = lru_cache(512)(self._find_table)
        self._piece = lru_cache(1024)(lambda number: read(number << 14, 1 << 14))
        self.entries = lru_cache(1024)(self._entries)

    def inode(self, number: int) -> Inode:
        """What is known of a file by its number."""
        group, index = divmod(number - 1, self._per_group)
        piece, within = divmod(self._table(group) * self._block + index * self._inode_size, 1 << 14)
        # An inode's size divides that of a piece: it lies in one.
        data = self._piece(piece)[within:within + 128]
        if len(data) < 128:
            raise Unreadable("ext4 that is cut short")
        mode, uid, size = struct.unpack_from("<HHI", data)
        (flags,) = struct.unpack_from("<I", data, 32)
        more, high_uid = struct.unpack_from("<I8xH", data, 108)
        size |= more << 32 if stat.S_ISREG(mode) else 0
        return Inode(mode=mode, uid=uid | high_uid << 16, size=size, flags=flags, blocks=data[40:100])

    def find(self, path: str, *, follow: bool = True) -> int:
        """The number of the file at `path`; 0 when there is none. A link at its end is followed if asked for."""
        number, left, links = _ROOT, [part for part in path.split("/") if part][::-1], 0
        above = [_ROOT]
        while left:
            name = left.pop()
            if name in (".", ".."):
                above = above[:-1] or [_ROOT] if name == ".." else above
                number = above[-1]
                continue
            if not stat.S_ISDIR(self.inode(number).mode):
                return 0
            number = self.entries(number).get(name, 0)
            if not number:
                return 0
            inode = self.inode(number)
            if stat.S_ISLNK(inode.mode) and (left or follow):
                links += 1
                target = self.link(inode)
                if links > _MOST_LINKS:
                    return 0
                left += [part for part in target.split("/") if part][::-1]
                above = [_ROOT] if target.startswith("/") else above
                number = above[-1]
            else:
                above.append(number)
        return number

    def link(self, inode: Inode) -> str:
        """Where a symbolic link leads."""
        if inode.size < len(inode.blocks):
            return inode.blocks[:inode.size].decode(errors="replace")
        return self.data(inode, limit=_LONGEST_LINK).decode(errors="replace")

    def text(self, path: str, *, limit: int) -> str | None:
        """At most `limit` bytes of the regular file at `path`, as text; nothing when there is none."""
        number = self.find(path)
        inode = self.inode(number) if number else None
        if inode is None or not stat.S_ISREG(inode.mode):
            return None
        return self.data(inode, limit=limit).decode(errors="replace")

    def names(self, path: str) -> list[str]:
        """What lies in the directory at `path`, sorted; nothing when there is none."""
        number = self.find(path)
        if not number or not stat.S_ISDIR(self.inode(number).mode):
            return []
        return sorted(self.entries(number))

    def walk(self) -> Iterator[tuple[str, Inode]]:
        """Every file but directories, each with its path."""
        left, seen = [(_ROOT, "")], {_ROOT}
        while left:
            number, path = left.pop()
            for name, child in self._entries(number).items():
                if len(seen) > _MOST_INODES:
                    raise Unreadable(f"ext4 with more than {_MOST_INODES} files")
                inode = self.inode(child)
                if not stat.S_ISDIR(inode.mode):
                    yield f"{path}/{name}", inode
                elif child not in seen:
                    seen.add(child)
                    left.append((child, f"{path}/{name}"))

    def data(self, inode: Inode, *, limit: int) -> bytes:
        """At most `limit` bytes of a file."""
        length = min(inode.size, limit)
        data = bytearray(length)
        for logical, physical, count in self._runs(inode):
            start = logical * self._block
            if start < length:
                wanted = min(count * self._block, length - start)
                data[start:start + wanted] = self._read(physical * self._block, wanted).ljust(wanted, b"\0")
        return bytes(data)

    def _entries(self, number: int) -> dict[str, int]:
        inode = self.inode(number)
        if not stat.S_ISDIR(inode.mode):
            raise Unreadable("ext4 with a directory that is none")
        found: dict[str, int] = {}
        data, position = self.data(inode, limit=_LARGEST_DIRECTORY), 0
        while position + 8 <= len(data):
            child, length, name_length = struct.unpack_from("<IHB", data, position)
            if length < 8:
                raise Unreadable("ext4 with a broken directory")
            name = data[position + 8:position + 8 + name_length].decode(errors="replace")
            if child and name not in (".", ".."):
                found[name] = child
            position += length
        return found

    def _find_table(self, group: int) -> int:
        where = (self._first + 1) * self._block + group * self._descriptor
        data = self._read(where, self._descriptor)
        if len(data) < self._descriptor:
            raise Unreadable("ext4 that is cut short")
        low = int.from_bytes(data[8:12], "little")
        return low | int.from_bytes(data[40:44], "little") << 32 if self._descriptor > 32 else low

    def _runs(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """Where the data are: block of the file, block of the disk, number of blocks."""
        if inode.flags & _EXTENTS:
            yield from self._extents(inode.blocks, _DEEPEST)
            return
        words = struct.unpack("<15I", inode.blocks)
        yield from ((index, word, 1) for index, word in enumerate(words[:12]) if word)
        logical = 12
        for depth, word in enumerate(words[12:14], 1):
            yield from self._indirect(word, depth, logical)
            logical += (self._block // 4) ** depth

    def _extents(self, node: bytes, deepest: int) -> Iterator[tuple[int, int, int]]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or depth > deepest or 12 + 12 * entries > len(node):
            raise Unreadable("ext4 with a broken file")
        for index in range(entries):
            logical, count, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * index)
            if not depth:
                # Longer ones are of so many blocks less, and not written yet.
                if count <= 1 << 15:
                    yield logical, low | high << 32, count
                continue
            # In an index the block is before, and wider.
            low, high = struct.unpack_from("<IH", node, 16 + 12 * index)
            yield from self._extents(self._read((low | high << 32) * self._block, self._block), depth - 1)

    def _indirect(self, block: int, depth: int, logical: int) -> Iterator[tuple[int, int, int]]:
        if not block:
            return
        data = self._read(block * self._block, self._block)
        for index, (word,) in enumerate(struct.iter_unpack("<I", data[:len(data) & ~3])):
            if word and depth == 1:
                yield logical + index, word, 1
            elif word:
                yield from self._indirect(word, depth - 1, logical + index * (self._block // 4))
