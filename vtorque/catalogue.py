# SPDX-License-Identifier: Apache-2.0
"""What an administrator does to the catalogue: add and pull images, describe, check and delete them."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256 as _sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from vtorque import files, imageheader, imageprobe, imagepull, images
from vtorque.deadline import Deadline
from vtorque.errors import ImageError, RequestError, printable
from vtorque.imageformat import QCOW2_MAGIC
from vtorque.images import Header, Revision
from vtorque.options import OPTIONS

DISTROS: tuple[str, ...] = OPTIONS["DISTRO_DEFAULT"].metadata["choices"]
"""The distributions that an image may be of."""
ARCHES: tuple[str, ...] = OPTIONS["ARCH_DEFAULT"].metadata["choices"]
"""The architectures that an image may be of."""

_Say = Callable[[str], None]
_Count = Callable[[int, int | None], None]
_LONGEST_DESCRIPTION = 1000
_INSPECTION_SECONDS = 30.0
_FAMILIES = [(name, name) for name in ("debian", "ubuntu", "centos", "osv")]
_FAMILIES += [("(red.?hat|rhel|rocky|alma|fedora|oracle)", "redhat")]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is said of a new image; what is empty comes from its newest revision, its name, or the defaults."""

    name: str = ""
    description: str = ""
    distro: str = ""
    arch: str = ""
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    url: str = ""
    sha256: str = ""
    trusted: bool | None = None


def add(directory: Path, source: Path | None, about: About, *, progress: _Say) -> Revision:
    """Copy the disk at `source`, if not by URL, and its kernel into the catalogue; RequestError, ImageError if not."""
    if about.kernel is None and (about.initrd or about.cmdline):
        raise RequestError("an initrd and a command line need a kernel", hint="--kernel FILE")
    if source is None:
        imagepull.require(about.url, about.sha256)
        about = _named(about, PurePosixPath(unquote(urlsplit(about.url).path)).name, None)
    else:
        about = _named(about, source.name, source)
        _inspect(source, about.name)
    entry = _entry(directory, about)
    files.directory(directory.absolute(), mode=0o755)
    with _writing(directory), tempfile.TemporaryDirectory(prefix=".add-", dir=directory) as scratch:
        sources = {}
        for key, path in (("name", source), ("kernel", about.kernel), ("initrd", about.initrd)):
            if path is not None:
                progress(f"copying {path}")
                entry[key] = about.name if key == "name" else f"{about.name}.{key}"
                sources[entry[key]] = Path(scratch, key)
                imageheader.copy(path, sources[entry[key]])
        # The copy is what counts: whoever owns the source may have changed it meanwhile.
        if source is not None:
            _inspect(sources[about.name], about.name)
        return _publish(directory, entry, sources, progress)


def pull(directory: Path, url: str, about: About, *, sha256: str | None, progress: _Say, transfer: _Count) -> Revision:
    """Download an image into the catalogue; what came before a cut is kept for the next attempt."""
    base = PurePosixPath(unquote(urlsplit(url).path)).name
    _entry(directory, _named(about, base, None))
    files.directory(directory.absolute(), mode=0o755)
    with _writing(directory), _parked(directory / f".pull-{_sha256(url.encode()).hexdigest()[:16]}") as scratch:
        target = scratch / "disk"
        progress(f"downloading {printable(base)}")
        imagepull.pull(url, target, sha256=sha256, progress=transfer)
        about = _named(about, base, target)
        _inspect(target, about.name)
        found = _publish(directory, _entry(directory, about), {about.name: target}, progress)
    shown = urlsplit(url)._replace(query="", fragment="").geturl()
    return found if found.image.description else update(directory, about.name, f"from {shown}")


def update(directory: Path, name: str, description: str | None = None, *, trusted: bool | None = None) -> Revision:
    """Describe an image anew, or say whether it is trusted: its newest revision, or N for `NAME@N`.

    Without a number, distrust is of all revisions: users may ask for any of them.
    """
    changes: dict[str, Any] = {} if description is None else {"description": _checked(description)}
    changes |= {} if trusted is None else {"trusted": trusted}
    base = name.partition("@")[0]
    with _writing(directory), images.locked(directory):
        found = images.revision(directory, name)
        newest = images.revision(directory, base).number
        for each in images.revisions(directory, base) if trusted is False and name == base else ():
            if each.number != newest:
                images.record(directory, {**each.entry, "trusted": False}, newest=False)
        images.record(directory, {**found.entry, **changes}, newest=found.number == newest)
        return images.revision(directory, name)


def delete(directory: Path, name: str, *, disks: Iterable[Path], force: bool) -> list[str]:
    """Delete an image with all its revisions, or the one of `NAME@N`; their names.

    Raises RequestError when there is none, and unless `force`, ImageError when
    a guest's overlay below one of `disks` needs its file.
    """
    base = name.partition("@")[0]
    with _writing(directory), images.locked(directory):
        asked = images.revision(directory, name)
        known = images.revisions(directory, base)
        gone = [each for each in known if "@" not in name or each.number == asked.number]
        for each in gone:
            if not force and (job := _user(each.image.path, disks)):
                raise ImageError(f"image {each.image.name} is in use by a guest of job {job}",
                                 hint="--force deletes it all the same")
        for each in gone:
            known.remove(each)
            _forget(directory, base, each, known)
    return [each.image.name for each in gone]


