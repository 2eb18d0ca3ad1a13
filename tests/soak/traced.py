# SPDX-License-Identifier: Apache-2.0
"""The stand-in of a hook of which the program alone meets what strace injects.

strace counts for every process and thread anew: when it traces root as well, that meets the N-th call first
wherever it has so many, and takes the program along.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import standin

ORDER = "inject"
"""A file in the world with strace's words, one in a line, while the program is to be traced."""

_PATIENCE_SECONDS = 10.0


def main(root: Path, argv: list[str]) -> int:
    """Be `scripts/hook` of the installation in the world at `root`."""
    order = root / ORDER
    if order.exists():
        from vtorque import become

        vars(become)["fork_as"] = _tracing(become.fork_as, order.read_text().splitlines())
    return standin.main(root, argv)


def _tracing(real: Callable[..., tuple[int, socket.socket]], words: list[str]) -> Callable[..., Any]:
    def fork_as(identity: Any, serve: Callable[[socket.socket], int], **named: Any) -> tuple[int, socket.socket]:
        # Of all that root forks this is the program.
        if not named.get("dies_with_us"):
            return real(identity, serve, **named)

        def stopped(orders: socket.socket) -> int:
            os.kill(os.getpid(), signal.SIGSTOP)
            return serve(orders)

        pid, ours = real(identity, stopped, **named)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        _trace(pid, words)
        os.kill(pid, signal.SIGCONT)
        return pid, ours

    return fork_as


def _trace(pid: int, words: list[str]) -> None:
    nothing = subprocess.DEVNULL
    subprocess.Popen([*words, "-p", str(pid)], stdin=nothing, stdout=nothing, stderr=nothing)
    until = time.monotonic() + _PATIENCE_SECONDS
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if time.monotonic() > until:
            raise TimeoutError("strace does not come")
        time.sleep(0.005)
