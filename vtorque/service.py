# SPDX-License-Identifier: Apache-2.0
"""Whether this node takes jobs with guests: one that fails them one after the other takes itself out.

Its failures in a row are a note of the program's beside the overlays, which a reboot
leaves alone; on a full disk in STATE_DIR. Nothing of this ever fails a job
that would not fail anyhow, or looks at a job without guests.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vtorque import audit, files, names, orders
from vtorque.config import SiteConfig
from vtorque.errors import Blame, GenerationClosed, ImageError, NodeBusy, NodeOut, StateError, VtorqueError
from vtorque.model import Job, Resource
from vtorque.published import NodeFailed

log = logging.getLogger(__name__)

NOTE = "service.json"
"""The note's name, in `node` below DISK_DIR or STATE_DIR."""

BRING_BACK = "vmgr node return"

_SCHEMA = 1
_LIMIT = 1 << 16
_REASON = 300
# Another node's, the catalogue's, or nobody's: they say nothing of this node.
NOT_ITS_OWN = (NodeFailed, ImageError, NodeBusy, NodeOut, GenerationClosed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A job that this node failed; with `by_itself` before anything of the user's ran in a guest."""

    job: str
    user: str
    by_itself: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The jobs in a row that the node failed; why it is `out`, if it is, and `since` when (UTC)."""

    row: tuple[Failed, ...] = ()
    out: str = ""
    since: str = ""
    schema: int = _SCHEMA


def look(site: SiteConfig) -> Standing:
    """How this node stands. Only the program can see; a note that cannot be read is none, and logged."""
    for path in _notes(site):
        try:
            return orders.decode(Standing, files.read(path, limit=_LIMIT))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, StateError) as error:
            log.warning("%s is of no use: %s", path, error)
    return Standing()


def require(site: SiteConfig, *, node: str) -> None:
    """Raise NodeOut when `node`, which is this one, is out."""
    standing = look(site)
    if standing.out:
        raise NodeOut(f"node {node} takes no jobs with guests since {standing.since}: {standing.out}", hint=BRING_BACK)


def succeeded(site: SiteConfig) -> None:
    """A job's guests are up: what failed before was not the node. One that is out stays out."""
    if look(site).row:
        _keep(site, replace(look(site), row=()))


def failed(
    site: SiteConfig, job: Job, error: VtorqueError, *, ran: bool, make: Callable[[], None] = lambda: None
) -> None:
    """Count a failed start; `ran` when one of the job's guests was running before, `make` makes the note's place.

    A job counts once, however often it is started. What one user's guests do
    after their start may be his doing, so it needs another's to tell of the
    node. Two jobs that fail in the same moment may count as one.
    """
    limit = site.node_failure_limit
    if not limit or error.blame is Blame.USER or isinstance(error, NOT_ITS_OWN):
        return
    with contextlib.suppress(VtorqueError, OSError):
        make()
    before = look(site)
    one = Failed(job=job.key, user=job.user, by_itself=not ran and error.blame is Blame.NODE)
    row = (*(each for each in before.row if each.job != job.key), one)[-limit:]
    own_fault = all(each.by_itself for each in row) or len({each.user for each in row}) > 1
    _keep(site, replace(before, row=row))
    if len(row) == limit and own_fault and not before.out:
        take_out(site, f"{limit} jobs in a row failed, the last one {job.id}: {error.brief[:_REASON]}")


def take_out(site: SiteConfig, reason: str) -> None:
    """Take no more jobs with guests, until somebody brings the node back."""
    log.error("this node takes no more jobs with guests: %s", reason)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    _keep(site, replace(look(site), out=reason, since=stamp))
    audit.note("take out", thing=Resource(kind="node", name=""), reason=reason)


def bring_back(site: SiteConfig) -> bool:
    """Take jobs again, with nothing counted; whether the node was out."""
    was_out = bool(look(site).out)
    _keep(site, Standing())
    audit.note("bring back", thing=Resource(kind="node", name=""))
    return was_out


def _keep(site: SiteConfig, standing: Standing) -> None:
    """In the first place that takes it: a full disk may be what is wrong with the node."""
    kept = standing == Standing()
    for path in _notes(site):
        if not kept:
            with contextlib.suppress(OSError):
                files.directory(path.parent, mode=0o700)
                files.replace(path, orders.encode(standing), mode=0o600, owner=_owner(path.parent))
                kept = True
                continue
        # An older one must not be found there, and to remove it takes no room.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    if not kept:
        log.error("this node's failures cannot be noted, neither in %s nor in %s", site.disk_dir, site.state_dir)


def _owner(directory: Path) -> tuple[int, int]:
    """What an administrator notes is for the program, too."""
    about = directory.stat()
    return (about.st_uid, about.st_gid) if os.geteuid() == 0 else (-1, -1)


def _notes(site: SiteConfig) -> tuple[Path, ...]:
    return names.standing(site) / NOTE, Path(site.state_dir, "node", NOTE)
