# SPDX-License-Identifier: Apache-2.0
"""Guests of whom nothing is known yet, talked to by a child of root's that is nobody.

Whoever is root in a guest may send what he likes in place of SSH. The library that has to understand it is
loaded there, and what gets the better of it has root's rights nowhere: only a key that opens this job's guests.
"""

import base64
import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from vtorque import servant
from vtorque.backends.transport import PORT, KeyPair, Prover, keys, reach
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, GuestError, StateError, TransportError, VtorqueError
from vtorque.servant import Caller

_CLOSE_SECONDS, _KEY_SECONDS = 1.0, 30.0


class Apart:
    """SSH that is spoken in a child, where there is one.

    It has its libraries while guests are still planned, and makes the keys with them: it has spoken to nobody then.
    """

    def __init__(self, child: Caller | None) -> None:
        self._child = child

    def make_key(self) -> KeyPair:
        """A new ed25519 key."""
        if self._child is not None:
            with contextlib.suppress(servant.Gone):
                private, public = self._child.ask("make_key", deadline=Deadline(_KEY_SECONDS))
                return KeyPair(private=private, public=public)
        return keys.make()

    @contextlib.contextmanager
    def prover(self) -> Iterator[Prover]:
        """A child that is there as long as the `with` lasts."""
        if self._child is None:
            raise StateError("nobody talks to guests here")
        try:
            yield _Prover(self._child)
        finally:
            self.close()

    def close(self) -> None:
        """Let the child go."""
        child, self._child = self._child, None
        if child is not None:
            child.dismiss()

    def answering(self, addresses: Collection[str], *, seconds: float) -> set[str]:
        """Those addresses at which a machine still answers; its sshd logs a connection that said nothing."""
        return reach.answering(addresses, port=PORT, seconds=seconds)


class _Prover:
    """The child, as it is asked for a login."""

    def __init__(self, child: Caller) -> None:
        self._child = child
        self.process = child.process

    def keep(self, address: str, *, host_key: str, listener: int, deadline: Deadline) -> None:
        """Begin to keep a connection for who comes to the socket."""
        _asked(self._child, "keep", address, host_key, deadline=deadline, handle=listener)

    def open(self, address: str, *, user: str, key: str, host_key: str, deadline: Deadline) -> "_Proven":
        """Log in there; WrongHostKey or another TransportError."""
        return _Proven(self._child, str(_asked(self._child, "open", address, user, key, host_key, deadline=deadline)))


class _Proven:
    """A session that was opened there, by its number."""

    def __init__(self, child: Caller, number: str) -> None:
        self._child = child
        self._number = number

    def ask(self, command: str, *, limit: int, deadline: Deadline) -> bytes:
        """What a command says in the guest."""
        said = _asked(self._child, "ask", self._number, command, limit, deadline=deadline)
        try:
            return base64.b64decode(said)[:limit]
        except (TypeError, ValueError):
            raise GuestError("what talks to the guest for us makes no sense") from None

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(TransportError, GuestError, DeadlineExceeded):
            _asked(self._child, "close", self._number, deadline=Deadline(_CLOSE_SECONDS))


def _asked(child: Caller, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any:
    try:
        return child.ask(verb, *words, deadline=deadline, handle=handle)
    except (TransportError, DeadlineExceeded):
        raise
    except servant.Gone as error:
        raise GuestError("a guest has ended what talks to it for us", details=str(error)) from error
    except VtorqueError as error:
        # Whose fault something is is not for the child to say.
        raise TransportError(f"no talk with the guest: {error.brief}", details=error.details) from error
