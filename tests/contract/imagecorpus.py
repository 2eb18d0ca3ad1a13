# SPDX-License-Identifier: Apache-2.0
"""Images that must be refused, each for one reason, and images that are as good as any. All are made here, sparse."""

import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

MIB = 1 << 20
CLUSTER = 1 << 16
_HEAD = struct.Struct(">4sIQIIQIIQQIIQ")
_TAIL = struct.Struct(">QQQII")
VDI = b"\x7f\x10\xda\xbe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2:
    """A qcow2 of 256 KiB as qemu-img makes it, header, refcount table and block, L1 table, each to be changed."""

    magic: bytes = b"QFI\xfb"
    version: int = 3
    backing: int = 0
    backing_size: int = 0
    bits: int = 16
    size: int = MIB
    crypt: int = 0
    l1_size: int = 1
    l1: int = 3 * CLUSTER
    refcounts: int = CLUSTER
    refcount_clusters: int = 1
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    order: int = 4
    length: int = 104
    more: bytes = b""
    extensions: bytes = b""
    end: bytes = bytes(8)
    blocks: tuple[int, ...] = (2 * CLUSTER,)
    counted: int = 4
    l1_entries: tuple[int, ...] = (0,)
    file: int = 4 * CLUSTER

    def write(self, path: Path) -> None:
        head = _HEAD.pack(self.magic, self.version, self.backing, self.backing_size, self.bits, self.size, self.crypt,
                          self.l1_size, self.l1, self.refcounts, self.refcount_clusters, self.snapshots,
                          self.snapshots_offset)
        if self.version > 2:
            head += _TAIL.pack(self.incompatible, self.compatible, self.autoclear, self.order, self.length)
        with path.open("wb") as file:
            file.write(head + self.more + self.extensions + self.end)
            for offset, words in ((CLUSTER, self.blocks), (3 * CLUSTER, self.l1_entries)):
                file.seek(offset)
                file.write(struct.pack(f">{len(words)}Q", *words))
            file.seek(2 * CLUSTER)
            file.write(struct.pack(">H", 1) * self.counted)
            file.truncate(self.file)


