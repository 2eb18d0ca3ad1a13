# SPDX-License-Identifier: Apache-2.0
"""What a guest may send and get by IPv6: nothing, unless an address is its own.

Everything is judged by the first header after the IPv6 header: an extension
header that could hide what follows it is dropped, and fragments are for peers.
Neighbour discovery is taken apart, since it is where ARP's lies are told
(RFC 4861, 4.1 to 4.5; what a switch has to do about it: RFC 6105, 7113, 6980).
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, IPv6Network

from vtorque.config import SiteConfig
from vtorque.model import VmPlan
from vtorque.nftext import BATCH_PORTS, DNS, NTP, chain, endpoints, named_set, number

_LINK_LOCAL = IPv6Network("fe80::/64")
_DERIVED_PREFIX = 64
# Loopback, mapped IPv4 and the like; link-local; multicast; the metadata service of two clouds.
_NOWHERE = "::/8, fe80::/10, ff00::/8, fd00:ec2::254, fd20:ce::254"
# NAT64, 6to4 and Teredo: an address of IPv4 inside, which no rule for IPv6 would recognise.
_TRANSLATED = "64:ff9b::/96, 64:ff9b:1::/48, 2001::/32, 2002::/16"
_ERRORS = "destination-unreachable, packet-too-big, time-exceeded, parameter-problem"
_FRAGMENT = 44
_HEADERS = f"{{ tcp, udp, icmpv6, {_FRAGMENT} }}"
# Neither an error nor an echo: discovery, MLD, redirection, renumbering and what is to come (RFC 4443, 2.1).
_DISCOVERY = "130-255"
# Types of options of 8 bytes, with their length: the sender's and the target's MAC address, a nonce (RFC 7527).
_SOURCE, _TARGET, _NONCE = "0x0101", "0x0201", "0x0e01"


def derived(mac: str, network: IPv6Network) -> IPv6Address:
    """The address that a machine gives itself in a network of 64 bits (RFC 4291, appendix A)."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return network[int.from_bytes(octets[:3] + b"\xff\xfe" + octets[3:], "big")]


def own(mac: str, networks: Iterable[IPv6Network], *, taken: Iterable[IPv6Address]) -> tuple[IPv6Address, ...]:
    """The guest's addresses in the bridge's networks when no one else assigns it any: functions of its MAC."""
    usual = (derived(mac, each) for each in networks if each.prefixlen == _DERIVED_PREFIX)
    return tuple(dict.fromkeys(each for each in usual if each not in set(taken)))


def sets(
    networks: Sequence[IPv6Network], node: Iterable[IPv6Address], taken: Iterable[IPv6Address],
    services: Iterable[tuple[IPv6Address, int]], *, near: bool,
) -> list[str]:
    """What the chains below refer to, beside the job's `peers`, who are in the `networks` if they are `near`."""
    return [
        named_set("local6", "ipv6_addr; flags interval; auto-merge", map(str, networks)),
        named_set("guests6", "ipv6_addr; flags interval; auto-merge", map(str, networks) if near else ["::/0"]),
        named_set("node6", "ipv6_addr", map(str, node)),
        named_set("taken6", "ipv6_addr", map(str, taken)),
        named_set("services6", "ipv6_addr . inet_service", (f"{address} . {port}" for address, port in services)),
    ]


def sending(vm: VmPlan, addresses: Sequence[IPv6Address]) -> str:
    """What the guest sends is from itself; its link-local address is for discovery and DHCP only."""
    local = derived(vm.mac, _LINK_LOCAL)
    return chain(f"from6-{vm.tap}", f"""\
ip6 nexthdr != {_HEADERS} drop
ip6 nexthdr {_FRAGMENT} frag nexthdr != {{ tcp, udp }} drop
ip6 nexthdr icmpv6 icmpv6 type {_DISCOVERY} goto discovery-{vm.tap}
udp sport 547 drop
ip6 saddr {local} ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept
udp dport 547 drop
ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop
ip6 saddr != {{ {_listed(addresses)} }} drop
goto leaving6""") + "\n" + _discovering(vm, (local, *addresses))


