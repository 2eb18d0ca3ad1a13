# SPDX-License-Identifier: Apache-2.0
"""What the header and the tables of a disk image say, by nothing but reads of an open descriptor.

As a script it is the child that looks for root (vtorque/imageprobe.py), with the
image as its standard input and no rights. That is why it imports so little.
The rules are those of QEMU's docs/interop/qcow2.txt and block/qcow2.c, and stricter.
"""

import os
import struct

# What is only there to be read is not imported: it would cost the child more than it does itself.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("qcow2", "raw")
"""The formats that an image may be of."""
OTHERWISE = {"qcow2": "is not qcow2, as its name says", "raw": "is qcow2, not raw as its name says"}
"""What is to be said of an image that is of the other format."""
LARGEST = 1 << 46
"""The largest disk that an image may be, 64 TiB, in bytes."""
QCOW2_MAGIC = b"QFI\xfb"

# Magic, version; backing file's offset and length; cluster bits, size, encryption; L1 table's entries and offset;
# refcount table's offset and clusters; snapshots, their offset.
_QCOW2 = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_V3 = struct.Struct(">QQQII")  # three feature words, refcount order, header length
_SHORTEST_V3 = _QCOW2.size + _QCOW2_V3.size
_EXTENSION = struct.Struct(">II")
_HEADER_LIMIT = 1 << 16
_CHUNK = 1 << 16
_SECTOR = 512
_MOST_L1_ENTRIES = (32 << 20) // 8
_LARGEST_REFCOUNT_TABLE = 8 << 20
_L1_OFFSET = 0x00FF_FFFF_FFFF_FE00
_L1_COPIED = 1 << 63
_INCOMPATIBLE = (
    "was not closed properly", "is marked corrupt", "keeps its data in another file",
    "is compressed in another way than zlib", "has extended L2 entries",
)
_AUTOCLEAR = ("has bitmaps", "keeps its data in another file")
_EXTENSIONS = {
    0xE2792ACA: "names the format of a backing file", 0x44415441: "names a data file", 0x0537BE77: "is encrypted",
    0x23852875: "has bitmaps",
}
_UNKNOWN = "needs a feature that is not known"
# What QEMU would take for another format than raw if it were asked to guess: where, what, which.
_FOREIGN = (
    (0, QCOW2_MAGIC, "qcow2"), (0, b"QED\0", "QED"), (0, b"KDMV", "VMDK"), (0, b"COWD", "VMDK"),
    (0, b"vhdxfile", "VHDX"), (0, b"conectix", "VHD"), (0, b"LUKS\xba\xbe", "LUKS"), (0, b"<<< ", "VDI"),
    (64, b"\x7f\x10\xda\xbe", "VDI"), (0, b"WithoutFreeSpace", "Parallels"), (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"), (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
)
_FOREIGN_ENDS = ((b"conectix", "VHD"), (b"koly", "DMG"))


class Refused(Exception):
    """The image must not be used; the text says why, of the image."""


def format_of(handle: int) -> str:
    """The format that the first bytes announce; raw unless they do."""
    return "qcow2" if os.pread(handle, len(QCOW2_MAGIC), 0) == QCOW2_MAGIC else "raw"


def look(handle: int, declared: str) -> int:
    """The size as a disk, in bytes, of the image behind `handle`, which is said to be of a format; else Refused.

    No image that passes makes QEMU open another file, if QEMU is told its format.
    """
    size = os.fstat(handle).st_size
    head = os.pread(handle, _HEADER_LIMIT, 0)
    if declared == "qcow2":
        return _qcow2(handle, head, size)
    if declared == "raw":
        return _raw(handle, head, size)
    raise Refused("is of a format that is not allowed")


def _qcow2(handle: int, head: bytes, file_size: int) -> int:
    if head[:4] != QCOW2_MAGIC:
        raise Refused(OTHERWISE["qcow2"])
    if len(head) < _QCOW2.size:
        raise Refused("is cut short")
    (_, version, backing, _, bits, size, crypt, l1_size, l1_offset, refcounts, refcount_clusters, snapshots,
     snapshots_offset) = _QCOW2.unpack_from(head)
    if version not in (2, 3):
        raise Refused(f"is of qcow2 version {version}")
    if backing:
        raise Refused("has a backing file")
    if crypt:
        raise Refused("is encrypted")
    if not 9 <= bits <= 21:
        raise Refused(f"has clusters of 2^{bits} bytes")
    cluster = 1 << bits
    if not size or size % _SECTOR:
        raise Refused("is not a whole number of sectors as a disk")
    if size > LARGEST:
        raise Refused(f"is {size >> 30} GiB as a disk, more than {LARGEST >> 30}")
    if snapshots or snapshots_offset % cluster or snapshots_offset >> 62:
        raise Refused("has internal snapshots")
    order = _features(head, cluster) if version == 3 else 4
    _extensions(head, _QCOW2.size if version == 2 else _header_length(head), cluster)
    _l1(handle, l1_offset, l1_size, size, cluster, file_size)
    _refcounts(handle, refcounts, refcount_clusters, order, cluster, file_size)
    return int(size)


def _features(head: bytes, cluster: int) -> int:
    """Check the rest of a header of version 3; how wide its refcounts are, as a power of 2 bits."""
    if len(head) < _SHORTEST_V3:
        raise Refused("is cut short")
    incompatible, _, autoclear, order, length = _QCOW2_V3.unpack_from(head, _QCOW2.size)
    for word, known in ((incompatible, _INCOMPATIBLE), (autoclear, _AUTOCLEAR)):
        for bit, why in enumerate(known):
            if word >> bit & 1:
                raise Refused(why)
        if word:
            raise Refused(_UNKNOWN)
    if order > 6:
        raise Refused(f"has refcounts of 2^{order} bits")
    if length < _SHORTEST_V3 or length % 8 or length > min(cluster, len(head)):
        raise Refused(f"has a header of {length} bytes")
    if length > _SHORTEST_V3 and head[_SHORTEST_V3]:
        raise Refused(_INCOMPATIBLE[3])
    return int(order)


def _header_length(head: bytes) -> int:
    return int(_QCOW2_V3.unpack_from(head, _QCOW2.size)[-1])


def _extensions(head: bytes, position: int, cluster: int) -> None:
    end = min(cluster, len(head))
    while position + _EXTENSION.size <= end:
        kind, size = _EXTENSION.unpack_from(head, position)
        # QEMU wants the last one, too, to be no longer than there is room.
        if size > end - position - _EXTENSION.size:
            break
        if kind == 0:
            return
        if kind in _EXTENSIONS:
            raise Refused(_EXTENSIONS[kind])
        position += _EXTENSION.size + (size + 7 & ~7)
    raise Refused("has a header without an end")


def _l1(handle: int, offset: int, entries: int, size: int, cluster: int, file_size: int) -> None:
    """The L1 table is as long as the disk asks for, inside the file, and leads to clusters of it."""
    reach = cluster * (cluster // 8)
    if entries > _MOST_L1_ENTRIES or entries * reach < size:
        raise Refused(f"has an L1 table of {entries} entries")
    for _, entry in _table(handle, offset, entries * 8, cluster, file_size, "an L1 table"):
        found = entry & _L1_OFFSET
        if entry & ~_L1_OFFSET & ~_L1_COPIED or found % cluster or found >= file_size:
            raise Refused("has an L1 table that leads outside the file")


def _refcounts(handle: int, offset: int, clusters: int, order: int, cluster: int, file_size: int) -> None:
    """The refcount table is inside the file, leads to clusters of it, and counts none behind its end."""
    if not 0 < clusters * cluster <= _LARGEST_REFCOUNT_TABLE:
        raise Refused(f"has a refcount table of {clusters} clusters")
    blocks = list(_table(handle, offset, clusters * cluster, cluster, file_size, "a refcount table"))
    if any(block % cluster or block >= file_size for _, block in blocks):
        raise Refused("has a refcount table that leads outside the file")
    for index, block in reversed(blocks):
        counts = os.pread(handle, cluster, block).rstrip(b"\0")
        if counts:
            # The last one counted may itself be cut: what is missing of a cluster is read as zeros.
            last = index * (cluster * 8 >> order) + ((len(counts) - 1) * 8 >> order)
            if last * cluster >= file_size:
                raise Refused("is cut short")
            return


def _table(
    handle: int, offset: int, length: int, cluster: int, file_size: int, what: str
) -> "Iterator[tuple[int, int]]":
    """The words of a table that are not zero, each with its index."""
    if not offset or offset % cluster or offset + length > file_size:
        raise Refused(f"has {what} outside the file")
    for start in range(0, length, _CHUNK):
        data = os.pread(handle, min(_CHUNK, length - start), offset + start)
        if data.strip(b"\0"):
            for index, (word,) in enumerate(struct.iter_unpack(">Q", data[:len(data) & ~7]), start // 8):
                if word:
                    yield index, word


def _raw(handle: int, head: bytes, file_size: int) -> int:
    if not file_size or file_size % _SECTOR:
        raise Refused("is empty or not a whole number of sectors")
    if file_size > LARGEST:
        raise Refused(f"is {file_size >> 30} GiB as a disk, more than {LARGEST >> 30}")
    end = os.pread(handle, _SECTOR, file_size - _SECTOR)
    foreign = [name for offset, magic, name in _FOREIGN if head.startswith(magic, offset)]
    foreign += [name for magic, name in _FOREIGN_ENDS if end.startswith(magic)]
    if foreign or _is_vmdk_text(head):
        raise Refused(f"is {foreign[0] if foreign else 'VMDK'}, not raw as its name says")
    return file_size


def _is_vmdk_text(head: bytes) -> bool:
    """Whether QEMU's vmdk_probe (block/vmdk.c) would take it for a descriptor: comments, blank lines, a version."""
    if head.startswith(b"# Disk DescriptorFile"):
        return True
    for line in head.split(b"\n"):
        if line.startswith(b"version="):
            return True
        if not line.startswith(b"#") and line.strip(b" \r"):
            return False
    return False


def main() -> None:
    """Answer with one line of JSON: the format of the image, and its size or why it is refused."""
    found = format_of(0)
    try:
        answer = f'"size": {look(0, found)}'
    except Refused as error:
        answer = f'"refused": "{error}"'
    os.write(1, f'{{"format": "{found}", {answer}}}\n'.encode("ascii"))


if __name__ == "__main__":
    main()
