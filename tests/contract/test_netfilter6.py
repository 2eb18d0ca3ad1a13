# SPDX-License-Identifier: Apache-2.0
"""Real IPv6 frames of every class through the kernel's bridges, without rules and with them."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest

from tests.contract import test_netfilter as four
from tests.contract.frames import (
    ACK,
    BROADCAST,
    SYN,
    TCP,
    UDP,
    advertisement,
    ether,
    extended,
    fragment6,
    group,
    has_mac,
    icmp6,
    ip,
    ip6,
    solicitation,
    solicited,
    tagged,
    tcp,
    udp,
)
from tests.contract.test_netfilter import ALL_GUESTS, BRIDGES, GUESTS, Case, raw
from vtorque import guestnet, names, netfilter, netfilter6
from vtorque.backends.filter.nft import PROGRAM
from vtorque.surroundings import Surroundings

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a network"),
    pytest.mark.skipif(not PROGRAM.exists(), reason="needs nftables"),
]

NET, LOCAL = IPv6Network("2001:db8:0:1::/64"), IPv6Network("fe80::/64")
SITE = four.SITE.but(vm_nfs_home="[2001:db8:0:1::5]:/home", guest_net_allow="[2001:db8:0:1::6]:27000",
    guest_net_deny="[2001:db8:20::/48]",
)
WORLD, ICMP = "2001:db8:ffff::9", 58
ALL_NODES, ALL_ROUTERS = "ff02::1", "ff02::2"
NUMBERS = {"br1": 1, "br2": 2, "nfs": 5, "server": 6, "dhcp": 7, "gate": 0xFA}
PLACES = {
    name: (mac, str(NET[NUMBERS[name]] if name in NUMBERS else netfilter6.derived(mac, NET)))
    for name, (mac, _) in four.PLACES.items()
}
LINK = {name: str(netfilter6.derived(mac, LOCAL)) for name, (mac, _) in PLACES.items()}
A, A_IP = PLACES["a"]
A_LINK = LINK["a"]
PEER_MAC, PEER_IP = PLACES["b"]
LIAR = "52:54:00:66:66:66"


def around(node: str) -> Surroundings:
    there = four.around(node)
    return replace(
        there, networks=(*there.networks, NET), own=(*there.own, IPv6Address(PLACES[node][1]), NET[0xABC]),
        services=(*there.services, (NET[5], 2049)),
    )


def rules(*, assigned: bool) -> list[str]:
    texts = []
    for node, plans in (("br1", (four.HERE, four.OTHER)), ("br2", (four.THERE, four.OTHER_THERE))):
        for plan in plans:
            text = netfilter.rules(plan, SITE, around(node) if assigned else four.around(node), addresses={})
            for vm in plan.vms:
                text += guestnet.pinned(names.table(plan.job.key, SITE), vm, four.ADDRESSES.get(vm.tap, "10.0.0.104"))
            name = names.table(plan.job.key, SITE)
            texts.append(text.replace(f"bridge {name}", f"bridge {name}-{node}"))
    return texts


def packet(sender: str, to: str, header: int, payload: bytes, **about: Any) -> bytes:
    """An honest packet from one place to another; places outside go through the gateway."""
    mac, address = PLACES[sender]
    target, end = PLACES[to] if to in PLACES else (PLACES["gate"][0], to)
    return ip6(mac, address, target, end, header, payload, **about)


def from_a(to: str, header: int, payload: bytes, **about: Any) -> Case:
    return raw(packet("a", to, header, payload, **about))


def to_impostor(to: str, header: int, payload: bytes) -> Case:
    return raw(ip6(A, A_IP, four.IMPOSTOR, to, header, payload))


def from_impostor(address: str, header: int, payload: bytes) -> Case:
    return Case(sender="impostor", frame=ip6(four.IMPOSTOR, address, A, A_IP, header, payload), to=("a",))


def spoofed(address: str, *, mac: str = A) -> Case:
    return raw(ip6(mac, address, PLACES["nfs"][0], PLACES["nfs"][1], TCP, tcp(900, 2049)))


def to_all(address: str, header: int, payload: bytes, *, to: str = ALL_NODES, mac: str = A, hops: int = 255) -> bytes:
    """A packet to a multicast address."""
    return ip6(mac, address, group(to), to, header, payload, hops=hops)


def asks(wanted: str, *options: bytes, address: str = A_IP, hops: int = 255) -> bytes:
    return to_all(address, ICMP, solicitation(wanted, *options), to=solicited(wanted), hops=hops)


def says(claimed: str, *options: bytes, address: str = A_IP, flags: int = 0x20, hops: int = 255) -> bytes:
    return to_all(address, ICMP, advertisement(claimed, *options, flags=flags), hops=hops)


MINE, MY_TARGET = has_mac(1, A), has_mac(2, A)
NONCE = bytes((14, 1)) + bytes(6)
ROUTER = icmp6(134, b"\x40\x00\x07\x08" + bytes(8) + has_mac(1, A))
REDIRECT = icmp6(137, bytes(4) + IPv6Address(A_LINK).packed + IPv6Address(WORLD).packed)
SECRET, SSH = tcp(4000, 15001), tcp(4000, 22)
JUMBO = bytes((0xC2, 4)) + (1 << 17).to_bytes(4, "big")
GATE_LINK, PEER_LINK = LINK["gate"], LINK["b"]
OUTSIDE = packet("a", WORLD, TCP, tcp(4000, 443))


def hidden(kind: int, *, to: str = WORLD, about: bytes = bytes(6)) -> Case:
    """A segment that ports outside could not tell, behind an extension header."""
    return from_a(to, *extended(kind, TCP, tcp(4000, 443), about=about))


HOSTILE = {
    # Who one is
    "another MAC": spoofed(A_IP, mac=LIAR),
    "a peer's address": spoofed(PEER_IP),
    "the node's address": spoofed(PLACES["br1"][1]),
    "the gateway's address": spoofed(PLACES["gate"][1]),
    "a free address of the subnet": spoofed(str(NET[0x77])),
    "a temporary address": spoofed("2001:db8:0:1:dead:beef:dead:beef"),
    "an address outside": spoofed(WORLD),
    "no address": spoofed("::"),
    "its own link-local address, for data": spoofed(A_LINK),
    "another's link-local address": spoofed(PEER_LINK),
    "loopback": spoofed("::1"),
    "a mapped address of IPv4": spoofed("::ffff:10.0.0.101"),
    # Neighbour discovery
    "is a router": raw(to_all(A_LINK, ICMP, ROUTER)),
    "is a router, to a peer": raw(ip6(A, A_LINK, PEER_MAC, PEER_LINK, ICMP, ROUTER, hops=255)),
    "is the gateway as a router": raw(to_all(GATE_LINK, ICMP, ROUTER)),
    "is the gateway": raw(says(PLACES["gate"][1], MY_TARGET)),
    "is the gateway, link-local": raw(says(GATE_LINK, MY_TARGET, address=A_LINK)),
    "is the gateway, to a peer": raw(
        ip6(A, A_IP, PEER_MAC, PEER_IP, ICMP, advertisement(GATE_LINK, MY_TARGET), hops=255)
    ),
    "is the node": raw(says(PLACES["br1"][1], MY_TARGET)),
    "is a peer": raw(says(PEER_IP, MY_TARGET)),
    "is at another MAC": raw(says(A_IP, has_mac(2, LIAR))),
    "is a router by its flag": raw(says(A_IP, MY_TARGET, flags=0xA0)),
    "is itself, from a peer's address": raw(says(A_IP, MY_TARGET, address=PEER_IP)),
    "is itself, from afar": raw(says(A_IP, MY_TARGET, hops=64)),
    "is itself, and another option's": raw(says(A_IP, MY_TARGET, has_mac(2, LIAR))),
    "asks as another MAC": raw(asks(PLACES["gate"][1], has_mac(1, LIAR))),
    "asks as the gateway": raw(asks(PEER_IP, MINE, address=PLACES["gate"][1])),
    "asks from afar": raw(asks(PLACES["gate"][1], MINE, hops=64)),
    "asks with two MACs": raw(asks(PLACES["gate"][1], MINE, has_mac(1, LIAR))),
    "is a peer's address free": raw(asks(PEER_IP, address="::")),
    "is the gateway's address free": raw(asks(GATE_LINK, address="::")),
    "is its address free, as another MAC": raw(asks(A_IP, has_mac(1, LIAR), address="::")),
    "seeks routers as another MAC": raw(to_all(A_LINK, ICMP, icmp6(133, bytes(4) + has_mac(1, LIAR)), to=ALL_ROUTERS)),
    "seeks routers as a peer": raw(to_all(PEER_LINK, ICMP, icmp6(133), to=ALL_ROUTERS)),
    "redirects a peer": raw(ip6(A, A_LINK, PEER_MAC, PEER_IP, ICMP, REDIRECT, hops=255)),
    "redirects as the gateway": raw(ip6(A, GATE_LINK, PEER_MAC, PEER_IP, ICMP, REDIRECT, hops=255)),
    "redirects the node": raw(ip6(A, A_IP, *PLACES["br1"], ICMP, REDIRECT, hops=255)),
    "renumbers routers": raw(to_all(A_IP, ICMP, icmp6(138, bytes(12)), to=ALL_ROUTERS)),
    "asks for names": raw(to_all(A_LINK, ICMP, icmp6(139, bytes(28)))),
    "inverse discovery": raw(to_all(A_IP, ICMP, icmp6(141, bytes(4) + MINE))),
    "reports to a group, MLD": raw(
        to_all(A_LINK, *extended(0, ICMP, icmp6(143, bytes(4)), about=b"\x05\x02\0\0\x01\0"), to="ff02::16", hops=1)
    ),
    "is an MLD querier": raw(to_all(A_LINK, ICMP, icmp6(130, bytes(20)), hops=1)),
    "leaves a group for others": raw(to_all(A_LINK, ICMP, icmp6(132, bytes(20)), to=ALL_ROUTERS, hops=1)),
    "is itself, in a fragment": raw(to_all(A_IP, *fragment6(ICMP, advertisement(A_IP, has_mac(2, LIAR))))),
    "is a router, in a fragment, to a peer": raw(ip6(A, A_IP, *PLACES["b"], *fragment6(ICMP, ROUTER), hops=255)),
    "is a router, behind options": raw(to_all(A_LINK, *extended(60, ICMP, ROUTER))),
    # Names and addresses
    "is a DHCP server": raw(to_all(A_LINK, UDP, udp(547, 546, b"\x02" + bytes(7)))),
    "is a DHCP server, to a peer": raw(ip6(A, A_LINK, PEER_MAC, PEER_LINK, UDP, udp(547, 546, b"\x07" + bytes(7)))),
    "is a DHCP server, from its address": raw(ip6(A, A_IP, *PLACES["b"], UDP, udp(547, 546, bytes(8)))),
    "is a DHCP relay": raw(to_all(A_IP, UDP, udp(547, 547, bytes(8)), to="ff05::1:3")),
    "wants a peer's lease": raw(to_all(PEER_LINK, UDP, udp(546, 547, bytes(8)), to="ff02::1:2")),
    "wants a lease from another port": raw(to_all(A_LINK, UDP, udp(4000, 547, bytes(8)), to="ff02::1:2")),
    "wants a lease outside": from_a(WORLD, UDP, udp(4000, 547, bytes(8))),
    "mDNS": raw(to_all(A_LINK, UDP, udp(5353, 5353, bytes(8)), to="ff02::fb")),
    "mDNS from its address": raw(to_all(A_IP, UDP, udp(5353, 5353, bytes(8)), to="ff02::fb")),
    "LLMNR": raw(to_all(A_LINK, UDP, udp(4000, 5355, bytes(8)), to="ff02::1:3")),
    "SSDP": raw(to_all(A_IP, UDP, udp(4000, 1900, bytes(8)), to="ff02::c")),
    "ping of all nodes": raw(to_all(A_IP, ICMP, icmp6(128))),
    "a group of the site": raw(to_all(A_IP, UDP, udp(4000, 4000), to="ff05::99")),
    # What hides what follows
    "routing header 0": hidden(43, about=b"\0\x01" + bytes(4) + IPv6Address(PEER_IP).packed),
    "routing header 2": hidden(43, about=b"\x02\x01" + bytes(4) + IPv6Address(PEER_IP).packed),
    "routing header 4": hidden(43, about=b"\x04\x01" + bytes(4) + IPv6Address(PEER_IP).packed),
    "routing header, to a peer": hidden(43, to="b"),
    "hop by hop": hidden(0),
    "hop by hop, a jumbogram": hidden(0, about=JUMBO),
    "hop by hop, to a peer": hidden(0, to="b"),
    "options for the target": hidden(60),
    "options for the target, to a peer": hidden(60, to="b"),
    "authentication": hidden(51),
    "encryption": from_a(WORLD, 50, bytes(32)),
    "mobility": hidden(135),
    "host identity": hidden(139),
    "shim6": hidden(140),
    "an experiment's header": hidden(253),
    "nothing follows": from_a(WORLD, 59, b""),
    "a length that is a lie": raw(OUTSIDE[:18] + b"\xff\xff" + OUTSIDE[20:]),
    "IPv6 in IPv4": raw(ip(A, four.A_IP, *four.PLACES["gate"], 41, packet("a", WORLD, TCP, SECRET)[14:])),
    "IPv4 in IPv6": from_a(WORLD, 4, ip(A, four.A_IP, *four.PLACES["gate"], TCP, SECRET)[14:]),
    "IPv6 in IPv6": from_a(WORLD, 41, packet("a", WORLD, TCP, SECRET)[14:]),
    "GRE": from_a(WORLD, 47, bytes(8)),
    "SCTP": from_a(WORLD, 132, bytes(12)),
    "UDP-Lite": from_a(WORLD, 136, udp(4000, 4000)),
    "IPv4 under IPv6's type": raw(ether(A, PLACES["gate"][0], 0x86DD, four.PING[14:])),
    "a VLAN tag": raw(tagged(packet("a", WORLD, TCP, tcp(4000, 443)), 7)),
    "the first fragment of what could pass": from_a(WORLD, *fragment6(TCP, tcp(4000, 443), more=True)),
    "a later fragment": from_a(WORLD, *fragment6(TCP, SECRET, offset=1)),
    "a fragment that overlaps its ports": from_a(WORLD, *fragment6(TCP, SECRET[:16], offset=0, more=True)),
    "a fragment that is whole": from_a(WORLD, *fragment6(UDP, udp(4000, 4000))),
    "a fragment to the node": from_a("br1", *fragment6(TCP, SSH)),
    "a fragment that hides routing, to a peer": from_a("b", *fragment6(43, extended(43, TCP, SSH)[1])),
    # The node, other nodes, daemons, other jobs
    "SSH of this node": from_a("br1", TCP, SSH),
    "SSH of this node's link-local address": raw(ip6(A, A_IP, BRIDGES["br1"], LINK["br1"], TCP, SSH)),
    "SSH of this node's other address": raw(ip6(A, A_IP, BRIDGES["br1"], str(NET[0xABC]), TCP, SSH)),
    "ping of this node's loopback": raw(ip6(A, A_IP, BRIDGES["br1"], "::1", ICMP, icmp6(128))),
    "rpcbind of this node": from_a("br1", UDP, udp(4000, 111)),
    "a new connection from port 22": from_a("br1", TCP, tcp(22, 4000)),
    "mom of this node": from_a("br1", TCP, tcp(900, 15002)),
    "pbs_server outside": from_a(WORLD, TCP, SECRET),
    "slurmctld outside": from_a(WORLD, TCP, tcp(4000, 6817)),
    "SSH of another node": from_a("br2", TCP, SSH),
    "ping of another node": from_a("br2", ICMP, icmp6(128)),
    "SSH of the NFS server": from_a("nfs", TCP, SSH),
    "another port of an allowed host": from_a("server", TCP, tcp(4000, 27001)),
    "SSH of another job's guest": from_a("x", TCP, SSH),
    "ping of another job's guest": from_a("x", ICMP, icmp6(128)),
    "another job's guest, link-local": raw(ip6(A, A_LINK, PLACES["x"][0], LINK["x"], TCP, SSH)),
    "DNS to another job's guest": replace(from_a("x", UDP, udp(4000, 53)), to=ALL_GUESTS),
    "an answer from port 22 to another job's guest": replace(from_a("y", TCP, tcp(22, 5000, ACK)), to=ALL_GUESTS),
    "outside by way of another job's guest": replace(
        raw(ip6(A, A_IP, PLACES["x"][0], WORLD, TCP, tcp(4000, 443))), to=ALL_GUESTS
    ),
    "to everybody's MAC": raw(ip6(A, A_IP, BROADCAST, WORLD, TCP, tcp(4000, 443))),
    "to a group's MAC": raw(ip6(A, A_IP, group(ALL_NODES), WORLD, TCP, tcp(4000, 443))),
    "a group at a peer's MAC": raw(ip6(A, A_IP, PEER_MAC, ALL_NODES, ICMP, icmp6(128))),
    # A peer's MAC address alone
    "an impostor: the batch server": from_a("impostor", TCP, SECRET),
    "an impostor: what the site denies": to_impostor("2001:db8:20::1", TCP, tcp(4000, 443)),
    "an impostor: a fragment for outside": to_impostor(WORLD, *fragment6(UDP, udp(4000, 5000), more=True)),
    "an impostor: a later fragment for a server": to_impostor(str(NET[5]), *fragment6(UDP, bytes(16), offset=7)),
    "an impostor: the node": to_impostor(PLACES["br1"][1], TCP, SSH),
    "an impostor: another port of a server": to_impostor(str(NET[5]), TCP, SSH),
    "an impostor: outside, from a privileged port": to_impostor(WORLD, TCP, tcp(900, 2049)),
    "an impostor: NAT64": to_impostor("64:ff9b::a9fe:a9fe", TCP, tcp(4000, 80)),
    "an impostor's own: from a server": from_impostor(str(NET[5]), TCP, tcp(4000, 5000)),
    "an impostor's own: from outside": from_impostor(WORLD, TCP, tcp(4000, 5000)),
    # Elsewhere
    "a cloud's metadata": from_a("fd00:ec2::254", TCP, tcp(4000, 80)),
    "IPv4 by way of NAT64": from_a("64:ff9b::a9fe:a9fe", TCP, tcp(4000, 80)),
    "IPv4 by way of 6to4": from_a("2002:a00:1::1", TCP, tcp(4000, 80)),
    "what the site denies": from_a("2001:db8:20::1", TCP, tcp(4000, 443)),
    "a privileged port outside": from_a(WORLD, TCP, tcp(1023, 514)),
    # What comes for a guest
    "a redirection from the gateway": Case(
        sender="gate", frame=ip6(PLACES["gate"][0], GATE_LINK, A, A_IP, ICMP, REDIRECT, hops=255), to=("a",)
    ),
    "a router from afar": Case(
        sender="gate", frame=to_all(WORLD, ICMP, ROUTER, mac=PLACES["gate"][0]), to=("a", "x", "c")
    ),
    "a router behind options": Case(
        sender="gate", frame=to_all(GATE_LINK, *extended(0, ICMP, ROUTER), mac=PLACES["gate"][0]), to=("a", "x", "c")
    ),
    "mDNS from the LAN": Case(
        sender="server", frame=to_all(LINK["server"], UDP, udp(5353, 5353), to="ff02::fb", mac=PLACES["server"][0]),
        to=ALL_GUESTS,
    ),
    "what is for another, flooded": Case(
        sender="server", frame=ip6(*PLACES["server"], "02:00:00:00:03:77", str(NET[0x77]), TCP, tcp(1, 2)),
        to=ALL_GUESTS,
    ),
    "a connection from the LAN": Case(sender="server", frame=packet("server", "a", TCP, tcp(4000, 8080)), to=("a",)),
    "a datagram from the LAN": Case(sender="server", frame=packet("server", "a", UDP, udp(4000, 111)), to=("a",)),
    "a connection from outside": Case(
        sender="gate", frame=ip6(PLACES["gate"][0], WORLD, A, A_IP, TCP, tcp(4000, 8080)), to=("a",)
    ),
    "link-local from the LAN": Case(
        sender="server", frame=ip6(PLACES["server"][0], LINK["server"], A, A_LINK, TCP, SSH), to=("a",)
    ),
}

HONEST = {
    "is its address free": Case(sender="a", frame=asks(A_IP, address="::"), to=("gate", "br1")),
    "is its address free, with a nonce": Case(sender="a", frame=asks(A_IP, NONCE, address="::"), to=("gate",)),
    "is its link-local address free": Case(sender="a", frame=asks(A_LINK, NONCE, address="::"), to=("gate",)),
    "seeks routers, without an address": Case(
        sender="a", frame=to_all("::", ICMP, icmp6(133), to=ALL_ROUTERS), to=("gate",)
    ),
    "seeks routers": Case(
        sender="a", frame=to_all(A_LINK, ICMP, icmp6(133, bytes(4) + MINE), to=ALL_ROUTERS), to=("gate",)
    ),
    "a router": Case(
        sender="gate", frame=to_all(GATE_LINK, ICMP, ROUTER, mac=PLACES["gate"][0]), to=("a", "b", "x", "c")
    ),
    "where is the gateway": Case(sender="a", frame=asks(PLACES["gate"][1], MINE), to=("gate", "br1")),
    "where is the gateway, link-local": Case(sender="a", frame=asks(GATE_LINK, MINE, address=A_LINK), to=("gate",)),
    "is the gateway still there": Case(
        sender="a", frame=packet("a", "gate", ICMP, solicitation(PLACES["gate"][1], MINE), hops=255), to=("gate",)
    ),
    "the gateway is here": Case(
        sender="gate", to=("a",),
        frame=packet("gate", "a", ICMP, advertisement(PLACES["gate"][1], has_mac(2, PLACES["gate"][0])), hops=255),
    ),
    "where is the guest": Case(
        sender="gate", to=("a",),
        frame=to_all(GATE_LINK, ICMP, solicitation(A_IP, has_mac(1, PLACES["gate"][0])), to=solicited(A_IP),
                     mac=PLACES["gate"][0]),
    ),
    "it is here": Case(
        sender="a", frame=packet("a", "br1", ICMP, advertisement(A_IP, MY_TARGET), hops=255), to=("br1",)
    ),
    "it is still here": Case(sender="a", frame=packet("a", "br1", ICMP, advertisement(A_IP), hops=255), to=("br1",)),
    "here I am": Case(sender="a", frame=says(A_IP, MY_TARGET), to=("gate", "br1")),
    "link-local, it is here": Case(
        sender="a", to=("gate",),
        frame=ip6(A, A_LINK, PLACES["gate"][0], GATE_LINK, ICMP, advertisement(A_LINK, MY_TARGET), hops=255),
    ),
    "wants a lease": Case(
        sender="a", frame=to_all(A_LINK, UDP, udp(546, 547, bytes(8)), to="ff02::1:2"), to=("dhcp",)
    ),
    "gets a lease": Case(
        sender="dhcp", frame=ip6(PLACES["dhcp"][0], LINK["dhcp"], A, A_LINK, UDP, udp(547, 546, bytes(8))), to=("a",)
    ),
    "NFS from a privileged port": Case(sender="a", frame=packet("a", "nfs", TCP, tcp(900, 2049)), to=("nfs",)),
    "NFS answers": Case(sender="nfs", frame=packet("nfs", "a", TCP, tcp(2049, 900, SYN | ACK)), to=("a",)),
    "ping of this node": Case(sender="a", frame=packet("a", "br1", ICMP, icmp6(128)), to=("br1",)),
    "this node logs in": Case(sender="br1", frame=packet("br1", "a", TCP, tcp(40000, 22)), to=("a",)),
    "and is answered": Case(sender="a", frame=packet("a", "br1", TCP, tcp(22, 40000, SYN | ACK)), to=("br1",)),
    "another node logs in": Case(sender="br2", frame=packet("br2", "a", TCP, tcp(40000, 22)), to=("a",)),
    "and is answered as well": Case(sender="a", frame=packet("a", "br2", TCP, tcp(22, 40000, SYN | ACK)), to=("br2",)),
    "a peer on this node": Case(sender="a", frame=packet("a", "b", TCP, tcp(4000, 5000)), to=("b",)),
    "a peer on another node": Case(sender="a", frame=packet("a", "c", UDP, udp(900, 5000)), to=("c",)),
    "a fragment for a peer": Case(
        sender="b", frame=packet("b", "c", *fragment6(UDP, udp(4000, 5000), more=True)), to=("c",)
    ),
    "a name server": Case(sender="a", frame=packet("a", "dhcp", UDP, udp(4000, 53)), to=("dhcp",)),
    "a name server's answer": Case(sender="dhcp", frame=packet("dhcp", "a", UDP, udp(53, 4000)), to=("a",)),
    "what the site allows": Case(sender="a", frame=packet("a", "server", TCP, tcp(4000, 27000)), to=("server",)),
    "its answer": Case(sender="server", frame=packet("server", "a", TCP, tcp(27000, 4000, SYN | ACK)), to=("a",)),
    "TCP outside": Case(sender="a", frame=packet("a", WORLD, TCP, tcp(4000, 443)), to=("gate",)),
    "an answer from outside": Case(
        sender="gate", frame=ip6(PLACES["gate"][0], WORLD, A, A_IP, TCP, tcp(443, 4000, SYN | ACK)), to=("a",)
    ),
    "a packet was too big": Case(
        sender="gate", frame=ip6(PLACES["gate"][0], GATE_LINK, A, A_IP, ICMP, icmp6(2, bytes(48))), to=("a",)
    ),
    "time from outside": Case(sender="a", frame=packet("a", WORLD, UDP, udp(123, 123)), to=("gate",)),
    "ping outside": Case(sender="a", frame=packet("a", WORLD, ICMP, icmp6(128)), to=("gate",)),
}
# What the node itself sends passes no rule.
NODES_OWN = {"this node logs in"}


@cache
def sent(phase: str) -> Mapping[str, set[str]]:
    loaded = {"plain": [], "closed": rules(assigned=False), "assigned": rules(assigned=True)}[phase]
    return four.send(HONEST | HOSTILE, loaded)[0]


def reached(phase: str, name: str) -> set[str]:
    wanted = (HOSTILE | HONEST)[name].to
    return sent(phase)[name] & set(wanted) if wanted else sent(phase)[name]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plain_bridge_passes_every_hostile_frame(name: str) -> None:
    assert reached("plain", name)


@pytest.mark.parametrize("phase", ["assigned", "closed"])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_frame_passes_whether_there_is_an_address_or_none(name: str, phase: str) -> None:
    assert reached(phase, name) == set()


@pytest.mark.parametrize("phase", ["plain", "assigned"])
@pytest.mark.parametrize("name", HONEST)
def test_every_honest_frame_arrives(name: str, phase: str) -> None:
    assert set(HONEST[name].to) <= reached(phase, name)


@pytest.mark.parametrize("name", sorted(HONEST.keys() - NODES_OWN))
def test_nothing_passes_where_no_address_is_assigned(name: str) -> None:
    guests = set(ALL_GUESTS)
    assert HONEST[name].sender in guests or set(HONEST[name].to) & guests
    assert reached("closed", name) == set()


def test_real_network_stacks_find_one_another_and_connect_where_they_should() -> None:
    """With their own duplicate address detection and neighbour discovery."""
    good = [("node", "a", 22), ("a", "node", 2049), ("a", "b", 5000), ("x", "node", 2049)]
    bad = [("a", "node", 22), ("a", "x", 22)]
    own = replace(around("br1"), services=((IPv6Address(PLACES["br1"][1]), 2049),))
    loaded = [netfilter.rules(plan, SITE, own, addresses={}) for plan in (four.HERE, four.OTHER)]
    places = {name: PLACES[name][1] for name in ("a", "b", "x")}
    node = PLACES["br1"][1]
    assert four.connections(good + bad, loaded, node=node, places=places) == [True] * 4 + [False] * 2
    closed = [netfilter.rules(plan, SITE, four.around("br1"), addresses={}) for plan in (four.HERE, four.OTHER)]
    assert four.connections(good[:1], closed, node=node, places=places) == [False]


def test_a_mapped_address_is_the_only_one() -> None:
    vm = GUESTS["a"][0]
    text = netfilter.rules(four.HERE, SITE, around("br1"), addresses={vm.tap: "fd00::2"})
    assert "ip6 saddr != { fd00::2 } drop" in text and A_IP not in text
    assert f"set address-{vm.tap} {{ type ipv4_addr; flags interval; auto-merge; }}" in text
