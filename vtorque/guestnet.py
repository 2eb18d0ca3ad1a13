# SPDX-License-Identifier: Apache-2.0
"""Close the network to a job's guests before they start, and open to each what is its own."""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from vtorque import files, names, netfilter, proc, topology
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, GenerationClosed, VtorqueError
from vtorque.model import JobPlan, Resource, VmPlan
from vtorque.names import FILTER
from vtorque.netfilter import Surroundings
from vtorque.node import Node
from vtorque.state import JobState, jobs

log = logging.getLogger(__name__)

_LOOK_UP_SECONDS = 5.0
_RULES = "rules"
_RULES_LIMIT = 16 << 20
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
            f"NETWORK_FILTER: bridge {node.site.bridge} has no address, which would tell those of guests",
            hint="give it one, or CUSTOM_IP_MAPPING: true",
        )
    rules = netfilter.rules(plan, node.site, around, addresses=addresses)
    table = Resource(kind=FILTER, name=names.table(plan.job.key, node.site))
    with state.taking(table, deadline=deadline), _kept(state, deadline) as handle:
        os.ftruncate(handle, 0)
        files.write_all(handle, rules.encode())
        node.filter.load(rules, deadline=deadline)


def pin(vm: VmPlan, address: str, *, node: Node, state: JobState, deadline: Deadline) -> None:
    """Leave a guest that was proven this one address; AddressError, CommandError, GenerationClosed."""
    if node.site.network_filter:
        rules = netfilter.pinned(state.key, vm, address, node.site)
        with state.act(deadline=deadline), _kept(state, deadline) as handle:
            files.write_all(handle, rules.encode())
            node.filter.load(rules, deadline=deadline)
            state.audit.note("pin", Resource(kind=FILTER, name=f"{vm.tap} {address}"))


def adopt(node: Node, *, deadline: Deadline) -> list[str]:
    """Enter tables that no ledger tells of into one, for whoever tears the job down; the tables that there are.

    A guest that still runs keeps its rules that long. What mom knows is left to its own epilogue, which
    looks for it by name and may be about to. Raises CommandError or StateError.
    """
    tables = node.filter.tables(deadline=deadline)
    for table in tables:
        key = names.key(table, node.site)
        if key and not node.knows(key) and not (record := node.state(key)).exists:
            log.warning("table %s was in no ledger", table)
            record.create()
            with record.taking(Resource(kind=FILTER, name=table), deadline=deadline):
                pass
    return tables


def mend(node: Node, *, seen: Collection[str], thorough: bool, deadline: Deadline) -> None:
    """Load the tables again that are no longer among those `seen`, as after `flush ruleset`.

    With `thorough`, which takes some processes for each job, those that are not
    what was loaded, too. What fails is logged: the next one may have better luck.
    """
    if not node.site.network_filter:
        return
    for key in jobs(Path(node.site.state_dir)):
        record, table = node.state(key), names.table(key, node.site)
        try:
            is_loaded = record.certain(Resource(kind=FILTER, name=table))
            if is_loaded and not record.closed and (thorough or table not in seen):
                _mend(table, record, node, thorough, deadline)
        except GenerationClosed:
            continue
        except (VtorqueError, OSError):
            log.exception("table %s could not be looked at", table)


def _mend(table: str, record: JobState, node: Node, thorough: bool, deadline: Deadline) -> None:
    with record.act(deadline=deadline), _kept(record, deadline) as handle:
        rules = os.pread(handle, _RULES_LIMIT, 0).decode()
        if not rules:
            # An orphan, or loaded by a version that kept no text.
            return
        if table not in node.filter.tables(deadline=deadline):
            trouble = "gone"
        elif thorough and not node.filter.is_as(table, rules, deadline=deadline):
            trouble = "not as it was loaded"
        else:
            return
        log.warning("table %s was %s, loading it again: does somebody flush the ruleset?", table, trouble)
        node.filter.load(rules, deadline=deadline)
        record.audit.note("reload", Resource(kind=FILTER, name=table))


@contextlib.contextmanager
def _kept(state: JobState, deadline: Deadline) -> Iterator[int]:
    """The text that a job's table was made of, to be read or added to by one at a time."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(state.path / _RULES, flags, 0o600)
    try:
        files.lock(handle, doing=f"waiting for the network rules of job {state.key}", deadline=deadline)
        yield handle
    finally:
        os.close(handle)


def look(site: SiteConfig, *, deadline: Deadline) -> Surroundings:
    """What this node's network is like now; a server whose name it cannot resolve is left out, and logged."""
    networks6 = (each.network for each in topology.ipv6_on(site.bridge))
    return Surroundings(
        networks=(*dict.fromkeys(topology.networks_on(site.bridge)), *dict.fromkeys(networks6)),
        own=(*topology.own_addresses(), *(each.ip for each in topology.ipv6_on())),
        gateways=topology.gateways(),
        services=tuple(dict.fromkeys(
            (address, port)
            for host, port in netfilter.servers(site) for address in _resolve(host, deadline)
        )),
    )


def _mapped(plan: JobPlan, node: Node, deadline: Deadline) -> dict[str, str]:
    with contextlib.closing(node.addresses(len(plan.vms), deadline)) as book:
        return {vm.tap: book.candidates(vm)[0] for vm in plan.vms}


def _resolve(host: str, deadline: Deadline) -> list[IPv4Address | IPv6Address]:
    """Every address of a host, by the node's own name service."""
    with contextlib.suppress(ValueError):
        return [ip_address(host)]
    try:
        answer = proc.run(
            ["/usr/bin/getent", "ahosts", host], deadline=deadline.within(_LOOK_UP_SECONDS), statuses=(0, _NOT_FOUND)
        )
    except VtorqueError as error:
        log.warning("cannot resolve %s for the network filter: %s", host, error.brief)
        return []
    lines = answer.stdout.decode("ascii", "replace").splitlines()
    if not lines:
        log.warning("cannot resolve %s for the network filter: there is no such host", host)
    return [ip_address(text) for text in dict.fromkeys(line.split()[0] for line in lines) if "%" not in text]
