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
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

with warnings.catch_warnings():
    # paramiko 2.12 still lists ciphers that the cryptography library calls weak; none is used here.
    warnings.simplefilter("ignore")
    import paramiko

from vtorque.backends.transport import KeyPair, Sink, Terminal, XServer, keys, reach
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, TransportError

_PORT = 22
_KEY_TYPE = "ssh-ed25519"
_CONNECT_SECONDS = 5.0
# A guest that is gone does not close its connections: it is noticed by what it fails to acknowledge.
_KEEPALIVE_SECONDS = 5
_ACKNOWLEDGE_SECONDS = 30
_CHUNK = 1 << 16
_MEGABYTE = 1 << 20
# After a command has ended, something it left behind may hold its output open for ever.
_DRAIN_SECONDS = 1.0


class NotListening(TransportError):
    """Nothing answers at the address yet."""


class WrongHostKey(TransportError):
    """Another machine than the one that was started answers at the address."""


class LoginRefused(TransportError):
    """The guest is the right one but does not let the user in, or not yet."""


class Ssh:
    """Opens sessions with guests."""

    def __init__(self, port: int = _PORT) -> None:
        self._port = port

    def make_key(self) -> KeyPair:
        """A new ed25519 key, made in this process."""
        return keys.make()

    def open(
        self, address: str, *, user: str, key: str, host_key: str, deadline: Deadline
    ) -> "SshSession":
        """Log in; NotListening, WrongHostKey, LoginRefused or another TransportError."""
        transport = self._transport(address, deadline)
        try:
            # Threads of paramiko that outlive a deadline must not keep a hook from ending.
            transport.daemon = True
            transport.start_client(timeout=deadline.require(f"talk SSH with {address}"))
            # When its time is over start_client just returns.
            deadline.require(f"learn who is at {address}")
            _prove(transport, address, host_key)
            transport.auth_timeout = deadline.require(f"log in at {address}")
            transport.auth_publickey(user, paramiko.Ed25519Key(file_obj=io.StringIO(key)))
        except paramiko.AuthenticationException as error:
            transport.close()
            raise LoginRefused(f"the guest at {address} does not let {user} in") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            raise TransportError(f"no SSH with the guest at {address}: {error}") from error
        except BaseException:
            transport.close()
            raise
        transport.set_keepalive(_KEEPALIVE_SECONDS)
        return SshSession(transport, address)

    def answering(self, addresses: Collection[str], *, seconds: float) -> set[str]:
        """Those addresses at which a machine still answers; its sshd logs a connection that said nothing."""
        return reach.answering(addresses, port=self._port, seconds=seconds)

    def _transport(self, address: str, deadline: Deadline) -> paramiko.Transport:
        limit = min(_CONNECT_SECONDS, deadline.require(f"connect to {address}"))
        try:
            connection = socket.create_connection((address, self._port), timeout=limit)
        except OSError as error:
            reason = error.strerror or str(error)
            raise NotListening(f"the guest at {address} does not answer SSH: {reason}") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _ACKNOWLEDGE_SECONDS * 1000)
        transport = paramiko.Transport(connection, default_window_size=16 * _MEGABYTE)
        transport.banner_timeout = deadline.remaining
        transport.get_security_options().key_types = (_KEY_TYPE,)
        return transport


