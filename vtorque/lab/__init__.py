# SPDX-License-Identifier: Apache-2.0
"""A one-machine cluster: everything a cluster would have already, to try and to test vtorque on."""

import shutil
from collections.abc import Callable
from pathlib import Path

from vtorque.errors import VtorqueError
from vtorque.lab import parts, services
from vtorque.lab.parts import Part

Progress = Callable[[str], None]

_RECORD = parts.ROOT / "made-by-lab-up"


def up(source: Path, *, progress: Progress) -> None:
    """Bring up what is not up yet. Repeatable; raises StateError when a name is somebody else's."""
    parts.refuse_foreign(_RECORD.exists())
    parts.ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
    parts.ROOT.chmod(0o755)
    _RECORD.touch()
    for part in _parts(source):
        progress(part.name)
        part.up()


def down(source: Path, *, progress: Progress) -> None:
    """Remove what `up` made, and nothing else; the image cache stays."""
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


def status(source: Path) -> dict[str, bool]:
    """Each part, and whether it is up."""
    recorded = _RECORD.exists()
    return {part.name: recorded and part.is_up() for part in _parts(source)}


def _parts(source: Path) -> list[Part]:
    return [
        parts.Program(source), parts.Account(), parts.Network(),
        services.Hypervisor(), services.Shares(), services.Engine(),
    ]
