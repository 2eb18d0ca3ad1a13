# SPDX-License-Identifier: Apache-2.0
"""What this node promised to each of its jobs, so that no core and no megabyte is promised twice.

One file a job below `<STATE_DIR>/admission`, written under one lock for all
of them. It counts from before the job's guests are started until nothing of
the job is left on the node.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vtorque import files, reservation
from vtorque.deadline import Deadline
from vtorque.errors import StateError
from vtorque.model import JobPlan
from vtorque.shape import NodeShape, Reservation, Share
from vtorque.state import JobState

_ENDING = ".json"
_SCHEMA = 1
_LIMIT = 1 << 20


def reserve(
    root: Path, key: str, shape: NodeShape, make: Callable[[NodeShape], JobPlan], *, deadline: Deadline
) -> JobPlan:
    """Have a plan made of what others left of the node, and promise what it takes to job `key`.

    `make` raises RequestError when the node can never do it, NodeBusy when it
    cannot now; then nothing is promised. A promise to the same job is replaced.
    """
    directory = place(root)
    files.directory(directory, mode=0o700)
    with _locked(directory, deadline):
        others = tuple(each for each in _valid(root, directory) if each.key != key)
        decided = make(replace(shape, held=others))
        data = {"schema": _SCHEMA, **asdict(reservation.of(decided))}
        files.replace(directory / f"{key}{_ENDING}", json.dumps(data).encode(), mode=0o600)
    return decided


def place(root: Path) -> Path:
    """Where something changes when a promise is made or taken back."""
    return root / "admission"


def release(root: Path, key: str) -> None:
    """Take back what was promised to a job of which nothing is left here."""
    files.forget(place(root) / f"{key}{_ENDING}")


@contextlib.contextmanager
def _locked(directory: Path, deadline: Deadline) -> Iterator[None]:
    """The directory itself is what is locked: nothing else stays when no job is left."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        files.lock(handle, doing="waiting for other jobs that start on this node", deadline=deadline)
        yield
    finally:
        os.close(handle)


def _valid(root: Path, directory: Path) -> Iterator[Reservation]:
    """All promises, in the order of their jobs' names; those to jobs that are gone are dropped."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            # Half a file of somebody who was killed: nobody else writes while we have the lock.
            path.unlink(missing_ok=True)
        elif path.suffix == _ENDING:
            if not JobState(root, path.stem).exists:
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError):
                yield _read(path)


def _read(path: Path) -> Reservation:
    text = files.read(path, limit=_LIMIT)
    try:
        data: dict[str, Any] = json.loads(text)
        if (schema := data.pop("schema")) != _SCHEMA:
            says = f"{path} was written by another version of vtorque, with schema {schema!r}"
            raise StateError(says, hint=f"this one knows {_SCHEMA}; end that job, then remove the file")
        shares = tuple(Share(**share) for share in data.pop("shares"))
        return Reservation(**{**data, "cpus": tuple(data["cpus"]), "shares": shares})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path} is damaged: {error}", hint="end that job, then remove the file") from None
