# SPDX-License-Identifier: Apache-2.0
"""Messages of the kernel's netlink families, taken apart: netlink(7)."""

import struct
from collections.abc import Iterator

MESSAGE = struct.Struct("=IHHII")
"""Length, type, flags, sequence and port."""

ATTRIBUTE = struct.Struct("=HH")
"""Length and type."""

ERROR, DONE = 2, 3
REQUEST_DUMP = 0x301


def request(kind: int, body: bytes) -> bytes:
    """What asks for a whole table."""
    return MESSAGE.pack(MESSAGE.size + len(body), kind, REQUEST_DUMP, 1, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each netlink message; what is cut short ends the list."""
    while len(data) >= MESSAGE.size:
        length, kind, _, _, _ = MESSAGE.unpack_from(data)
        if not MESSAGE.size <= length <= len(data):
            return
        yield kind, data[MESSAGE.size : length]
        data = data[(length + 3) & ~3 :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute; what is cut short ends the list."""
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            return
        yield kind, data[ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
