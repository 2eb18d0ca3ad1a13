# SPDX-License-Identifier: Apache-2.0
"""Give back what a job holds on this node. May be repeated, and cut short, at any time."""

import contextlib
import glob
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from vtorque import admission, audit, diskserving, keeping, logs, names, serving
from vtorque.backends.filter import Filter
from vtorque.backends.hypervisor import Hypervisor
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, StateError, VtorqueError
from vtorque.model import Resource
from vtorque.state import JobState

log = logging.getLogger(__name__)

DOMAIN = "domain"
FILE = "file"
DIRECTORY = "directory"
SHUTDOWN = "shutdown"
"""A guest that has something to write or to run before it is destroyed; its name is the domain's."""

_SHUTDOWN_SECONDS = 60.0
# The first time there may have been nobody yet to see it.
_PRESS_AGAIN_SECONDS = 5.0


def release(state: JobState, *, hypervisor: Hypervisor, rules: Filter, deadline: Deadline) -> None:
    """Close the generation and give back all it holds, newest first; forget it when nothing is left.

    Everything is tried; raises StateError naming what could not be given back,
    which stays in the ledger for the next one to try.
    """
    if not state.exists:
        return
    try:
        with state.closing(deadline=deadline):
            _release_held(state, hypervisor, rules, deadline)
    except GenerationClosed:
        # Removed meanwhile, perhaps for another start, or by somebody who was killed when only the lock was gone.
        if state.exists and not state.generation:
            _release_held(state, hypervisor, rules, deadline)


def _release_held(state: JobState, hypervisor: Hypervisor, rules: Filter, deadline: Deadline) -> None:
    held = state.held()
    if any(resource.kind == DOMAIN and not state.certain(resource) for resource in held):
        # libvirtd goes on with a start whose caller was killed. It lists a domain before it opens
        # the files: once these are gone, a late one is either found or cannot start any more.
        # Its rules must be there as long.
        for resource in (each for each in held if each.kind != names.FILTER):
            with contextlib.suppress(VtorqueError, OSError):
                _give_back(resource, hypervisor, rules, deadline)
    if guests := [each.name for each in held if each.kind == SHUTDOWN]:
        _shut_down(guests, hypervisor, deadline)
    stuck: list[str] = []
    for resource in held:
        if resource.kind == names.FILTER and stuck:
            # A guest that is still there keeps its rules.
            continue
        try:
            with logs.about(guest=resource.name if resource.kind == DOMAIN else ""):
                _give_back(resource, hypervisor, rules, deadline)
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


def release_unrecorded(
    key: str, *, hypervisor: Hypervisor, rules: Filter, table: str, directories: Collection[Path], deadline: Deadline
) -> None:
    """Find the job's domains by their tag, its `table` and its files by their names, when no ledger tells of them.

    `directories` hold nothing but files that are named `<key>_...`.
    """
    for name, owner in hypervisor.domains(deadline=deadline).items():
        if owner == key:
            log.warning("domain %s was in no ledger", name)
            hypervisor.destroy(name, deadline=deadline)
            _audit(key, DOMAIN, name)
    for directory in directories:
        for path in directory.glob(f"{glob.escape(key)}_*"):
            log.warning("file %s was in no ledger", path)
            if path.is_socket():
                serving.end(path, deadline=deadline)
            path.unlink(missing_ok=True)
            _audit(key, FILE, path)
    if table in rules.tables(deadline=deadline):
        log.warning("table %s was in no ledger", table)
        rules.remove(table, deadline=deadline)
        _audit(key, names.FILTER, table)
    own = [directory for directory in directories if directory.name == key]
    for directory in own:
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()


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


def _give_back(resource: Resource, hypervisor: Hypervisor, rules: Filter, deadline: Deadline) -> None:
    path = Path(resource.name)
    match resource.kind:
        case "domain":
            hypervisor.destroy(resource.name, deadline=deadline)
        case "file":
            path.unlink(missing_ok=True)
            # virtlogd keeps older parts of a console log beside it.
            for part in path.parent.glob(f"{path.name}.[0-9]"):
                part.unlink(missing_ok=True)
        case serving.SHARE:
            serving.end(path, deadline=deadline)
        case diskserving.DISK:
            diskserving.end(path, deadline=deadline)
        case keeping.KEEPER:
            keeping.end(resource.name, deadline=deadline)
        case names.FILTER:
            rules.remove(resource.name, deadline=deadline)
        case "shutdown":
            # Done for all together, before; and the domain goes either way.
            pass
        case "directory":
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
        case other:
            raise StateError(f"the ledger holds an unknown kind {other!r}")
