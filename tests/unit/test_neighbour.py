# SPDX-License-Identifier: Apache-2.0
"""Neighbour messages, byte by byte; what is cut short or hostile is passed over."""

import contextlib
import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from vtorque import netlink
from vtorque.backends.address.neighbour import Neighbours, neighbour
from vtorque.errors import AddressError
from vtorque.mom.bell import Bell

MAC = "52:54:00:12:34:56"


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def body(address: bytes = b"\x0a\x63\x00\x10", mac: str = MAC, state: int = 2, interface: int = 5) -> bytes:
    attributes = attribute(1, address) + (attribute(2, bytes.fromhex(mac.replace(":", ""))) if mac else b"")
    return struct.pack("=BxxxiHBB", 2, interface, state, 0, 1) + attributes


def message(kind: int, data: bytes) -> bytes:
    return struct.pack("=IHHII", len(data) + 16, kind, 0, 0, 0) + data


def test_a_neighbour_is_read() -> None:
    assert neighbour(body()) == (5, "10.99.0.16", MAC, 2)


def test_a_neighbour_without_a_mac_is_known_by_its_address() -> None:
    assert neighbour(body(mac="")) == (5, "10.99.0.16", "", 2)


@pytest.mark.parametrize(
    "address", [b"", b"\1\2\3", bytes.fromhex("fe80" + "00" * 13 + "01"), b"\xe0\0\0\1", b"\0" * 4]
)
def test_addresses_that_cannot_be_connected_to_are_passed_over(address: bytes) -> None:
    assert neighbour(body(address)) is None


def test_ipv6_is_an_address_too() -> None:
    found = neighbour(body(bytes.fromhex("fd00" + "00" * 13 + "07")))
    assert found is not None and found[1] == "fd00::7"


def test_several_messages_come_in_one_piece() -> None:
    data = message(28, body()) + message(29, body()) + message(3, b"\0" * 4)
    assert [kind for kind, _ in netlink.messages(data)] == [28, 29, 3]


def test_what_is_cut_short_or_lies_about_its_length_ends_quietly() -> None:
    whole = message(28, body())
    for length in range(len(whole)):
        assert list(netlink.messages(whole[:length])) == []
    source = random.Random(2)
    for _ in range(5000):
        changed = bytearray(whole)
        changed[source.randrange(len(changed))] = source.randrange(256)
        for _, data in netlink.messages(bytes(changed)):
            found = neighbour(data)
            assert found is None or found[1]


def test_a_bridge_that_is_not_there_is_named() -> None:
    with pytest.raises(AddressError, match="no bridge 'vtnosuch0'"):
        Neighbours("vtnosuch0")


class Kernel:
    """A netlink socket: `says` is what comes, message by message, or an error."""

    def __init__(self, *says: bytes | OSError) -> None:
        self.says = list(says)
        self.asked = 0
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for _ in says:
            self._theirs.send(b"x")

    def say(self, *says: bytes | OSError) -> None:
        self.says += says
        for _ in says:
            self._theirs.send(b"x")

    def bind(self, address: tuple[int, int]) -> None:
        """All messages are for us."""

    def send(self, data: bytes) -> None:
        self.asked += 1

    def recv(self, size: int) -> bytes:
        self._ours.recv(size)
        said = self.says.pop(0)
        if isinstance(said, OSError):
            raise said
        return said

    def fileno(self) -> int:
        return self._ours.fileno()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


LOOPBACK = socket.if_nametoindex("lo")
NEW, GONE, ASKED, DONE = 28, 29, 30, message(3, b"\0" * 4)
THERE = message(NEW, body(interface=LOOPBACK))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Neighbours, Kernel]]]:
    """The table of one bridge, and the kernel that tells of it."""
    made: list[Neighbours] = []

    def of(*says: bytes | OSError) -> tuple[Neighbours, Kernel]:
        kernel = Kernel(*says)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(socket, "socket", lambda *kind: kernel)
            made.append(Neighbours("lo"))
        return made[-1], kernel

    yield of
    for each in made:
        each.close()


Table = Callable[..., tuple[Neighbours, Kernel]]


def test_the_table_is_read_until_its_end(table: Table) -> None:
    book, _ = table(THERE, DONE)
    assert book.candidates(MAC) == ("10.99.0.16",)


@pytest.mark.parametrize(("kind", "left"), [(GONE, ()), (ASKED, ("10.99.0.16",))])
def test_only_what_tells_of_an_entry_changes_it(table: Table, kind: int, left: tuple[str, ...]) -> None:
    book, kernel = table(THERE, DONE)
    kernel.say(message(kind, body(interface=LOOPBACK)))
    book.drain()
    assert book.candidates(MAC) == left


def test_messages_that_were_dropped_make_it_ask_for_the_table_again(table: Table) -> None:
    book, kernel = table(THERE, DONE)
    kernel.say(OSError(errno.ENOBUFS, "No buffer space available"), THERE)
    book.drain()
    assert (kernel.asked, book.candidates(MAC)) == (2, ())
    book.drain()
    assert book.candidates(MAC) == ("10.99.0.16",)


def test_a_table_that_is_lost_is_a_failure(table: Table) -> None:
    book, kernel = table(DONE)
    kernel.say(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(AddressError, match="lost the neighbour table: Input/output error"):
        book.drain()


def test_whoever_waits_is_woken_by_others_too(table: Table) -> None:
    book, kernel = table(DONE)
    with contextlib.closing(Bell()) as bell:
        bell.ring()
        book.wait(60, bell)
    kernel.say(THERE)
    book.wait(60)
    assert book.candidates(MAC) == ("10.99.0.16",)
