# SPDX-License-Identifier: Apache-2.0
"""What a guest says of itself over its channel: that it is ready.

A hint and never a proof: whoever hears it looks at once instead of later. Of
what a guest writes there, a little is read once, and nothing is passed on.
"""

import contextlib
import os
import socket
from pathlib import Path

CHANNEL = "org.vtorque.ready"
"""The channel's name, by which the guest finds it: /dev/virtio-ports/org.vtorque.ready."""

_READY = b"ready"
_LIMIT = 256
# linux/un.h: 108 with the final NUL.
_LONGEST_PATH = 107


def fits(path: Path) -> bool:
    """Whether a socket can have this path: without one a guest is found all the same."""
    return len(os.fsencode(path)) <= _LONGEST_PATH


class Announcement:
    """One guest's channel, from the outside. With an image that says nothing it stays silent."""

    def __init__(self, channel: socket.socket | None) -> None:
        self.heard = False
        """Whether the guest has said that it is ready."""
        self._said = b""
        self._socket = channel
        if channel is not None:
            channel.setblocking(False)

    def fileno(self) -> int:
        """What can be read when the guest has said something, or is gone; below 0 when nobody listens any more."""
        return self._socket.fileno() if self._socket else -1

    def drain(self) -> None:
        """Read what the guest has said: one line, or too much, ends the listening."""
        if self._socket is None:
            return
        data = b""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            data = self._socket.recv(_LIMIT - len(self._said))
        self._said += data
        line, end, _ = self._said.partition(b"\n")
        if end and line.split(b" ")[0].rstrip(b"\r") == _READY:
            self.heard = True
        if end or not data or len(self._said) == _LIMIT:
            self.close()

    def close(self) -> None:
        """Listen no more; what the guest still writes stays with it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
