# SPDX-License-Identifier: Apache-2.0
"""What the node exporter's textfile collector shows of this node: no names of jobs or users.

Counters live as long as STATE_DIR, a tmpfs: a reboot sets them to 0, as Prometheus expects of a counter.
Format: "text-based format" of Prometheus's exposition formats, version 0.0.4.
"""

import contextlib
import json
import logging
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from vtorque import errors, files, imagecache, service, state
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.kinds import DOMAIN
from vtorque.node import Node
from vtorque.options import SiteConfig
from vtorque.published import NodeFailed

log = logging.getLogger(__name__)

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 3600.0, 86400.0)
"""Upper bounds in seconds; above the last there is no bound."""

_SCHEMA = 1
_LIMIT = 1 << 20
# Somebody else is writing: what is not counted now is counted by nobody, and no job waits for that.
_LOCK_SECONDS = 2.0

_PHASE = "vtorque_phase_seconds"
_HELP = {
    _PHASE: ("histogram", "How long a phase of a job's start or end took on this node"),
    "vtorque_guests_running": ("gauge", "Guests that jobs hold on this node"),
    "vtorque_node_out": ("gauge", "1 while this node takes no jobs with guests until somebody brings it back"),
    "vtorque_failures_total": ("counter", "Starts that failed, by class and by whose fault it was"),
    "vtorque_guests_lost_total": ("counter", "Jobs of which a guest was lost while they ran"),
    "vtorque_orphans_swept_total": ("counter", "Jobs that were torn down because the batch system had forgotten them"),
    "vtorque_cache_bytes": ("gauge", "What images take on this node"),
}
# A counter that begins with its first failure is 1 from the first, which no increase() sees.
_KINDS = (*vars(errors).values(), NodeFailed)
_NONE = {f"{kind.__name__} {kind.blame.value}": 0 for kind in _KINDS
         if isinstance(kind, type) and issubclass(kind, VtorqueError) and kind is not VtorqueError}


def publish(node: Node) -> None:
    """Count what this process has noted, and write PROMETHEUS_FILE; it never fails anybody."""
    if not node.site.prometheus_file:
        return
    notes, took = node.journal.taken()
    try:
        with _locked(Path(node.site.state_dir)) as kept:
            totals = _read(kept)
            count(totals, notes, took)
            files.replace(kept, json.dumps(totals).encode(), mode=0o600)
            shown = text(totals, gauges(node.site))
            node.root.tell_prometheus(shown)
    except Exception as error:  # noqa: BLE001
        # Whatever it is, a hook must not end with another status because of it.
        log.warning("no metrics in %s: %s", node.site.prometheus_file, error)


def count(totals: dict[str, Any], notes: Iterable[Mapping[str, object]], took: Mapping[str, float]) -> None:
    """Add notes of accounting, and the seconds that each phase of them took, to the totals."""
    for phase, seconds in took.items():
        series = totals["phases"].setdefault(phase, {"counts": [0] * (len(BUCKETS) + 1), "sum": 0.0})
        series["counts"][bisect_left(BUCKETS, seconds)] += 1
        series["sum"] = round(series["sum"] + seconds, 3)
    for note in notes:
        if note["phase"] == "failed":
            failure = f"{note['class']} {note['blame']}"
            totals["failures"][failure] = totals["failures"].get(failure, 0) + 1
        elif note["phase"] in ("lost", "swept"):
            totals[note["phase"]] += 1


def gauges(site: SiteConfig) -> dict[str, float]:
    """What there is just now: guests in root's ledgers, and bytes of images in the caches."""
    root, guests = Path(site.state_dir), 0
    for key in state.jobs(root):
        with contextlib.suppress(VtorqueError, OSError):
            guests += sum(resource.kind == DOMAIN for resource in state.JobState(root, key).held())
    found: dict[str, float] = {"vtorque_guests_running": guests, "vtorque_node_out": int(bool(service.look(site).out))}
    for name, cache in (("disk", imagecache.disk), ("ramdisk", imagecache.ramdisk)):
        size = 0
        with contextlib.suppress(VtorqueError, OSError):
            size = sum(each.size for each in cache(site).kept())
        found[f'vtorque_cache_bytes{{cache="{name}"}}'] = size
    return found


def text(totals: Mapping[str, Any], now: Mapping[str, float]) -> str:
    """All of it in the exposition format."""
    samples: dict[str, float] = {}
    for phase, series in sorted(totals["phases"].items()):
        bounds = [*map(str, BUCKETS), "+Inf"]
        for bound, number in zip(bounds, accumulate(series["counts"]), strict=True):
            samples[f'{_PHASE}_bucket{{phase="{phase}",le="{bound}"}}'] = number
        samples[f'{_PHASE}_sum{{phase="{phase}"}}'] = series["sum"]
        samples[f'{_PHASE}_count{{phase="{phase}"}}'] = sum(series["counts"])
    for failure, number in sorted((_NONE | totals["failures"]).items()):
        kind, blame = failure.split()
        samples[f'vtorque_failures_total{{class="{kind}",blame="{blame}"}}'] = number
    samples["vtorque_guests_lost_total"] = totals["lost"]
    samples["vtorque_orphans_swept_total"] = totals["swept"]
    samples |= now
    lines = []
    for name, (kind, meaning) in _HELP.items():
        own = [f"{sample} {value}" for sample, value in samples.items() if sample.startswith(name)]
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *own] if own else []
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[Path]:
    """Where the totals are kept; nobody else counts meanwhile."""
    own = root / "node"
    files.directory(own, mode=0o700)
    handle = os.open(own / "metrics.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        files.lock(handle, doing="waiting for the lock of the metrics", deadline=Deadline(_LOCK_SECONDS))
        yield own / "metrics.json"
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, AttributeError):
        found: dict[str, Any] = json.loads(files.read(path, limit=_LIMIT))
        if found.get("schema") == _SCHEMA:
            return found
    return {"schema": _SCHEMA, "phases": {}, "failures": {}, "lost": 0, "swept": 0}
