# SPDX-License-Identifier: Apache-2.0
"""What comes from the kernel, and from who reads it for root, piece by piece."""

import errno
import os
import socket
import struct
from typing import Any

import pytest

from tests.builders import a_plan
from vtorque import netlink
from vtorque.backends.address.apart import TableApart
from vtorque.backends.filter import nftables
from vtorque.deadline import Deadline
from vtorque.errors import AddressError

VM = a_plan().vms[0]
BRIDGE, IPV4 = 7, 2


def message(kind: int, data: bytes) -> bytes:
    return netlink.MESSAGE.pack(len(data) + netlink.MESSAGE.size, kind, 0, 0, 0) + data


def table(name: bytes, family: int = BRIDGE) -> bytes:
    padding = b"\0" * (-len(name) % 4)
    attribute = netlink.ATTRIBUTE.pack(netlink.ATTRIBUTE.size + len(name), 1) + name + padding
    return message(10 << 8, struct.pack("=BBH", family, 0, 0) + attribute)


def test_tables_of_the_bridge_family_are_read_until_the_end() -> None:
    found: list[str] = []
    assert nftables._enter(table(b"vtorque-7.srv\0") + table(b"site\0", IPV4), found)
    assert not nftables._enter(table(b"site\0") + message(netlink.DONE, b"\0" * 4) + table(b"late\0"), found)
    assert found == ["vtorque-7.srv", "site"]


def test_an_error_of_the_kernels_is_its_own() -> None:
    with pytest.raises(OSError, match="Operation not permitted") as caught:
        nftables._enter(message(netlink.ERROR, struct.pack("=i", -errno.EPERM) + b"\0" * 16), [])
    assert caught.value.errno == errno.EPERM


def test_attributes_that_are_cut_short_or_lie_end_quietly() -> None:
    whole = netlink.ATTRIBUTE.pack(8, 1) + b"abcd" + netlink.ATTRIBUTE.pack(5, 2) + b"e\0\0\0"
    assert list(netlink.attributes(whole)) == [(1, b"abcd"), (2, b"e")]
    assert list(netlink.attributes(whole[:12])) == [(1, b"abcd")]
    for length in (0, 3, 9, 65535):
        assert list(netlink.attributes(netlink.ATTRIBUTE.pack(length, 1) + b"abcd")) == []


class Teller:
    """A child that says this of every guest, at once."""

    def __init__(self, *said: bytes) -> None:
        self.said = said
        self.asked: list[str] = []
        self.tells: list[socket.socket] = []

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: Any = None) -> Any:
        assert verb == "watch" and handle is not None
        self.asked += map(str, words)
        self.tells.append(socket.socket(fileno=os.dup(handle)))
        for each in self.said:
            self.tells[-1].sendall(each)

    def dismiss(self) -> None:
        for each in self.tells:
            each.close()


def table_of(teller: Teller) -> TableApart:
    return TableApart(teller, deadline=Deadline(30))


def test_a_guest_is_asked_about_once_and_what_is_told_last_counts() -> None:
    teller = Teller(b'["10.0.0.5"]\n', b'["10.0.0.6", "fd00::5"]\n["10.0', )
    book = table_of(teller)
    assert book.candidates(VM) == ("10.0.0.6", "fd00::5")
    teller.tells[0].sendall(b'.0.7"]\n')
    book.wait(30)
    assert book.candidates(VM) == ("10.0.0.7",)
    assert teller.asked == [VM.mac]
    book.close()
    teller.dismiss()


def test_only_addresses_that_a_guest_can_have_are_taken() -> None:
    teller = Teller(b'["127.0.0.1", "fe80::1%lo", "x; flush ruleset", 5, null, "FD00::5"]\n')
    book = table_of(teller)
    assert book.candidates(VM) == ("fd00::5",)
    book.close()
    teller.dismiss()


@pytest.mark.parametrize("said", [b"{\n", b"5\n", b"\xff\n", b"x" * (2 << 20)])
def test_what_makes_no_sense_is_an_error(said: bytes) -> None:
    teller = Teller()
    book = table_of(teller)
    assert book.candidates(VM) == ()
    teller.tells[0].setblocking(False)
    sent = 0
    with pytest.raises(AddressError, match="makes no sense"):
        while True:
            if sent < len(said):
                sent += teller.tells[0].send(said[sent:])
            book.wait(30)
    book.close()
    teller.dismiss()


def test_who_tells_no_more_is_missed() -> None:
    teller = Teller(b"[]\n")
    book = table_of(teller)
    assert book.candidates(VM) == ()
    teller.dismiss()
    with pytest.raises(AddressError, match="has gone"):
        book.wait(30)
    book.close()
