# SPDX-License-Identifier: Apache-2.0
"""Ports for daemons that have to be told one."""

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free() -> int:
    """A port that nobody has, nor gets by chance: none of those that the kernel hands out to whoever connects."""
    first = int(_RANGE.read_text().split()[0])
    while True:
        # Not as others choose who were told the same seed.
        port = random.SystemRandom().randrange(first // 2, first)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
