# SPDX-License-Identifier: Apache-2.0
"""The jobs that Slurm has begun on this node: what a mom's own job files tell, those of a slurmd do not.

A note for each, made by its Prolog and removed by its Epilog, which slurmctld
asks for until the node has answered. Only a node that is taken for dead and
comes back gets none; then a job's steps tell, where every job has one.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vtorque import files, orders, slurmconf
from vtorque.backends.batch import slurm
from vtorque.model import Job

_SCHEMA = 1
_LIMIT = 8192
# slurm.conf(5): SlurmdSpoolDir.
_SPOOL = "/var/spool/slurmd"
# Between the end of a Prolog and the job's first step.
_LAUNCH_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What a Prolog noted: `steps_by` is when the job has steps at the latest (wall clock), in `spool` if anywhere.

    `succeeded` is false until the Prolog has come to its end.
    """

    restarts: int
    steps_by: float
    spool: str
    succeeded: bool = False
    schema: int = _SCHEMA


def begin(root: Path, job: Job, *, environ: Mapping[str, str], conf: str) -> None:
    """Note a start below `root`; `environ` is the Prolog's, `conf` the text of slurm.conf."""
    settings = slurmconf.parse(conf)
    # With Contain, which X11 implies, a job has the step `extern` on all its nodes for as long as it lasts.
    contained = slurmconf.flags(settings, "PrologFlags") & {"contain", "x11"}
    spool = settings.get("slurmdspooldir", _SPOOL).replace("%n", environ.get("SLURMD_NODENAME", ""))
    start = _Start(
        restarts=slurm.restarts(environ),
        steps_by=time.time() + slurm.Slurm().hook_seconds(conf) + _LAUNCH_SECONDS,
        spool=spool.replace("%h", "*") if contained else "",
    )
    path = _path(root, job.key)
    files.directory(path.parent, mode=0o700)
    files.replace(path, orders.encode(start), mode=0o600)


def succeeded(root: Path, job: Job) -> None:
    """The Prolog of the job comes to a good end."""
    if start := _noted(root, job.key):
        files.replace(_path(root, job.key), orders.encode(replace(start, succeeded=True)), mode=0o600)


def runs_again(root: Path, job: Job, *, environ: Mapping[str, str]) -> bool:
    """Whether this Epilog, with its `environ`, ends a start that will be made again.

    A requeued job's Epilog is told of one restart more than its Prolog was,
    unless the job is requeued because that failed, which may come later than the
    Epilog. Of a job that is not known here but was restarted before, nothing is
    known to be over.
    """
    told = slurm.restarts(environ)
    start = _noted(root, job.key)
    return told > (start.restarts if start else 0) or bool(start and not start.succeeded)


def forget(root: Path, job: Job) -> None:
    """The job's Epilog has been here."""
    files.forget(_path(root, job.key))


def knows(root: Path, key: str) -> bool:
    """Whether slurmd has not yet ended the job, as far as this node can tell without asking the controller."""
    start = _noted(root, key)
    if start is None:
        return False
    if not start.spool or time.time() < start.steps_by:
        return True
    # A socket for each step: <node>_<job>.<step> (stepd_api.c).
    spool = Path(start.spool)
    return any(Path(spool.anchor).glob(str(spool.relative_to(spool.anchor) / f"*_{key}.*")))


def directory(root: Path) -> Path:
    """Where there is a note for each job."""
    return root / "slurm"


def _noted(root: Path, key: str) -> _Start | None:
    try:
        return orders.decode(_Start, files.read(_path(root, key), limit=_LIMIT))
    except FileNotFoundError:
        return None
    except ValueError:
        # Another version's: the job is known, and no more than that.
        return _Start(restarts=0, steps_by=0.0, spool="", succeeded=True)


def _path(root: Path, key: str) -> Path:
    return directory(root) / key
