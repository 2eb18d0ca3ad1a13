# SPDX-License-Identifier: Apache-2.0
"""Images on the node itself: each fetched once, whatever the number of guests, the least recently used given up.

`<directory>/<sha256>.<ending>` is the program's own, whole and of that digest; it is
never written again. Whoever fetches it holds its lock alone, whoever is about to
make overlays on it shares the lock, and from then on its overlays keep it.
"""

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vtorque import files, imageheader, proc, state
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, ConfigError, DeadlineExceeded, ImageError, RequestError
from vtorque.model import Image
from vtorque.options import SiteConfig
from vtorque.rootside import RootSide

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
# An image, what has come of it so far, and what is known of that.
_KEPT = re.compile(r"([0-9a-f]{64}\.(?:qcow2|img))(?:\.part(?:\.json)?)?", re.ASCII)
# How much more of a download there has to be room for; it tells of itself after each MiB.
_STEP = 4 << 20
_MIB = 1 << 20


@contextlib.contextmanager
def local(
    image: Image, *, fs_type: str, site: SiteConfig, deadline: Deadline, root: RootSide | None = None
) -> Iterator[Image]:
    """The image where this node's guests read it: in the RAM disk, in the cache of images by URL, or in the catalogue.

    Inside the `with` it cannot go away; afterwards it stays while there are
    overlays on it. `root` makes the cache for us, and has a child that is nobody download. Raises
    ImageError, ConfigError or DeadlineExceeded.
    """
    if fs_type != "ramdisk" and not image.url:
        yield image
        return
    cache = ramdisk(site) if fs_type == "ramdisk" else disk(site)
    with cache.holding(image, deadline=deadline, root=root) as path:
        files.require_trusted(path, owner=os.geteuid())
        yield image._replace(path=path)


def ramdisk(site: SiteConfig) -> "Cache":
    """The cache in RAMDISK_DIR; RequestError where that is missing or not root's alone, since no job has to want it."""
    place = Path(site.ramdisk_dir)
    try:
        place.lstat()
        files.require_private(place)
    except (ConfigError, OSError) as error:
        raise RequestError(f"-vm fs_type=ramdisk: this node has no RAMDISK_DIR of root's own: {error}") from error
    return Cache(place / "images", site.ramdisk_limit << 20, state=Path(site.state_dir))


def disk(site: SiteConfig) -> "Cache":
    """The cache in IMAGE_CACHE_DIR."""
    return Cache(Path(site.image_cache_dir), site.image_cache_limit << 20, state=Path(site.state_dir))


@dataclass(frozen=True, slots=True)
class Kept:
    """An image in the cache, whole or not: what it takes in bytes, and when it was last asked for."""

    path: Path
    size: int
    used: float


