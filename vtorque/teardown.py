# SPDX-License-Identifier: Apache-2.0
"""Give back what a job holds on this node. May be repeated, and cut short, at any time."""

import contextlib
import glob
import logging
from collections.abc import Collection
from pathlib import Path

from vtorque import admission, logs, serving
from vtorque.backends.hypervisor import Hypervisor
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, StateError, VtorqueError
from vtorque.model import Resource
from vtorque.state import JobState

log = logging.getLogger(__name__)

DOMAIN = "domain"
FILE = "file"
DIRECTORY = "directory"


def release(state: JobState, *, hypervisor: Hypervisor, deadline: Deadline) -> None:
    """Close the generation and give back all it holds, newest first; forget it when nothing is left.

    Everything is tried; raises StateError naming what could not be given back,
    which stays in the ledger for the next one to try.
    """
    if not state.exists:
        return
    try:
        with state.closing(deadline=deadline):
            _release_held(state, hypervisor, deadline)
    except GenerationClosed:
        # Removed meanwhile, or by somebody who was killed when only the lock was gone.
        if state.exists:
            _release_held(state, hypervisor, deadline)


def _release_held(state: JobState, hypervisor: Hypervisor, deadline: Deadline) -> None:
    held = state.held()
    if any(resource.kind == DOMAIN and not state.certain(resource) for resource in held):
        # libvirtd goes on with a start whose caller was killed. It lists a domain before it opens
        # the files: once these are gone, a late one is either found or cannot start any more.
        for resource in held:
            with contextlib.suppress(VtorqueError, OSError):
                _give_back(resource, hypervisor, deadline)
    stuck = []
    for resource in held:
        try:
            with logs.about(guest=resource.name if resource.kind == DOMAIN else ""):
                _give_back(resource, hypervisor, deadline)
                log.info("gave back %s %s", resource.kind, resource.name)
            state.given_back(resource)
        except (VtorqueError, OSError) as error:
            log.exception("still holding %s %s", resource.kind, resource.name)
            stuck.append(f"{resource.kind} {resource.name}: {error}")
    if stuck:
        raise StateError(f"could not give back {'; '.join(stuck)}")
    admission.release(state.path.parents[1], state.key)
    state.remove()


def release_unrecorded(
    key: str, *, hypervisor: Hypervisor, directories: Collection[Path], deadline: Deadline
) -> None:
    """Find the job's domains by their tag, and its files by their names, when no ledger tells of them.

    `directories` hold nothing but files that are named `<key>_...`.
    """
    for name, owner in hypervisor.domains(deadline=deadline).items():
        if owner == key:
            log.warning("domain %s was in no ledger", name)
            hypervisor.destroy(name, deadline=deadline)
    for directory in directories:
        for path in directory.glob(f"{glob.escape(key)}_*"):
            log.warning("file %s was in no ledger", path)
            if path.is_socket():
                serving.end(path, deadline=deadline)
            path.unlink(missing_ok=True)
    own = [directory for directory in directories if directory.name == key]
    for directory in own:
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()


def _give_back(resource: Resource, hypervisor: Hypervisor, deadline: Deadline) -> None:
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
        case "directory":
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
        case other:
            raise StateError(f"the ledger holds an unknown kind {other!r}")
