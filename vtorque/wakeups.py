# SPDX-License-Identifier: Apache-2.0
"""What wakes a process that waits: descriptors, and directories that change.

The kernel tells of what this node does to a directory. What other nodes do to a
shared one it does not (inotify(7)), so whoever waits for that has to look, too.
"""

import contextlib
import math
import os
import select
from pathlib import Path
from typing import Protocol

_IN_CREATE, _IN_DELETE, _IN_MOVED_FROM, _IN_MOVED_TO = 0x100, 0x200, 0x40, 0x80
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x1000000
_ENTRIES = _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_BUFFER = 1 << 16


class Wakeup(Protocol):
    """Something that can be waited for."""

    def fileno(self) -> int:
        """A descriptor that can be read when there is something; below 0 when there never will be."""
        ...

    def drain(self) -> None:
        """Take note of all there is, without waiting."""
        ...


class Changes:
    """Entries that come and go in directories.

    One that cannot be watched, because it is not there or the node has no watches
    left (fs.inotify.max_user_instances), tells nothing: who waits looks now and then.
    """

    def __init__(self, *directories: Path, onto: int | None = None) -> None:
        """With `onto`, a descriptor of inotify's, what that tells of as well; it is closed with us."""
        import ctypes  # 2 ms that only those who wait have to pay for

        libc = ctypes.CDLL(None)
        self._handle = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)) if onto is None else onto
        for directory in directories if self._handle >= 0 else ():
            libc.inotify_add_watch(self._handle, os.fsencode(directory), _ENTRIES)

    def fileno(self) -> int:
        """What can be read when something has changed."""
        return self._handle

    def drain(self) -> None:
        """Forget what was told: who is woken looks for himself."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._handle, _BUFFER):
                pass

    def close(self) -> None:
        """Watch nothing any more."""
        if self._handle >= 0:
            os.close(self._handle)


def wait(seconds: float, *wakeups: Wakeup) -> list[Wakeup]:
    """Return when one of them has something to tell, after `seconds` at the latest; those that have."""
    known = {handle: each for each in wakeups if (handle := each.fileno()) >= 0}
    poll = select.poll()
    for handle in known:
        poll.register(handle, select.POLLIN)
    # Rounded down, the last fraction of a millisecond would be spent in a busy loop.
    ready = [known[handle] for handle, _ in poll.poll(math.ceil(seconds * 1000))]
    for each in ready:
        each.drain()
    return ready
