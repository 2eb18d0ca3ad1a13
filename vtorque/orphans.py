# SPDX-License-Identifier: Apache-2.0
"""What jobs have left that no ledger tells of: a reboot takes the ledgers, and leaves the overlays on disk."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from vtorque import files, guardpost, names
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.kinds import DIRECTORY, DOMAIN, FILE, SHARE
from vtorque.model import Resource
from vtorque.node import Node

log = logging.getLogger(__name__)

# A job that is requeued may wait for days, and its failed starts count until then.
_OLD_SECONDS = 7 * 86400.0
_LOOK_SECONDS = 30.0


def keys(node: Node) -> list[str]:
    """Keys of jobs without a ledger that have files of guests on this node; others' files there are not looked at."""
    everything = node.root.listing(deadline=Deadline(_LOOK_SECONDS))
    found = {names.owner_at(place / name, node.site) for place, entries in everything.items() for name in entries}
    return sorted(key for key in found - {""} if not node.state(key).exists)


def adopt(key: str, node: Node, *, deadline: Deadline) -> None:
    """Enter what is there of job `key` into a ledger, if it has none, for whoever tears the job down.

    Raises StateError when the job begins meanwhile, and HypervisorError.
    """
    record = node.state(key)
    if record.exists or not (held := list(_files(key, node, deadline))):
        return
    log.warning("job %s has no ledger, and has left files of guests", key)
    domains = node.hypervisor.domains(deadline=deadline)
    held += [Resource(kind=DOMAIN, name=name) for name, owner in domains.items() if owner == key]
    record.create()
    for resource in held:
        with record.taking(resource, deadline=deadline):
            pass


def forget_old(node: Node) -> None:
    """Clear away what is nobody's any more: posts without a guard, counts of long ago, empty directories."""
    root = Path(node.site.state_dir)
    try:
        for place, entries in node.root.listing(deadline=Deadline(_LOOK_SECONDS)).items():
            key = place.name
            if not entries and place != names.seeds(node.site) and not (node.state(key).exists or node.knows(key)):
                # A job may begin meanwhile.
                with contextlib.suppress(VtorqueError):
                    node.root.leave_place(place, deadline=Deadline(_LOOK_SECONDS))
        for key in guardpost.all_keys(root):
            if not node.state(key).exists:
                guardpost.is_taken(root, key)
        for path in (root / "attempts").glob("*"):
            if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                files.forget(path)
    except (OSError, VtorqueError):
        log.exception("posts and counts below %s could not be looked at", root)


def _files(key: str, node: Node, deadline: Deadline) -> Iterator[Resource]:
    """What boot takes for a job's guests and keeps in files, its directories first: they are given back last."""
    everything = node.root.listing(deadline=deadline)
    own = [place for place in everything if place.name == key]
    found = {
        place / name: is_socket for place, entries in everything.items() for name, is_socket in entries.items()
        if names.owner_at(place / name, node.site) == key
    }
    if found:
        # Where somebody else has put something, the directory is to stay.
        yield from (Resource(kind=DIRECTORY, name=str(place)) for place in own
                    if all(names.owner_of(name) == key for name in everything[place]))
        yield from (Resource(kind=SHARE if is_socket else FILE, name=str(path)) for path, is_socket in found.items())
