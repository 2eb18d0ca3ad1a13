# SPDX-License-Identifier: Apache-2.0
"""Guests' own QEMU processes: as long as one is there its guest runs, and the kernel tells when it has gone.

No library is needed for that, and no daemon has to be up: whoever waits for hours need hold neither.
"""

import contextlib
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

DIRECTORY = Path("/run/libvirt/qemu")
"""Where libvirt notes the process of each of its guests, `<name>.pid` (virPidFileBuildPath, qemu_process.c)."""


def find(name: str, directory: Path = DIRECTORY) -> int | None:
    """A pidfd of a guest's process: of the very one, whatever has its number later."""
    with contextlib.suppress(OSError, ValueError, OverflowError), contextlib.ExitStack() as held:
        with (directory / f"{name}.pid").open() as file:
            pid = int(file.read(32))
        handle = os.pidfd_open(pid)
        held.callback(os.close, handle)
        # Held now, it is looked at: the number in an old file may be anybody's. QEMU's own name for
        # a guest is the word after -name (qemu_command.c, qemuBuildNameCommandLine).
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.split(b",")[0] == b"guest=" + os.fsencode(name) for word in words):
            held.pop_all()
            return handle
    return None


class Pulses:
    """The guests that were asked about, by name; a `Wakeup` that tells when one of them has ended."""

    def __init__(self, find: Callable[[str], int | None]) -> None:
        self._find = find
        self._processes: dict[str, int] = {}
        self._epoll = select.epoll()
        self._lock = threading.Lock()

    def beats(self, name: str) -> bool | None:
        """Whether the guest's process is there; None when none was ever found, which says nothing."""
        with self._lock:
            handle = self._processes.get(name)
            if handle is None:
                handle = self._find(name)
                if handle is None:
                    return None
                self._processes[name] = handle
                self._epoll.register(handle, select.EPOLLIN)
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return not poll.poll(0)

    def forget(self, name: str) -> None:
        """It is going to be another process."""
        with self._lock:
            if (handle := self._processes.pop(name, None)) is not None:
                os.close(handle)

    def fileno(self) -> int:
        """What can be read when a guest has ended."""
        return self._epoll.fileno()

    def drain(self) -> None:
        """Those that have ended tell it once, to one of all who wait."""
        with self._lock:
            for handle, _ in self._epoll.poll(0):
                self._epoll.unregister(handle)

    def close(self) -> None:
        """Look no more."""
        for name in list(self._processes):
            self.forget(name)
        self._epoll.close()
