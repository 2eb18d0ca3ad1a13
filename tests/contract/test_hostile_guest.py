# SPDX-License-Identifier: Apache-2.0
"""A guest whose root is the enemy: it has the right keys, and answers over SSH as none should."""

import contextlib
import io
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import paramiko

from vtorque.backends.transport import keys, reader
from vtorque.backends.transport.ssh import Ssh
from vtorque.backends.transport.sshsession import SshSession
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, VtorqueError, WrongHostKey

pytestmark = pytest.mark.runs

OUT_OF_REACH = 20.0
KEYS = keys.make()
OTHERS = keys.make()


class Hostile(paramiko.ServerInterface):  # type: ignore[misc]
    """Lets everybody in; what comes then is `trick`, one of the names below."""

    def __init__(self, trick: str, over: threading.Event) -> None:
        self._trick = trick
        self._over = over

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self._trick == "opens no channel":
            self._over.wait(OUT_OF_REACH)
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self._trick == "answers no request":
            self._over.wait(OUT_OF_REACH)
        threading.Thread(target=self._talk, args=(channel,), daemon=True).start()
        return True

    def _talk(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            if self._trick == "ends and goes on talking":
                channel.send_exit_status(0)
            while self._trick != "says nothing" and not self._over.wait(0.05):
                channel.sendall(b"\x1b[2J" * 100)


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def guest(trick: str, over: threading.Event) -> int:
    """The port of a guest for one connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            connection = listener.accept()[0]
            transport = paramiko.Transport(connection)
            transport.daemon = True
            transport.add_server_key(paramiko.Ed25519Key(file_obj=io.StringIO(KEYS.private)))
            transport.start_server(server=Hostile(trick, over))
            over.wait(OUT_OF_REACH)
            transport.close()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def ask(port: int, *, seconds: float, host_key: str = KEYS.public) -> tuple[object, int]:
    """What becomes of a question that may take so long, and the bytes that were heard."""
    said = 0

    def listen(data: bytes) -> None:
        nonlocal said
        said += len(data)

    try:
        session = Ssh(port).open("127.0.0.1", user="ann", key=OTHERS.private, host_key=host_key, deadline=Deadline(10))
        with contextlib.closing(session):
            return session.run(
                "await-setup", stdin=b"", stdout=listen, stderr=listen, deadline=Deadline(seconds)
            ), said
    except VtorqueError as error:
        return type(error), said


def returned(run: Callable[[], object], *, within: float) -> bool:
    """Whether it comes back by itself: nothing that a guest does may keep root for longer than he gave it."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(within)
    return not thread.is_alive()


TRICKS = {
    "opens no channel": DeadlineExceeded, "answers no request": DeadlineExceeded, "says nothing": DeadlineExceeded,
    "talks without end": DeadlineExceeded, "ends and goes on talking": 0,
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_proven_guest_keeps_nobody_for_longer_than_the_deadline(
    trick: str, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_QUIET_SECONDS", 0.1)
    port = guest(trick, over)
    answers: list[object] = []
    # How a command ended is to be heard, however slow the machine is.
    seconds = 20 if TRICKS[trick] == 0 else 0.5
    assert returned(lambda: answers.append(ask(port, seconds=seconds)[0]), within=30)
    assert answers == [TRICKS[trick]]


def test_a_program_that_does_not_hang_up_is_caught(over: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SshSession, "_ending", lambda session, deadline: contextlib.nullcontext())
    for trick in TRICKS:
        port = guest(trick, over)
        assert not returned(partial(ask, port, seconds=0.1), within=0.7), trick


def test_a_guest_that_changes_its_key_is_not_the_one_that_was_proven(over: threading.Event) -> None:
    """At any connection, the first or a later one: each is proven anew."""
    assert ask(guest("says nothing", over), seconds=0.1)[0] is DeadlineExceeded
    assert ask(guest("says nothing", over), seconds=5, host_key=OTHERS.public)[0] is WrongHostKey
