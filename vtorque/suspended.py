# SPDX-License-Identifier: Apache-2.0
"""Suspended images: what users keep below SUSPENDED_IMAGE_DIR."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vtorque import files
from vtorque.errors import RequestError, StateError, printable

_INFO_LIMIT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """A suspended image, by its path below SUSPENDED_IMAGE_DIR, and what its .info says."""

    name: str
    uid: int
    size: int
    changed: float
    description: str


def find(directory: Path, *, uid: int | None = None, job: str = "") -> list[Suspended]:
    """Suspended images of one user or of all, and of a job: those in or called by its id."""
    return [each for each, _ in _walk(directory) if uid in (None, each.uid) and (not job or _of_job(each, job))]


def delete(directory: Path, name: str, *, uid: int) -> None:
    """Delete a suspended image and its .info; `uid` has to be root or its owner (RequestError otherwise)."""
    for each, handle in _walk(directory):
        if each.name == name:
            if uid not in (0, each.uid):
                raise RequestError(f"suspended image {name} is not yours")
            path = PurePosixPath(name)
            for info in (f"{path.name}.info", f"{path.stem}.info"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(info, dir_fd=handle)
            os.unlink(path.name, dir_fd=handle)
            return
    raise RequestError(f"there is no suspended image {name[:80]!r}", hint="vmgr show suspended")


def _walk(directory: Path) -> Iterator[tuple[Suspended, int]]:
    """Each with a descriptor of its directory, so that nobody can put a link in its way."""
    # Nothing makes it: a site has none until somebody suspends images.
    if not directory.is_dir():
        return
    for root, folders, names, handle in os.fwalk(directory):
        folders.sort()
        for name in sorted(each for each in names if each.endswith((".qcow2", ".img"))):
            about = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISREG(about.st_mode):
                yield Suspended(
                    name=str(Path(root, name).relative_to(directory)), uid=about.st_uid, size=about.st_size,
                    changed=about.st_mtime, description=_info(Path(f"/proc/self/fd/{handle}"), name, about.st_uid),
                ), handle


def _info(directory: Path, name: str, owner: int) -> str:
    for info in (f"{name}.info", f"{Path(name).stem}.info"):
        with contextlib.suppress(FileNotFoundError, StateError):
            return printable(files.read(directory / info, limit=_INFO_LIMIT, owner=owner).decode(errors="replace"))
    return ""


def _of_job(image: Suspended, job: str) -> bool:
    return any(re.match(rf"{re.escape(job)}(?![A-Za-z0-9])", part) for part in PurePosixPath(image.name).parts)
