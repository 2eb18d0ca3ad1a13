# SPDX-License-Identifier: Apache-2.0
"""Close the network to a job's guests before they start, and open to each what is its own."""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from vtorque import files, names
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, VtorqueError
from vtorque.kinds import FILTER
from vtorque.model import JobPlan, Resource, VmPlan
from vtorque.node import Node
from vtorque.state import JobState, jobs

log = logging.getLogger(__name__)

_RULES = "rules"
_RULES_LIMIT = 16 << 20


def fence(plan: JobPlan, *, node: Node, state: JobState, deadline: Deadline) -> None:
    """Put the rules of all the plan's guests into force, unless the site wants none.

    Raises ConfigError when the node cannot filter, AddressError when the site's
    mapping gives no address that can be filtered, CommandError.
    """
    if not node.site.network_filter:
        return
    rules = node.rules(plan, _mapped(plan, node, deadline) if node.site.custom_ip_mapping else {}, deadline)
    table = Resource(kind=FILTER, name=names.table(plan.job.key, node.site))
    with state.taking(table, deadline=deadline), _kept(state, deadline) as handle:
        os.ftruncate(handle, 0)
        files.write_all(handle, rules.encode())
        node.filter.load(rules, deadline=deadline)


def pin(vm: VmPlan, address: str, *, node: Node, state: JobState, deadline: Deadline) -> None:
    """Leave a guest that was proven this one address; AddressError, CommandError, GenerationClosed."""
    if node.site.network_filter:
        rules = pinned(names.table(state.key, node.site), vm, address)
        with state.act(deadline=deadline), _kept(state, deadline) as handle:
            files.write_all(handle, rules.encode())
            node.filter.load(rules, deadline=deadline)
            state.audit.note("pin", Resource(kind=FILTER, name=f"{vm.tap} {address}"))


def pinned(table: str, vm: VmPlan, address: str) -> str:
    """From now on the guest has this address and, of IPv6, those that it had from the start; no others."""
    place = f"bridge {table} address-{vm.tap}"
    one = f"add element {place} {{ {address} }}\n" if isinstance(ip_address(address), IPv4Address) else ""
    return f"flush set {place}\n{one}"


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

    With `thorough`, which takes some processes for each job, the others, too.
    What fails is logged: the next one may have better luck.
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
            node.filter.load(rules, deadline=deadline)
            trouble = "gone"
        elif thorough and node.filter.renew(table, rules, deadline=deadline):
            trouble = "not as it was loaded"
        else:
            return
        log.warning("table %s was %s, and has been loaded again: does somebody flush the ruleset?", table, trouble)
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


def _mapped(plan: JobPlan, node: Node, deadline: Deadline) -> dict[str, str]:
    with contextlib.closing(node.addresses(len(plan.vms), deadline)) as book:
        return {vm.tap: book.candidates(vm)[0] for vm in plan.vms}
