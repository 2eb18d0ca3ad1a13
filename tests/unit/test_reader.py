# SPDX-License-Identifier: Apache-2.0
"""Output of a command that has ended: none of it is lost, and nothing else is waited for."""

import threading
from collections.abc import Callable, Iterator

import pytest

from vtorque.backends.transport import reader
from vtorque.backends.transport.reader import Reader

QUIET_SECONDS = 0.02


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_QUIET_SECONDS", QUIET_SECONDS)


def of(chunks: Iterator[bytes]) -> Callable[[int], bytes]:
    return lambda most: next(chunks, b"")


def test_a_sink_that_takes_its_time_gets_everything() -> None:
    """A spool file on a file system that hangs for a while."""
    got, taking = bytearray(), threading.Event()

    def sink(data: bytes) -> None:
        taking.wait(QUIET_SECONDS * 20)
        got.extend(data)

    Reader(of(iter([b"a", b"b", b"c"])), sink).finish()
    assert got == b"abc"


def test_a_stream_that_something_else_keeps_open_is_not_waited_for() -> None:
    ended = threading.Event()
    got = bytearray()

    def chunks() -> Iterator[bytes]:
        yield b"a"
        ended.wait()

    Reader(of(chunks()), got.extend).finish()
    assert got == b"a"
    ended.set()


def test_what_something_else_prints_for_ever_is_not_waited_for() -> None:
    ended = threading.Event()

    def chunks() -> Iterator[bytes]:
        while not ended.wait(QUIET_SECONDS / 4):
            yield b"x"

    Reader(of(chunks()), bytearray().extend).finish()
    assert not ended.is_set()
    ended.set()


def test_what_the_sink_raises_is_raised() -> None:
    def sink(data: bytes) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Reader(of(iter([b"a"])), sink).finish()
