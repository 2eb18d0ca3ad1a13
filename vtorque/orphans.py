# SPDX-License-Identifier: Apache-2.0
"""What jobs have left that no ledger tells of: a reboot takes the ledgers, and leaves the overlays on disk."""

import contextlib
import glob
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

from vtorque import files, guardpost, names, serving
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.model import Resource
from vtorque.node import Node
from vtorque.teardown import DIRECTORY, DOMAIN, FILE

log = logging.getLogger(__name__)

# A job that is requeued may wait for days, and its failed starts count until then.
_OLD_SECONDS = 7 * 86400.0
_KEY = r"[0-9][A-Za-z0-9.-]*"
# What boot names the files of a job's guests (plan.py): <key>_<slot>of<number>.<what>
_OURS = re.compile(rf"(?P<key>{_KEY})_[0-9]{{1,3}}of[0-9]{{1,3}}\.[A-Za-z0-9.]+", re.ASCII)


def keys(node: Node) -> list[str]:
    """Keys of jobs without a ledger that have files of guests on this node; others' files there are not looked at."""
    found = {match["key"] for path in _everything(node) if (match := _OURS.fullmatch(path.name))}
    return sorted(key for key in found if not node.state(key).exists)


def adopt(key: str, node: Node, *, deadline: Deadline) -> None:
    """Enter what is there of job `key` into a ledger, if it has none, for whoever tears the job down.

    Raises StateError when the job begins meanwhile, and HypervisorError.
    """
    record = node.state(key)
    if record.exists or not (held := list(_files(key, node))):
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
        for place in names.directories(node.site, "").values():
            for own in place.glob("[0-9]*"):
                if re.fullmatch(_KEY, own.name) and not (node.state(own.name).exists or node.knows(own.name)):
                    with contextlib.suppress(OSError):
                        own.rmdir()
        for key in guardpost.all_keys(root):
            if not node.state(key).exists:
                guardpost.is_taken(root, key)
        for path in (root / "attempts").glob("*"):
            if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                files.forget(path)
    except (OSError, VtorqueError):
        log.exception("posts and counts below %s could not be looked at", root)


def _files(key: str, node: Node) -> Iterator[Resource]:
    """What boot takes for a job's guests and keeps in files, its directories first: they are given back last."""
    own = [place for place in names.directories(node.site, key).values() if place.is_dir()]
    found = [path for place in (*own, _seeds(node)) for path in place.glob(f"{glob.escape(key)}_*") if _is_ours(path)]
    if found:
        # Where somebody else has put something, the directory is to stay.
        yield from (Resource(kind=DIRECTORY, name=str(place)) for place in own if all(map(_is_ours, place.iterdir())))
        yield from (Resource(kind=serving.SHARE if path.is_socket() else FILE, name=str(path)) for path in found)


def _is_ours(path: Path) -> bool:
    return _OURS.fullmatch(path.name) is not None


def _everything(node: Node) -> Iterator[Path]:
    """All files at the places where guests have theirs: a directory for each job, and one for all seeds."""
    for own in (own for place in names.directories(node.site, "").values() for own in place.glob("*")):
        # A job that ends meanwhile takes its directory with it.
        with contextlib.suppress(FileNotFoundError):
            yield from list(own.glob(f"{glob.escape(own.name)}_*"))
    yield from _seeds(node).glob("*")


def _seeds(node: Node) -> Path:
    return Path(node.site.state_dir, "seeds")
