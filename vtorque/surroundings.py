# SPDX-License-Identifier: Apache-2.0
"""What a node's network is like, for the rules of its guests."""

import contextlib
import socket
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address
from pathlib import Path

import psutil

from vtorque import proc, shares
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, VtorqueError
from vtorque.nftext import DNS, NTP

_ROUTE_GATEWAY = 2
_LOOK_UP_SECONDS = 5.0
# getent(1): what was asked for is not there.
_NOT_FOUND = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What rules have to know of a node's network: the subnets of the bridge, the node's own addresses on
    any interface, its gateways, and the address and port of each service that guests are configured for.
    """

    networks: tuple[IPv4Network | IPv6Network, ...]
    own: tuple[IPv4Address | IPv6Address, ...]
    gateways: tuple[IPv4Address | IPv6Address, ...]
    services: tuple[tuple[IPv4Address | IPv6Address, int], ...]

    @property
    def taken(self) -> list[IPv4Address | IPv6Address]:
        """Addresses that no guest can have."""
        return [*self.own, *self.gateways, *(address for address, _ in self.services)]


def servers(site: SiteConfig) -> list[tuple[str, int]]:
    """Name or address, and port, of every service that the configuration sends guests to."""
    exports = (
        (site.vm_nfs_home, site.vm_nfs_home_options or site.vm_nfs_options),
        (site.vm_nfs_ws, site.vm_nfs_ws_options or site.vm_nfs_options),
        (site.vm_nfs_opt, site.vm_nfs_opt_options),
    ) if site.share == "nfs" else ()
    found = [shares.server_of(export, options) for export, options in exports if export]
    found += [(address, DNS) for address in site.name_server.split()]
    found += [(host, NTP) for host in (site.ntp_server_1, site.ntp_server_2) if host]
    return list(dict.fromkeys(found))


def look(site: SiteConfig, deadline: Deadline) -> tuple[Surroundings, list[str]]:
    """What this node's network is like now, and which servers are left out because their names cannot be resolved."""
    networks6 = (each.network for each in ipv6_on(site.bridge))
    services, troubles = [], []
    for host, port in servers(site):
        try:
            services += [(address, port) for address in _resolve(host, deadline)]
        except VtorqueError as error:
            troubles.append(f"cannot resolve {host} for the network filter: {error.brief}")
    return Surroundings(
        networks=(*dict.fromkeys(networks_on(site.bridge)), *dict.fromkeys(networks6)),
        own=(*own_addresses(), *(each.ip for each in ipv6_on())),
        gateways=gateways(),
        services=tuple(dict.fromkeys(services)),
    ), troubles


def networks_on(interface: str) -> tuple[IPv4Network, ...]:
    """The IPv4 subnets that the node has addresses of on an interface."""
    return tuple(
        IPv4Network(f"{each.address}/{each.netmask}", strict=False)
        for each in psutil.net_if_addrs().get(interface, []) if each.family is socket.AF_INET and each.netmask
    )


def ipv6_on(interface: str = "", *, table: Path = Path("/proc/net/if_inet6")) -> tuple[IPv6Interface, ...]:
    """The node's IPv6 addresses on an interface, or on all, with their networks; none that is link-local.

    Address, index, prefix, scope, flags and name of each are a line (net/ipv6/addrconf.c).
    """
    found = []
    for address, _, prefix, _, _, name in map(str.split, _lines(table)):
        entry = IPv6Interface((int(address, 16), int(prefix, 16)))
        if interface in ("", name) and not entry.is_link_local:
            found.append(entry)
    return tuple(sorted(found))


def own_addresses() -> tuple[IPv4Address, ...]:
    """The node's IPv4 addresses on all its interfaces."""
    found = {
        IPv4Address(each.address)
        for addresses in psutil.net_if_addrs().values() for each in addresses if each.family is socket.AF_INET
    }
    return tuple(sorted(found))


def gateways(table: Path = Path("/proc/net/route")) -> tuple[IPv4Address, ...]:
    """The routers that the node sends through: numbers in the host's byte order (net/ipv4/fib_trie.c)."""
    found = {int(line.split()[_ROUTE_GATEWAY], 16) for line in _lines(table)[1:]} - {0}
    return tuple(sorted(IPv4Address(number.to_bytes(4, sys.byteorder)) for number in found))


def _lines(table: Path) -> list[str]:
    """What the kernel tells in a file; nothing where it has no such network."""
    return table.read_text().splitlines() if table.exists() else []


def _resolve(host: str, deadline: Deadline) -> list[IPv4Address | IPv6Address]:
    """Every address of a host, by the node's own name service; CommandError, DeadlineExceeded."""
    with contextlib.suppress(ValueError):
        return [ip_address(host)]
    answer = proc.run(
        ["/usr/bin/getent", "ahosts", host], deadline=deadline.within(_LOOK_UP_SECONDS), statuses=(0, _NOT_FOUND)
    )
    lines = answer.stdout.decode("ascii", "replace").splitlines()
    if not lines:
        raise CommandError("there is no such host")
    return [ip_address(text) for text in dict.fromkeys(line.split()[0] for line in lines) if "%" not in text]
