# SPDX-License-Identifier: Apache-2.0
"""A connection to a guest that has proven its key, kept by one process until another one takes it over.

What goes over is the connection itself and how it began. Who goes on with it checks the proof again.
"""

import base64
import contextlib
import json
import os
import select
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vtorque.deadline import Deadline, growing

_CHUNK, _LIMIT = 1 << 14, 1 << 16
_TAKE_SECONDS = 5.0
_BEGIN_SECONDS = 30.0
# A job may still be waiting for guests of other nodes.
_KEPT_SECONDS, _PAUSE_SECONDS = 300.0, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A key exchange, so that whoever has this can go on as if he had made it.

    `said` is all that the other side has sent for it, `offer` our own first message, and `key` the private
    half of our part. They open this connection and nothing else.
    """

    said: bytes
    offer: bytes
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A connection on which nothing has been said since its beginning."""

    connection: socket.socket
    beginning: Beginning

    def close(self) -> None:
        """End it, unless somebody else has it."""
        self.connection.close()


class Keeper:
    """Has a connection ready for the first who comes to a socket."""

    def __init__(self, begin: Callable[..., Kept], listener: socket.socket) -> None:
        self._begin = begin
        self._listener = listener
        listener.listen(1)
        # Whoever has asked for it need not wait for it.
        self._first = ThreadPoolExecutor(1).submit(begin, deadline=Deadline(_BEGIN_SECONDS))

    def wait(self) -> None:
        """Keep it until it is taken, for some minutes at most. TransportError, DeadlineExceeded."""
        deadline = Deadline(_KEPT_SECONDS)
        pauses = growing(first=_PAUSE_SECONDS, longest=_KEPT_SECONDS)
        kept = self._first.result()
        while True:
            with contextlib.closing(kept):
                if give(self._listener, kept, deadline=deadline) or deadline.expired:
                    return
            # sshd hangs up on who says nothing: LoginGraceTime, sshd_config(5).
            deadline.pause(next(pauses))
            kept = self._begin(deadline=deadline.within(_BEGIN_SECONDS))


def give(listener: socket.socket, kept: Kept, *, deadline: Deadline) -> bool:
    """Wait for somebody who takes it over; false when the guest has hung up before, or the time is over."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(kept.connection, select.POLLRDHUP)
    ready = dict(poll.poll(deadline.remaining * 1000))
    if listener.fileno() not in ready or kept.connection.fileno() in ready:
        return False
    about = kept.beginning
    words = [base64.b64encode(each).decode() for each in (about.said, about.offer, about.key)]
    taker, _ = listener.accept()
    with taker, contextlib.suppress(OSError):
        taker.settimeout(_TAKE_SECONDS)
        socket.send_fds(taker, [b"\n"], [kept.connection.fileno()])
        taker.sendall(json.dumps(words).encode())
    return True


def take(path: Path) -> Kept | None:
    """What is kept for us at the socket `path`, or nothing; for a few seconds it is waited for."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError), socket.socket(socket.AF_UNIX) as keeper:
        keeper.settimeout(_TAKE_SECONDS)
        keeper.connect(str(path))
        data, handles, _, _ = socket.recv_fds(keeper, _CHUNK, 1)
        if handles:
            return _understood(handles[0], data, keeper)
    return None


def _understood(handle: int, data: bytes, keeper: socket.socket) -> Kept:
    with contextlib.ExitStack() as held:
        held.callback(os.close, handle)
        os.set_inheritable(handle, False)
        while len(data) < _LIMIT and (more := keeper.recv(_CHUNK)):
            data += more
        said, offer, key = map(base64.b64decode, json.loads(data))
        found = Kept(
            connection=socket.socket(fileno=handle), beginning=Beginning(said=said, offer=offer, key=key)
        )
        held.pop_all()
    return found
