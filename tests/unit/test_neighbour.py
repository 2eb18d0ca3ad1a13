# SPDX-License-Identifier: Apache-2.0
"""Neighbour messages, byte by byte; what is cut short or hostile is passed over."""

import random
import struct

import pytest

from vtorque.backends.address.neighbour import Neighbours, messages, neighbour
from vtorque.errors import AddressError

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
    assert [kind for kind, _ in messages(data)] == [28, 29, 3]


def test_what_is_cut_short_or_lies_about_its_length_ends_quietly() -> None:
    whole = message(28, body())
    for length in range(len(whole)):
        assert list(messages(whole[:length])) == []
    source = random.Random(2)
    for _ in range(5000):
        changed = bytearray(whole)
        changed[source.randrange(len(changed))] = source.randrange(256)
        for _, data in messages(bytes(changed)):
            found = neighbour(data)
            assert found is None or found[1]


def test_a_bridge_that_is_not_there_is_named() -> None:
    with pytest.raises(AddressError, match="no bridge 'vtnosuch0'"):
        Neighbours("vtnosuch0")
