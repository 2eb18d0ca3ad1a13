# SPDX-License-Identifier: Apache-2.0
"""The catalogue of authorised images, and their revisions.

Beside the newest `NAME` lies its entry `NAME.json`, and the entry of revision N
is also at `NAME@N.json`. Trust comes from the directory being root's own, not
from hashing gigabytes before each job; `vmgr image verify` compares the digests.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vtorque import files, imageentry
from vtorque.errors import ImageError, RequestError, StateError
from vtorque.imageentry import DIGESTS, SEAL, SEALED, Revision, find, is_sealed, require_trusted, revision
from vtorque.imageheader import Header, digest, inspect, opened
from vtorque.job import Image

__all__ = [
    "LOCK", "SEALED", "Header", "Revision", "digest", "find", "inspect", "is_sealed", "locked", "names",
    "publish", "record", "references", "require_name", "require_trusted", "revision", "revisions", "seal",
]

LOCK = ".lock"
"""The file in the catalogue that whoever changes it has locked."""



def revisions(directory: Path, name: str) -> list[Revision]:
    """All revisions of the image `name`, the newest last; none when there is no such image."""
    found = {each.number: each for each in (imageentry.read(directory, name),) if each}
    for entry in imageentry.names(directory):
        if entry.startswith(f"{name}@") and (each := imageentry.read(directory, entry)):
            found.setdefault(each.number, each)
    return [each._replace(image=each.image._replace(name=f"{name}@{each.number}")) for _, each in sorted(found.items())]


def names(directory: Path) -> list[str]:
    """Names of all images in the catalogue, without their revisions."""
    return [name for name in imageentry.names(directory) if "@" not in name]


def references(directory: Path, *, but: str = "") -> dict[str, str]:
    """Every file that an entry refers to, with the image's name; without the image `but`. Broken entries count."""
    found: dict[str, str] = {}
    for name in imageentry.names(directory):
        base, entry = name.partition("@")[0], {}
        with contextlib.suppress(FileNotFoundError, StateError, ValueError, TypeError):
            entry = dict(json.loads(files.read(directory / f"{name}.json", limit=imageentry.LIMIT)))
        if base != but:
            found |= {str(entry[key]): base for key in DIGESTS if key in entry}
            found.setdefault(str(entry.get("file", base)), base)
    return found


def publish(directory: Path, entry: dict[str, Any], sources: dict[str, Path]) -> Image:
    """Put an image into the catalogue: its files by name from `sources`, the entry last.

    Digests are filled in; a disk that has a `url` is no file here and comes with
    its own. What differs from the newest revision becomes a new one, what does
    not only gets a new description; whether it is trusted stays as it was unless
    `entry` says so. A reader sees the old image or the new one; a crash leaves at
    most files that no entry refers to.
    """
    name = str(entry["name"])
    require_name(name)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    complete = {"schema": imageentry.SCHEMA, **entry} | ({} if "url" in entry else {"file": name})
    complete |= {field: digest(sources[complete[key]]) for key, field in DIGESTS.items() if key in complete}
    with locked(directory):
        last, newest = _last(directory, name)
        if newest is not None and not newest.image.trusted:
            complete.setdefault("trusted", False)
        if newest is not None and _content(newest.entry) == _content(complete):
            _mend(newest, complete, sources)
            kept = {key: newest.entry[key] for key in ("file", "kernel", "initrd") if key in newest.entry}
            text = complete["description"] or newest.entry["description"]
            record(directory, {**complete, **kept, "revision": newest.number, "description": text})
            return find(directory, name)
        if newest is not None:
            record(directory, newest.entry, newest=False)
        taken = references(directory, but=name)
        for key in DIGESTS.keys() & complete.keys():
            source, target = sources[complete[key]], _revised(complete[key], last + 1)
            if target in taken:
                raise ImageError(f"{target} belongs to image {taken[target]}")
            _move(source, directory / target)
            complete[key] = target
        record(directory, {**complete, "revision": last + 1})
    return find(directory, name)


def require_name(name: str) -> None:
    """Refuse what cannot name an image as a whole (RequestError)."""
    if not imageentry.is_name(name) or "@" in name:
        raise RequestError(f"{name[:80]!r} is not the name of an image", hint="like debian-12.qcow2")


def record(directory: Path, entry: Mapping[str, Any], *, newest: bool = True) -> None:
    """Write the entry of a revision, and if it is the `newest`, of the image, which comes first."""
    text = json.dumps(dict(entry), indent=1, sort_keys=True).encode() + b"\n"
    if newest:
        files.replace(directory / f"{entry['name']}.json", text, mode=0o644)
    files.replace(directory / f"{entry['name']}@{entry.get('revision', 1)}.json", text, mode=0o644)


@contextlib.contextmanager
def locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only one who changes `directory`; without `wait`, ImageError when somebody else does."""
    # A file of its own: to lock a directory fails on NFS.
    handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ImageError(f"another command is writing {directory}") from None
        yield
    finally:
        os.close(handle)


def seal(directory: Path, sha256: str, *, sealed: bool) -> None:
    """Remember whether it was found that nobody can become root in the image of that digest."""
    path = directory / SEALED / sha256
    if sealed:
        files.directory(path.parent, mode=0o755)
        files.replace(path, SEAL, mode=0o644)
    else:
        path.unlink(missing_ok=True)


def _last(directory: Path, name: str) -> tuple[int, Revision | None]:
    """The highest number that a revision has, and the newest revision unless its entry is broken."""
    numbers = [int(entry.rpartition("@")[2]) for entry in imageentry.names(directory) if entry.startswith(f"{name}@")]
    try:
        newest = imageentry.read(directory, name)
        return max([newest.number if newest else 0, *numbers]), newest
    except ImageError:
        return max([1, *numbers]), None


def _content(entry: Mapping[str, Any]) -> list[str]:
    """What makes one revision differ from another."""
    texts = (*DIGESTS.values(), "cmdline", "url")
    return [entry.get(key, "") for key in texts] + sorted(entry.keys() & {"kernel", "initrd"})


def _mend(present: Revision, entry: Mapping[str, Any], sources: Mapping[str, Path]) -> None:
    """Put the same files in place of those that are damaged or gone."""
    keys = (key for key in DIGESTS if key in entry)
    for (path, wanted), key in zip(present.parts().items(), keys, strict=True):
        with contextlib.suppress(ImageError):
            if digest(path) == wanted:
                continue
        _move(sources[entry[key]], path)


def _move(source: Path, target: Path) -> None:
    with opened(source) as (handle, _):
        os.fchmod(handle, 0o644)
        os.fsync(handle)
    source.replace(target)


def _revised(name: str, number: int) -> str:
    return name if number == 1 else f"{Path(name).stem}@{number}{Path(name).suffix}"
