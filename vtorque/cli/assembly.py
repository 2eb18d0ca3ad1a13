# SPDX-License-Identifier: Apache-2.0
"""Put the parts together that a node's own configuration names."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vtorque import config, topology
from vtorque.backends.address.neighbour import Neighbours
from vtorque.backends.hypervisor.libvirt import Libvirt
from vtorque.backends.transport.ssh import Ssh
from vtorque.config import SiteConfig
from vtorque.node import Node


def site(prefix: Path) -> SiteConfig:
    """The configuration that root may act on: ConfigError unless it is root's own."""
    return config.load(config.find(prefix), trusted_owner=0)


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
            addresses=lambda: Neighbours(site.bridge),
            transport=Ssh(),
            templates=prefix / "templates-vm",
            announce=topology.address_on(site.bridge),
            qemu_ids=topology.user_ids(site.qemu_user),
        )
