# SPDX-License-Identifier: Apache-2.0
"""What a guest may send and get, as rules for nft. Pure: the same job gives the same rules on every node.

Every job has a table of its own in the bridge family, so that one transaction
makes it and one removes it. It knows guests by the names of their interfaces,
which therefore need not exist yet. Rules judge each frame by itself: bridges
without connection tracking are common (CONFIG_NF_CONNTRACK_BRIDGE). Foreign
frames are dropped before the bridge learns their sender (nf_br_prerouting).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from vtorque import plan, shares
from vtorque.backends.filter import PREFIX
from vtorque.config import SiteConfig
from vtorque.errors import AddressError
from vtorque.model import JobPlan, VmPlan
from vtorque.options import OPTIONS

FILTER = "filter"
"""The kind of a job's table in the ledger; its name is the table's."""

_MOST_NODES = 256
_DNS, _NTP = 53, 123
# pbs_server, mom, scheduler, data service and pbs_comm; slurmctld, slurmd, slurmdbd and slurmrestd.
_BATCH_PORTS = "15001-15007, 15051, 17001, 6817-6820"
# This host, loopback, link-local with a cloud's metadata service, multicast, reserved, broadcast.
_NOWHERE = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3"
_ERRORS = "destination-unreachable, time-exceeded"
_BROADCAST = "ff:ff:ff:ff:ff:ff"
# The client's own address in the text of a DHCP message, after a UDP header of 8 bytes (RFC 2131, 2).
_CHADDR = "@th,288,48"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What rules have to know of a node's network: the subnets of the bridge, the node's own addresses on
    any interface, its gateways, and the address and port of each service that guests are configured for.
    """

    networks: tuple[IPv4Network, ...]
    own: tuple[IPv4Address, ...]
    gateways: tuple[IPv4Address, ...]
    services: tuple[tuple[IPv4Address, int], ...]


def table(key: str, site: SiteConfig) -> str:
    """The table of a job's guests; a job's key consists of what nft takes in a name."""
    return f"{_prefix(site)}{key}"


def key(table: str, site: SiteConfig) -> str:
    """The job that a table belongs to, empty when it is no job of this installation's."""
    return table.removeprefix(_prefix(site)) if table.startswith(_prefix(site)) else ""


def _prefix(site: SiteConfig) -> str:
    """Two installations on a node, a new one on trial perhaps, must not take each other's tables for orphans."""
    if site.state_dir == OPTIONS["STATE_DIR"].default:
        return f"{PREFIX}-"
    return f"{PREFIX}_{sha256(os.fsencode(site.state_dir)).hexdigest()[:8]}-"


def servers(site: SiteConfig) -> list[tuple[str, int]]:
    """Name or address, and port, of every service that the configuration sends guests to."""
    exports = (
        (site.vm_nfs_home, site.vm_nfs_home_options or site.vm_nfs_options),
        (site.vm_nfs_ws, site.vm_nfs_ws_options or site.vm_nfs_options),
        (site.vm_nfs_opt, site.vm_nfs_opt_options),
    ) if site.share == "nfs" else ()
    found = [shares.server_of(export, options) for export, options in exports if export]
    found += [(address, _DNS) for address in site.name_server.split()]
    found += [(host, _NTP) for host in (site.ntp_server_1, site.ntp_server_2) if host]
    return list(dict.fromkeys(found))


def rules(decided: JobPlan, site: SiteConfig, around: Surroundings, *, addresses: Mapping[str, str]) -> str:
    """The job's table, in place of any that there is: all of it or nothing.

    A guest whose address is not among `addresses` (by the name of its interface)
    may have any of the bridge's subnets, but no server's, until it is pinned.
    Raises AddressError for an address that is not IPv4.
    """
    name, vms = table(decided.job.key, site), decided.vms
    taken = {*around.own, *around.gateways, *(address for address, _ in around.services)}
    free = ", ".join(map(str, around.networks))
    own = {vm.tap: _ipv4(vm, addresses[vm.tap]) if vm.tap in addresses else free for vm in vms}
    services = (f"{address} . {port}" for address, port in around.services)
    return "\n".join([
        f"add table bridge {name}",
        f"delete table bridge {name}",
        f"table bridge {name} {{",
        _set("local", "ipv4_addr; flags interval; auto-merge", map(str, around.networks)),
        _set("node", "ipv4_addr", map(str, around.own)),
        _set("taken", "ipv4_addr", map(str, sorted(taken))),
        _set("services", "ipv4_addr . inet_service", services),
        _set("peers", "ether_addr", _peers(decided, site)),
        *(_set(f"address-{tap}", "ipv4_addr; flags interval; auto-merge", [text] if text else [])
          for tap, text in own.items()),
        _leaving(site),
        _arriving(site),
        *map(_from, vms),
        *map(_to, vms),
        _hook("prerouting", f"iifname vmap {{ {_verdicts('from', vms)} }}"),
        _hook("forward", f"oifname vmap {{ {_verdicts('to', vms)} }}"),
        # What concerns the port alone, and not the bridge, passes no other hook (br_handle_frame).
        _hook("input", f"ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 "
                       f"iifname {{ {', '.join(vm.tap for vm in vms)} }} drop"),
        "}\n",
    ])


def pinned(key: str, vm: VmPlan, address: str, site: SiteConfig) -> str:
    """From now on the guest has this address and no other; AddressError when it is not IPv4."""
    place = f"bridge {table(key, site)} address-{vm.tap}"
    return f"flush set {place}\nadd element {place} {{ {_ipv4(vm, address)} }}\n"


