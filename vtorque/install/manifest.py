# SPDX-License-Identifier: Apache-2.0
"""The record of an installation, written before the first change: from it alone everything is put back."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtorque import files, orders
from vtorque.errors import StateError
from vtorque.install import tree
from vtorque.install.modes import Mended
from vtorque.install.steps import Made, temporary

PATH = Path("/var/lib/vtorque/install.json")
"""Not in STATE_DIR: it outlives reboots, and changes of the configuration."""

SCHEMA = 2
# Before owners and modes were set.
_FIRST_SCHEMA = 1
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What was installed, or begun to be: `is_complete` says which.

    `directories` were missing, outer ones first. `pbs_hook` says that OpenPBS's
    server was given our hook.
    """

    schema: int = SCHEMA
    system: str
    prefix: Path
    front_end: bool
    classic: bool
    is_complete: bool
    made: tuple[Made, ...]
    directories: tuple[Path, ...]
    pbs_hook: bool
    mended: tuple[Mended, ...] = ()


def read(root: Path) -> Manifest | None:
    """The record of what is installed below `root`, if anything is. Raises StateError."""
    path = tree.inside(root, PATH)
    try:
        data = files.read(path, limit=_LIMIT, owner=os.geteuid())
        found = json.loads(data)
        schema = found.get("schema")
        if schema == _FIRST_SCHEMA:
            return orders.decode(Manifest, json.dumps({**found, "schema": SCHEMA, "mended": []}).encode())
        if schema != SCHEMA:
            raise StateError(
                f"{path} has schema {schema}, this version knows {SCHEMA}", hint="use the version that installed it"
            )
        return orders.decode(Manifest, data)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise StateError(f"{path} is damaged: {error}") from None


def write(root: Path, manifest: Manifest) -> None:
    """Keep the record, durably and for root only."""
    path = tree.inside(root, PATH)
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    fresh = temporary(path)
    fresh.unlink(missing_ok=True)
    files.write_new(fresh, orders.encode(manifest) + b"\n", mode=0o600)
    fresh.rename(path)
    tree.sync(path.parent)


def forget(root: Path) -> None:
    """Remove the record, as the last act, and its directory when nothing else is there."""
    path = tree.inside(root, PATH)
    for each in (temporary(path), path):
        each.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Nobody else installs or uninstalls below `root` meanwhile; StateError when somebody does."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"somebody else installs below {root} at this moment") from None
        yield
    finally:
        os.close(handle)
