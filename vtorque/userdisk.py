# SPDX-License-Identifier: Apache-2.0
"""A disk of the user's own as vsub sees it, before the job: what it can refuse at once."""

import os
from dataclasses import dataclass
from pathlib import Path

from vtorque import diskserver, imageheader, units, vmoptions
from vtorque.errors import ImageError, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDisk:
    """The real path of the image, what it is made with if it is not there, and who has it now."""

    path: Path
    new_mib: int
    holder: str


def read(text: str, directory: Path) -> UserDisk:
    """`PATH`, or `PATH:SIZE` for an image that may have to be made; relative to `directory`.

    Raises RequestError that says what is wrong with it.
    """
    name, colon, size = text.partition(":")
    try:
        new_mib = units.mebibytes(size) if colon else 0
    except ValueError as error:
        raise RequestError(str(error), hint="like disk=data.img:20G") from None
    path = Path(os.path.realpath(directory / vmoptions.expanded(name)))
    if not path.exists():
        if not new_mib:
            raise RequestError("there is no such file", hint=_meant(name))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise RequestError(f"you may make no file in {path.parent}")
    elif not path.is_file():
        raise RequestError("is not a regular file")
    elif not os.access(path, os.R_OK | os.W_OK):
        raise RequestError("you may not read and write it")
    elif path.stat().st_size or not new_mib:
        _inspect(path)
    return UserDisk(path=path, new_mib=new_mib, holder=diskserver.holder(path))


def _meant(name: str) -> str:
    """The original's disk= took a size."""
    try:
        units.mebibytes(name)
    except ValueError:
        return f"disk={name}:20G makes one"
    return f"disk_size={name} is the size of each guest's own disk"


def _inspect(path: Path) -> None:
    try:
        imageheader.inspect(path)
    except ImageError as error:
        raise RequestError(error.brief.removeprefix(f"image {path.name}: ")) from None
