# SPDX-License-Identifier: Apache-2.0
"""Give back what a job holds on this node. May be repeated, and cut short, at any time."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from vtorque import admission, audit, kinds, logs, names
from vtorque.backends.hypervisor import Hypervisor
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, StateError, VtorqueError
from vtorque.kinds import DOMAIN, FILE, FILTER, SHUTDOWN
from vtorque.model import Resource
from vtorque.node import Node
from vtorque.state import JobState

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 60.0
# The first time there may have been nobody yet to see it.
_PRESS_AGAIN_SECONDS = 5.0
# A crowded file server takes what its client has not yet handed over; after that nothing more is worth waiting for.
_DISK_SECONDS = 20.0


def release(state: JobState, node: Node, *, deadline: Deadline) -> None:
    """Close the generation and give back all it holds, newest first; forget it when nothing is left.

    Everything is tried; raises StateError naming what could not be given back,
    which stays in the ledger for the next one to try.
    """
    if not state.exists:
        return
    try:
        with state.closing(deadline=deadline):
            _release_held(state, node, deadline)
    except GenerationClosed:
        # Removed meanwhile, perhaps for another start, or by somebody who was killed when only the lock was gone.
        if state.exists and not state.generation:
            _release_held(state, node, deadline)


def _release_held(state: JobState, node: Node, deadline: Deadline) -> None:
    held = state.held()
    if any(resource.kind == DOMAIN and not state.certain(resource) for resource in held):
        # libvirtd goes on with a start whose caller was killed. It lists a domain before it opens
        # the files: once these are gone, a late one is either found or cannot start any more.
        # Its rules must be there as long.
        for resource in (each for each in held if each.kind != FILTER):
            with contextlib.suppress(VtorqueError, OSError):
                _give_back(resource, state, node, deadline)
    if guests := [each.name for each in held if each.kind == SHUTDOWN]:
        _shut_down(guests, node.hypervisor, deadline)
    stuck: list[str] = []
    for resource in held:
        if resource.kind == FILTER and stuck:
            # A guest that is still there keeps its rules.
            continue
        try:
            with logs.about(guest=resource.name if resource.kind == DOMAIN else ""):
                _give_back(resource, state, node, deadline)
                log.info("gave back %s %s", resource.kind, resource.name)
            state.given_back(resource)
        except (VtorqueError, OSError) as error:
            log.exception("still holding %s %s", resource.kind, resource.name)
            state.audit.note("give back", resource, failure=error)
            stuck.append(f"{resource.kind} {resource.name}: {error}")
    if stuck:
        raise StateError(f"could not give back {'; '.join(stuck)}")
    admission.release(state.path.parents[1], state.key)
    state.remove()


def release_unrecorded(key: str, node: Node, *, deadline: Deadline) -> None:
    """Find the job's domains by their tag, its table and its files by their names, when no ledger tells of them."""
    for name, owner in node.hypervisor.domains(deadline=deadline).items():
        if owner == key:
            log.warning("domain %s was in no ledger", name)
            node.hypervisor.destroy(name, deadline=deadline)
            _audit(key, DOMAIN, name)
    everything = node.root.listing(deadline=deadline)
    for place, found in everything.items():
        for name, is_socket in found.items():
            if names.owner_at(place / name, node.site) == key:
                log.warning("file %s was in no ledger", place / name)
                if is_socket:
                    node.root.end_server(place / name, deadline=deadline)
                node.root.remove(place / name, deadline=deadline)
                _audit(key, FILE, place / name)
    table = names.table(key, node.site)
    if table in node.filter.tables(deadline=deadline):
        log.warning("table %s was in no ledger", table)
        node.filter.remove(table, deadline=deadline)
        _audit(key, FILTER, table)
    for place in everything:
        if place.name == key:
            node.root.leave_place(place, deadline=deadline)


def _audit(key: str, kind: str, name: str | Path) -> None:
    audit.note("give back", job=key, thing=Resource(kind=kind, name=str(name)), reason="was in no ledger")


def _shut_down(guests: Sequence[str], hypervisor: Hypervisor, deadline: Deadline) -> None:
    """Let guests end by themselves, all at once; what has not after half of the time there is will be destroyed."""
    limit = deadline.within(min(_SHUTDOWN_SECONDS, deadline.remaining / 2))
    running = guests
    try:
        with hypervisor.changes() as ends:
            while running:
                limit.require(f"shutting down {', '.join(running)}")
                for name in running:
                    hypervisor.shutdown(name, deadline=limit)
                again = limit.within(_PRESS_AGAIN_SECONDS)
                while not again.expired:
                    running = [name for name in running if hypervisor.is_running(name, deadline=limit)]
                    if not running:
                        break
                    again.pause(again.remaining, ends)
    except VtorqueError as error:
        log.warning("not shut down cleanly: %s", error.brief)


def _give_back(resource: Resource, state: JobState, node: Node, deadline: Deadline) -> None:
    path = Path(resource.name)
    match resource.kind:
        case kinds.DOMAIN:
            node.hypervisor.destroy(resource.name, deadline=deadline)
        case kinds.FILE if path.parent == state.path:
            # What a version before this one has put there.
            path.unlink(missing_ok=True)
        case kinds.FILE:
            node.root.remove(path, deadline=deadline)
        case kinds.SHARE:
            node.root.end_server(path, deadline=deadline)
        case kinds.DISK:
            node.root.end_server(path, patience=_DISK_SECONDS, deadline=deadline)
        case kinds.KEEPER:
            node.root.end_keeper(resource.name, deadline=deadline)
        case kinds.FILTER:
            node.filter.remove(resource.name, deadline=deadline)
        case kinds.SHUTDOWN:
            # Done for all together, before; and the domain goes either way.
            pass
        case kinds.DIRECTORY:
            node.root.leave_place(path, deadline=deadline)
        case other:
            raise StateError(f"the ledger holds an unknown kind {other!r}")