def _ipv4(vm: VmPlan, address: str) -> str:
    try:
        return str(IPv4Address(address))
    except AddressValueError:
        raise AddressError(
            f"guest {vm.hostname} has the address {address}, and NETWORK_FILTER passes IPv4 only",
            hint="NETWORK_FILTER: false",
        ) from None


def _peers(decided: JobPlan, site: SiteConfig) -> Iterable[str]:
    """MAC addresses of all the job's guests, on any node: known to each before any of them is there.

    A sister may be told only the most nodes that there can be.
    """
    job = decided.job
    nodes = len(job.nodes) or job.most_nodes or _MOST_NODES
    number = max(nodes, job.node_index + 1) * decided.request.vms_per_node
    return (plan.guest_mac(site.mac_prefix, job.id, rank) for rank in range(number))


def _from(vm: VmPlan) -> str:
    """What the guest sends is from itself, whoever it is for."""
    return _chain(f"from-{vm.tap}", f"""\
ether saddr != {vm.mac} drop
ether type != {{ arp, ip }} drop
ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 ether daddr != {_BROADCAST} drop
arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 arp operation {{ request, reply }} \
arp saddr ether {vm.mac} goto arp-{vm.tap}
ether type arp drop
udp sport 67 drop
ip saddr 0.0.0.0 ip daddr 255.255.255.255 ip frag-off & 0x3fff == 0 \
udp sport 68 udp dport 67 {_CHADDR} {_number(vm.mac)} accept
ip saddr @taken drop
ip saddr != @address-{vm.tap} drop
ip frag-off & 0x3fff == 0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 {_CHADDR} {_number(vm.mac)} accept
ip frag-off & 0x3fff == 0 ip daddr @local udp sport 68 udp dport 67 {_CHADDR} {_number(vm.mac)} accept
udp dport 67 drop
goto leaving""") + "\n" + _chain(f"arp-{vm.tap}", f"""\
arp saddr ip @taken drop
arp saddr ip @address-{vm.tap} accept
arp operation request arp saddr ip 0.0.0.0 accept
drop""")


def _leaving(site: SiteConfig) -> str:
    """Where a guest may send to, when it is itself. Fragments hide their ports, so they are for peers only."""
    names = "" if site.name_server else f"ip daddr @local meta l4proto {{ tcp, udp }} th dport {_DNS} accept\n"
    return _chain("leaving", f"""\
ip daddr {{ {_NOWHERE} }} drop
ether daddr @peers accept
ip frag-off & 0x3fff != 0 drop
tcp sport 22 tcp dport >= 1024 tcp flags & ack == ack accept
{_endpoints(site.guest_net_allow, "daddr", "dport", "accept")}\
meta l4proto {{ tcp, udp }} ip daddr . th dport @services accept
{_endpoints(site.guest_net_deny, "daddr", "dport", "drop")}\
meta l4proto {{ tcp, udp }} th dport {{ {_BATCH_PORTS} }} drop
{names}\
ip daddr @node icmp type {{ echo-request, echo-reply }} accept
ip daddr @node drop
ip daddr @local drop
icmp type {{ echo-request, echo-reply, {_ERRORS} }} accept
meta l4proto {{ tcp, udp }} th sport >= 1024 accept
udp sport {_NTP} udp dport {_NTP} accept
drop""")


def _to(vm: VmPlan) -> str:
    """What comes from the network for the guest; what the node itself sends passes no rule."""
    return _chain(f"to-{vm.tap}", f"""\
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
    names = "" if site.name_server else (
        f"ip saddr @local meta l4proto {{ tcp, udp }} th sport {_DNS} th dport >= 1024 accept\n"
    )
    return _chain("arriving", f"""\
ether saddr @peers accept
{_endpoints(site.guest_net_allow, "saddr", "sport", "accept")}\
meta l4proto {{ tcp, udp }} ip saddr . th sport @services accept
{names}\
icmp type {{ echo-request, echo-reply, {_ERRORS} }} accept
tcp dport 22 accept
ip saddr @local drop
tcp flags & (syn | ack) == syn drop
accept""")


def _endpoints(option: str, address: str, port: str, verdict: str) -> str:
    """A rule for each `CIDR`, `CIDR:PORT` or `CIDR:LOW-HIGH`; all protocols when no port is named."""
    lines = []
    for word in option.split():
        network, _, ports = word.partition(":")
        match = f" meta l4proto {{ tcp, udp }} th {port} {ports}" if ports else ""
        lines.append(f"ip {address} {IPv4Network(network, strict=False)}{match} {verdict}\n")
    return "".join(lines)


def _hook(hook: str, rule: str) -> str:
    return _chain(hook, f"type filter hook {hook} priority -300; policy accept;\n{rule}")


def _chain(name: str, body: str) -> str:
    return f"chain {name} {{\n{body}\n}}"


def _set(name: str, kind: str, elements: Iterable[str]) -> str:
    held = ", ".join(elements)
    return f"set {name} {{ type {kind}; {f'elements = {{ {held} }}; ' if held else ''}}}"


def _verdicts(direction: str, vms: Iterable[VmPlan]) -> str:
    return ", ".join(f"{vm.tap} : goto {direction}-{vm.tap}" for vm in vms)


def _number(mac: str) -> str:
    return f"0x{mac.replace(':', '')}"
