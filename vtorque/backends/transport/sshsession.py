# SPDX-License-Identifier: Apache-2.0
"""What is done over one SSH connection to a guest that is proven: run commands, pass on what comes and goes."""

import contextlib
import queue
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

with warnings.catch_warnings():
    # paramiko 2.12 still lists ciphers that the cryptography library calls weak; none is used here.
    warnings.simplefilter("ignore")
    import paramiko

from vtorque.backends.transport.reader import Reader
from vtorque.backends.transport.session import Sink, Terminal, XServer
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, TransportError

_ECHOES = 3
_CHUNK = 1 << 16
# sshd has the user's shell run a command. As the outermost one (SHLVL), Debian's and Red Hat's bash reads
# ~/.bashrc before (bash(1): INVOCATION), and what that prints would be the command's.
_NO_OUTERMOST_SHELL = {"SHLVL": "1"}


class OutputLost(TransportError):
    """The command has ended with `status`, and not all that it printed could be handed over."""

    def __init__(self, brief: str, status: int) -> None:
        super().__init__(brief)
        self.status = status


class SshSession:
    """One proven connection."""

    def __init__(self, transport: paramiko.Transport, address: str) -> None:
        self._transport = transport
        self._address = address
        # For the command that runs, which has nothing as its end; and for the next one.
        self._words: queue.SimpleQueue[bytes] | None = None
        self._early: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._resized: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def run(
        self,
        command: str,
        *,
        stdin: bytes, stdout: Sink, stderr: Sink,
        deadline: Deadline | None,
        display: XServer | None = None,
    ) -> int:
        """Run a command without a terminal; 128 plus the signal when one killed it.

        Each sink is called from a thread of its own.
        """
        with self._ending(deadline):
            with self._losing():
                channel = self._open(display)
                channel.exec_command(command)
                readers = [
                    Reader(channel.recv, stdout, waiting=channel.recv_ready),
                    Reader(channel.recv_stderr, stderr, waiting=channel.recv_stderr_ready),
                ]
                if stdin:
                    channel.sendall(stdin)
            with self._listening(channel):
                return self._end(channel, readers)

    def interact(self, command: str, *, terminal: Terminal, display: XServer | None = None) -> int:
        """Run a command on a terminal; what is typed goes there until the command ends."""
        with self._losing():
            channel = self._open(display)
            channel.get_pty(terminal.term, *terminal.size())
            channel.exec_command(command)
            readers = [Reader(channel.recv, terminal.write, waiting=channel.recv_ready)]
            threading.Thread(target=_type, args=(terminal.read, channel), daemon=True).start()
            threading.Thread(target=_fit, args=(self._resized.get, terminal, channel), daemon=True).start()
        try:
            return self._end(channel, readers)
        finally:
            self._resized.put(False)

    def resize(self) -> None:
        """Another size for the terminal of the running command, or of the next one."""
        # Two signals may follow one another so closely that the second handler interrupts the first one.
        self._resized.put(True)

    def send(self, data: bytes) -> None:
        """More input for the running command, or for the next one; lost when it has just ended."""
        # A signal handler must take none of paramiko's locks, and a channel's timeout is its readers' as well.
        (self._words or self._early).put(data)

    def close(self) -> None:
        """End the connection at once."""
        self._transport.close()

    @contextlib.contextmanager
    def _ending(self, deadline: Deadline | None) -> Iterator[None]:
        """Hang up when the time is over: for some of a guest's answers paramiko waits without end."""
        if deadline is None:
            yield
            return
        timer = threading.Timer(deadline.remaining, self.close)
        timer.daemon = True
        timer.start()
        try:
            yield
        except TransportError:
            if deadline.expired:
                raise DeadlineExceeded(f"the guest at {self._address} did not answer in time") from None
            raise
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def _listening(self, channel: paramiko.Channel) -> Iterator[None]:
        """Pass on what is sent to the command; each has words of its own, whatever the one before it left."""
        words: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_type, args=(words.get, channel), daemon=True).start()
        while not self._early.empty():
            words.put(self._early.get())
        self._words = words
        try:
            yield
        finally:
            self._words = None
            words.put(b"")

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise TransportError(f"lost the connection to the guest at {self._address}: {error}") from error

    def _open(self, display: XServer | None) -> paramiko.Channel:
        channel = self._transport.open_session()
        channel.update_environment(_NO_OUTERMOST_SHELL)
        if display is not None:
            channel.request_x11(
                screen_number=display.screen, auth_cookie=display.cookie,
                handler=lambda window, origin: _show(window, display),
            )
        return channel

    def _end(self, channel: paramiko.Channel, readers: Sequence[Reader]) -> int:
        # Not recv_exit_status(): it cannot be told from a status when the connection is lost.
        channel.status_event.wait()
        troubles = [error for reader in readers if (error := reader.finish(self._echo)) is not None]
        channel.close()
        if channel.exit_status < 0:
            raise TransportError(f"lost the connection to the guest at {self._address}")
        if troubles:
            raise OutputLost(f"output was lost: {troubles[0]}", channel.exit_status) from troubles[0]
        return int(channel.exit_status)

    def _echo(self) -> None:
        """Wait until the guest's sshd has answered, and passed on what it had.

        It answers what it is asked before it reads what its commands have printed (serverloop.c), once a round.
        """
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            for _ in range(_ECHOES):
                self._transport.global_request("keepalive@openssh.com", wait=True)


def _type(read: Callable[[], bytes], channel: paramiko.Channel) -> None:
    """Hand over what is typed, and its end."""
    with contextlib.suppress(OSError, EOFError):
        while data := read():
            channel.sendall(data)
        channel.shutdown_write()


def _fit(resized: Callable[[], bool], terminal: Terminal, channel: paramiko.Channel) -> None:
    """Pass on the terminal's size whenever it changes."""
    with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
        while resized():
            channel.resize_pty(*terminal.size())


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
