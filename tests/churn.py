# SPDX-License-Identifier: Apache-2.0
"""Jobs come and go on one node, several at a time, and some of their hooks die or fail on the way."""

import contextlib
import json
import logging
import os
import random
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tests import crash, faults
from tests.builders import a_shape
from tests.crash import CASES, Stage, timeless
from tests.faults import KINDS, Fault
from vtorque import admission
from vtorque.deadline import Deadline
from vtorque.errors import NodeBusy

_ONE_IN = 5
_MOST_EFFECTS = 100
_LOCK_SECONDS = 30.0
# What a process needs only once it has by then: modules, caches, arenas.
_WARM = 3


@dataclass(frozen=True, kw_only=True)
class Churned:
    """What came of it: what was left or promised twice, and what every process grew by after its first lives."""

    lives: int
    faults: int
    left: tuple[str, ...]
    twice: tuple[str, ...]
    grown_kib: tuple[int, ...]
    more_descriptors: tuple[int, ...]


def churn(root: Path, *, jobs: int, at_once: int, seed: int) -> Churned:
    """Run so many lives of jobs below `root`."""
    faults.adopt_orphans()
    with crash.place(root):
        stage = Stage(root, CASES["prologue"])
        stage.node = replace(stage.node, shape=a_shape(cpus=tuple(range(2 + at_once)), memory_mib=65536))
        for hook in ("prologue", "epilogue"):
            stage.verb(hook)(timeless())
        workers = [_fork(stage, number, range(100 + number, 100 + jobs, at_once), seed) for number in range(at_once)]
        for pid in workers:
            os.waitpid(pid, 0)
        orphans = faults.orphans()
        told = [json.loads((root / f"worker.{number}").read_text()) for number in range(at_once)]
        left = [name for name in stage.watched.take() if name.startswith(("file", "domain", "table"))]
        return Churned(
            lives=sum(each["lives"] for each in told), faults=sum(each["faults"] for each in told),
            left=(*left, *orphans), twice=tuple(line for each in told for line in each["twice"]),
            grown_kib=tuple(each["grown_kib"] for each in told),
            more_descriptors=tuple(each["more_descriptors"] for each in told),
        )


def _fork(stage: Stage, number: int, jobs: Sequence[int], seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            logging.getLogger().handlers = [logging.NullHandler()]
            told = _live(stage, jobs, random.Random(f"{seed} {number}"))
            (stage.root / f"worker.{number}").write_text(json.dumps(told))
        except Exception:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(0)
    return pid


def _live(stage: Stage, jobs: Sequence[int], chance: random.Random) -> dict[str, object]:
    """One life after the other, in one process as far as hooks do not die."""
    faults.adopt_orphans()
    process = psutil.Process()
    twice: list[str] = []
    met = 0
    for count, job in enumerate(jobs):
        if count == _WARM:
            memory, descriptors = process.memory_info().rss, process.num_fds()
        own = stage.of(job)
        victim = chance.choice(("prologue", "epilogue")) if chance.randrange(_ONE_IN) == 0 else ""
        fault = Fault(kind=chance.choice(KINDS), number=chance.randint(1, _MOST_EFFECTS))
        met += bool(victim)
        for hook in ("prologue", "epilogue"):
            if hook == victim:
                own.call(hook, fault, until=crash.brisk)
            else:
                _quietly(own, hook)
            if hook == "prologue":
                twice += _promised_twice(own)
        _quietly(own, "epilogue")
        (own.root / f"mom_priv/jobs/{own.job.key}.JB").unlink()
    return {"lives": len(jobs), "faults": met, "twice": twice, "grown_kib": (process.memory_info().rss - memory) >> 10,
            "more_descriptors": process.num_fds() - descriptors}


def _quietly(own: Stage, hook: str) -> None:
    """A node may be full, as whoever died on the way has not given back yet."""
    with contextlib.suppress(NodeBusy):
        own.verb(hook)(crash.brisk())


def _promised_twice(own: Stage) -> list[str]:
    """CPUs that the node has promised to two jobs at once; nobody promises meanwhile."""
    root = Path(own.node.site.state_dir)
    with admission._locked(root / "admission", Deadline(_LOCK_SECONDS)):
        held = {each.key: set(each.cpus) for each in admission._valid(root, root / "admission")}
    return [
        f"{first} and {second} have {sorted(held[first] & held[second])}"
        for first in held for second in held if first < second and held[first] & held[second]
    ]