def _discovering(vm: VmPlan, addresses: Sequence[IPv6Address]) -> str:
    """Who it is, by its own MAC; whether an address of its own is free; where a router is. It is none itself."""
    own, mac = _listed(addresses), number(vm.mac).removeprefix("0x")
    targets = ", ".join(f"0x{int(each):032x}" for each in addresses)
    asks, says = "icmpv6 type nd-neighbor-solicit", "icmpv6 type nd-neighbor-advert"
    wonders = f"{asks} ip6 saddr :: ip6 daddr ff02::1:ff00:0/104 @th,64,128 {{ {targets} }}"
    answers = f"{says} ip6 saddr {{ {own} }} @th,32,1 0 @th,64,128 {{ {targets} }}"
    return chain(f"discovery-{vm.tap}", f"""\
ip6 hoplimit != 255 drop
icmpv6 code != 0 drop
ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 ether daddr & ff:ff:00:00:00:00 != 33:33:00:00:00:00 drop
icmpv6 type nd-router-solicit ip6 saddr {{ ::, {own} }} ip6 daddr ff02::2 ip6 length 8 accept
icmpv6 type nd-router-solicit ip6 saddr {{ {own} }} ip6 daddr ff02::2 ip6 length 16 @th,64,64 {_SOURCE}{mac} accept
{wonders} ip6 length 24 accept
{wonders} ip6 length 32 @th,192,16 {_NONCE} accept
ip6 daddr ff00::/8 ip6 daddr != {{ ff02::1, ff02::1:ff00:0/104 }} drop
@th,64,8 0xff drop
{asks} ip6 saddr {{ {own} }} ip6 daddr != ff02::1 ip6 length 24 accept
{asks} ip6 saddr {{ {own} }} ip6 daddr != ff02::1 ip6 length 32 @th,192,64 {_SOURCE}{mac} accept
{answers} ip6 length 24 accept
{answers} ip6 length 32 @th,192,64 {_TARGET}{mac} accept
drop""")


def getting(vm: VmPlan, addresses: Sequence[IPv6Address]) -> str:
    """What comes from the network for the guest, of which routers' advertisements are for all."""
    local = derived(vm.mac, _LINK_LOCAL)
    groups = dict.fromkeys(f"33:33:ff:{each.packed[13:].hex(':')}" for each in (local, *addresses))
    return chain(f"to6-{vm.tap}", f"""\
ether daddr != {{ {vm.mac}, 33:33:00:00:00:01, {", ".join(groups)} }} drop
ip6 nexthdr != {_HEADERS} drop
ip6 nexthdr {_FRAGMENT} frag nexthdr != {{ tcp, udp }} drop
ip6 nexthdr icmpv6 icmpv6 type {_DISCOVERY} goto discovered6
ip6 saddr fe80::/10 ip6 daddr {local} udp sport 547 udp dport 546 accept
ip6 daddr != {{ {_listed(addresses)} }} drop
goto arriving6""")


def common(site: SiteConfig) -> list[str]:
    """Where guests may send to and whom they hear, as for IPv4."""
    asked = answered = ""
    if not site.name_server:
        asked = f"ip6 daddr @local6 meta l4proto {{ tcp, udp }} th dport {DNS} accept\n"
        answered = f"ip6 saddr @local6 meta l4proto {{ tcp, udp }} th sport {DNS} th dport >= 1024 accept\n"
    return [chain("discovered6", """\
ip6 hoplimit != 255 drop
icmpv6 code != 0 drop
icmpv6 type nd-router-advert ip6 saddr fe80::/10 accept
icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
drop"""), chain("leaving6", f"""\
ip6 daddr {{ {_NOWHERE} }} drop
ip6 nexthdr {_FRAGMENT} ether daddr != @peers drop
tcp sport 22 tcp dport >= 1024 tcp flags & ack == ack accept
{endpoints(site.guest_net_allow, "daddr", "dport", "accept", version=6)}\
meta l4proto {{ tcp, udp }} ip6 daddr . th dport @services6 accept
{endpoints(site.guest_net_deny, "daddr", "dport", "drop", version=6)}\
meta l4proto {{ tcp, udp }} th dport {{ {BATCH_PORTS} }} drop
ether daddr @peers ip6 daddr @guests6 ip6 daddr != @taken6 accept
ip6 nexthdr {_FRAGMENT} drop
ip6 daddr {{ {_TRANSLATED} }} drop
{asked}\
ip6 daddr @node6 icmpv6 type {{ echo-request, echo-reply }} accept
ip6 daddr @node6 drop
ip6 daddr @local6 drop
icmpv6 type {{ echo-request, echo-reply, {_ERRORS} }} accept
meta l4proto {{ tcp, udp }} th sport >= 1024 accept
udp sport {NTP} udp dport {NTP} accept
drop"""), chain("arriving6", f"""\
ether saddr @peers ip6 saddr @guests6 ip6 saddr != @taken6 accept
{endpoints(site.guest_net_allow, "saddr", "sport", "accept", version=6)}\
meta l4proto {{ tcp, udp }} ip6 saddr . th sport @services6 accept
{answered}\
icmpv6 type {{ echo-request, echo-reply, {_ERRORS} }} accept
tcp dport 22 accept
ip6 saddr {{ fe80::/10 }} drop
ip6 saddr @local6 drop
tcp flags & (syn | ack) == syn drop
accept""")]


def _listed(addresses: Iterable[IPv6Address]) -> str:
    return ", ".join(map(str, addresses))
