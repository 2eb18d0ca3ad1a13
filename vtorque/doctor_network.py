# SPDX-License-Identifier: Apache-2.0
"""Whether this node can close the network to guests, as NETWORK_FILTER wants it."""

from collections.abc import Iterator
from pathlib import Path

from vtorque.backends.filter.nft import PROGRAM, Nft
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.doctor_checks import Finding, error, ok, warning
from vtorque.errors import CommandError, ConfigError

_SYSCTL = Path("/proc/sys/net/bridge")
_FAMILIES = ("iptables", "ip6tables")
_NET = Path("/sys/class/net")
# linux/netdevice.h, NET_ADDR_SET: somebody has chosen it.
_CHOSEN = "3"
# Whatever the rules of a guest are made of; a kernel that lacks one of it says so.
_TRIAL = """\
table bridge vtorque-doctor {
set addresses { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
set addresses6 { type ipv6_addr; flags interval; elements = { fd00::/8 } }
set services { type ipv4_addr . inet_service; elements = { 10.0.0.1 . 2049 } }
chain other {
arp saddr ip @addresses drop
udp sport 68 @th,288,48 0x525400000001 accept
meta l4proto { tcp, udp } ip daddr . th dport @services accept
ip6 nexthdr 44 frag nexthdr != { tcp, udp } drop
ip6 hoplimit 255 icmpv6 type nd-neighbor-advert ip6 length 32 @th,32,1 0 @th,192,64 0x0201525400000001 accept
ip6 saddr @addresses6 @th,64,128 { 0x1, 0x2 } accept
}
chain prerouting {
type filter hook prerouting priority -300; policy accept;
iifname vmap { vtg000000000000 : goto other }
}
chain forward { type filter hook forward priority -300; policy accept; }
}
"""


def network_filter(
    site: SiteConfig, *, deadline: Deadline, program: Path = PROGRAM, net: Path = _NET
) -> Iterator[Finding]:
    """nft is there, and the kernel takes rules of every kind that guests get; none is left.

    The bridge learns nothing from LLDP, which no rule sees (br_handle_frame).
    """
    name = "filter"
    if not site.network_filter:
        yield warning(name, "guests' network is not filtered", "NETWORK_FILTER: true")
        return
    try:
        Nft(program).check(_TRIAL, deadline=deadline)
    except ConfigError as trouble:
        yield error(name, trouble.brief, trouble.hint)
    except CommandError as trouble:
        hint = "a kernel with nf_tables in the bridge family (CONFIG_NF_TABLES_BRIDGE), or NETWORK_FILTER: false"
        yield error(name, f"NETWORK_FILTER: {trouble.brief}", hint)
    else:
        learns = net / site.bridge / "bridge" / "no_linklocal_learn"
        if learns.is_file() and learns.read_text().strip() == "0":
            text = f"bridge {site.bridge} learns made-up senders from guests' LLDP, which comes before any rule"
            yield warning(name, text, f"ip link set {site.bridge} type bridge no_linklocal_learn 1, for good")
        else:
            yield ok(name, "guests' network is filtered: nft and the kernel take the rules")


def own_address(site: SiteConfig, *, net: Path = _NET) -> Iterator[Finding]:
    """The bridge has a MAC address that stays: without its own it takes a port's (br_stp_recalculate_bridge_id)."""
    bridge = net / site.bridge
    kind = bridge / "addr_assign_type"
    if not kind.is_file() or kind.read_text().strip() == _CHOSEN:
        return
    if all((net / port.name / "tun_flags").exists() for port in (bridge / "brif").glob("*")):
        text = f"bridge {site.bridge} takes the MAC address of a guest, and changes it under others that are running"
        hint = f"ip link set {site.bridge} address {(bridge / 'address').read_text().strip()}, for good"
        yield warning("bridge", text, hint)


def host_rules(site: SiteConfig, *, sysctl: Path = _SYSCTL, net: Path = _NET) -> Iterator[Finding]:
    """The host's iptables leave frames alone that only cross the bridge (br_nf_pre_routing, br_netfilter_hooks.c)."""
    own = net / site.bridge / "bridge"
    for name in _FAMILIES:
        switches = (sysctl / f"bridge-nf-call-{name}", own / f"nf_call_{name}")
        on = [str(path) for path in switches if path.is_file() and path.read_text().strip() == "1"]
        if on:
            text = f"the host's own {name} rules filter guests' frames, too: {' and '.join(on)} is 1"
            yield warning("iptables", text, f"echo 0 >{on[0]}, for good; or let them pass what crosses {site.bridge}")
