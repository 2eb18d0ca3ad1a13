# SPDX-License-Identifier: Apache-2.0
"""SSH by paramiko: a pinned host key first, then a login with one key, and nothing else.

No agent, no known_hosts, no configuration file and nothing below `~/.ssh` is
ever looked at.
"""

import base64
import contextlib
import hashlib
import io
import socket
import warnings
from collections.abc import Iterator
from typing import Any

with warnings.catch_warnings():
    # paramiko 2.12 still lists ciphers that the cryptography library calls weak; none is used here.
    warnings.simplefilter("ignore")
    import paramiko

from vtorque.backends.transport.kept import Beginning, Kept
from vtorque.backends.transport.sshsession import SshSession
from vtorque.deadline import Deadline, growing
from vtorque.errors import TransportError, WrongHostKey

_PORT = 22
_KEY_TYPE = "ssh-ed25519"
_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 0.1
# A guest that is gone does not close its connections: it is noticed by what it fails to acknowledge.
_KEEPALIVE_SECONDS = 5
_ACKNOWLEDGE_SECONDS = 30
_WINDOW = 16 << 20


class NotListening(TransportError):
    """Nothing answers at the address yet."""


class LoginRefused(TransportError):
    """The guest is the right one but does not let the user in, or not yet."""


class Ssh:
    """Opens sessions with guests."""

    def __init__(self, port: int = _PORT) -> None:
        self._port = port

    def open(
        self, address: str, *, user: str, key: str, host_key: str, deadline: Deadline, kept: Kept | None = None
    ) -> SshSession:
        """Log in, over the connection that was kept for us if there is one.

        Raises NotListening, WrongHostKey, LoginRefused or another TransportError, and DeadlineExceeded.
        """
        connection = kept.connection if kept else self._connect(address, deadline)
        with _ending(connection), _speaking(address, deadline):
            if kept:
                transport = _resumable(connection, kept.beginning)
            else:
                transport = paramiko.Transport(connection, default_window_size=_WINDOW)
            with _ending(transport):
                _prove(transport, address, host_key, deadline)
                transport.auth_timeout = deadline.require(f"log in at {address}")
                try:
                    transport.auth_publickey(user, paramiko.Ed25519Key(file_obj=io.StringIO(key)))
                except paramiko.AuthenticationException as error:
                    raise LoginRefused(f"the guest at {address} does not let {user} in") from error
        transport.set_keepalive(_KEEPALIVE_SECONDS)
        return SshSession(transport, address)

    def begin(self, address: str, *, host_key: str, deadline: Deadline) -> Kept:
        """A connection whose other side has proven its key, for somebody else to log in over.

        Raises NotListening, WrongHostKey or another TransportError, and DeadlineExceeded.
        """
        connection = self._connect(address, deadline)
        with _ending(connection), _speaking(address, deadline):
            transport = _resumable(connection)
            with contextlib.closing(transport):
                _prove(transport, address, host_key, deadline)
        return Kept(connection=connection, beginning=transport.beginning)

    def _connect(self, address: str, deadline: Deadline) -> socket.socket:
        """A new connection. What a booting guest misses of it the kernel repeats after 1 s, then 3 s: we, sooner."""
        deadline.require(f"connect to {address}")
        limit = deadline.within(_CONNECT_SECONDS)
        patience = growing(first=_PATIENCE_SECONDS, longest=_CONNECT_SECONDS)
        while True:
            seconds = min(next(patience), limit.remaining or _PATIENCE_SECONDS)
            try:
                connection = socket.create_connection((address, self._port), timeout=seconds)
                break
            except OSError as error:
                if isinstance(error, TimeoutError) and not limit.expired:
                    continue
                reason = error.strerror or str(error)
                raise NotListening(f"the guest at {address} does not answer SSH: {reason}") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _ACKNOWLEDGE_SECONDS * 1000)
        return connection


def _resumable(connection: socket.socket, beginning: Beginning | None = None) -> Any:
    # Here, because a paramiko of another day may not have what this is made of; without it jobs only start later.
    from vtorque.backends.transport.resumable import Resumable

    return Resumable(connection, beginning, default_window_size=_WINDOW)


@contextlib.contextmanager
def _ending(connection: socket.socket | paramiko.Transport) -> Iterator[None]:
    """Close it when this fails."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _speaking(address: str, deadline: Deadline) -> Iterator[None]:
    """What paramiko raises, as what callers know."""
    try:
        yield
    except (paramiko.SSHException, OSError, EOFError) as error:
        # paramiko's own thread may notice before we do that there is no time left.
        deadline.require(f"learn who is at {address}")
        raise TransportError(f"no SSH with the guest at {address}: {error}") from error


def _prove(transport: paramiko.Transport, address: str, host_key: str, deadline: Deadline) -> None:
    """The other side shows that it holds the private half of a key; is it the expected one?"""
    transport.banner_timeout = deadline.remaining
    transport.get_security_options().key_types = (_KEY_TYPE,)
    # Threads of paramiko that outlive a deadline must not keep a hook from ending.
    transport.daemon = True
    transport.start_client(timeout=deadline.require(f"talk SSH with {address}"))
    # When its time is over start_client just returns.
    deadline.require(f"learn who is at {address}")
    seen = transport.get_remote_server_key()
    expected = base64.b64decode(host_key.split()[1])
    if seen.asbytes() != expected:
        raise WrongHostKey(
            f"the guest at {address} is not the one that was started: "
            f"its SSH host key is {_fingerprint(seen.asbytes())}, not {_fingerprint(expected)}"
        )


def _fingerprint(key: bytes) -> str:
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"
