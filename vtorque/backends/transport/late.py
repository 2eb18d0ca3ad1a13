# SPDX-License-Identifier: Apache-2.0
"""SSH whose library is loaded when the first session is opened.

An epilogue opens none, and a prologue that waits for its guests has time to
spare only until the first of them answers.
"""

from collections.abc import Collection

from vtorque.backends.transport import KeyPair, Session, keys, reach
from vtorque.deadline import Deadline

_PORT = 22


class LateSsh:
    """Opens sessions with guests, as `ssh.Ssh` does."""

    def make_key(self) -> KeyPair:
        """A new ed25519 key."""
        return keys.make()

    def open(self, address: str, *, user: str, key: str, host_key: str, deadline: Deadline) -> Session:
        """Log in; NotListening, WrongHostKey, LoginRefused or another TransportError."""
        from vtorque.backends.transport.ssh import Ssh

        return Ssh(_PORT).open(address, user=user, key=key, host_key=host_key, deadline=deadline)

    def answering(self, addresses: Collection[str], *, seconds: float) -> set[str]:
        """Those addresses at which a machine still answers."""
        return reach.answering(addresses, port=_PORT, seconds=seconds)
