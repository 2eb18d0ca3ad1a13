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


def read(chunks: Iterator[bytes], sink: Callable[[bytes], None], *, echo: Callable[[], None] = lambda: None) -> None:
    Reader(lambda most: next(chunks, b""), sink, waiting=lambda: False).finish(echo)


def test_a_sink_that_takes_its_time_gets_everything() -> None:
    """A spool file on a file system that hangs for a while."""
    got, taking = bytearray(), threading.Event()

    def sink(data: bytes) -> None:
        taking.wait(QUIET_SECONDS * 20)
        got.extend(data)

    read(iter([b"a", b"b", b"c"]), sink)
    assert got == b"abc"


def test_a_stream_that_something_else_keeps_open_is_not_waited_for() -> None:
    ended = threading.Event()
    got = bytearray()

    def chunks() -> Iterator[bytes]:
        yield b"a"
        ended.wait()

    read(chunks(), got.extend)
    assert got == b"a"
    ended.set()


def test_what_a_stall_kept_back_is_the_commands_own() -> None:
    echoed, ended = threading.Event(), threading.Event()
    got = bytearray()

    def chunks() -> Iterator[bytes]:
        yield b"a"
        echoed.wait()
        yield b"b"
        ended.wait()

    def echo() -> None:
        echoed.wait(QUIET_SECONDS * 5)
        echoed.set()

    read(chunks(), got.extend, echo=echo)
    assert got == b"ab"
    ended.set()


def test_what_has_come_and_was_not_received_yet_is_waited_for() -> None:
    left = [b"a", b"b", b"c"]
    received, ended = threading.Event(), threading.Event()
    got = bytearray()

    def receive(most: int) -> bytes:
        received.wait()
        if not left:
            ended.wait()
            return b""
        return left.pop(0)

    def waiting() -> bool:
        there = bool(left)
        received.set()
        return there

    Reader(receive, got.extend, waiting=waiting).finish(lambda: None)
    assert got == b"abc"
    ended.set()


def test_what_something_else_prints_for_ever_is_not_waited_for() -> None:
    ended = threading.Event()

    def chunks() -> Iterator[bytes]:
        while not ended.wait(QUIET_SECONDS / 4):
            yield b"x"

    read(chunks(), bytearray().extend)
    assert not ended.is_set()
    ended.set()


def test_what_the_sink_raises_is_raised() -> None:
    def sink(data: bytes) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        read(iter([b"a"]), sink)
