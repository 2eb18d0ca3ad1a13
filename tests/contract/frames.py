# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames, byte by byte: what a guest with a raw socket can make."""

import struct
from ipaddress import IPv4Address

BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, TCP, UDP = 1, 6, 17
SYN, ACK, RST = 2, 16, 4
DISCOVER, OFFER = 1, 2


def ether(source: str, target: str, kind: int, payload: bytes) -> bytes:
    """A frame with an Ethernet header; `kind` may be a length as well."""
    return _mac(target) + _mac(source) + struct.pack("!H", kind) + payload


def arp(
    source: str, address: str, wanted: str, *, operation: int = 1, claimed: str = "", target: str = BROADCAST,
    lengths: tuple[int, int] = (6, 4),
) -> bytes:
    """An ARP message in a frame; `claimed` is the MAC address in its text, if that is another one."""
    body = struct.pack("!HHBBH", 1, IPV4, *lengths, operation) + _mac(claimed or source) + _ip(address)
    return ether(source, target, ARP, body + bytes(6) + _ip(wanted))


def ip(
    source: str, address: str, target: str, to: str, protocol: int, payload: bytes, *, fragment: int = 0
) -> bytes:
    """An IPv4 packet in a frame; `fragment` is its flags and offset."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return ether(source, target, IPV4, header + _ip(address) + _ip(to) + payload)


def tcp(source: int, target: int, flags: int = SYN) -> bytes:
    """A TCP segment without data."""
    return struct.pack("!HHIIBBHHH", source, target, 1, 1, 0x50, flags, 1024, 0, 0)


def udp(source: int, target: int, payload: bytes = b"") -> bytes:
    """A UDP datagram."""
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def icmp(kind: int) -> bytes:
    """An ICMP message: 8 asks for an echo, 0 is one, 5 redirects."""
    return struct.pack("!BBHHH", kind, 0, 0, 1, 1)


def dhcp(message: int, hardware: str, *, ports: tuple[int, int] = (68, 67)) -> bytes:
    """A DHCP message in a UDP datagram."""
    operation = 2 if message == OFFER else 1
    body = struct.pack("!BBBBIHH", operation, 1, 6, 0, 7, 0, 0) + bytes(16) + _mac(hardware) + bytes(10 + 64 + 128)
    return udp(*ports, body + b"\x63\x82\x53\x63" + bytes((53, 1, message, 255)))


def ipv6(source: str, target: str, header: int, payload: bytes) -> bytes:
    """An IPv6 packet from a link-local address in a frame."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), header, 255)
    addresses = bytes.fromhex("fe80" + "00" * 13 + "01" + "ff02" + "00" * 13 + "01")
    return ether(source, target, IPV6, head + addresses + payload)


def tagged(frame: bytes, number: int, kind: int = 0x8100) -> bytes:
    """The frame with a VLAN tag."""
    return frame[:12] + struct.pack("!HH", kind, number) + frame[12:]


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ip(text: str) -> bytes:
    return IPv4Address(text).packed
