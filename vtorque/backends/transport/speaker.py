# SPDX-License-Identifier: Apache-2.0
"""What root's child does that talks to guests and is nobody: log in, ask, and pass on what they say."""

import base64
import itertools
import os
import socket
from functools import partial

from vtorque.backends.transport import keys
from vtorque.backends.transport.kept import Keeper
from vtorque.backends.transport.ssh import Ssh
from vtorque.backends.transport.sshsession import SshSession
from vtorque.deadline import Deadline


class Speaker:
    """Sessions by their numbers, in words that JSON can say."""

    def __init__(self, port: int) -> None:
        self._ssh = Ssh(port)
        self._sessions: dict[str, SshSession] = {}
        self._numbers = itertools.count()
        self._keeper: Keeper | None = None

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

    def keep(self, address: str, host_key: str, *, handle: int, deadline: Deadline) -> None:
        """Begin a connection for who comes to the socket `handle`."""
        begin = partial(self._ssh.begin, address, host_key=host_key)
        self._keeper = Keeper(begin, socket.socket(fileno=os.dup(handle)))

    def finish(self) -> None:
        """What there is to do when nobody asks any more: keep what is kept."""
        if self._keeper is not None:
            _let_go_of_output()
            self._keeper.wait()

    def close(self, number: str, *, deadline: Deadline) -> None:
        """End a session."""
        self._sessions.pop(number).close()


def _let_go_of_output() -> None:
    """Somebody may wait for its end, as slurmd for that of a Prolog's."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.close(nothing)
