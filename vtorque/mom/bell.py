# SPDX-License-Identifier: Apache-2.0
"""A wakeup that threads of the same process ring."""

import contextlib
import os


class Bell:
    """Rung from any thread; rings before anybody waits are heard as well."""

    def __init__(self) -> None:
        self._handle = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self) -> None:
        """Wake whoever waits, from any thread or a signal handler."""
        # Once it is closed the number may be another file's.
        if self._handle >= 0:
            os.eventfd_write(self._handle, 1)

    def fileno(self) -> int:
        """What can be read when it was rung."""
        return self._handle

    def drain(self) -> None:
        """Once heard it is silent."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._handle)

    def close(self) -> None:
        """Ring no more."""
        handle, self._handle = self._handle, -1
        os.close(handle)
