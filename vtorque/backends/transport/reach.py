# SPDX-License-Identifier: Apache-2.0
"""Which machines are there at all: one TCP connection to each, all at the same time."""

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Collection, Iterator

# Sockets that are open at a time; a process may commonly have 1,024 descriptors.
_AT_ONCE = 256


def answering(addresses: Collection[str], *, port: int, seconds: float) -> set[str]:
    """Those addresses from which an answer comes within `seconds`; a refusal is one too."""
    todo = list(addresses)
    found: set[str] = set()
    for start in range(0, len(todo), _AT_ONCE):
        found |= _answering(todo[start:start + _AT_ONCE], port, seconds)
    return found


def _answering(addresses: Collection[str], port: int, seconds: float) -> set[str]:
    found = set()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            # Nobody answers at what is no address (socket.gaierror).
            with contextlib.suppress(OSError):
                trouble = connection.connect_ex((address, port))
                if trouble in (0, errno.ECONNREFUSED):
                    found.add(address)
                elif trouble == errno.EINPROGRESS:
                    selector.register(connection, selectors.EVENT_WRITE, address)
        for connection, address in _events(selector, seconds):
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
                found.add(address)
    return found


def _events(selector: selectors.BaseSelector, seconds: float) -> Iterator[tuple[socket.socket, str]]:
    end = time.monotonic() + seconds
    while selector.get_map() and (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            selector.unregister(key.fileobj)
            assert isinstance(key.fileobj, socket.socket)
            yield key.fileobj, key.data
