# SPDX-License-Identifier: Apache-2.0
"""The job's user at work in his own job directory, told by the program, which does not go there itself."""

import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any

from vtorque.deadline import Deadline
from vtorque.userclerk import MESSAGE_LIMIT


class UserSide:
    """The user's side of a job: `~/.vtorque/<request id>`.

    A child that has become the user does what it is told and answers; when it
    does not answer in time (a hung home) it is abandoned and everything later
    is skipped, so that root never waits for a user's file system twice.
    """

    def __init__(self, clerk: socket.socket, request_id: str) -> None:
        self._socket = clerk
        self._request_id = request_id
        self._answers = self._socket.makefile("rb")
        self._usable = True

    @property
    def usable(self) -> bool:
        """Whether it has answered so far."""
        return self._usable

    def append(self, name: str, text: str, *, deadline: Deadline) -> bool:
        """Add `text` to the file `name` of the job directory; whether it was done."""
        return self._do({"do": "append", "name": name, "text": text}, deadline) is not None

    def replace(self, name: str, text: str, *, deadline: Deadline) -> bool:
        """Put a whole file there, which readers see entirely or not at all; whether it was done."""
        return self._do({"do": "replace", "name": name, "text": text}, deadline) is not None

    def read(self, name: str, *, limit: int, deadline: Deadline) -> str | None:
        """A regular file of at most `limit` bytes; nothing when there is none, or no answer."""
        return self._do({"do": "read", "name": name, "limit": limit}, deadline)

    def forget(self, name: str, *, deadline: Deadline) -> bool:
        """Remove a file, or all that a pattern matches; whether there is none now."""
        return self._do({"do": "forget", "name": name}, deadline) is not None

    def remove(self, job: str, *, elements: int, if_cancelled: bool, deadline: Deadline) -> bool:
        """Remove the job directory and the symbolic link to it by the job's id; whether it was done.

        One of the `elements` of an array only notes that it has ended; the last one removes. With
        `if_cancelled` nothing is done unless `epilogue.precancel` has noted that the job is not wanted any more.
        """
        order = {"do": "remove", "job": job, "elements": elements, "if_cancelled": if_cancelled}
        return self._do(order, deadline) is not None

    def close(self) -> None:
        """Let the child go."""
        self._answers.close()
        # A copy of it may live on in a child of ours.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _do(self, order: Mapping[str, Any], deadline: Deadline) -> str | None:
        """The answer's text, empty for most orders; nothing when it was not done."""
        if not self._usable:
            return None
        try:
            self._socket.settimeout(deadline.remaining or 0.001)
            self._socket.sendall(json.dumps({**order, "request": self._request_id}).encode() + b"\n")
            line = self._answers.readline(2 * MESSAGE_LIMIT)
            if not line.endswith(b"\n"):
                raise OSError("no answer")
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError):
            self._usable = False
            return None
        return str(answer["text"]) if answer["done"] else None
