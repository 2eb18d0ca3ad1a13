# SPDX-License-Identifier: Apache-2.0
"""Real frames of every class through the kernel's bridges, without rules and with them: two nodes, three jobs."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_plan, a_request, a_site
from tests.contract import frames, test_shares
from tests.contract.frames import (
    ACK,
    ARP,
    BROADCAST,
    DISCOVER,
    ICMP,
    OFFER,
    RST,
    SYN,
    TCP,
    UDP,
    arp,
    dhcp,
    ether,
    icmp,
    ip,
    ipv6,
    tagged,
    tcp,
    udp,
)
from vtorque import doctor_network, guestnet, names, netfilter
from vtorque.backends.filter.nft import PROGRAM, Nft
from vtorque.deadline import Deadline
from vtorque.doctor_checks import Level
from vtorque.errors import CommandError, ConfigError
from vtorque.model import JobId, JobPlan, VmPlan
from vtorque.surroundings import Surroundings

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a network"),
    pytest.mark.skipif(not PROGRAM.exists(), reason="needs nftables"),
]

root = test_shares.root
SITE = a_site(
    vm_nfs_home="10.0.0.5:/home", vm_nfs_ws="", vm_nfs_opt="", guest_net_allow="10.0.0.6:27000",
    guest_net_deny="172.20.0.0/16",
)
BRIDGES = {"br1": "02:00:00:00:01:01", "br2": "02:00:00:00:02:01", "lan": "02:00:00:00:03:01"}
HOSTS = {
    "nfs": ("02:00:00:00:03:05", "10.0.0.5"), "server": ("02:00:00:00:03:06", "10.0.0.6"),
    "dhcp": ("02:00:00:00:03:07", "10.0.0.7"), "gate": ("02:00:00:00:03:fa", "10.0.0.250"),
}
NODES = {"br1": (BRIDGES["br1"], "10.0.0.1"), "br2": (BRIDGES["br2"], "10.0.0.2")}
WORLD = "172.16.0.9"


def a_job_of(identity: str, *, nodes: tuple[str, ...] = ("n1",), index: int = 0, guests: int = 1) -> JobPlan:
    job = a_job(id=JobId(identity), nodes=nodes if not index else (), node_index=index, most_nodes=len(nodes))
    return a_plan(job=job, request=a_request(vms_per_node=guests), site=SITE)


HERE = a_job_of("7.srv", nodes=("n1", "n2"), guests=2)
THERE = a_job_of("7.srv", nodes=("n1", "n2"), index=1, guests=2)
OTHER, OTHER_THERE = a_job_of("8.srv"), a_job_of("9.srv")
# A machine of the site's whose MAC address a guest of the job would have, by a user's search or by chance.
HOSTS["impostor"] = (THERE.vms[1].mac, "10.0.0.60")
GUESTS: dict[str, tuple[VmPlan, str]] = {
    "a": (HERE.vms[0], "10.0.0.101"), "b": (HERE.vms[1], "10.0.0.102"), "x": (OTHER.vms[0], "10.0.0.111"),
    "c": (THERE.vms[0], "10.0.0.103"), "y": (OTHER_THERE.vms[0], "10.0.0.112"),
}
PLACES = {name: (vm.mac, address) for name, (vm, address) in GUESTS.items()} | HOSTS | NODES
ALL_GUESTS = tuple(GUESTS)
ADDRESSES = {vm.tap: address for vm, address in GUESTS.values()}
A, A_IP = PLACES["a"]
IMPOSTOR = PLACES["impostor"][0]


def around(node: str) -> Surroundings:
    return Surroundings(
        networks=(IPv4Network("10.0.0.0/24"),),
        own=(IPv4Address(NODES[node][1]), IPv4Address("127.0.0.1"), IPv4Address("192.168.7.1")),
        gateways=(IPv4Address("10.0.0.250"),), services=((IPv4Address("10.0.0.5"), 2049),),
    )


def rules(*, pinned: bool = True) -> list[str]:
    """Those of both nodes; here they share a kernel, so their tables cannot have the same name."""
    texts = []
    for node, plans in (("br1", (HERE, OTHER)), ("br2", (THERE, OTHER_THERE))):
        for plan in plans:
            text = netfilter.rules(plan, SITE, around(node), addresses={})
            if pinned:
                for vm in plan.vms:
                    address = ADDRESSES.get(vm.tap, "10.0.0.104")
                    text += guestnet.pinned(names.table(plan.job.key, SITE), vm, address)
            name = names.table(plan.job.key, SITE)
            texts.append(text.replace(f"bridge {name}", f"bridge {name}-{node}"))
    return texts


@dataclass(frozen=True, kw_only=True)
class Case:
    """A frame: who sends it, and to whom of all it should come, or must not come."""

    sender: str
    frame: bytes
    to: tuple[str, ...] = ()


def packet(sender: str, to: str, protocol: int, payload: bytes, **about: Any) -> bytes:
    """An honest packet from one place to another; places outside go through the gateway."""
    mac, address = PLACES[sender]
    target, end = PLACES[to] if to in PLACES else (PLACES["gate"][0], to)
    return ip(mac, address, target, end, protocol, payload, **about)


def from_a(to: str, protocol: int, payload: bytes, **about: Any) -> Case:
    return Case(sender="a", frame=packet("a", to, protocol, payload, **about))


def to_guests(to: str, protocol: int, payload: bytes) -> Case:
    """It may be flooded to hosts of the LAN, who are not its target."""
    return replace(from_a(to, protocol, payload), to=ALL_GUESTS)


def to_impostor(to: str, protocol: int, payload: bytes, **about: Any) -> Case:
    return raw(ip(A, A_IP, IMPOSTOR, to, protocol, payload, **about))


def from_impostor(address: str, protocol: int, payload: bytes) -> Case:
    return Case(sender="impostor", frame=ip(IMPOSTOR, address, A, A_IP, protocol, payload), to=("a",))


def raw(frame: bytes) -> Case:
    return Case(sender="a", frame=frame)


def spoofed(address: str, *, mac: str = A) -> Case:
    return raw(ip(mac, address, PLACES["nfs"][0], "10.0.0.5", TCP, tcp(900, 2049)))


PEER_MAC, PEER_IP = PLACES["b"]
LIAR = "52:54:00:77:77:77"
STP = "01:80:c2:00:00:00"
PING = packet("a", "br1", ICMP, icmp(8))

HOSTILE = {
    # Who one is
    "another MAC": spoofed(A_IP, mac="52:54:00:66:66:66"),
    "the node's MAC": spoofed(A_IP, mac=BRIDGES["br1"]),
    "a peer's address": spoofed(PEER_IP),
    "the node's address": spoofed("10.0.0.1"),
    "the gateway's address": spoofed("10.0.0.250"),
    "a foreign address": spoofed("172.16.0.1"),
    "no address, but not for DHCP": spoofed("0.0.0.0"),
    "ARP: is the gateway": raw(arp(A, "10.0.0.250", "10.0.0.101", operation=2)),
    "ARP: is the gateway, asking": raw(arp(A, "10.0.0.250", "10.0.0.250")),
    "ARP: is a peer": raw(arp(A, PEER_IP, "10.0.0.1", operation=2)),
    "ARP: is the NFS server": raw(arp(A, "10.0.0.5", "10.0.0.1", operation=2)),
    "ARP: another MAC in its text": raw(arp(A, A_IP, "10.0.0.250", claimed="52:54:00:66:66:66")),
    "ARP: another MAC in its frame": raw(arp("52:54:00:66:66:66", A_IP, "10.0.0.250", claimed=A)),
    "ARP: is the gateway, to a peer": raw(arp(A, "10.0.0.250", PEER_IP, operation=2, target=PEER_MAC)),
    "ARP: inverse, to a peer": raw(arp(A, A_IP, PEER_IP, operation=8, target=PEER_MAC)),
    "ARP: inverse": raw(arp(A, A_IP, "10.0.0.250", operation=8)),
    "ARP: odd lengths": raw(arp(A, A_IP, "10.0.0.250", lengths=(4, 6))),
    "ARP: answers nobody's probe": raw(arp(A, "0.0.0.0", "10.0.0.250", operation=2)),
    "RARP": raw(ether(A, BROADCAST, 0x8035, arp(A, A_IP, A_IP)[14:])),
    # What is no IPv4
    "a VLAN tag": raw(tagged(PING, 42)),
    "a priority tag": raw(tagged(PING, 7 << 13)),
    "a provider's tag": raw(tagged(PING, 42, 0x88A8)),
    "two tags": raw(tagged(tagged(PING, 1), 42)),
    "a tagged ARP message": raw(tagged(arp(A, "10.0.0.250", A_IP, operation=2), 1)),
    "IPv6: router advertisement": raw(ipv6(A, "33:33:00:00:00:01", 58, b"\x86" + bytes(15))),
    "IPv6: neighbour advertisement": raw(ipv6(A, "33:33:00:00:00:01", 58, b"\x88" + bytes(23))),
    "IPv6: DHCP server": raw(ipv6(A, "33:33:00:01:00:02", UDP, udp(547, 546, bytes(8)))),
    "IPv6: TCP to the node": raw(ipv6(A, BRIDGES["br1"], TCP, tcp(4000, 22))),
    "spanning tree": raw(ether(A, STP, 38, b"\x42\x42\x03" + bytes(35))),
    "LLDP": raw(ether(A, STP, 0x88CC, bytes(46))),
    "IPv4 to a bridge's own address": raw(ip(A, A_IP, STP, "10.0.0.1", ICMP, icmp(8))),
    "MPLS": raw(ether(A, BRIDGES["br1"], 0x8847, bytes(46))),
    "PPPoE": raw(ether(A, BROADCAST, 0x8863, bytes(46))),
    "PTP": raw(ether(A, BROADCAST, 0x88F7, bytes(46))),
    "ATA over Ethernet": raw(ether(A, BROADCAST, 0x88A2, bytes(46))),
    "an experiment's type": raw(ether(A, PLACES["nfs"][0], 0x88B5, bytes(46))),
    # DHCP
    "DHCP: is a server": raw(ip(A, A_IP, BROADCAST, "255.255.255.255", UDP, dhcp(OFFER, A, ports=(67, 68)))),
    "DHCP: is a server, to a peer": raw(ip(A, A_IP, PEER_MAC, PEER_IP, UDP, dhcp(OFFER, PEER_MAC, ports=(67, 68)))),
    "DHCP: for another MAC": raw(
        ip(A, "0.0.0.0", BROADCAST, "255.255.255.255", UDP, dhcp(DISCOVER, "52:54:00:66:66:66"))
    ),
    "DHCP: from another port": raw(
        ip(A, "0.0.0.0", BROADCAST, "255.255.255.255", UDP, dhcp(DISCOVER, A, ports=(4000, 67)))
    ),
    "DHCP: for another MAC, to a server": from_a("dhcp", UDP, dhcp(DISCOVER, "52:54:00:66:66:66")),
    "DHCP: from another port, outside": from_a(WORLD, UDP, dhcp(DISCOVER, A, ports=(4000, 67))),
    # Daemons
    "pbs_server": from_a("server", TCP, tcp(4000, 15001)),
    "pbs_server, from a privileged port": from_a("server", TCP, tcp(900, 15001)),
    "pbs_server outside": from_a(WORLD, TCP, tcp(4000, 15001)),
    "mom of this node": from_a("br1", TCP, tcp(900, 15002)),
    "mom's resource monitor outside, UDP": from_a(WORLD, UDP, udp(4000, 15003)),
    "pbs_comm outside": from_a(WORLD, TCP, tcp(4000, 17001)),
    "slurmctld outside": from_a(WORLD, TCP, tcp(4000, 6817)),
    "slurmd of another node": from_a("br2", TCP, tcp(4000, 6818)),
    "pbs_server, a short fragment": from_a(WORLD, TCP, tcp(4000, 15001)[:8], fragment=0x2000),
    "the first fragment of what could pass": from_a(WORLD, UDP, udp(4000, 4000, bytes(8)), fragment=0x2000),
    "a later fragment": from_a(WORLD, TCP, tcp(4000, 15001), fragment=1),
    # The node, and other nodes
    "SSH of this node": from_a("br1", TCP, tcp(4000, 22)),
    "SSH of this node's other address": raw(ip(A, A_IP, BRIDGES["br1"], "192.168.7.1", TCP, tcp(4000, 22))),
    "ping of this node's loopback": raw(ip(A, A_IP, BRIDGES["br1"], "127.0.0.1", ICMP, icmp(8))),
    "libvirt of this node": from_a("br1", TCP, tcp(4000, 16509)),
    "rpcbind of this node": from_a("br1", UDP, udp(4000, 111)),
    "an answer from port 22 to a daemon's port": from_a("br1", TCP, tcp(22, 111, SYN | ACK)),
    "a new connection from port 22": from_a("br1", TCP, tcp(22, 4000)),
    "a redirection": from_a("br1", ICMP, icmp(5)),
    "SSH of another node": from_a("br2", TCP, tcp(4000, 22)),
    "ping of another node": from_a("br2", ICMP, icmp(8)),
    "SSH of the NFS server": from_a("nfs", TCP, tcp(4000, 22)),
    "another port of an allowed host": from_a("server", TCP, tcp(4000, 27001)),
    # Other jobs
    "SSH of another job's guest": from_a("x", TCP, tcp(4000, 22)),
    "ping of another job's guest": from_a("x", ICMP, icmp(8)),
    "UDP to another job's guest": from_a("x", UDP, udp(4000, 5000)),
    "DNS to another job's guest": to_guests("x", UDP, udp(4000, 53)),
    "DNS to another job's guest, from its own port": to_guests("x", UDP, udp(53, 53)),
    "an answer from port 22 to another job's guest": to_guests("x", TCP, tcp(22, 5000, ACK)),
    "SSH of another job's guest on another node": from_a("y", TCP, tcp(4000, 22)),
    "DNS to another job's guest on another node": to_guests("y", UDP, udp(4000, 53)),
    "outside by way of another job's guest": replace(
        raw(ip(A, A_IP, PLACES["x"][0], WORLD, TCP, tcp(4000, 22))), to=ALL_GUESTS
    ),
    "outside by way of one on another node": replace(
        raw(ip(A, A_IP, PLACES["y"][0], WORLD, TCP, tcp(4000, 443))), to=ALL_GUESTS
    ),
    "a broadcast frame with another guest's address": raw(ip(A, A_IP, BROADCAST, "10.0.0.111", TCP, tcp(4000, 22))),
    # Elsewhere
    "multicast": raw(ip(A, A_IP, "01:00:5e:00:00:fb", "224.0.0.251", UDP, udp(5353, 5353))),
    "IGMP": raw(ip(A, A_IP, "01:00:5e:00:00:16", "224.0.0.22", 2, bytes(8))),
    "broadcast in the subnet": raw(ip(A, A_IP, BROADCAST, "10.0.0.255", UDP, udp(4000, 4000))),
    "broadcast": raw(ip(A, A_IP, BROADCAST, "255.255.255.255", UDP, udp(4000, 4000))),
    "a cloud's metadata": from_a("169.254.169.254", TCP, tcp(4000, 80)),
    "what the site denies": from_a("172.20.1.1", TCP, tcp(4000, 443)),
    "a privileged port outside": from_a(WORLD, TCP, tcp(1023, 514)),
    "a redirection outside": from_a(WORLD, ICMP, icmp(5)),
    "GRE outside": from_a(WORLD, 47, bytes(8)),
    "SCTP outside": from_a(WORLD, 132, bytes(12)),
    # What comes for a guest
    "router advertisement from the LAN": Case(
        sender="gate", frame=ipv6(PLACES["gate"][0], "33:33:00:00:00:01", 58, b"\x86" + bytes(15)), to=("a", "x", "c")
    ),
    "what is for another, flooded": Case(
        sender="server", frame=ip(*PLACES["server"], "02:00:00:00:03:77", "10.0.0.77", TCP, tcp(1, 2)),
        to=("a", "b", "x", "c", "y"),
    ),
    "ARP that is for another, flooded": Case(
        sender="server", frame=arp(*PLACES["server"], "10.0.0.77", operation=2, target="02:00:00:00:03:77"),
        to=ALL_GUESTS,
    ),
    "a connection from the LAN": Case(sender="server", frame=packet("server", "a", TCP, tcp(4000, 8080)), to=("a",)),
    "a datagram from the LAN": Case(sender="server", frame=packet("server", "a", UDP, udp(4000, 111)), to=("a",)),
    "a connection from outside": Case(
        sender="gate", frame=ip(PLACES["gate"][0], WORLD, A, A_IP, TCP, tcp(4000, 8080)), to=("a",)
    ),
    "a VLAN tag from the LAN": Case(
        sender="server", frame=tagged(packet("server", "a", TCP, tcp(4000, 22)), 42), to=("a",)
    ),
    # A peer's MAC address alone
    "an impostor: the batch server": from_a("impostor", TCP, tcp(4000, 15001)),
    "an impostor: slurmd": from_a("impostor", UDP, udp(900, 6818)),
    "an impostor: what the site denies": to_impostor("172.20.0.9", TCP, tcp(4000, 5000)),
    "an impostor: a fragment for what the site denies": to_impostor("172.20.0.9", UDP, udp(4000, 53), fragment=0x2000),
    "an impostor: a fragment for outside": to_impostor(WORLD, UDP, udp(4000, 53), fragment=0x2000),
    "an impostor: a later fragment for a server": to_impostor("10.0.0.5", UDP, bytes(16), fragment=7),
    "an impostor: the node": to_impostor("10.0.0.1", TCP, tcp(4000, 22)),
    "an impostor: a gateway": to_impostor("10.0.0.250", TCP, tcp(4000, 80)),
    "an impostor: another port of a server": to_impostor("10.0.0.5", TCP, tcp(4000, 22)),
    "an impostor: outside, from a privileged port": to_impostor(WORLD, TCP, tcp(900, 2049)),
    "an impostor: another protocol": to_impostor(WORLD, 47, bytes(40)),
    "an impostor's own: from a server": from_impostor("10.0.0.5", TCP, tcp(4000, 5000)),
    "an impostor's own: from outside": from_impostor(WORLD, TCP, tcp(4000, 5000)),
    # The last, as a plain bridge believes it.
    "a peer's MAC and address": spoofed(PEER_IP, mac=PEER_MAC),
}

HONEST = {
    "DHCP: discover": Case(
        sender="a", frame=ip(A, "0.0.0.0", BROADCAST, "255.255.255.255", UDP, dhcp(DISCOVER, A)), to=("dhcp",)
    ),
    "DHCP: renew": Case(sender="a", frame=packet("a", "dhcp", UDP, dhcp(3, A)), to=("dhcp",)),
    "DHCP: rebind": Case(
        sender="a", frame=ip(A, A_IP, BROADCAST, "255.255.255.255", UDP, dhcp(3, A)), to=("dhcp",)
    ),
    "DHCP: offer": Case(sender="dhcp", frame=packet("dhcp", "a", UDP, dhcp(OFFER, A, ports=(67, 68))), to=("a",)),
    "DHCP: offer to all": Case(
        sender="dhcp", frame=ip(*PLACES["dhcp"], BROADCAST, "255.255.255.255", UDP, dhcp(OFFER, A, ports=(67, 68))),
        to=("a", "b", "c"),
    ),
    "ARP: where is the gateway": Case(sender="a", frame=arp(A, A_IP, "10.0.0.250"), to=("gate", "br1")),
    "ARP: here I am": Case(sender="a", frame=arp(A, A_IP, "10.0.0.1", operation=2, target=BRIDGES["br1"]), to=("br1",)),
    "ARP: is this address free": Case(sender="a", frame=arp(A, "0.0.0.0", A_IP), to=("gate",)),
    "ARP: the gateway is here": Case(
        sender="gate", frame=arp(*PLACES["gate"], A_IP, operation=2, target=A), to=("a",)
    ),
    "NFS from a privileged port": Case(sender="a", frame=packet("a", "nfs", TCP, tcp(900, 2049)), to=("nfs",)),
    "NFS answers": Case(sender="nfs", frame=packet("nfs", "a", TCP, tcp(2049, 900, SYN | ACK)), to=("a",)),
    "ping of this node": Case(sender="a", frame=PING, to=("br1",)),
    "the node answers a ping": Case(sender="br1", frame=packet("br1", "a", ICMP, icmp(0)), to=("a",)),
    "this node logs in": Case(sender="br1", frame=packet("br1", "a", TCP, tcp(40000, 22)), to=("a",)),
    "and is answered": Case(sender="a", frame=packet("a", "br1", TCP, tcp(22, 40000, SYN | ACK)), to=("br1",)),
    "and is refused": Case(sender="a", frame=packet("a", "br1", TCP, tcp(22, 40001, RST | ACK)), to=("br1",)),
    "another node logs in": Case(sender="br2", frame=packet("br2", "a", TCP, tcp(40000, 22)), to=("a",)),
    "and is answered as well": Case(sender="a", frame=packet("a", "br2", TCP, tcp(22, 40000, SYN | ACK)), to=("br2",)),
    "a peer on this node": Case(sender="a", frame=packet("a", "b", TCP, tcp(4000, 5000)), to=("b",)),
    "a peer on another node": Case(sender="a", frame=packet("a", "c", TCP, tcp(4000, 22)), to=("c",)),
    "a peer on another node, back": Case(sender="c", frame=packet("c", "a", UDP, udp(900, 5000)), to=("a",)),
    "a fragment for a peer": Case(
        sender="b", frame=packet("b", "c", UDP, udp(4000, 5000), fragment=0x2000), to=("c",)
    ),
    "a name server": Case(sender="a", frame=packet("a", "dhcp", UDP, udp(4000, 53)), to=("dhcp",)),
    "a name server's answer": Case(sender="dhcp", frame=packet("dhcp", "a", UDP, udp(53, 4000)), to=("a",)),
    "what the site allows": Case(sender="a", frame=packet("a", "server", TCP, tcp(4000, 27000)), to=("server",)),
    "its answer": Case(sender="server", frame=packet("server", "a", TCP, tcp(27000, 4000, SYN | ACK)), to=("a",)),
    "TCP outside": Case(sender="a", frame=packet("a", WORLD, TCP, tcp(4000, 443)), to=("gate",)),
    "an answer from outside": Case(
        sender="gate", frame=ip(PLACES["gate"][0], WORLD, A, A_IP, TCP, tcp(443, 4000, SYN | ACK)), to=("a",)
    ),
    "time from outside": Case(sender="a", frame=packet("a", WORLD, UDP, udp(123, 123)), to=("gate",)),
    "ping outside": Case(sender="a", frame=packet("a", WORLD, ICMP, icmp(8)), to=("gate",)),
    "another job's NFS": Case(sender="x", frame=packet("x", "nfs", TCP, tcp(900, 2049)), to=("nfs",)),
}
# A bridge keeps it to itself, and learns from it all the same.
UNHEARD = {"LACP": raw(ether(LIAR, "01:80:c2:00:00:02", 0x8809, bytes(46)))}
# In phase 1 a guest has any free address of the subnet, so it is a peer's it may claim; nobody's job has begun.
UNTIL_PINNED = {"a peer's address", "ARP: is a peer"}


def marks(cases: Mapping[str, Case]) -> dict[str, bytes]:
    return {name: random.Random(name).randbytes(8) for name in cases}


def send(cases: Mapping[str, Case], loaded: list[str], *, bridge: str = "") -> tuple[dict[str, set[str]], set[str]]:
    """To whom each frame came, in a network that is gone afterwards; and the senders that bridges learned."""
    mark = marks(cases)
    ports: dict[str, dict[str, str]] = {
        "lan": {f"p-{name}": name for name in HOSTS},
        "br1": {GUESTS[name][0].tap: name for name in "abx"}, "br2": {GUESTS[name][0].tap: name for name in "cy"},
    }
    order = {
        "ports": ports, "macs": {**BRIDGES, **{name: mac for name, (mac, _) in PLACES.items()}}, "rules": loaded,
        "bridge": bridge,
        "frames": [
            {"from": case.sender, "bytes": (case.frame + mark[name]).hex(), "mark": mark[name].hex()}
            for name, case in cases.items()
        ],
    }
    wire = Path(__file__).with_name("wire.py")
    done = subprocess.run(
        ["/usr/bin/unshare", "--net", sys.executable, wire], input=json.dumps(order).encode(), stdout=subprocess.PIPE,
        check=True, timeout=120,
    )
    said = json.loads(done.stdout)
    return {name: set(said["arrived"][mark[name].hex()]) for name in cases}, set(said["learned"])


@cache
def sent(phase: str) -> tuple[dict[str, set[str]], set[str]]:
    loaded = {"plain": [], "closed": rules(pinned=False), "pinned": rules()}[phase]
    return send(HONEST | UNHEARD | HOSTILE, loaded)


def reached(phase: str, name: str) -> set[str]:
    arrived = sent(phase)[0][name]
    wanted = HOSTILE[name].to if name in HOSTILE else ()
    return arrived & set(wanted) if wanted else arrived


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plain_bridge_passes_every_hostile_frame(name: str) -> None:
    """So the frames are such that something has to stop them."""
    assert reached("plain", name)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_frame_passes_a_pinned_guests_rules(name: str) -> None:
    assert reached("pinned", name) == set()


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - UNTIL_PINNED))
def test_no_hostile_frame_passes_before_the_address_is_known(name: str) -> None:
    assert reached("closed", name) == set()


@pytest.mark.parametrize("phase", ["plain", "closed", "pinned"])
@pytest.mark.parametrize("name", HONEST)
def test_every_honest_frame_arrives(name: str, phase: str) -> None:
    assert set(HONEST[name].to) <= reached(phase, name)


def test_bridges_do_not_learn_a_sender_that_was_made_up() -> None:
    assert {"52:54:00:66:66:66", LIAR, A} <= sent("plain")[1]
    assert sent("pinned")[1].isdisjoint({"52:54:00:66:66:66", LIAR})
    assert A in sent("pinned")[1]


def test_a_bridge_learns_from_lldp_before_any_rule_unless_it_is_told_not_to() -> None:
    """That is why the doctor looks at the bridge (br_handle_frame passes these frames by all hooks)."""
    cases = {"LLDP to the bridge alone": raw(ether(LIAR, "01:80:c2:00:00:0e", 0x88CC, bytes(46)))}
    assert LIAR in send(cases, rules())[1]
    assert LIAR not in send(cases, rules(), bridge="no_linklocal_learn 1")[1]


def test_no_frame_of_chance_passes() -> None:
    """From another MAC, or of another type, or with another address, and all else at random."""
    dice = random.Random(2)
    cases = {}
    for number in range(1000):
        source = bytes([2]) + dice.randbytes(5)
        target = dice.choice([b"\xff" * 6, bytes.fromhex(BRIDGES["br1"].replace(":", ""))])
        kind = dice.choice([frames.IPV4, ARP, frames.IPV6, 0x8100, dice.randrange(1 << 16)])
        sender = dice.choice([source, bytes.fromhex(A.replace(":", ""))])
        head = bytes([0x45]) if kind == frames.IPV4 else b""
        frame = target + sender + kind.to_bytes(2, "big") + head + dice.randbytes(60)
        cases[f"chance {number}"] = Case(sender="a", frame=frame)
    arrived, _ = send(cases, rules())
    assert {name: found for name, found in arrived.items() if found} == {}
    arrived, _ = send(cases, [])
    assert len([name for name, found in arrived.items() if found]) > len(cases) // 2


STACKS = {name: GUESTS[name][1] for name in "abx"}


def connections(
    wanted: list[tuple[str, str, int]], loaded: list[str], *, node: str = "10.0.0.1",
    places: Mapping[str, str] = STACKS,
) -> list[bool]:
    """Which of these come about between real network stacks on node br1, which has the NFS server's address, too."""
    order = {
        "node": node, "rules": loaded, "connections": wanted,
        "guests": {
            name: {"tap": GUESTS[name][0].tap, "mac": GUESTS[name][0].mac, "address": address}
            for name, address in places.items()
        },
    }
    stacks = Path(__file__).with_name("stacks.py")
    done = subprocess.run(
        ["/usr/bin/unshare", "--net", "--mount", "--propagation", "private", sys.executable, stacks],
        input=json.dumps(order).encode(), stdout=subprocess.PIPE, check=True, timeout=120,
    )
    return list(json.loads(done.stdout))


