# SPDX-License-Identifier: Apache-2.0
"""Root's audit log and a syslog daemon: who gets what, and that nobody waits for one that does not listen."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtorque import audit

pytestmark = pytest.mark.runs


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    yield
    audit.setup("none", Path("/"), step="")
    audit.log.setLevel(logging.NOTSET)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "log"))
        found.setblocking(False)
        yield found


@pytest.mark.parametrize("where", ["file", "syslog", "both", "none"])
def test_it_goes_where_the_site_wants_it(tmp_path: Path, daemon: socket.socket, where: str) -> None:
    audit.setup(where, tmp_path, step="sweep", syslog=tmp_path / "log")
    audit.note("give back", job="7.srv")
    assert (tmp_path / audit.FILE).exists() == (where in ("file", "both"))
    if where in ("syslog", "both"):
        # LOG_AUTHPRIV is facility 10, LOG_INFO severity 6.
        head, _, line = daemon.recv(4096).decode().partition(": ")
        assert head == f"<86>vtorque[{os.getpid()}]" and json.loads(line)["job"] == "7.srv"
    else:
        with pytest.raises(BlockingIOError):
            daemon.recv(4096)


def test_a_syslog_that_does_not_listen_holds_nobody_up(tmp_path: Path, daemon: socket.socket) -> None:
    audit.setup("both", tmp_path, step="sweep", syslog=tmp_path / "log")
    for _ in range(2000):
        # Far more than it has room for, and it reads nothing.
        audit.note("give back", job="7.srv")
    assert len((tmp_path / audit.FILE).read_text().splitlines()) == 2000


def test_a_syslog_that_is_not_there_costs_the_file_nothing(tmp_path: Path) -> None:
    audit.setup("both", tmp_path, step="sweep", syslog=tmp_path / "nobody")
    audit.note("give back", job="7.srv")
    assert (tmp_path / audit.FILE).read_text().count("\n") == 1
