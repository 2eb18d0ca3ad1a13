# SPDX-License-Identifier: Apache-2.0
"""What qsub and a job's life say to each other about an interactive job's terminal.

The life says the job's id in a line, and from then on what the job prints, as it
is. qsub says everything in frames, the first of which describes its terminal.
"""

import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass

HELLO, DATA, SIZE = b"h", b"d", b"w"
"""Kinds of frames: the terminal, what the user types, a new size of the window."""

CHUNK = 4096
FULL = 1 << 16
"""With so much on the way nothing more is read for the same side."""

_HEAD = struct.Struct("!cH")
HEAD_LENGTH = _HEAD.size
"""Bytes of a frame in front of its payload."""

_SIZE = struct.Struct("!4H")
_CREDENTIALS = struct.Struct("=iii")
_TERM = re.compile(r"[A-Za-z0-9._+-]{1,64}", re.ASCII)
_CHARACTERS = 6

WindowSize = tuple[int, int, int, int]
"""Rows, columns, and both in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A terminal as the job should find it.

    `characters` are those of VINTR, VQUIT, VERASE, VKILL, VEOF and VSUSP, as
    Torque's own qsub sends them (send_term of qsub_functions.c), or nothing.
    """

    term: str
    size: WindowSize
    characters: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """The frame that says it."""
        return frame(HELLO, json.dumps(asdict(self)).encode())

    @classmethod
    def decode(cls, payload: bytes) -> "Hello":
        """What a frame says. Raises ValueError."""
        try:
            said = json.loads(payload)
            term, size, characters = str(said["term"]), said["size"], tuple(map(int, said["characters"]))
            rows, columns, width, height = (int(each) & 0xFFFF for each in size)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a terminal: {error}") from error
        if len(characters) not in (0, _CHARACTERS) or any(not 0 <= each <= 255 for each in characters):
            raise ValueError("not the characters of a terminal")
        return cls(
            term=term if _TERM.fullmatch(term) else "unknown", size=(rows, columns, width, height),
            characters=characters,
        )


class Frames:
    """Frames, put together from what arrives."""

    def __init__(self) -> None:
        self._data = bytearray()

    def take(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Kind and payload of every frame that is whole now."""
        self._data += data
        while len(self._data) >= HEAD_LENGTH:
            kind, length = head_of(bytes(self._data[:HEAD_LENGTH]))
            end = HEAD_LENGTH + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[HEAD_LENGTH:end])
            del self._data[:end]
            yield kind, payload


class Outlet:
    """Bytes on their way to a descriptor that does not block and may not take them all at once."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._waiting = bytearray()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Whether it should be given no more for now."""
        return len(self._waiting) >= FULL

    def add(self, data: bytes) -> None:
        """Send this, too."""
        self._waiting += data

    def flush(self) -> None:
        """Send what goes now. Raises OSError when nothing goes any more."""
        while self._waiting:
            try:
                sent = os.write(self._handle, self._waiting[:CHUNK])
            except BlockingIOError:
                return
            del self._waiting[:sent]

    def drop(self) -> bytes:
        """Give up; what was not sent."""
        left = bytes(self._waiting)
        self._waiting.clear()
        return left


def head_of(data: bytes) -> tuple[bytes, int]:
    """Kind of a frame, and length of its payload."""
    kind, length = _HEAD.unpack(data)
    return kind, length


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame."""
    return _HEAD.pack(kind, len(payload)) + payload


def size_frame(size: WindowSize) -> bytes:
    """The frame that says the window's new size."""
    return frame(SIZE, _SIZE.pack(*size))


def size_of(payload: bytes) -> WindowSize:
    """The size that such a frame says. Raises ValueError."""
    if len(payload) != _SIZE.size:
        raise ValueError("not a size")
    rows, columns, width, height = _SIZE.unpack(payload)
    return rows, columns, width, height


def peer_uid(connection: socket.socket) -> int:
    """Who is at the other end of a Unix socket, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
