# SPDX-License-Identifier: Apache-2.0
"""What a guest may send and get, as rules for nft. Pure: the same job gives the same rules on every node.

Every job has a table of its own in the bridge family, so that one transaction
makes it and one removes it. It knows guests by the names of their interfaces,
which therefore need not exist yet. Rules judge each frame by itself: bridges
without connection tracking are common (CONFIG_NF_CONNTRACK_BRIDGE). Foreign
frames are dropped before the bridge learns their sender (nf_br_prerouting).
IPv6 is closed to a guest that no address of it is assigned to; see netfilter6.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from vtorque import guestnames, names, netfilter6
from vtorque.config import SiteConfig
from vtorque.errors import AddressError
from vtorque.model import JobPlan, VmPlan
from vtorque.nftext import BATCH_PORTS, DNS, NTP, chain, endpoints, hook, named_set, number
from vtorque.surroundings import Surroundings

_MOST_NODES = 256
# This host, loopback, link-local with a cloud's metadata service, multicast, reserved, broadcast.
_NOWHERE = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3"
_ERRORS = "destination-unreachable, time-exceeded"
_BROADCAST = "ff:ff:ff:ff:ff:ff"
# The client's own address in the text of a DHCP message, after a UDP header of 8 bytes (RFC 2131, 2).
_CHADDR = "@th,288,48"


def rules(decided: JobPlan, site: SiteConfig, around: Surroundings, *, addresses: Mapping[str, str]) -> str:
    """The job's table, in place of any that there is: all of it or nothing.

    A guest whose address is not among `addresses` (by the name of its interface)
    may have any of the bridge's IPv4 subnets, but no server's, until it is
    pinned, and of IPv6 what its MAC gives it in the bridge's networks.
    Raises AddressError for an address that is a server's.
    """
    name, vms = names.table(decided.job.key, site), decided.vms
    known = {vm.tap: _usable(vm, addresses[vm.tap], around) for vm in vms if vm.tap in addresses}
    own6 = {vm.tap: _own6(vm, around, known) for vm in vms}
    with6 = [vm for vm in vms if own6[vm.tap]]
    # The site's mapping may put guests anywhere else, and does not tell where those of other nodes are.
    near = all(any(address in network for network in around.networks) for address in known.values())
    return "\n".join([
        f"add table bridge {name}",
        f"delete table bridge {name}",
        f"table bridge {name} {{",
        *_sets(decided, site, around, known, near),
        *(_chains6(around, site, near) if with6 else ()),
        _leaving(site),
        _arriving(site),
        *(netfilter6.sending(vm, own6[vm.tap]) for vm in with6),
        *(netfilter6.getting(vm, own6[vm.tap]) for vm in with6),
        *(_from(vm, has_ipv6=vm in with6) for vm in vms),
        *(_to(vm, has_ipv6=vm in with6) for vm in vms),
        hook("prerouting", f"iifname vmap {{ {_verdicts('from', vms)} }}"),
        hook("forward", f"oifname vmap {{ {_verdicts('to', vms)} }}"),
        # What concerns the port alone, and not the bridge, passes no other hook (br_handle_frame).
        hook("input", f"ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 "
                      f"iifname {{ {', '.join(vm.tap for vm in vms)} }} drop"),
        "}\n",
    ])


def _sets(
    decided: JobPlan, site: SiteConfig, around: Surroundings, known: Mapping[str, IPv4Address | IPv6Address], near: bool
) -> list[str]:
    networks = ", ".join(str(each) for each in around.networks if isinstance(each, IPv4Network))
    services = (f"{address} . {port}" for address, port in around.services if isinstance(address, IPv4Address))
    free = {vm.tap: networks for vm in decided.vms if vm.tap not in known}
    mapped = {tap: ", ".join(map(str, _ipv4([address]))) for tap, address in known.items()}
    return [
        named_set("local", "ipv4_addr; flags interval; auto-merge", filter(None, [networks])),
        named_set("guests", "ipv4_addr; flags interval; auto-merge", filter(None, [networks if near else "0.0.0.0/0"])),
        named_set("node", "ipv4_addr", map(str, _ipv4(around.own))),
        named_set("taken", "ipv4_addr", map(str, sorted({*_ipv4(around.taken)}))),
        named_set("services", "ipv4_addr . inet_service", services),
        named_set("peers", "ether_addr", _peers(decided, site)),
        *(named_set(f"address-{tap}", "ipv4_addr; flags interval; auto-merge", filter(None, [text]))
          for tap, text in (free | mapped).items()),
    ]


def _usable(vm: VmPlan, address: str, around: Surroundings) -> IPv4Address | IPv6Address:
    found = ip_address(address)
    if found in around.taken:
        raise AddressError(
            f"guest {vm.hostname} has the address {address}, which is the node's, a gateway's or a server's",
            hint="see IP_TO_MAC_SCRIPT",
        )
    return found


def _own6(vm: VmPlan, around: Surroundings, known: Mapping[str, IPv4Address | IPv6Address]) -> tuple[IPv6Address, ...]:
    if vm.tap in known:
        address = known[vm.tap]
        return (address,) if isinstance(address, IPv6Address) else ()
    return netfilter6.own(vm.mac, _networks6(around), taken=_ipv6(around.taken))


def _chains6(around: Surroundings, site: SiteConfig, near: bool) -> list[str]:
    services = ((address, port) for address, port in around.services if isinstance(address, IPv6Address))
    taken = sorted({*_ipv6(around.taken)})
    return netfilter6.sets(_networks6(around), _ipv6(around.own), taken, services, near=near) + netfilter6.common(site)


def _networks6(around: Surroundings) -> list[IPv6Network]:
    return [each for each in around.networks if isinstance(each, IPv6Network)]


def _ipv4(addresses: Iterable[IPv4Address | IPv6Address]) -> list[IPv4Address]:
    return [each for each in addresses if isinstance(each, IPv4Address)]


def _ipv6(addresses: Iterable[IPv4Address | IPv6Address]) -> list[IPv6Address]:
    return [each for each in addresses if isinstance(each, IPv6Address)]


def _peers(decided: JobPlan, site: SiteConfig) -> Iterable[str]:
    """MAC addresses of all the job's guests, on any node: known to each before any of them is there.

    A sister may be told only the most nodes that there can be.
    """
    job = decided.job
    nodes = len(job.nodes) or job.most_nodes or _MOST_NODES
    number = max(nodes, job.node_index + 1) * decided.request.vms_per_node
    return (guestnames.guest_mac(site.mac_prefix, job.id, rank) for rank in range(number))


def _from(vm: VmPlan, *, has_ipv6: bool) -> str:
    """What the guest sends is from itself, whoever it is for."""
    six = f"ether type ip6 goto from6-{vm.tap}\n" if has_ipv6 else ""
    return chain(f"from-{vm.tap}", f"""\
