# SPDX-License-Identifier: Apache-2.0
"""How to talk to a guest that can prove who it is."""

import socket
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from vtorque.deadline import Deadline

Sink = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """An ed25519 key in OpenSSH's own text forms."""

    private: str
    public: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """The terminal that a command in a guest gets: its type and size, and where its other end is here."""

    term: str
    columns: int
    rows: int
    read: Callable[[], bytes]
    write: Sink


class XServer(Protocol):
    """Where windows of programs in a guest are shown."""

    @property
    def cookie(self) -> str | None:
        """What opens it, in hexadecimal; nothing when it lets everybody in."""
        ...

    @property
    def screen(self) -> int:
        """The number of its screen."""
        ...

    def connect(self) -> socket.socket:
        """A new connection to it; OSError."""
        ...


class Session(Protocol):
    """An open, proven connection to one guest."""

    def run(
        self,
        command: str,
        *,
        stdin: bytes,
        stdout: Sink,
        stderr: Sink,
        deadline: Deadline | None,
        display: XServer | None = None,
    ) -> int:
        """Run a command to its end, handing output over as it comes; its exit status, 0 to 255.

        Without a deadline it may take as long as it likes. Raises TransportError
        when the connection is lost before the command ended, DeadlineExceeded.
        """
        ...

    def interact(self, command: str, *, terminal: Terminal, display: XServer | None = None) -> int:
        """Run a command on a terminal of its own, to its end; its exit status, or TransportError."""
        ...

    def resize(self, columns: int, rows: int) -> None:
        """Tell the command that its terminal has another size; may be called from a signal handler."""
        ...

    def send(self, data: bytes) -> None:
        """More standard input for the running command; may be called from a signal handler's thread."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Proven(Protocol):
    """A guest that has proven who it is, and may be asked for its own word."""

    def ask(self, command: str, *, limit: int, deadline: Deadline) -> bytes:
        """The first `limit` bytes of what a command without input prints there.

        Raises TransportError when the connection is lost, DeadlineExceeded.
        """
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Prover(Protocol):
    """Logs in where a guest may be."""

    def open(
        self, address: str, *, user: str, key: str, host_key: str, deadline: Deadline
    ) -> Proven:
        """Log in with the private `key` (OpenSSH text) at a guest that proves `host_key`.

        Raises TransportError, `WrongHostKey` when the guest there is another
        one, and DeadlineExceeded when it takes too long.
        """
        ...


class Transport(Protocol):
    """What root has to do with guests."""

    def make_key(self) -> KeyPair:
        """A new key, of a guest or for one."""
        ...

    def prover(self) -> AbstractContextManager[Prover]:
        """Who talks to guests for root while it lasts, from any thread. It is begun before there are any."""
        ...

    def answering(self, addresses: Collection[str], *, seconds: float) -> set[str]:
        """Those addresses at which a machine still answers; nothing is proven by it."""
        ...
