# SPDX-License-Identifier: Apache-2.0
"""An empty qcow2 overlay, written without qemu-img: a process for every guest would cost more than its whole disk.

The layout is that of QEMU's docs/interop/qcow2.txt, version 3.
"""

import os
import struct
from pathlib import Path

# Magic, version; backing file's offset and length; cluster bits, size, encryption; L1 table's entries and offset;
# refcount table's offset and clusters; snapshots; features (three words), refcount order, header length.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
# An entry of the L1 table leads to a cluster of 8-byte entries, each of which leads to one of data.
_BYTES_PER_ENTRY = _CLUSTER * (_CLUSTER // 8)
_REFCOUNT_ORDER = 4
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _L1_TABLE = (number * _CLUSTER for number in (1, 2, 3))
_SECTOR = 512


def write(handle: int, *, base: Path, base_format: str, size: int) -> None:
    """Make the empty file behind `handle` an overlay on `base`; `size` is in bytes, rounded up to a sector."""
    size = -(-size // _SECTOR) * _SECTOR
    entries = -(-size // _BYTES_PER_ENTRY)
    clusters = 3 + max(1, -(-8 * entries // _CLUSTER))
    kind, name = base_format.encode(), os.fsencode(base)
    extensions = _EXTENSION.pack(_BACKING_FORMAT, len(kind)) + kind + bytes(-len(kind) % 8) + _EXTENSION.pack(0, 0)
    header = _HEADER.pack(
        b"QFI\xfb", 3, _HEADER.size + len(extensions), len(name), _CLUSTER_BITS, size, 0, entries, _L1_TABLE,
        _REFCOUNT_TABLE, 1, 0, 0, 0, 0, 0, _REFCOUNT_ORDER, _HEADER.size,
    )
    os.truncate(handle, clusters * _CLUSTER)
    os.pwrite(handle, header + extensions + name, 0)
    os.pwrite(handle, struct.pack(">Q", _REFCOUNT_BLOCK), _REFCOUNT_TABLE)
    os.pwrite(handle, struct.pack(">H", 1) * clusters, _REFCOUNT_BLOCK)
