# SPDX-License-Identifier: Apache-2.0
"""SSH whose key exchange one process makes and another one goes on with.

Who goes on repeats the exchange from what is written down of it: the other side's part as it came, his own with
the same random numbers. So he comes to the same keys, and sees for himself that a host key was proven.
"""

import os
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import paramiko
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko.kex_curve25519 import KexCurve25519

from vtorque.backends.transport.kept import Beginning

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_KEX = "curve25519-sha256@libssh.org"
# RFC 4253, 4.2: lines before the one that names the version are no part of the protocol.
_VERSION = re.compile(rb"^SSH-[^\n]*\n", re.MULTILINE)
# RFC 4253, 6: the packet's length, that of its padding, and what it is; in clear until there are keys.
_HEADER_BYTES, _NEW_KEYS = 6, 21
_LONGEST = 1 << 15


class _Exchange(KexCurve25519):  # type: ignore[misc]
    """The exchange, whose private half can be had and given."""

    key: X25519PrivateKey

    def start_kex(self) -> None:
        super().start_kex()
        self.key = self.transport.exchange_key(self.key)


class Resumable(paramiko.Transport):  # type: ignore[misc]
    """A client's side of a connection: a new one, or with `begun` one that somebody else has begun."""

    _kex_info: ClassVar[dict[str, type]] = {**paramiko.Transport._kex_info, _KEX: _Exchange}

    def __init__(self, connection: socket.socket, begun: Beginning | None = None, **options: Any) -> None:
        self._begun = begun
        self._offer = self._key = b""
        self._wire = _Recorded(connection) if begun is None else _Repeated(connection, begun.said)
        super().__init__(self._wire, **options)
        self.get_security_options().kex = (_KEX,)

    @property
    def beginning(self) -> Beginning:
        """How it began; there are keys by now, and they were not used."""
        return Beginning(said=self._wire.said, offer=self._offer, key=self._key)

    def exchange_key(self, key: X25519PrivateKey) -> X25519PrivateKey:
        """The private half to be used: `key`, unless this is what was begun with another one."""
        if not self._key:
            if self._begun is not None:
                key = X25519PrivateKey.from_private_bytes(self._begun.key)
            self._key = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return key

    def _send_kex_init(self) -> None:
        super()._send_kex_init()
        if not self._offer:
            if self._begun is not None:
                self.local_kex_init = self._begun.offer
            self._offer = self.local_kex_init


class _Recorded(socket.socket):
    """A connection of which paramiko gets what belongs to its beginning, and never a byte more."""

    def __init__(self, connection: socket.socket) -> None:
        # Who reads here closes it when he has read all, and the connection stays.
        super().__init__(fileno=os.dup(connection.fileno()))
        self._ended = threading.Event()
        self.said = b""

    def recv(self, count: int, flags: int = 0) -> bytes:
        if missing := self._missing():
            data = super().recv(min(count, missing), flags)
            self.said += data
            if len(self.said) < _LONGEST:
                return data
            raise ConnectionError("a beginning without an end")
        # All is said; who goes on reading waits for the end only.
        if self._ended.wait(self.gettimeout()):
            return b""
        raise TimeoutError

    def close(self) -> None:
        self._ended.set()
        super().close()

    def _missing(self) -> int:
        """How many bytes more there are at least; none after the packet from which on there are keys."""
        version = _VERSION.search(self.said)
        if version is None:
            return 1
        at = version.end()
        while len(self.said) >= at + _HEADER_BYTES:
            after = at + 4 + int.from_bytes(self.said[at:at + 4])
            if len(self.said) < after:
                return after - len(self.said)
            if self.said[at + 5] == _NEW_KEYS:
                return 0
            at = after
        return at + _HEADER_BYTES - len(self.said)


class _Repeated(socket.socket):
    """A connection whose beginning is read once more; what is written for it again goes nowhere."""

    def __init__(self, connection: socket.socket, said: bytes) -> None:
        super().__init__(fileno=connection.detach())
        self._goes_on = False
        self.said = said

    def send(self, data: "Buffer", flags: int = 0) -> int:
        if self._goes_on:
            return super().send(data, flags)
        # Each message is written as a whole, and the one that names the version is no packet.
        written = bytes(data)
        self._goes_on = written[5:6] == bytes([_NEW_KEYS])
        return len(written)

    def recv(self, count: int, flags: int = 0) -> bytes:
        if not self.said:
            return super().recv(count, flags)
        data, self.said = self.said[:count], self.said[count:]
        return data