def unreferenced(directory: Path) -> list[Path]:
    """What lies in the catalogue and belongs to no image: left by a crash, or being written right now."""
    known = {images.LOCK, images.SEALED, *images.references(directory)}
    for name in images.names(directory):
        known |= {f"{name}.json", *(path.name for path in directory.glob(f"{name}@*.json"))}
    return sorted(path for path in directory.iterdir() if path.name not in known) if directory.is_dir() else []


def _inspect(path: Path, name: str) -> Header:
    return imageprobe.probe(path, name=name, deadline=Deadline(_INSPECTION_SECONDS)).header


def _is_qcow2(path: Path) -> bool:
    """Whether the file begins as qcow2 does; that says nothing about the rest of it."""
    with imageheader.opened(path) as (handle, _):
        return os.pread(handle, len(QCOW2_MAGIC), 0) == QCOW2_MAGIC


def _named(about: About, base: str, path: Path | None) -> About:
    """With a name: that of its file, `base`, but with the ending that the first bytes of `path` ask for."""
    qcow2 = path is not None and _is_qcow2(path)
    if about.name:
        images.require_name(about.name)
        if qcow2 and not about.name.endswith(".qcow2"):
            raise ImageError(f"image {about.name[:80]} is qcow2, not what its name says", hint="--name NAME.qcow2")
        return about
    name = PurePosixPath(base)
    if name.suffix not in (".qcow2", ".img", ".raw"):
        raise RequestError(f"{base[:80]!r} does not end in .qcow2 or .img", hint="--name NAME.qcow2 or NAME.img")
    if name.suffix != ".qcow2":
        name = name.with_suffix(".qcow2" if qcow2 else ".img")
    images.require_name(name.name)
    return replace(about, name=name.name)


def _entry(directory: Path, about: About) -> dict[str, Any]:
    known: list[Revision] = []
    with contextlib.suppress(ImageError):
        known = images.revisions(directory, about.name)
    distro, arch = (known[-1].image.distro, known[-1].image.arch) if known else (_guess(about.name), ARCHES[0])
    if not (distro := about.distro or distro):
        raise RequestError(f"which distribution is {about.name}?", hint=f"--distro {'|'.join(DISTROS)}")
    entry: dict[str, Any] = {"name": about.name, "distro": distro, "arch": about.arch or arch}
    more = {"cmdline": about.cmdline, "url": about.url, "sha256": about.sha256.lower()}
    entry |= {key: text for key, text in more.items() if text} | {"description": _checked(about.description)}
    return entry if about.trusted is None else {**entry, "trusted": about.trusted}


def _guess(name: str) -> str:
    found = {distro for pattern, distro in _FAMILIES if re.search(rf"(?<![a-z]){pattern}", name.lower())}
    return found.pop() if len(found) == 1 else ""


def _checked(description: str) -> str:
    if not description.isprintable() or len(description) > _LONGEST_DESCRIPTION:
        raise RequestError(f"a description is one line of at most {_LONGEST_DESCRIPTION} characters")
    return description


def _publish(directory: Path, entry: dict[str, Any], sources: dict[str, Path], progress: _Say) -> Revision:
    progress("checking it in")
    before = {each.number for each in images.revisions(directory, entry["name"])}
    images.publish(directory, entry, sources)
    found = images.revision(directory, entry["name"])
    if found.number in before:
        progress(f"revision {found.number} is the same; no new one is made")
    return found


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """A catalogue that only root can change, and failures of its disk as ours."""
    try:
        files.require_trusted(directory.absolute())
        yield
    except OSError as error:
        raise ImageError(f"cannot change {directory}: {error.strerror or error}") from error


@contextlib.contextmanager
def _parked(scratch: Path) -> Iterator[Path]:
    """A private directory that outlives a failure as long as there is a part to go on with."""
    with contextlib.suppress(FileExistsError):
        scratch.mkdir(mode=0o700)
    if not stat.S_ISDIR(scratch.lstat().st_mode):
        raise ImageError(f"{scratch} is not a directory")
    with images.locked(scratch, wait=False):
        try:
            yield scratch
        finally:
            part = scratch / "disk.part"
            if not (part.exists() and part.stat().st_size):
                shutil.rmtree(scratch)


def _user(path: Path, disks: Iterable[Path]) -> str:
    """The job that has an overlay on the file at `path`; empty when there is none."""
    for overlay in (found for directory in disks for found in directory.glob("*/*.qcow2")):
        with contextlib.suppress(ImageError, OSError):
            backing = imageheader.backing_file(overlay)
            if backing and (Path(backing) == path or path.samefile(overlay.parent / backing)):
                return overlay.parent.name
    return ""


def _forget(directory: Path, base: str, gone: Revision, left: list[Revision]) -> None:
    """Entries first, so that a crash leaves an image whole or files without one."""
    newest = None
    with contextlib.suppress(ImageError, RequestError):
        newest = images.revision(directory, base).number
    (directory / f"{base}@{gone.number}.json").unlink(missing_ok=True)
    if newest == gone.number:
        if left:
            images.record(directory, left[-1].entry)
        else:
            (directory / f"{base}.json").unlink()
    still = images.references(directory)
    for path in gone.parts():
        if path.name not in still:
            path.unlink(missing_ok=True)
