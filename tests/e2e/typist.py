# SPDX-License-Identifier: Apache-2.0
"""The lab's user at a terminal."""

import contextlib
import os
import pty
import re
import select
import subprocess
import termios
import time

from tests.e2e.conftest import JOB_SECONDS
from vtorque.lab import parts


class Typist:
    """A user at a terminal: what he types, what he sees."""

    def __init__(self, command: str, *, columns: int, rows: int) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns=columns, rows=rows)
        self.child = subprocess.Popen(
            # salloc asks for a controlling terminal, and with -c su would take it away.
            ["/usr/bin/setsid", "--ctty", "--wait", "/bin/su", "-", parts.USER, "--session-command",
             f"TERM=vt220 {command}"],
            stdin=slave, stdout=slave, stderr=slave,
        )
        os.close(slave)
        self.seen = ""

    def resize(self, *, columns: int, rows: int) -> None:
        """What a window system does; whoever is in the foreground hears of it."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Read until something is seen; what was seen before it is forgotten."""
        end = time.monotonic() + JOB_SECONDS
        while (match := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < end, self.seen
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._master, 1 << 16).decode(errors="replace")
                except OSError:
                    assert re.search(pattern, self.seen), f"the terminal was closed: {self.seen}"
        self.seen = self.seen[match.end():]
        return match

    def ends(self) -> int:
        """Wait for the command's end."""
        end = time.monotonic() + JOB_SECONDS
        while self.child.poll() is None:
            assert time.monotonic() < end
            with contextlib.suppress(OSError):
                if select.select([self._master], [], [], 0.1)[0]:
                    self.seen += os.read(self._master, 1 << 16).decode(errors="replace")
        os.close(self._master)
        return self.child.returncode
