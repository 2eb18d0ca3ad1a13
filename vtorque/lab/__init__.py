# SPDX-License-Identifier: Apache-2.0
"""A one-machine cluster: everything a cluster would have already, to try and to test vtorque on."""

import shutil
from collections.abc import Callable
from pathlib import Path

from vtorque import files
from vtorque.errors import RequestError, StateError, VtorqueError
from vtorque.lab import nodes, parts, services
from vtorque.lab.parts import Part

Progress = Callable[[str], None]

_RECORD = parts.ROOT / "made-by-lab-up"


def up(source: Path, *, progress: Progress, number: int | None = None) -> None:
    """Bring up what is not up yet, of a lab with as many nodes as it has, else one. Repeatable.

    Raises StateError when a name is somebody else's, or when it has another number of nodes.
    """
    parts.refuse_foreign(_RECORD.exists())
    there = size()
    if number is not None and not 0 < number <= nodes.MOST:
        raise RequestError(f"the lab cannot have {number} nodes, but 1 to {nodes.MOST}")
    if there and number not in (None, there):
        raise StateError(f"the lab has {there} nodes, not {number}", hint="vmgr lab down")
    parts.ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
    parts.ROOT.chmod(0o755)
    files.replace(_RECORD, f"{there or number or 1}\n".encode(), mode=0o644)
    for part in _parts(source):
        progress(part.name)
        part.up()


def down(source: Path, *, progress: Progress) -> None:
    """Remove what `up` made, and nothing else; the image cache stays, and the account that the program runs as."""
    if not _RECORD.exists():
        return
    trouble: VtorqueError | None = None
    for part in reversed(_parts(source)):
        progress(part.name)
        try:
            part.down()
        except VtorqueError as error:
            progress(f"{part.name}: {error.one_line()}")
            trouble = error
    if trouble is not None:
        raise trouble
    shutil.rmtree(parts.ROOT)
    shutil.rmtree(parts.STATE, ignore_errors=True)


def size() -> int:
    """How many nodes the lab has, 0 when there is no lab."""
    try:
        return int(_RECORD.read_text() or 1)
    except FileNotFoundError:
        return 0


def status(source: Path) -> dict[str, bool]:
    """Each part, and whether it is up."""
    recorded = _RECORD.exists()
    return {part.name: recorded and part.is_up() for part in _parts(source)}


def _parts(source: Path) -> list[Part]:
    hosts = nodes.hosts(size())
    simulated: list[Part] = [nodes.Cluster(len(hosts)), *map(nodes.Node, hosts)]
    return [
        parts.Program(source), parts.ProgramUser(), parts.Account(), parts.Network(),
        *(simulated if hosts else [services.Hypervisor()]), services.Shares(), services.Engine(hosts),
    ]
