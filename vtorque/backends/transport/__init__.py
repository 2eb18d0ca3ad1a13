# SPDX-License-Identifier: Apache-2.0
"""How to talk to a guest that can prove who it is."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from vtorque.deadline import Deadline

PORT = 22
"""Where guests listen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """An ed25519 key in OpenSSH's own text forms."""

    private: str
    public: str


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

    @property
    def process(self) -> str:
        """The process that talks, by its `proc.name`: it may outlive this one when it has something to keep."""
        ...

    def keep(self, address: str, *, host_key: str, listener: int, deadline: Deadline) -> None:
        """Connect to a guest that proves `host_key`, for whoever comes to the socket `listener` to go on with.

        Only begun here, and kept for some time when this process has gone. Raises TransportError, DeadlineExceeded.
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
