# SPDX-License-Identifier: Apache-2.0
"""Guests' files on a node, which are root's: they lie where only root can put anything.

libvirt's daemons open consoles and channels by their names, as root, and follow links there. Whoever writes to a
file is given a descriptor, and whoever reads it no more than is his.
"""

import contextlib
import os
import re
import socket
from pathlib import Path

from vtorque import files, names
from vtorque.deadline import Deadline
from vtorque.errors import InternalError
from vtorque.identity import Account, Bound
from vtorque.servant import Handle
from vtorque.settings import Settings

KEY = re.compile(names.KEY, re.ASCII)

_CONSOLE_BYTES, _CONSOLE_LINES = 1 << 16, 20
_CHANNEL = ".channel"
# `remove` finds that of a hook which was killed: it is called as virtlogd's parts are.
_UNFINISHED = ".9"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# An overlay is empty, and a seed has scripts: what is larger is neither.
_LARGEST = 1 << 26
# What makes QEMU open another file is among the features that it has to know.
_QCOW, _FEATURES = b"QFI\xfb", slice(72, 80)


class GuestFiles:
    """Those of the guests of the job that root acts for, and what is left of others'."""

    def __init__(self, site: Settings, *, qemu: tuple[int, int], bound: Bound | None) -> None:
        self._site, self._qemu, self._bound = site, qemu, bound

    def make_place(self, fs_type: str, *, deadline: Deadline) -> None:
        """Make the directories of the job's disks and seeds; ConfigError where others could put something there."""
        files.directory(names.seeds(self._site), mode=0o711)
        path = names.places(self._site)[fs_type] / self._job.key
        files.require_private(path)
        # QEMU has to reach its overlay by its name.
        files.directory(path, mode=0o711)

    def leave_place(self, path: str, *, deadline: Deadline) -> None:
        """Remove a job's directory, which has to be empty."""
        place = Path(path)
        if place.parent not in names.places(self._site).values() or KEY.fullmatch(place.name) is None:
            raise refused(f"removing {path}")
        with contextlib.suppress(FileNotFoundError):
            place.rmdir()

    def listing(self, *, deadline: Deadline) -> dict[str, list[str]]:
        """Directories of guests' files, and what is in each; sockets with a slash at the end."""
        return {str(place): found for place in self._places() if (found := _entries(place)) is not None}

    def create(self, path: str, *, deadline: Deadline) -> Handle:
        """A new file of a guest of this job, to be written."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return Handle(os.open(self._own(path), flags, 0o600))

    def give(self, path: str, *, deadline: Deadline) -> None:
        """Make a file of a guest of this job QEMU's, which nobody holds any more who has written it."""
        owner, own = self._owner, self._own(path)
        fresh = own.with_name(own.name + _UNFINISHED)
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(own, _READ), "rb") as written, files.created(fresh, mode=0o600, durable=False) as handle:
            os.fchown(handle, *owner)
            _copy(written.fileno(), handle)
        # Not of what may still be written to. Only version 3 has such a word: QEMU's docs/interop/qcow2.txt.
        with fresh.open("rb") as copied:
            head = copied.read(_FEATURES.stop)
        if head.startswith(_QCOW) and any(head[_FEATURES]):
            raise refused("an overlay with features")
        fresh.rename(own)

    def remove(self, path: str, *, deadline: Deadline) -> None:
        """Remove a file of a guest's, an unfinished copy of it, and what virtlogd keeps of older parts."""
        own = names.guest_file(Path(path), self._site)
        own.unlink(missing_ok=True)
        for part in own.parent.glob(f"{own.name}.[0-9]"):
            part.unlink(missing_ok=True)

    def console(self, path: str, *, deadline: Deadline) -> str:
        """The end of what a guest of this job has printed."""
        try:
            with os.fdopen(os.open(self._own(path), _READ), "rb") as file:
                # A guest prints as much as it likes, and lines as long as it likes.
                file.seek(max(0, os.fstat(file.fileno()).st_size - _CONSOLE_BYTES))
                text = file.read(_CONSOLE_BYTES)
        except OSError:
            return "no console output"
        return "\n".join(text.decode(errors="backslashreplace").splitlines()[-_CONSOLE_LINES:])

    def connect(self, path: str, *, deadline: Deadline) -> Handle | None:
        """A connection to the channel of a guest of this job, if there is one."""
        own = self._own(path)
        # At others the servers of users' files listen.
        if own.suffix != _CHANNEL:
            raise refused(f"connecting to {path}")
        if not own.is_socket():
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as channel:
            try:
                channel.connect(str(own))
            except OSError:
                return None
            return Handle(channel.detach())

    @property
    def _job(self) -> Bound:
        if self._bound is None:
            raise refused("acting for a job")
        return self._bound

    @property
    def _account(self) -> Account:
        if self._job.account is None:
            raise refused("acting for a user")
        return self._job.account

    @property
    def _owner(self) -> tuple[int, int]:
        """Who QEMU is: with 9p the user himself."""
        if self._site.share == "9p":
            return self._account.uid, self._account.group.gid
        return self._qemu

    def _own(self, path: str) -> Path:
        """A file of a guest of this job."""
        return names.guest_file(Path(path), self._site, key=self._job.key)

    def _served_at(self, path: str) -> Path:
        """Where a server of the user's files may listen: the program is not to speak with it."""
        own = self._own(path)
        if own.suffix == _CHANNEL:
            raise refused(f"serving at {path}")
        return own

    def _places(self) -> list[Path]:
        places = [place for place in names.directories(self._site, "").values() if place.is_dir()]
        jobs = [own for place in places for own in place.iterdir() if KEY.fullmatch(own.name)]
        return [*jobs, names.seeds(self._site)]


def _entries(place: Path) -> list[str] | None:
    # A job that ends meanwhile takes its directory with it.
    with contextlib.suppress(OSError):
        return [f"{path.name}/" if path.is_socket() else path.name for path in place.iterdir()]
    return None


def _copy(written: int, handle: int) -> None:
    """What the program has written for a guest so far."""
    left = os.fstat(written).st_size
    if left > _LARGEST:
        raise refused(f"a file of {left} bytes")
    while left > 0 and (part := os.sendfile(handle, written, None, left)):
        left -= part


def refused(what: str) -> InternalError:
    """What is said of what root does not do."""
    return InternalError(f"root refuses {what}")