ether saddr != {vm.mac} drop
{six}\
ether type != {{ arp, ip }} drop
ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 ether daddr != {_BROADCAST} drop
arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 arp operation {{ request, reply }} \
arp saddr ether {vm.mac} goto arp-{vm.tap}
ether type arp drop
udp sport 67 drop
ip saddr 0.0.0.0 ip daddr 255.255.255.255 ip frag-off & 0x3fff == 0 \
udp sport 68 udp dport 67 {_CHADDR} {number(vm.mac)} accept
ip saddr @taken drop
ip saddr != @address-{vm.tap} drop
ip frag-off & 0x3fff == 0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 {_CHADDR} {number(vm.mac)} accept
ip frag-off & 0x3fff == 0 ip daddr @local udp sport 68 udp dport 67 {_CHADDR} {number(vm.mac)} accept
udp dport 67 drop
goto leaving""") + "\n" + chain(f"arp-{vm.tap}", f"""\
arp saddr ip @taken drop
arp saddr ip @address-{vm.tap} accept
arp operation request arp saddr ip 0.0.0.0 accept
drop""")


def _leaving(site: SiteConfig) -> str:
    """Where a guest may send to, when it is itself. Fragments hide their ports, so they are for peers only.

    That a machine has a peer's MAC address does not make it one: users may have searched for a job with it.
    """
    dns = "" if site.name_server else f"ip daddr @local meta l4proto {{ tcp, udp }} th dport {DNS} accept\n"
    return chain("leaving", f"""\
ip daddr {{ {_NOWHERE} }} drop
ip frag-off & 0x3fff != 0 ether daddr != @peers drop
tcp sport 22 tcp dport >= 1024 tcp flags & ack == ack accept
{endpoints(site.guest_net_allow, "daddr", "dport", "accept", version=4)}\
meta l4proto {{ tcp, udp }} ip daddr . th dport @services accept
{endpoints(site.guest_net_deny, "daddr", "dport", "drop", version=4)}\
meta l4proto {{ tcp, udp }} th dport {{ {BATCH_PORTS} }} drop
ether daddr @peers ip daddr @guests ip daddr != @taken accept
ip frag-off & 0x3fff != 0 drop
{dns}\
ip daddr @node icmp type {{ echo-request, echo-reply }} accept
ip daddr @node drop
ip daddr @local drop
icmp type {{ echo-request, echo-reply, {_ERRORS} }} accept
meta l4proto {{ tcp, udp }} th sport >= 1024 accept
udp sport {NTP} udp dport {NTP} accept
drop""")


def _to(vm: VmPlan, *, has_ipv6: bool) -> str:
    """What comes from the network for the guest; what the node itself sends passes no rule."""
    six = f"ether type ip6 goto to6-{vm.tap}\n" if has_ipv6 else ""
    return chain(f"to-{vm.tap}", f"""\
{six}\
ether daddr != {{ {vm.mac}, {_BROADCAST} }} drop
ether type arp accept
ether type != ip drop
udp sport 67 udp dport 68 accept
ip daddr != @address-{vm.tap} drop
goto arriving""")


def _arriving(site: SiteConfig) -> str:
    """Who may send to a guest: its job, its servers, whoever logs in. No other job's guest is let so far
    by its own rules, and what slips through there ends here.
    """
    dns = "" if site.name_server else (
        f"ip saddr @local meta l4proto {{ tcp, udp }} th sport {DNS} th dport >= 1024 accept\n"
    )
    return chain("arriving", f"""\
ether saddr @peers ip saddr @guests ip saddr != @taken accept
{endpoints(site.guest_net_allow, "saddr", "sport", "accept", version=4)}\
meta l4proto {{ tcp, udp }} ip saddr . th sport @services accept
{dns}\
icmp type {{ echo-request, echo-reply, {_ERRORS} }} accept
tcp dport 22 accept
ip saddr @local drop
tcp flags & (syn | ack) == syn drop
accept""")


def _verdicts(direction: str, vms: Iterable[VmPlan]) -> str:
    return ", ".join(f"{vm.tap} : goto {direction}-{vm.tap}" for vm in vms)
