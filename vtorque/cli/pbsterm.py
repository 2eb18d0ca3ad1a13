# SPDX-License-Identifier: Apache-2.0
"""The user's side of an interactive job: his terminal, as Torque's qsub is one."""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from vtorque import files
from vtorque.cli.pbsclient import Answer, ask, jobs
from vtorque.mom import wire
from vtorque.mom.wire import Hello, Outlet, WindowSize

# Where there is no terminal to ask (interactive of qsub_functions.c).
_NO_WINDOW = (20, 80, 0, 0)
# A socket's path has 107 characters at most.
_LONGEST_DIRECTORY = 80
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
_CHARACTERS = (termios.VINTR, termios.VQUIT, termios.VERASE, termios.VKILL, termios.VEOF, termios.VSUSP)
_END_OF_FILE = b"\x04"


class _Ended(BaseException):
    """A signal, whose number it holds, says that it is over."""


def require_terminal(*, unless: bool) -> None:
    """Refuse an interactive job without a terminal, unless it runs a script anyway."""
    if not unless and not (os.isatty(0) and os.isatty(1)):
        text = "\tstandard input and output must be a terminal for \n\tinteractive job submission"
        raise Answer(1, text)


@contextlib.contextmanager
def listen() -> Iterator[socket.socket]:
    """A socket for the job to come to, in a directory that nobody else can enter."""
    usual = tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="qsub-", dir=usual if len(usual) < _LONGEST_DIRECTORY else "/tmp"))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "terminal"))
            listener.listen(1)
            yield listener
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def hold_interrupts() -> None:
    """Ctrl-C waits until somebody can ask what it means; before that, there may be a job that nobody attends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        hold_interrupts()


def attend(listener: socket.socket, job: str) -> int:
    """Wait for the job, be its terminal until it ends; qsub's exit status. Interrupts are held."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    signal.signal(signal.SIGTSTP, _do_not_suspend)
    try:
        _say(f"qsub: waiting for job {job} to start\n")
        connection = _accept(listener, job)
        if connection is None:
            _say(f"Job {job} is being deleted\n")
            return 0
        with connection:
            _introduce(connection, job)
            _say(f"qsub: job {job} ready\n\n")
            with _raw():
                _Relay(connection).run()
    except _Ended as ended:
        # The job sees the connection close, and gets a HUP itself.
        return 128 + int(ended.args[0])
    with contextlib.suppress(OSError):
        _say(f"\nqsub: job {job} completed\n")
    return 0


def _accept(listener: socket.socket, job: str) -> socket.socket | None:
    """The connection from the job, which is root's, or nothing when the user does not want it any more.

    Answer when the job is gone; when qsub has to end, the job is deleted.
    """
    listener.settimeout(_LOOK_SECONDS)
    try:
        while True:
            try:
                with _interruptible():
                    connection = _accepted(listener, job)
                if connection is not None:
                    return connection
            except KeyboardInterrupt:
                if _wants_to_end():
                    ask({"do": "delete", "job": job})
                    return None
    except _Ended:
        with contextlib.suppress(Answer):
            ask({"do": "delete", "job": job})
        raise


def _accepted(listener: socket.socket, job: str) -> socket.socket | None:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        if all(each["state"] == "C" for each in jobs(job)):
            raise Answer(1, f"job {job} apparently deleted") from None
        return None
    if wire.peer_uid(connection) == 0:
        return connection
    connection.close()
    return None


def _wants_to_end() -> bool:
    answer = "?"
    with contextlib.suppress(KeyboardInterrupt), _interruptible():
        while answer[:1] not in ("y", "Y", "n", "N", "\n", ""):
            _say("Do you wish to terminate the job and exit (y|[n])? ")
            answer = sys.stdin.readline()
    return answer[:1] in ("y", "Y", "")


def _introduce(connection: socket.socket, job: str) -> None:
    """Tell our job what terminal it has; Answer when it is not ours that came."""
    connection.settimeout(_ANSWER_SECONDS)
    said = b""
    while not said.endswith(b"\n") and (data := connection.recv(1)):
        said += data
    if said != f"{job}\n".encode():
        raise Answer(1, "invalid job name from execution server")
    mine = termios.tcgetattr(0)[6] if os.isatty(0) else []
    characters = tuple(mine[place][0] for place in _CHARACTERS) if mine else ()
    term = os.environ.get("TERM", "unknown")
    connection.sendall(Hello(term=term, size=_window(), characters=characters).encode())


class _Relay:
    """Between the user's terminal and the job's, until either is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setblocking(False)
        self._to_job = Outlet(connection.fileno())
        self._terminal = os.isatty(0)
        self._reading = True
        self._escape = _Escape()
        self._in_line = False

    def run(self) -> None:
        """Until the job or the user ends it."""
        with _resized() as resized:
            while True:
                poll = select.poll()
                poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._to_job else 0))
                poll.register(resized, select.POLLIN)
                if self._reading and not self._to_job.full:
                    poll.register(0, select.POLLIN)
                ready = dict(poll.poll())
                if resized.fileno() in ready:
                    resized.recv(wire.CHUNK)
                    self._to_job.add(wire.size_frame(_window()))
                if 0 in ready and not self._take():
                    return
                if self._connection.fileno() in ready and not self._show():
                    return

    def _show(self) -> bool:
        """Pass on what the job printed, and what waits for it; whether the job is still there."""
        try:
            self._to_job.flush()
        except OSError:
            # What it printed last may still be there to read.
            self._to_job.drop()
        try:
            data = self._connection.recv(wire.FULL)
        except BlockingIOError:
            return True
        except OSError:
            return False
        files.write_all(1, data)
        return bool(data)

    def _take(self) -> bool:
        """Pass on what the user types; whether he goes on."""
        try:
            data = os.read(0, wire.CHUNK)
        except OSError:
            data = b""
        if data:
            over = False
            if self._terminal:
                data, over = self._escape.take(data)
            self._type(data)
            return not over
        if self._terminal:
            return False
        # A pipe or file has an end, which a terminal tells by a character: once for a line begun.
        self._type(_END_OF_FILE * (2 if self._in_line else 1))
        self._reading = False
        return True

    def _type(self, data: bytes) -> None:
        if data:
            self._in_line = not data.endswith(b"\n")
            self._to_job.add(wire.frame(wire.DATA, data))


class _Escape:
    """`~.` at the start of a line ends qsub, and with it the job (writer of qsub_functions.c)."""

    def __init__(self) -> None:
        self._fresh = True
        self._held = False

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be passed on of it, and whether the user ends it."""
        passed = bytearray()
        for byte in data:
            if self._held:
                self._held = False
                if byte == ord("."):
                    return bytes(passed), True
                passed.append(ord("~"))
            elif self._fresh and byte == ord("~"):
                self._held = True
                continue
            passed.append(byte)
            self._fresh = byte in b"\r\n\x03\x15"
        return bytes(passed), False


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The user's terminal passes every key on, and is put back as it was."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSANOW)
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, before)


@contextlib.contextmanager
def _resized() -> Iterator[socket.socket]:
    """A socket that has something to read when the user's window has another size."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        signal.signal(signal.SIGWINCH, lambda number, frame: None)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)


def _window() -> WindowSize:
    for handle in (0, 1):
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(handle, termios.TIOCGWINSZ, bytes(8))
            rows, columns, width, height = struct.unpack("4H", size)
            return rows, columns, width, height
    return _NO_WINDOW


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended(number)


def _do_not_suspend(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("Sorry, you cannot suspend qsub until the job is started\n")


def _say(text: str) -> None:
    print(text, end="", flush=True)
