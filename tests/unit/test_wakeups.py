# SPDX-License-Identifier: Apache-2.0
"""What wakes whoever waits: once it is closed, or was never there, it is silent and does no harm."""

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

from vtorque import wakeups
from vtorque.announcement import Announcement
from vtorque.mom.bell import Bell
from vtorque.wakeups import Changes


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """A process that may open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_bell_that_is_closed_rings_nowhere_else() -> None:
    closed = Bell()
    closed.close()
    with_its_number = Bell()
    closed.ring()
    assert wakeups.wait(0, with_its_number) == []
    with_its_number.ring()
    assert wakeups.wait(0, with_its_number) == [with_its_number]
    with_its_number.close()


def test_a_directory_tells_of_what_comes(tmp_path: Path) -> None:
    changes = Changes(tmp_path, tmp_path / "missing")
    assert wakeups.wait(0, changes) == []
    (tmp_path / "new").touch()
    assert wakeups.wait(0, changes) == [changes]
    assert wakeups.wait(0, changes) == []
    changes.close()


def test_a_node_that_has_no_watches_left_is_looked_at_now_and_then(tmp_path: Path) -> None:
    with no_descriptors():
        changes = Changes(tmp_path)
    assert changes.fileno() < 0
    assert wakeups.wait(0, changes) == []
    changes.close()


def test_a_guest_is_not_heard_any_more_when_nobody_listens(tmp_path: Path) -> None:
    silent = Announcement(None)
    silent.drain()
    silent.close()
    assert (silent.heard, silent.fileno()) == (False, -1)


def test_a_guest_that_is_gone_says_nothing_more() -> None:
    ours, its = socket.socketpair()
    word = Announcement(ours)
    assert wakeups.wait(0, word) == []
    its.close()
    assert wakeups.wait(0, word) == [word]
    word.drain()
    assert (word.heard, word.fileno()) == (False, -1)
