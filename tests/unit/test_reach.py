# SPDX-License-Identifier: Apache-2.0
"""Who answers at all: whatever the kernel says of a connection, at once or later, means there is somebody or nobody."""

import errno
import socket
from typing import Any

import pytest

from vtorque.backends.transport import reach

AT_ONCE = {"10.0.0.1": 0, "10.0.0.2": errno.ECONNREFUSED, "10.0.0.3": errno.ENETUNREACH, "fd00::1": errno.EHOSTUNREACH}
LATER = {"10.0.1.1": 0, "10.0.1.2": errno.ECONNREFUSED, "10.0.1.3": errno.EHOSTUNREACH, "fd00::2": 0}


class Connection(socket.socket):
    """One that is never made: what becomes of it is in the tables above."""

    def connect_ex(self, address: Any) -> int:
        self.trouble = LATER.get(address[0], 0)
        return AT_ONCE.get(address[0], errno.EINPROGRESS)

    def getsockopt(self, *arguments: Any) -> Any:
        return self.trouble


def test_an_answer_and_a_refusal_mean_that_somebody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Connection)
    found = reach.answering([*AT_ONCE, *LATER], port=22, seconds=5)
    assert found == {"10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2", "fd00::2"}


def test_what_is_no_address_keeps_nobody_from_answering() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = reach.answering(["fe80::1%no such\nzone", "127.0.0.1", "not an address"], port=port, seconds=5)
    assert found == {"127.0.0.1"}
