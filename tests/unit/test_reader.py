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


def read(
    chunks: Iterator[bytes], sink: Callable[[bytes], None], *, echo: Callable[[], None] = lambda: None
) -> Exception | None:
    return Reader(lambda most: next(chunks, b""), sink, waiting=lambda: False).finish(echo)


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


def test_what_comes_in_packets_was_under_way_and_is_waited_for() -> None:
    """A link that is slower than the guest: in more rounds than anything else gets."""
    asked, came = threading.Semaphore(0), threading.Semaphore(0)
    packets = 3 * reader._ROUNDS
    got = 0

    def chunks() -> Iterator[bytes]:
        for _ in range(packets):
            asked.acquire()
            yield bytes(reader._PACKET)

    def sink(data: bytes) -> None:
        nonlocal got
        got += len(data)
        came.release()

    def echo() -> None:
        asked.release()
        came.acquire(timeout=20)

    read(chunks(), sink, echo=echo)
    assert got == packets * reader._PACKET


def test_more_than_was_under_way_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_UNDER_WAY", 4 * reader._PACKET)
    ended = threading.Event()

    def chunks() -> Iterator[bytes]:
        while not ended.wait(QUIET_SECONDS / 4):
            yield bytes(reader._PACKET)

    read(chunks(), bytearray().extend)
    assert not ended.is_set()
    ended.set()


def test_what_something_else_prints_for_ever_is_not_waited_for() -> None:
    ended = threading.Event()

    def chunks() -> Iterator[bytes]:
        while not ended.wait(QUIET_SECONDS / 4):
            yield b"x"

    read(chunks(), bytearray().extend)
    assert not ended.is_set()
    ended.set()


def test_what_the_sink_raises_is_told_and_the_rest_is_taken_all_the_same() -> None:
    left = iter([b"a", b"b", b"c"])

    def sink(data: bytes) -> None:
        raise OSError(f"disk full at {data!r}")

    assert str(read(left, sink)) == "disk full at b'a'"
    assert list(left) == []
