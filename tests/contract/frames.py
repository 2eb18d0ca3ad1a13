# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames, byte by byte: what a guest with a raw socket can make."""

import struct
from ipaddress import IPv4Address, IPv6Address

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


def ip6(
    source: str, address: str, target: str, to: str, header: int, payload: bytes, *, hops: int = 64
) -> bytes:
    """An IPv6 packet in a frame; `header` says what its payload begins with."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), header, hops)
    return ether(source, target, IPV6, head + IPv6Address(address).packed + IPv6Address(to).packed + payload)


def icmp6(kind: int, body: bytes = bytes(4), *, code: int = 0) -> bytes:
    """An ICMPv6 message: 128 asks for an echo, 133 to 137 are neighbour discovery."""
    return struct.pack("!BBH", kind, code, 0) + body


def solicitation(wanted: str, *options: bytes) -> bytes:
    """Who has this address?"""
    return icmp6(135, bytes(4) + IPv6Address(wanted).packed + b"".join(options))


def advertisement(claimed: str, *options: bytes, flags: int = 0x60) -> bytes:
    """It is me; `flags` are router, solicited and override, from the highest bit on."""
    return icmp6(136, bytes((flags, 0, 0, 0)) + IPv6Address(claimed).packed + b"".join(options))


def has_mac(kind: int, mac: str) -> bytes:
    """An option of neighbour discovery: 1 is the sender's, 2 the target's MAC address."""
    return bytes((kind, 1)) + _mac(mac)


def extended(kind: int, header: int, payload: bytes, *, about: bytes = bytes(6)) -> tuple[int, bytes]:
    """An extension header of type `kind` before a payload that begins with `header`: what to give to `ip6`."""
    return kind, bytes((header, (len(about) - 6) // 8)) + about + payload


def fragment6(header: int, payload: bytes, *, offset: int = 0, more: bool = False) -> tuple[int, bytes]:
    """A fragment, at so many times 8 bytes."""
    return 44, struct.pack("!BBHI", header, 0, offset << 3 | more, 7) + payload


def group(address: str) -> str:
    """The MAC address that a multicast address is sent to."""
    return "33:33:" + IPv6Address(address).packed[12:].hex(":")


def solicited(address: str) -> str:
    """The multicast address at which whoever has this address is asked for."""
    return str(IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + IPv6Address(address).packed[13:]))


def tagged(frame: bytes, number: int, kind: int = 0x8100) -> bytes:
    """The frame with a VLAN tag."""
    return frame[:12] + struct.pack("!HH", kind, number) + frame[12:]


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ip(text: str) -> bytes:
    return IPv4Address(text).packed