def extension(kind: int, data: bytes, *, length: int | None = None) -> bytes:
    """One of a header's extensions, which says that it is `length` bytes long."""
    return struct.pack(">II", kind, len(data) if length is None else length) + data.ljust(-(-len(data) // 8) * 8, b"\0")


_GOOD = Qcow2()
_TABLE = "has an L1 table"
_COUNTS = "has a refcount table"

QCOW2: dict[str, tuple[Qcow2, str]] = {
    "backing file": (replace(_GOOD, backing=0x200, backing_size=11), "has a backing file"),
    "backing file far away": (replace(_GOOD, backing=1 << 40, backing_size=11), "has a backing file"),
    "backing file without a name": (replace(_GOOD, backing=0x200), "has a backing file"),
    "backing file, version 2": (replace(_GOOD, version=2, backing=0x200, backing_size=11), "has a backing file"),
    "backing format": (replace(_GOOD, extensions=extension(0xE2792ACA, b"raw")), "names the format of a backing file"),
    "data file": (replace(_GOOD, incompatible=4), "keeps its data in another file"),
    "data file named": (replace(_GOOD, extensions=extension(0x44415441, b"/etc/shadow")), "names a data file"),
    "data file named, version 2": (
        replace(_GOOD, version=2, extensions=extension(0x44415441, b"/etc/shadow")), "names a data file"),
    "data file after another extension": (
        replace(_GOOD, extensions=extension(0x1234, b"x" * 9) + extension(0x44415441, b"/x")), "names a data file"),
    "data file and its name": (
        replace(_GOOD, incompatible=4, extensions=extension(0x44415441, b"json:{}")), "keeps its data in another file"),
    "raw data file": (replace(_GOOD, autoclear=2), "keeps its data in another file"),
    "dirty": (replace(_GOOD, incompatible=1, compatible=1), "was not closed properly"),
    "corrupt": (replace(_GOOD, incompatible=2), "is marked corrupt"),
    "zstd": (replace(_GOOD, incompatible=8, length=112, more=b"\1" + bytes(7)), "is compressed in another way"),
    "compression without its bit": (replace(_GOOD, length=112, more=b"\1" + bytes(7)), "is compressed in another way"),
    "extended L2": (replace(_GOOD, incompatible=16), "has extended L2 entries"),
    "unknown feature": (replace(_GOOD, incompatible=1 << 5), "needs a feature that is not known"),
    "highest feature": (replace(_GOOD, incompatible=1 << 63), "needs a feature that is not known"),
    "unknown autoclear": (replace(_GOOD, autoclear=1 << 9), "needs a feature that is not known"),
    "bitmaps": (replace(_GOOD, autoclear=1), "has bitmaps"),
    "bitmaps named": (replace(_GOOD, extensions=extension(0x23852875, bytes(24))), "has bitmaps"),
    "AES": (replace(_GOOD, crypt=1), "is encrypted"),
    "LUKS": (replace(_GOOD, crypt=2), "is encrypted"),
    "encryption that is not known": (replace(_GOOD, crypt=9), "is encrypted"),
    "encryption header": (replace(_GOOD, extensions=extension(0x0537BE77, bytes(16))), "is encrypted"),
    "snapshots": (replace(_GOOD, snapshots=1, snapshots_offset=3 * CLUSTER), "has internal snapshots"),
    "snapshots nowhere": (replace(_GOOD, snapshots_offset=7), "has internal snapshots"),
    "version 1": (replace(_GOOD, version=1), "is of qcow2 version 1"),
    "version 4": (replace(_GOOD, version=4), "is of qcow2 version 4"),
    "no version": (replace(_GOOD, version=0), "is of qcow2 version 0"),
    "clusters too small": (replace(_GOOD, bits=8), "has clusters of 2^8 bytes"),
    "clusters too large": (replace(_GOOD, bits=22), "has clusters of 2^22 bytes"),
    "cluster bits flipped": (replace(_GOOD, bits=16 | 1 << 31), "has clusters of 2^2147483664 bytes"),
    "no size": (replace(_GOOD, size=0), "is not a whole number of sectors"),
    "odd size": (replace(_GOOD, size=MIB + 1), "is not a whole number of sectors"),
    "enormous": (replace(_GOOD, size=1 << 50), "is 1048576 GiB as a disk, more than 65536"),
    "size flipped": (replace(_GOOD, size=1 << 63 | MIB), "is 8589934592 GiB as a disk"),
    "refcounts too wide": (replace(_GOOD, order=7), "has refcounts of 2^7 bits"),
    "header too short": (replace(_GOOD, length=96), "has a header of 96 bytes"),
    "header not in eights": (replace(_GOOD, length=108), "has a header of 108 bytes"),
    "header beyond its cluster": (replace(_GOOD, length=CLUSTER + 8), "has a header of 65544 bytes"),
    "header length flipped": (replace(_GOOD, length=104 | 1 << 31), "has a header of 2147483752 bytes"),
    "extension too long": (
        replace(_GOOD, extensions=extension(0x1234, b"", length=CLUSTER)), "has a header without an end"),
    "extension length flipped": (
        replace(_GOOD, extensions=extension(0x1234, b"", length=0xFFFFFFFF)), "has a header without an end"),
    "last extension too long": (replace(_GOOD, end=struct.pack(">II", 0, 1 << 24)), "has a header without an end"),
    "no L1 table": (replace(_GOOD, l1_size=0), f"{_TABLE} of 0 entries"),
    "L1 table too short": (replace(_GOOD, size=1 << 40), f"{_TABLE} of 1 entries"),
    "L1 table too long": (replace(_GOOD, l1_size=1 << 31), f"{_TABLE} of 2147483648 entries"),
    "L1 table at nothing": (replace(_GOOD, l1=0), f"{_TABLE} outside the file"),
    "L1 table outside": (replace(_GOOD, l1=1 << 40), f"{_TABLE} outside the file"),
    "L1 table over the end": (replace(_GOOD, l1_size=CLUSTER // 8 + 1), f"{_TABLE} outside the file"),
    "L1 table askew": (replace(_GOOD, l1=3 * CLUSTER + 512), f"{_TABLE} outside the file"),
    "L1 entry outside": (replace(_GOOD, l1_entries=(1 << 40,)), f"{_TABLE} that leads outside"),
    "L1 entry askew": (replace(_GOOD, l1_entries=(CLUSTER + 512,)), f"{_TABLE} that leads outside"),
    "L1 entry with a reserved bit": (replace(_GOOD, l1_entries=(1 << 58,)), f"{_TABLE} that leads outside"),
    "no refcount table": (replace(_GOOD, refcounts=0), f"{_COUNTS} outside the file"),
    "refcount table without clusters": (replace(_GOOD, refcount_clusters=0), f"{_COUNTS} of 0 clusters"),
    "refcount table too long": (replace(_GOOD, refcount_clusters=129), f"{_COUNTS} of 129 clusters"),
    "refcount table outside": (replace(_GOOD, refcounts=1 << 40), f"{_COUNTS} outside the file"),
    "refcount table askew": (replace(_GOOD, refcounts=CLUSTER + 8), f"{_COUNTS} outside the file"),
    "refcount block outside": (replace(_GOOD, blocks=(1 << 40,)), f"{_COUNTS} that leads outside"),
    "refcount block askew": (replace(_GOOD, blocks=(CLUSTER + 8,)), f"{_COUNTS} that leads outside"),
    "cut short": (replace(_GOOD, counted=9), "is cut short"),
    "cut short by half": (replace(_GOOD, file=2 * CLUSTER), f"{_TABLE} outside the file"),
    "header only": (replace(_GOOD, file=104), "has a header without an end"),
    "header cut": (replace(_GOOD, file=100), "is cut short"),
    "half a header": (replace(_GOOD, file=60), "is cut short"),
}
"""Each refused qcow2, and why."""

RAW: dict[str, tuple[bytes, str]] = {
    "qcow2": (b"QFI\xfb\0\0\0\3", "is qcow2, not raw"),
    "VMDK": (b"KDMV", "is VMDK"),
    "VMDK of ESX": (b"COWD", "is VMDK"),
    "VMDK descriptor": (b"# Disk DescriptorFile\nversion=1\nRW 1 FLAT \"/etc/shadow\" 0\n", "is VMDK"),
    "VMDK descriptor without its first line": (b"# hi\n\n  \nversion=1\nRW 1 FLAT \"/etc/shadow\" 0\n", "is VMDK"),
    "VMDK descriptor of Windows": (b"#\r\n \r\nversion=3\r\n", "is VMDK"),
    "VHDX": (b"vhdxfile", "is VHDX"),
    "VHD": (b"conectix", "is VHD"),
    "VDI": (b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + VDI, "is VDI"),
    "VDI of another maker": (bytes(64) + VDI, "is VDI"),
    "LUKS": (b"LUKS\xba\xbe\0\1", "is LUKS"),
    "QED": (b"QED\0", "is QED"),
    "Parallels": (b"WithoutFreeSpace", "is Parallels"),
    "Parallels, extended": (b"WithouFreSpacExt", "is Parallels"),
    "Bochs": (b"Bochs Virtual HD Image", "is Bochs"),
    "cloop": (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "is cloop"),
}
"""The beginning of each file that is not raw, and what it is; half a MiB of holes follows."""

_QEMU_MADE: dict[str, tuple[str, ...]] = {
    "as qemu-img makes it": (), "version 2": ("-o", "compat=0.10"), "small clusters": ("-o", "cluster_size=512"),
    "large clusters": ("-o", "cluster_size=2M"), "narrow refcounts": ("-o", "refcount_bits=1"),
    "wide refcounts": ("-o", "refcount_bits=64"), "preallocated": ("-o", "preallocation=metadata"),
    "lazy refcounts": ("-o", "lazy_refcounts=on"),
}


def good() -> dict[str, Callable[[Path], None]]:
    """What has to be accepted: how each is written to a path."""

    def created(options: tuple[str, ...]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "8M"], check=True)
        return write

    def converted(*options: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            source = path.with_suffix(".src")
            source.write_bytes(b"data" * (MIB // 4) + bytes(7 * MIB))
            subprocess.run(["qemu-img", "convert", "-q", "-O", "qcow2", *options, source, path], check=True)
            source.unlink()
        return write

    ours: dict[str, Callable[[Path], None]] = {
        "made here": _GOOD.write,
        "an extension that is not known": replace(_GOOD, extensions=extension(0x12345678, b"seven..")).write,
        "a longer header": replace(_GOOD, length=112, more=bytes(8)).write,
        "a compatible feature that is not known": replace(_GOOD, compatible=1 << 40).write,
        "a last cluster that is cut": replace(_GOOD, file=3 * CLUSTER + 8).write,
    }
    return ours | {name: created(options) for name, options in _QEMU_MADE.items()} | {
        "with data": converted(), "compressed": converted("-c"), "sparse": created(("-o", "cluster_size=64k")),
    }
