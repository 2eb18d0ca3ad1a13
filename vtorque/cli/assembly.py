# SPDX-License-Identifier: Apache-2.0
"""Put the parts together that a node's own configuration names."""

import contextlib
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vtorque import audit, config, files, names, topology
from vtorque.accounting import Journal
from vtorque.backends.address import AddressBook
from vtorque.backends.filter.apart import FilterApart
from vtorque.backends.hypervisor.watched import Watched
from vtorque.backends.transport.apart import Apart
from vtorque.cli.family import Family
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import StateError
from vtorque.model import Account
from vtorque.node import Node
from vtorque.rootside import RootSide
from vtorque.servant import Asked

if TYPE_CHECKING:
    from vtorque.planning import Planning


def site(prefix: Path) -> SiteConfig:
    """The configuration that root may go by.

    Raises ConfigError unless it, the program and the site's own templates are
    root's and nobody else can change them.
    """
    found = config.load(config.find(prefix), trusted_owner=0)
    for directory in (prefix / "scripts", prefix / "templates-vm", Path(found.template_dir)):
        if directory.exists():
            files.require_trusted(directory)
    files.require_trusted(Path(__file__))
    return found


@contextlib.contextmanager
def node(site: SiteConfig, family: Family, *, begun: float | None = None) -> Iterator[Node]:
    """This node, with the backends that its configuration asks for.

    `begun` is when this process was called, in seconds of the monotonic clock; now if it is not given.
    """
    shape = topology.node_shape()
    ago = 0.0 if begun is None else time.monotonic() - begun
    journal = Journal(
        names.accounting(site), node=shape.name, begun=time.time() - ago, days=site.accounting_days
    )
    root = RootSide(family.root)
    audit.forward(root.note)
    with (
        contextlib.closing(Watched(root)) as hypervisor,
        contextlib.closing(Apart(family.speaker)) as transport,
        contextlib.closing(FilterApart(family.network)) as rules,
        _planning(site, family, root) as planning,
    ):
        found = Node(
            site=site,
            shape=shape,
            hypervisor=hypervisor,
            addresses=partial(_addresses, site, family.network, root),
            transport=transport,
            filter=rules,
            rules=rules.rules,
            planning=planning,
            announce=topology.address_on(site.bridge),
            journal=journal,
            root=root,
            clerk=partial(_clerk, family),
        )
        try:
            yield found
        finally:
            if site.prometheus_file:
                from vtorque import metrics  # with it comes what knows of images

                metrics.publish(found)


@contextlib.contextmanager
def _planning(site: SiteConfig, family: Family, root: RootSide) -> Iterator["Planning | None"]:
    """Plans, by a child that is nobody, where guests are to be started."""
    if family.planner is None:
        yield None
        return
    from vtorque.planning import Planning

    with contextlib.closing(Planning(site, family.planner, templates=root.templates())) as planning:
        yield planning


def _clerk(family: Family, account: Account) -> socket.socket:
    if family.clerk is None:
        raise StateError(f"nobody is {account.name} here")
    return family.clerk


def _addresses(
    site: SiteConfig, keeper: Asked, root: RootSide, guests: int, deadline: Deadline
) -> AddressBook:
    """Where this site's guests' addresses are learned; a script of its own goes before any table."""
    # Whoever ends a job asks none of them.
    if site.custom_ip_mapping:
        from vtorque.backends.address.mapping import MappingScript

        return MappingScript(Path(site.ip_to_mac_script), root=root, guests=guests, deadline=deadline)
    if site.address_source == "arp":
        from vtorque.backends.address.arp import ArpTable

        return ArpTable(Path(site.arp_bin), bridge=site.bridge, deadline=deadline)
    from vtorque.backends.address.apart import TableApart

    return TableApart(keeper, deadline=deadline)
