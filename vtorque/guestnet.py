# SPDX-License-Identifier: Apache-2.0
"""Close the network to a job's guests before they start, and open to each what is its own."""

import contextlib
import logging
from ipaddress import IPv4Address

from vtorque import netfilter, proc, topology
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, VtorqueError
from vtorque.model import JobPlan, Resource, VmPlan
from vtorque.netfilter import FILTER, Surroundings
from vtorque.node import Node
from vtorque.state import JobState

log = logging.getLogger(__name__)

_LOOK_UP_SECONDS = 5.0
# getent(1): what was asked for is not there.
_NOT_FOUND = 2


def fence(plan: JobPlan, *, node: Node, state: JobState, deadline: Deadline) -> None:
    """Put the rules of all the plan's guests into force, unless the site wants none.

    Raises ConfigError when the node cannot filter, AddressError when the site's
    mapping gives no address that can be filtered, CommandError.
    """
    if not node.site.network_filter:
        return
    around = node.surroundings(deadline)
    addresses = _mapped(plan, node, deadline) if node.site.custom_ip_mapping else {}
    if not around.networks and not addresses:
        raise ConfigError(
            f"NETWORK_FILTER: bridge {node.site.bridge} has no IPv4 address, which would tell those of guests",
            hint="give it one, or CUSTOM_IP_MAPPING: true",
        )
    rules = netfilter.rules(plan, node.site, around, addresses=addresses)
    with state.taking(Resource(kind=FILTER, name=netfilter.table(plan.job.key, node.site)), deadline=deadline):
        node.filter.load(rules, deadline=deadline)


def pin(vm: VmPlan, address: str, *, node: Node, state: JobState, deadline: Deadline) -> None:
    """Leave a guest that was proven this one address; AddressError, CommandError, GenerationClosed."""
    if node.site.network_filter:
        with state.act(deadline=deadline):
            node.filter.load(netfilter.pinned(state.key, vm, address, node.site), deadline=deadline)


def adopt(node: Node, *, deadline: Deadline) -> None:
    """Enter tables that no ledger tells of into one, for whoever tears the job down.

    A guest that still runs keeps its rules that long. Raises CommandError or StateError.
    """
    for table in node.filter.tables(deadline=deadline):
        key = netfilter.key(table, node.site)
        if key and not (record := node.state(key)).exists:
            log.warning("table %s was in no ledger", table)
            record.create()
            with record.taking(Resource(kind=FILTER, name=table), deadline=deadline):
                pass


def look(site: SiteConfig, *, deadline: Deadline) -> Surroundings:
    """What this node's network is like now; a server whose name it cannot resolve is left out, and logged."""
    bridge = topology.networks_on(site.bridge)
    return Surroundings(
        networks=tuple(dict.fromkeys(bridge)),
        own=topology.own_addresses(),
        gateways=topology.gateways(),
        services=tuple(dict.fromkeys(
            (address, port)
            for host, port in netfilter.servers(site) for address in _resolve(host, deadline)
        )),
    )


def _mapped(plan: JobPlan, node: Node, deadline: Deadline) -> dict[str, str]:
    with contextlib.closing(node.addresses(len(plan.vms), deadline)) as book:
        return {vm.tap: book.candidates(vm)[0] for vm in plan.vms}


def _resolve(host: str, deadline: Deadline) -> list[IPv4Address]:
    """Every IPv4 address of a host, by the node's own name service."""
    with contextlib.suppress(ValueError):
        return [IPv4Address(host)]
    try:
        answer = proc.run(
            ["/usr/bin/getent", "ahostsv4", host], deadline=deadline.within(_LOOK_UP_SECONDS), statuses=(0, _NOT_FOUND)
        )
    except VtorqueError as error:
        log.warning("cannot resolve %s for the network filter: %s", host, error.brief)
        return []
    lines = answer.stdout.decode("ascii", "replace").splitlines()
    if not lines:
        log.warning("cannot resolve %s for the network filter: there is no such host", host)
    return [IPv4Address(text) for text in dict.fromkeys(line.split()[0] for line in lines)]