def test_real_network_stacks_connect_where_they_should_and_nowhere_else() -> None:
    good = [("node", "a", 22), ("a", "node", 2049), ("a", "b", 5000), ("b", "a", 22), ("x", "node", 2049)]
    bad = [("a", "node", 22), ("a", "node", 15002), ("a", "x", 22), ("x", "b", 5000)]
    assert connections(good + bad, []) == [True] * 9
    own = replace(around("br1"), services=((IPv4Address("10.0.0.1"), 2049),))
    loaded = [
        netfilter.rules(plan, SITE, own, addresses={vm.tap: ADDRESSES[vm.tap] for vm in plan.vms})
        for plan in (HERE, OTHER)
    ]
    assert connections(good + bad, loaded) == [True] * 5 + [False] * 4


class TestNft:
    """The real command, each time in a network of its own."""

    def test_a_table_is_loaded_replaced_listed_and_removed_as_often_as_one_likes(self) -> None:
        script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests.contract import test_netfilter as t
nft, soon = t.Nft(), t.Deadline(60)
t.subprocess.run([t.PROGRAM, "-f", "-"], input=b"table bridge site {{ chain theirs {{ }}\\n}}", check=True)
text = t.netfilter.rules(t.HERE, t.SITE, t.around("br1"), addresses={{}})
nft.load(text, deadline=soon)
nft.load(text, deadline=soon)
assert nft.tables(deadline=soon) == ["vtorque-7.srv"], nft.tables(deadline=soon)
nft.load(t.guestnet.pinned("vtorque-7.srv", t.HERE.vms[0], "10.0.0.9"), deadline=soon)
try:
    nft.load(text.replace("chain leaving", "chain nowhere"), deadline=soon)
