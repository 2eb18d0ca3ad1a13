# SPDX-License-Identifier: Apache-2.0
"""One stream of a command in a guest, handed over as it comes."""

import threading
from collections.abc import Callable

from vtorque.backends.transport import Sink

_CHUNK = 1 << 16
# After a command has ended, something it left behind may hold its output open for ever, or print for ever.
_QUIET_SECONDS = 0.5
_ROUNDS = 10


class Reader:
    """Hands over what `receive` gets, in a thread of its own, until that gets nothing more.

    `waiting` says whether there is something to be received.
    """

    def __init__(self, receive: Callable[[int], bytes], sink: Sink, *, waiting: Callable[[], bool]) -> None:
        self._receive = receive
        self._waiting = waiting
        self._sink = sink
        self._count = 0
        self._delivering = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self, echo: Callable[[], None]) -> None:
        """The command has ended: wait for the stream's end, or until nothing more of the command's can come.

        `echo` returns when whatever the other side had before has come here: that nothing comes for a while
        may be a stall. What still comes after some rounds is another process's. As long as the sink itself
        takes is no reason to give anything up. Raises what the sink raised.
        """
        self._thread.join(_QUIET_SECONDS)
        rounds = 0
        while self._thread.is_alive() and rounds < _ROUNDS:
            before = self._count
            echo()
            self._thread.join(_QUIET_SECONDS)
            if before == self._count and not self._delivering and not self._waiting():
                break
            rounds += not self._delivering
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            while data := self._receive(_CHUNK):
                self._delivering = True
                self._sink(data)
                self._count += 1
                self._delivering = False
        except Exception as error:  # noqa: BLE001
            self._error = error
