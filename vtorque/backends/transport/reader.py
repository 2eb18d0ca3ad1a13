# SPDX-License-Identifier: Apache-2.0
"""One stream of a command in a guest, handed over as it comes."""

import threading
from collections.abc import Callable

from vtorque.backends.transport import Sink

_CHUNK = 1 << 16
# After a command has ended, something it left behind may hold its output open for ever, or print for ever.
_QUIET_SECONDS = 1.0
_ROUNDS = 5


class Reader:
    """Hands over what `receive` gets, in a thread of its own, until that gets nothing more."""

    def __init__(self, receive: Callable[[int], bytes], sink: Sink) -> None:
        self._receive = receive
        self._sink = sink
        self._count = 0
        self._delivering = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """The command has ended: wait for the stream's end, or until nothing came for a while.

        What was under way when it ended comes within a few seconds; what still
        comes then is another process's. As long as the sink itself takes is no
        reason to give anything up. Raises what the sink raised.
        """
        rounds, before = 0, -1
        while self._thread.is_alive() and rounds < _ROUNDS and (self._delivering or before != self._count):
            before = self._count
            self._thread.join(_QUIET_SECONDS)
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