class SshSession:
    """One proven connection."""

    def __init__(self, transport: paramiko.Transport, address: str) -> None:
        self._transport = transport
        self._address = address
        self._channel: paramiko.Channel | None = None

    def run(
        self,
        command: str,
        *,
        stdin: bytes,
        stdout: Sink,
        stderr: Sink,
        deadline: Deadline | None,
        display: XServer | None = None,
    ) -> int:
        """Run a command without a terminal; 128 plus the signal when one killed it.

        Each sink is called from a thread of its own.
        """
        with self._losing():
            channel = self._open(display)
            channel.exec_command(command)
            readers = [_Reader(channel.recv, stdout), _Reader(channel.recv_stderr, stderr)]
            if stdin:
                channel.sendall(stdin)
        return self._end(channel, readers, deadline)

    def interact(self, command: str, *, terminal: Terminal, display: XServer | None = None) -> int:
        """Run a command on a terminal; what is typed goes there until the command ends."""
        with self._losing():
            channel = self._open(display)
            channel.get_pty(terminal.term, terminal.columns, terminal.rows)
            channel.exec_command(command)
            readers = [_Reader(channel.recv, terminal.write)]
            threading.Thread(target=_type, args=(terminal.read, channel), daemon=True).start()
        return self._end(channel, readers, None)

    def resize(self, columns: int, rows: int) -> None:
        """Another size for the terminal of the running command."""
        if self._channel is not None:
            with contextlib.suppress(paramiko.SSHException, OSError):
                self._channel.resize_pty(columns, rows)

    def send(self, data: bytes) -> None:
        """More input for the running command; lost when it has just ended."""
        if self._channel is not None:
            # Not sendall: this is called from a signal handler and must not wait for the window.
            self._channel.settimeout(0.0)
            try:
                self._channel.send(data)
            except OSError:
                return
            finally:
                self._channel.settimeout(None)

    def close(self) -> None:
        """End the connection at once."""
        self._transport.close()

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise TransportError(f"lost the connection to the guest at {self._address}: {error}") from error

    def _open(self, display: XServer | None) -> paramiko.Channel:
        channel = self._transport.open_session()
        self._channel = channel
        if display is not None:
            channel.request_x11(
                screen_number=display.screen, auth_cookie=display.cookie,
                handler=lambda window, origin: _show(window, display),
            )
        return channel

    def _end(
        self, channel: paramiko.Channel, readers: Sequence["_Reader"], deadline: Deadline | None
    ) -> int:
        status = self._await_status(channel, deadline)
        for reader in readers:
            reader.finish()
        channel.close()
        if status is None:
            raise TransportError(f"lost the connection to the guest at {self._address}")
        return status

    def _await_status(self, channel: paramiko.Channel, deadline: Deadline | None) -> int | None:
        # Not recv_exit_status(): it cannot be told from a status when the connection is lost.
        if not channel.status_event.wait(None if deadline is None else deadline.remaining):
            self.close()
            raise DeadlineExceeded(f"the guest at {self._address} did not answer in time")
        status = channel.exit_status
        return status if status >= 0 else None


class _Reader:
    """Hands one stream over as it comes."""

    def __init__(self, receive: Callable[[int], bytes], sink: Sink) -> None:
        self._receive = receive
        self._sink = sink
        self._count = 0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the stream's end, or until nothing came for a while; raises what the sink raised."""
        before = -1
        while self._thread.is_alive() and before != self._count:
            before = self._count
            self._thread.join(_DRAIN_SECONDS)
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            while data := self._receive(_CHUNK):
                self._sink(data)
                self._count += 1
        except Exception as error:  # noqa: BLE001
            self._error = error


def _type(read: Callable[[], bytes], channel: paramiko.Channel) -> None:
    """Hand over what is typed, and its end."""
    with contextlib.suppress(OSError, EOFError):
        while data := read():
            channel.sendall(data)
        channel.shutdown_write()


def _show(window: paramiko.Channel, display: XServer) -> None:
    """One program's connection to the display, both ways, until either side ends it."""
    try:
        server = display.connect()
    except OSError:
        window.close()
        return

    def copy(receive: Callable[[int], bytes], send: Callable[[bytes], object], end: Callable[[], None]) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := receive(_CHUNK):
                send(data)
        with contextlib.suppress(OSError, EOFError):
            end()

    for way in (
        (window.recv, server.sendall, lambda: server.shutdown(socket.SHUT_WR)),
        (server.recv, window.sendall, window.close),
    ):
        threading.Thread(target=copy, args=way, daemon=True).start()


def _prove(transport: paramiko.Transport, address: str, host_key: str) -> None:
    """The other side has shown that it holds the private half of this key; is it the expected one?"""
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