except t.CommandError as error:
    print(error.brief)
listed = t.subprocess.run([t.PROGRAM, "list", "ruleset"], stdout=t.subprocess.PIPE, check=True).stdout.decode()
assert "10.0.0.9" in listed, "what was refused as a whole has changed something"
for _ in range(2):
    nft.remove("vtorque-7.srv", deadline=soon)
assert nft.tables(deadline=soon) == []
left = t.subprocess.run([t.PROGRAM, "list", "tables"], stdout=t.subprocess.PIPE, check=True).stdout
assert left == b"table bridge site\\n", left
"""
        done = subprocess.run(
            ["/usr/bin/unshare", "--net", sys.executable, "-c", script], capture_output=True, text=True, check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("nft refuses: ")

    def test_a_table_is_what_was_loaded_until_somebody_touches_it(self) -> None:
        script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests.contract import test_netfilter as t, test_netfilter6 as six
nft, soon, table = t.Nft(), t.Deadline(60), "vtorque-7.srv"
text = t.netfilter.rules(t.HERE, six.SITE, six.around("br1"), addresses={{}})
nft.load(text, deadline=soon)
assert not nft.renew(table, text, deadline=soon)
pinned = t.guestnet.pinned(table, t.HERE.vms[0], "10.0.0.9")
assert nft.renew(table, text + pinned, deadline=soon), "it was not pinned yet"
nft.load(text, deadline=soon)
nft.load(pinned, deadline=soon)
assert not nft.renew(table, text + pinned, deadline=soon)
for change in ("insert rule bridge {{0}} leaving accept", "add element bridge {{0}} peers {{{{ 02:00:00:00:00:09 }}}}",
               "flush chain bridge {{0}} input", "add chain bridge {{0}} another"):
    nft.load(change.format(table), deadline=soon)
    assert nft.renew(table, text + pinned, deadline=soon), change
    assert not nft.renew(table, text + pinned, deadline=soon), change
t.subprocess.run([t.PROGRAM, "flush", "ruleset"], check=True)
assert nft.tables(deadline=soon) == []
"""
        done = subprocess.run(
            ["/usr/bin/unshare", "--net", sys.executable, "-c", script], capture_output=True, text=True, check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_sweep_brings_back_what_a_restart_of_nftables_takes_away(self, tmp_path: Path) -> None:
        """Debian's nftables.service begins with `flush ruleset`."""
        script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests.contract import test_netfilter as t
from tests.unit import test_netfilter as unit
nft, soon, scene = t.Nft(), t.Deadline(60), unit.Scene.known(Path(sys.argv[1]))
node, table = t.replace(scene.node, filter=nft), scene.table()
unit.guestnet.fence(unit.PLAN, node=node, state=scene.record, deadline=soon)
unit.guestnet.pin(unit.PLAN.vms[0], "10.0.0.9", node=node, state=scene.record, deadline=soon)
def listed():
    return t.subprocess.run([t.PROGRAM, "list", "table", "bridge", table], stdout=t.subprocess.PIPE).stdout
before = listed()
assert b"10.0.0.9" in before
t.subprocess.run([t.PROGRAM, "flush", "ruleset"], check=True)
assert listed() == b""
unit.lifecycle.sweep(node, deadline=soon)
assert listed() == before
nft.load(f"flush chain bridge {{table}} leaving", deadline=soon)
unit.lifecycle.sweep(node, deadline=soon, thorough=True)
assert listed() == before
unit.teardown.release(scene.record, node, deadline=soon)
unit.lifecycle.sweep(node, deadline=soon, thorough=True)
assert nft.tables(deadline=soon) == []
"""
        done = subprocess.run(
            ["/usr/bin/unshare", "--net", sys.executable, "-c", script, tmp_path], capture_output=True, text=True,
            check=False, timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "was gone, and has been loaded again" in done.stderr and "was not as it was loaded" in done.stderr

    @pytest.mark.parametrize(("identity", "good"), [
        ("7", True), ("58[2].srv", True), ("58[].srv-1.site_x.org", True), ("123456789012." + "a" * 201, True),
        ("no job's", False),
    ])
    def test_names_of_every_kind_of_job_are_good_names_of_tables(self, identity: str, good: bool) -> None:
        job = HERE.job._replace(id=JobId(identity))
        text = netfilter.rules(replace(HERE, job=job), SITE, around("br1"), addresses={})
        checked = subprocess.run(
            ["/usr/bin/unshare", "--net", PROGRAM, "--check", "-f", "-"], input=text.encode(), capture_output=True,
            check=False,
        )
        assert (checked.returncode == 0) is good, checked.stderr

    def test_a_node_without_nft_is_told_what_to_do(self, tmp_path: Path) -> None:
        nft = Nft(tmp_path / "nft")
        with pytest.raises(ConfigError, match=r"there is no .*/nft on this node") as caught:
            nft.load("", deadline=Deadline(5))
        assert caught.value.hint == "apt-get install nftables, or NETWORK_FILTER: false"

    def test_the_doctor_tries_rules_of_every_kind_and_leaves_none(self, tmp_path: Path) -> None:
        (found,) = doctor_network.network_filter(SITE, deadline=Deadline(30))
        assert found.level is Level.OK
        assert "vtorque-doctor" not in Nft().tables(deadline=Deadline(30))
        (found,) = doctor_network.network_filter(SITE, deadline=Deadline(30), program=tmp_path / "nft")
        assert found.level is Level.ERROR and "apt-get install nftables" in found.hint
        learns = tmp_path / SITE.bridge / "bridge" / "no_linklocal_learn"
        learns.parent.mkdir(parents=True)
        learns.write_text("0\n")
        (found,) = doctor_network.network_filter(SITE, deadline=Deadline(30), net=tmp_path)
        assert found.level is Level.WARNING and found.hint.startswith("ip link set br0 type bridge no_linklocal_learn")
        off = SITE.but(network_filter=False)
        (found,) = doctor_network.network_filter(off, deadline=Deadline(30), program=tmp_path / "nft")
        assert found.level is Level.WARNING

    def test_the_doctor_tells_a_kernel_that_does_not_take_them(self, root: Path) -> None:
        program = root / "nft"
        program.write_text("#!/bin/sh\necho '/dev/stdin:1:1-2: Error: Operation not supported' >&2\nexit 1\n")
        program.chmod(0o755)
        (found,) = doctor_network.network_filter(SITE, deadline=Deadline(30), program=program)
        assert found.level is Level.ERROR
        assert "Operation not supported" in found.text and "CONFIG_NF_TABLES_BRIDGE" in found.hint

    def test_the_doctor_tells_an_nft_that_is_for_root_alone(self, root: Path) -> None:
        program = root / "nft"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o700)
        (found,) = doctor_network.network_filter(SITE, deadline=Deadline(30), program=program)
        assert found.level is Level.ERROR and "Permission denied" in found.text

    def test_a_refusal_names_what_was_refused(self) -> None:
        with pytest.raises(CommandError, match=r"nft refuses: .*syntax error"):
            Nft().check("add nonsense\n", deadline=Deadline(30))
