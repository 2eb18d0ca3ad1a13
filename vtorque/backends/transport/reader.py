# SPDX-License-Identifier: Apache-2.0
"""One stream of a command in a guest, handed over as it comes."""

import threading
from collections.abc import Callable

from vtorque.backends.transport.session import Sink

_CHUNK = 1 << 16
# After a command has ended, something it left behind may hold its output open for ever, or print for ever.
_QUIET_SECONDS = 0.5
_ROUNDS = 10
# A guest's sshd has at most this much more when it says that the command has ended: our window, and a pipe.
_UNDER_WAY = 18 << 20
# And of that it sends at least a packet before it answers again (RFC 4253, 6.1).
_PACKET = 1 << 15


class Reader:
    """Hands over what `receive` gets, in a thread of its own, until that gets nothing more.

    `waiting` says whether there is something to be received.
    """

    def __init__(self, receive: Callable[[int], bytes], sink: Sink, *, waiting: Callable[[], bool]) -> None:
        self._receive = receive
        self._waiting = waiting
        self._sink = sink
        self._bytes = 0
        self._delivering = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self, echo: Callable[[], None]) -> Exception | None:
        """The command has ended: wait for the stream's end, or until nothing more of the command's can come.

        `echo` returns when whatever the other side had before has come here: that nothing comes for a while
        may be a stall. What still comes in some rounds is another process's, when it is little or more than
        was under way. As long as the sink itself takes is no reason to give anything up. Returns what the sink
        raised, or the receiver.
        """
        self._thread.join(_QUIET_SECONDS)
        rounds, most = 0, self._bytes + _UNDER_WAY
        while self._thread.is_alive() and rounds < _ROUNDS:
            before = self._bytes
            echo()
            self._thread.join(_QUIET_SECONDS)
            new = self._bytes - before
            if not (new or self._delivering or self._waiting()):
                break
            rounds += not self._delivering and (new < _PACKET or self._bytes > most)
        return self._error

    def _read(self) -> None:
        try:
            while data := self._receive(_CHUNK):
                self._delivering = True
                self._deliver(data)
                self._bytes += len(data)
                self._delivering = False
        except Exception as error:  # noqa: BLE001
            self._error = error

    def _deliver(self, data: bytes) -> None:
        """What comes after something that could not be handed over is taken all the same: a command would wait."""
        if self._error is None:
            try:
                self._sink(data)
            except Exception as error:  # noqa: BLE001
                self._error = error
