# SPDX-License-Identifier: Apache-2.0
"""What root's child does that talks to guests and is nobody: log in, ask, and pass on what they say."""

import base64
import itertools

from vtorque.backends.transport import keys
from vtorque.backends.transport.ssh import Ssh, SshSession
from vtorque.deadline import Deadline


class Speaker:
    """Sessions by their numbers, in words that JSON can say."""

    def __init__(self, port: int) -> None:
        self._ssh = Ssh(port)
        self._sessions: dict[str, SshSession] = {}
        self._numbers = itertools.count()

    def make_key(self, *, deadline: Deadline) -> list[str]:
        """A new key: its private and its public half."""
        made = keys.make()
        return [made.private, made.public]

    def open(self, address: str, user: str, key: str, host_key: str, *, deadline: Deadline) -> str:
        """Log in; the session's number."""
        session = self._ssh.open(address, user=user, key=key, host_key=host_key, deadline=deadline)
        number = str(next(self._numbers))
        self._sessions[number] = session
        return number

    def ask(self, number: str, command: str, limit: int, *, deadline: Deadline) -> str:
        """The first `limit` bytes of what a command prints, as base64."""
        said = bytearray()

        def listen(data: bytes) -> None:
            said.extend(data[: limit - len(said)])

        session = self._sessions[number]
        session.run(command, stdin=b"", stdout=listen, stderr=lambda data: None, deadline=deadline)
        return base64.b64encode(said).decode()

    def close(self, number: str, *, deadline: Deadline) -> None:
        """End a session."""
        self._sessions.pop(number).close()