class Cache:
    """A directory of images with a limit in bytes, 0 for half of its file system.

    Jobs whose guests have overlays on them are recorded below `state`; a limit counts
    what files really take, so that holes are free.
    """

    def __init__(self, directory: Path, limit: int, *, state: Path) -> None:
        self.directory, self._limit, self._state = directory, limit, state

    @contextlib.contextmanager
    def holding(
        self, image: Image, *, deadline: Deadline, root: RootSide | None = None
    ) -> Iterator[Path]:
        """The file of the image, fetched if need be by one of all who ask, and kept until the end of the `with`."""
        if _DIGEST.fullmatch(image.sha256) is None:
            raise ImageError(f"the catalogue entry of {image.name} has no digest")
        self._make(root, deadline)
        target = self.directory / f"{image.sha256}{image.path.suffix}"
        with contextlib.ExitStack() as held:
            try:
                self._hold(image, target, held, root, deadline)
            except DeadlineExceeded as error:
                # A slow catalogue is not this node's fault, nor is it of those who wait for who fetches.
                raise ImageError(f"image {image.name} is not on this node in time", details=error.brief) from error
            # Not the image's own time: that says whether it is what was inspected.
            os.utime(_beside(target, "lock"))
            yield target

    def _hold(
        self, image: Image, target: Path, held: contextlib.ExitStack, root: RootSide | None,
        deadline: Deadline,
    ) -> None:
        for _ in deadline.ticks(doing=f"waiting until image {image.name} is on this node"):
            if held.enter_context(_locked(target, fcntl.LOCK_SH)) and target.exists():
                return
            held.close()
            with _locked(target, fcntl.LOCK_EX) as ours:
                if ours and not target.exists():
                    self._fetch(image, target, root, deadline)

    def kept(self) -> list[Kept]:
        """All there is, the least recently used first."""
        found: dict[str, Kept] = {}
        for path in self.directory.iterdir():
            if match := _KEPT.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    about = path.lstat()
                    known = found.get(match[1], Kept(path.with_name(match[1]), 0, 0.0))
                    size, used = known.size + about.st_blocks * 512, max(known.used, about.st_mtime)
                    found[match[1]] = replace(known, size=size, used=used)
        for name, known in found.items():
            with contextlib.suppress(FileNotFoundError):
                found[name] = replace(known, used=_beside(known.path, "lock").stat().st_mtime)
        return sorted(found.values(), key=lambda each: each.used)

    def make_room(self, target: Path, size: int) -> None:
        """See that `target` may take `size` bytes, and give up what was used longest ago for it; else ImageError."""
        for each in (*self.kept(), None):
            limit, free = self._space()
            kept = {known.path: known.size for known in self.kept()}
            own = kept.pop(target, 0)
            left = sum(kept.values())
            if left + size <= limit and size - own <= free:
                return
            if each is None or size > limit or size - own > free + left:
                break
            if each.path != target:
                self._give_up(each)
        raise ImageError(
            f"no room in {self.directory}: the image takes {_mib(size)} MiB; of the limit, {limit >> 20} MiB, others "
            f"have {_mib(left)} MiB, and {free + own >> 20} MiB are free"
        )

    def _make(self, root: RootSide | None, deadline: Deadline) -> None:
        if root is not None:
            root.make_cache(self.directory, deadline=deadline)
        files.require_private(self.directory, owner=os.geteuid())
        files.directory(self.directory, mode=0o711)

    def _space(self) -> tuple[int, int]:
        """The limit, and what is free, in bytes."""
        about = os.statvfs(self.directory)
        return self._limit or about.f_blocks * about.f_frsize // 2, about.f_bavail * about.f_frsize

    def _give_up(self, kept: Kept) -> None:
        """Delete an image, unless somebody is at it or has an overlay on it."""
        with _locked(kept.path, fcntl.LOCK_EX) as ours:
            # Only under its lock: nobody can be about to make an overlay.
            if ours and kept.path not in _used(self._state):
                log.info("gave up image %s of %d MiB", kept.path, _mib(kept.size))
                _forget(kept.path)
                kept.path.unlink(missing_ok=True)
                _beside(kept.path, "lock").unlink(missing_ok=True)

    def _fetch(
        self, image: Image, target: Path, root: RootSide | None, deadline: Deadline
    ) -> None:
        source = image.url or str(image.path)
        log.info("fetching image %s from %s", image.name, source.partition("?")[0])
        self._tidy()
        try:
            if image.url:
                self._download(image, target, root, deadline)
            else:
                self._copy(image, target, deadline)
        except OSError as error:
            raise ImageError(f"cannot put image {image.name} into {self.directory}: {error.strerror}") from error

    def _tidy(self) -> None:
        """Remove what was cut short and cannot be gone on with."""
        for kept in self.kept():
            part = _beside(kept.path, "part")
            if part.exists() and not _beside(kept.path, "part.json").exists():
                with _locked(kept.path, fcntl.LOCK_EX) as ours:
                    if ours:
                        part.unlink(missing_ok=True)

    def _download(
        self, image: Image, target: Path, root: RootSide | None, deadline: Deadline
    ) -> None:
        part = _beside(target, "part")

        def watch(done: int, total: int | None) -> None:
            # A raw disk is mostly holes: it takes what has come of it, not what is announced.
            came = part.stat().st_blocks * 512 + (_STEP if total is None else min(_STEP, total - done))
            try:
                self.make_room(target, max(came, total or 0) if target.suffix == ".qcow2" else came)
            except ImageError:
                _forget(target)
                raise

        from vtorque import imagepull  # 20 ms, for what is fetched over HTTP

        try:
            imagepull.pull(
                image.url, target, sha256=image.sha256, progress=watch, deadline=deadline,
                child=root.downloader if root else None,
            )
        except (ImageError, RequestError) as error:
            raise ImageError(f"image {image.name}: {error.brief}") from error
        files.give(target, mode=0o444)

    def _copy(self, image: Image, target: Path, deadline: Deadline) -> None:
        _forget(target)
        self.make_room(target, image.path.stat().st_blocks * 512)
        part = _beside(target, "part")
        try:
            # A program of its own, so that a file server that hangs cannot keep us beyond the deadline.
            proc.run(["/usr/bin/cp", "--sparse=always", "--", image.path, part], deadline=deadline)
            found = imageheader.digest(part)
            if found != image.sha256:
                raise ImageError(f"{image.path} has SHA-256 {found}, not {image.sha256} as the catalogue says")
            # Two images that came at the same time did not see each other whole.
            self.make_room(target, part.stat().st_blocks * 512)
            files.give(part, mode=0o444)
            with imageheader.opened(part) as (handle, _):
                os.fsync(handle)
            part.rename(target)
        except (CommandError, DeadlineExceeded, ImageError):
            part.unlink(missing_ok=True)
            raise


def _used(root: Path) -> set[Path]:
    """The images that jobs on this node were planned on."""
    found = set()
    for key in state.jobs(root):
        # Another version's plan may tell of it in another way.
        with contextlib.suppress(KeyError, TypeError):
            if (plan := state.JobState(root, key).plan()) is not None:
                found.add(Path(str(plan["image"]["path"])))
    return found


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.name}.{ending}")


def _forget(target: Path) -> None:
    """Remove what has come of an image so far."""
    for ending in ("part", "part.json"):
        _beside(target, ending).unlink(missing_ok=True)


def _mib(size: int) -> int:
    return -(-size // _MIB)


@contextlib.contextmanager
def _locked(target: Path, how: int) -> Iterator[bool]:
    """Whether the image's lock is ours, until the end of the `with`; others are not waited for."""
    handle = os.open(_beside(target, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        ours = False
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            # With an image its lock is given up, too: what was opened before that locks nothing.
            ours = os.fstat(handle).st_nlink > 0
        yield ours
    finally:
        os.close(handle)
