# SPDX-License-Identifier: Apache-2.0
"""What a job's wrapper does with a guest that has proven who it is: run commands, and hand their output over."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vtorque.deadline import Deadline

Sink = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """The terminal that a command in a guest gets: its type, its columns and rows, and where its other end is here."""

    term: str
    size: Callable[[], tuple[int, int]]
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

    def resize(self) -> None:
        """The terminal may have another size now: tell its command; may be called from a signal handler."""
        ...

    def send(self, data: bytes) -> None:
        """More standard input for the running command; may be called from a signal handler's thread."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...
