# SPDX-License-Identifier: Apache-2.0
"""The terminal of an interactive job: a pseudo-terminal here, and qsub at the other end of a socket."""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator

from vtorque.mom import wire
from vtorque.mom.spool import JobRecord
from vtorque.mom.wire import Hello, Outlet
from vtorque.wakeups import Wakeup

_ATTACH_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0
_QUIET_MS = 100
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
_CHARACTERS = (termios.VINTR, termios.VQUIT, termios.VERASE, termios.VKILL, termios.VEOF, termios.VSUSP)
_SIGNALS = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD,
    signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)


def attach(job: JobRecord) -> "Terminal":
    """Connect to the qsub that waits for the job; OSError or ValueError when it does not any more.

    The path is the user's word, so it is gone with his rights only, and what
    answers there must be his. qsub sees uid 0, which nobody else can show.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_ATTACH_SECONDS)
        with _files_as(job):
            connection.connect(job.terminal)
        if wire.peer_uid(connection) != job.uid:
            raise PermissionError("what listens for the job belongs to somebody else")
        connection.sendall(f"{job.id}\n".encode())
        return Terminal(connection, _hello(connection), uid=job.uid)
    except BaseException:
        connection.close()
        raise


def take_control() -> None:
    """In the job's shell before it becomes one: its standard input is its session's terminal."""
    for number in _SIGNALS:
        # What is ignored now, no shell can give back to its children: Ctrl-C would do nothing.
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """Both ends of the job's terminal, and the connection to the user's own."""

    def __init__(self, connection: socket.socket, hello: Hello, *, uid: int) -> None:
        self.term = hello.term
        self._connection = connection
        self._connection.setblocking(False)
        self._master, self.slave = os.openpty()
        os.set_blocking(self._master, False)
        os.fchown(self.slave, uid, -1)
        os.fchmod(self.slave, 0o620)
        self._to_user, self._to_job = Outlet(connection.fileno()), Outlet(self._master)
        self._frames = wire.Frames()
        self.connected = True
        self._open = True
        self._resize(hello.size)
        if hello.characters:
            _set_characters(self.slave, hello.characters)

    def pump(self, seconds: float, *also: Wakeup) -> None:
        """Pass on what there is, and wait at most so long for something, or until `also` has something to tell."""
        poll = select.poll()
        others = {each.fileno(): each for each in also}
        for handle in others:
            poll.register(handle, select.POLLIN)
        if self.connected:
            wanted = 0 if self._to_job.full else select.POLLIN
            poll.register(self._connection, wanted | (select.POLLOUT if self._to_user else 0))
        if self._open:
            wanted = 0 if self._to_user.full else select.POLLIN
            poll.register(self._master, wanted | (select.POLLOUT if self._to_job else 0))
        for handle, event in poll.poll(seconds * 1000):
            if handle in others:
                others[handle].drain()
            elif handle == self._master:
                self._serve_job(event)
            else:
                self._serve_user(event)

    def say(self, text: str) -> None:
        """Tell the user something that the job does not."""
        self._to_user.add(text.replace("\n", "\r\n").encode())

    def hang_up(self) -> None:
        """The line is dead: the kernel tells the job's session so."""
        self.connected = self._open = False
        for handle in (self._master, self.slave):
            if handle >= 0:
                os.close(handle)
        self._master = self.slave = -1
        self._connection.close()

    def close(self) -> None:
        """Pass on what the job printed last, and let qsub go."""
        if self.slave < 0:
            return
        os.close(self.slave)
        self.slave = -1
        end = time.monotonic() + _LAST_WORDS_SECONDS
        while self.connected and self._open and time.monotonic() < end and self._has_more():
            self.pump(0)
        with contextlib.suppress(OSError):
            self._connection.settimeout(_LAST_WORDS_SECONDS)
            self._connection.sendall(self._to_user.drop())
        self.hang_up()

    def _has_more(self) -> bool:
        # Without a slave a read fails as soon as there is nothing left; a process that left
        # the job's session may keep one.
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        return bool(poll.poll(_QUIET_MS))

    def _serve_job(self, event: int) -> None:
        try:
            if event & select.POLLOUT:
                self._to_job.flush()
            if event & (select.POLLIN | _GONE):
                data = os.read(self._master, wire.CHUNK)
                if self.connected:
                    self._to_user.add(data)
        except BlockingIOError:
            pass
        except OSError:
            self._open = False

    def _serve_user(self, event: int) -> None:
        try:
            if event & select.POLLOUT:
                self._to_user.flush()
            data = self._connection.recv(wire.FULL) if event & select.POLLIN else b""
            if not data and event & (select.POLLIN | _GONE):
                raise ConnectionResetError
            for kind, payload in self._frames.take(data):
                if kind == wire.DATA:
                    self._to_job.add(payload)
                elif kind == wire.SIZE:
                    self._resize(wire.size_of(payload))
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self.connected = False
            self._to_user.drop()

    def _resize(self, size: wire.WindowSize) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", *size))


def _hello(connection: socket.socket) -> Hello:
    # Byte for byte: behind the first frame comes already what the user types.
    kind, length = wire.head_of(_exactly(connection, wire.HEAD_LENGTH))
    if kind != wire.HELLO:
        raise ConnectionAbortedError("qsub did not describe its terminal")
    return Hello.decode(_exactly(connection, length))


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        if not (part := connection.recv(length - len(data))):
            raise ConnectionAbortedError("qsub is gone")
        data += part
    return data


def _set_characters(slave: int, characters: tuple[int, ...]) -> None:
    attributes = termios.tcgetattr(slave)
    for place, character in zip(_CHARACTERS, characters, strict=True):
        attributes[6][place] = bytes([character])
    termios.tcsetattr(slave, termios.TCSANOW, attributes)


@contextlib.contextmanager
def _files_as(job: JobRecord) -> Iterator[None]:
    """The user's rights where files are concerned, and in nothing else: setfsuid(2)."""
    libc = ctypes.CDLL(None)
    groups = os.getgroups()
    os.setgroups(job.groups)
    try:
        for change, number in ((libc.setfsgid, job.gid), (libc.setfsuid, job.uid)):
            change(ctypes.c_uint(number))
            # Success shows only in the answer to another call.
            if change(ctypes.c_uint(0xFFFFFFFF)) & 0xFFFFFFFF != number:
                raise PermissionError("the user's rights could not be taken on")
        yield
    finally:
        libc.setfsuid(ctypes.c_uint(0))
        libc.setfsgid(ctypes.c_uint(0))
        os.setgroups(groups)
