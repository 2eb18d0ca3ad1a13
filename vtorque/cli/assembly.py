# SPDX-License-Identifier: Apache-2.0
"""Put the parts together that a node's own configuration names."""

import contextlib
import resource
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vtorque import accounting, accounts, audit, config, files, logs, topology
from vtorque.accounting import Journal
from vtorque.backends.address import AddressBook
from vtorque.backends.filter.apart import FilterApart
from vtorque.backends.hypervisor import Domains
from vtorque.backends.hypervisor.aside import Aside
from vtorque.backends.hypervisor.pulse import Pulses
from vtorque.backends.transport.apart import Apart
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.model import Templates
from vtorque.node import Node
from vtorque.servant import CAP_NET_ADMIN, NOBODY, Asked, Servant

if TYPE_CHECKING:
    from vtorque.planning import Planning

_LARGEST_SEED = 16 << 20


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


def open_logs(site: SiteConfig, *, step: str) -> None:
    """Send what this process, a hook or a guard, says and does to root's logs."""
    logs.setup(log_file(site), verbose=site.debug_default)
    audit.setup(site.audit_log, Path(site.log_dir), step=step)


@contextlib.contextmanager
def node(
    site: SiteConfig, prefix: Path, *, begun: float | None = None, starts: bool = False, waits: bool = False
) -> Iterator[Node]:
    """This node, with the backends that its configuration asks for.

    `begun` is when this process was called, in seconds of the monotonic clock; now if it is not given.
    With `starts` it starts guests, and with `waits` it then waits for them.
    """
    shape = topology.node_shape()
    ago = 0.0 if begun is None else time.monotonic() - begun
    journal = Journal(
        accounting.directory(site), node=shape.name, begun=time.time() - ago, days=site.accounting_days
    )
    # Their children are forked before anything is loaded that only we need.
    with (
        contextlib.closing(Aside(partial(_domains, site), child=waits, pulses=Pulses())) as hypervisor,
        contextlib.closing(Apart(early=waits)) as transport,
        contextlib.closing(FilterApart(keeper := _keeper(site))) as rules,
        _planning(site, prefix, starts=starts) as planning,
    ):
        found = Node(
            site=site,
            shape=shape,
            hypervisor=hypervisor,
            addresses=partial(_addresses, site, keeper),
            transport=transport,
            filter=rules,
            rules=rules.rules,
            planning=planning,
            announce=topology.address_on(site.bridge),
            qemu_ids=accounts.user_ids(site.qemu_user),
            journal=journal,
        )
        try:
            yield found
        finally:
            if site.prometheus_file:
                from vtorque import metrics  # with it comes what knows of images

                metrics.publish(found)


def _domains(site: SiteConfig) -> Domains:
    from vtorque.backends.hypervisor.libvirt import Libvirt

    return Libvirt(site.libvirt_uri)


@contextlib.contextmanager
def _planning(site: SiteConfig, prefix: Path, *, starts: bool) -> Iterator["Planning | None"]:
    """Plans, by a child that is nobody, where guests are to be started."""
    if not starts:
        yield None
        return
    from vtorque.planning import Planning, read_templates

    # Read here: a site's own may be for root's eyes only.
    texts = read_templates(prefix / "templates-vm", Path(site.template_dir))
    child = Servant("planner", partial(_planner, site, texts), identity=NOBODY)
    with contextlib.closing(Planning(site, child, templates=texts)) as planning:
        yield planning


def _planner(site: SiteConfig, texts: Templates) -> object:
    from vtorque.planner import Planner

    # A seed is all that it has to write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_SEED, _LARGEST_SEED))
    return Planner(site, texts)


def _keeper(site: SiteConfig) -> Servant:
    """Who keeps the network of guests, by a right that is not root's."""
    def make() -> object:
        from vtorque.netkeeper import NetKeeper

        return NetKeeper(site)

    return Servant("network", make, identity=NOBODY, keeps=(CAP_NET_ADMIN,))


def _addresses(site: SiteConfig, keeper: Asked, guests: int, deadline: Deadline) -> AddressBook:
    """Where this site's guests' addresses are learned; a script of its own goes before any table."""
    # Whoever ends a job asks none of them.
    if site.custom_ip_mapping:
        from vtorque.backends.address.mapping import MappingScript

        name = topology.node_shape().name
        return MappingScript(Path(site.ip_to_mac_script), node=name, guests=guests, deadline=deadline)
    if site.address_source == "arp":
        from vtorque.backends.address.arp import ArpTable

        return ArpTable(Path(site.arp_bin), bridge=site.bridge, deadline=deadline)
    from vtorque.backends.address.apart import TableApart

    return TableApart(keeper, deadline=deadline)
