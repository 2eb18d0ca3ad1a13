# SPDX-License-Identifier: Apache-2.0
"""Put the parts together that a node's own configuration names."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vtorque import config, files, guestnet, topology
from vtorque.backends.address import AddressBook
from vtorque.backends.address.arp import ArpTable
from vtorque.backends.address.mapping import MappingScript
from vtorque.backends.address.neighbour import Neighbours
from vtorque.backends.filter.nft import Nft
from vtorque.backends.hypervisor.libvirt import Libvirt
from vtorque.backends.transport.late import LateSsh
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.node import Node


def site(prefix: Path) -> SiteConfig:
    """The configuration that root may act on.

    Raises ConfigError unless it, the program and the site's own templates are
    root's and nobody else can change them.
    """
    found = config.load(config.find(prefix), trusted_owner=0)
    for directory in (prefix / "scripts", prefix / "templates-vm", Path(found.template_dir)):
        if directory.exists():
            files.require_trusted(directory)
    files.require_trusted(Path(__file__))
    return found


def log_file(site: SiteConfig) -> Path | None:
    """Root's log, or nothing when its directory cannot be made."""
    directory = Path(site.log_dir)
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError:
        return None
    return directory / "vtorque.log"


@contextlib.contextmanager
def node(site: SiteConfig, prefix: Path) -> Iterator[Node]:
    """This node, with the backends that its configuration asks for."""
    with contextlib.closing(Libvirt(site.libvirt_uri)) as hypervisor:
        yield Node(
            site=site,
            shape=topology.node_shape(),
            hypervisor=hypervisor,
            addresses=partial(_addresses, site),
            transport=LateSsh(),
            filter=Nft(),
            surroundings=lambda deadline: guestnet.look(site, deadline=deadline),
            templates=prefix / "templates-vm",
            announce=topology.address_on(site.bridge),
            qemu_ids=topology.user_ids(site.qemu_user),
        )


def _addresses(site: SiteConfig, guests: int, deadline: Deadline) -> AddressBook:
    """Where this site's guests' addresses are learned; a script of its own goes before any table."""
    if site.custom_ip_mapping:
        name = topology.node_shape().name
        return MappingScript(Path(site.ip_to_mac_script), node=name, guests=guests, deadline=deadline)
    if site.address_source == "arp":
        return ArpTable(Path(site.arp_bin), bridge=site.bridge, deadline=deadline)
    return Neighbours(site.bridge)
