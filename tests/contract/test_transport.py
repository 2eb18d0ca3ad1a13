# SPDX-License-Identifier: Apache-2.0
"""What we and SSH promise each other, over OpenSSH's own daemon on loopback."""

import contextlib
import errno
import hashlib
import os
import pwd
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue

import paramiko
import pytest

from tests import ports
from vtorque.backends.transport import KeyPair, keys, reach, reader, sshsession
from vtorque.backends.transport.session import Terminal
from vtorque.backends.transport.ssh import LoginRefused, NotListening, Ssh
from vtorque.backends.transport.sshsession import OutputLost, SshSession
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, TransportError, WrongHostKey

pytestmark = pytest.mark.runs

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host
AuthorizedKeysFile {directory}/authorized
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
"""
USER = pwd.getpwuid(os.getuid()).pw_name


@dataclass(frozen=True)
class Daemon:
    port: int
    host: KeyPair
    user: KeyPair


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("sshd")
    port = ports.free()
    host, user = keys.make(), keys.make()
    (directory / "host").write_text(host.private)
    (directory / "host").chmod(0o600)
    (directory / "authorized").write_text(user.public + "\n")
    (directory / "config").write_text(CONFIG.format(port=port, directory=directory))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-f", str(directory / "config")], stderr=subprocess.DEVNULL
    )
    for _ in Deadline(10).ticks(doing="start sshd"):
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield Daemon(port=port, host=host, user=user)
    process.terminate()
    process.wait()


def login(daemon: Daemon, *, key: str = "", host_key: str = "") -> SshSession:
    return Ssh(daemon.port).open(
        "127.0.0.1", user=USER, key=key or daemon.user.private, host_key=host_key or daemon.host.public,
        deadline=Deadline(20),
    )


@pytest.fixture
def session(daemon: Daemon) -> Iterator[SshSession]:
    opened = login(daemon)
    yield opened
    opened.close()


def collect(session: SshSession, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
    status = session.run(command, stdin=stdin, stdout=out.extend, stderr=err.extend, deadline=None)
    return status, bytes(out), bytes(err)


def test_streams_are_separate_and_the_input_arrives(session: SshSession) -> None:
    assert collect(session, "head -c 3; echo; echo oops >&2", b"abcdef") == (0, b"abc\n", b"oops\n")


@pytest.mark.parametrize("status", [0, 1, 3, 126, 127, 128, 139, 254, 255])
def test_exit_statuses_are_exact(session: SshSession, status: int) -> None:
    assert collect(session, f"exit {status}")[0] == status


def test_much_output_on_both_streams_at_once_arrives_whole(session: SshSession) -> None:
    size = 20_000_000
    command = f"head -c {size} /dev/urandom | tee >(sha256sum >&2)"
    status, out, err = collect(session, f"bash -c '{command}'")
    assert (status, len(out)) == (0, size)
    assert err.decode().split()[0] == hashlib.sha256(out).hexdigest()


def test_output_comes_as_it_is_made(session: SshSession) -> None:
    seen = threading.Event()

    def sink(data: bytes) -> None:
        seen.set()

    thread = threading.Thread(
        target=session.run, args=("echo early; read -r line; exit 0",),
        kwargs={"stdin": b"", "stdout": sink, "stderr": sink, "deadline": None},
    )
    thread.start()
    assert seen.wait(20), "the line was held back until the command ended"
    session.send(b"go\n")
    thread.join(20)
    assert not thread.is_alive()


def test_what_outlives_the_command_does_not_hold_it_up(session: SshSession) -> None:
    status, out, _ = collect(session, "sleep 300 & echo done")
    assert (status, out) == (0, b"done\n")


def test_all_that_a_command_printed_arrives_though_something_outlives_it(
    session: SshSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_QUIET_SECONDS", 0.1)
    for size in range(1000, 60_000, 6000):
        status, out, err = collect(session, f"sleep 5 & head -c {size} /dev/zero; echo end >&2")
        assert (status, len(out), err) == (0, size, b"end\n")


def test_a_daemon_that_stalls_is_waited_for(session: SshSession) -> None:
    sshd = int(collect(session, "echo $PPID")[1])
    echo = threading.Thread(target=session._echo)
    os.kill(sshd, signal.SIGSTOP)
    try:
        echo.start()
        echo.join(0.5)
        assert echo.is_alive()
    finally:
        os.kill(sshd, signal.SIGCONT)
    echo.join(20)
    assert not echo.is_alive()


def test_signals_cost_a_command_nothing_of_its_output(session: SshSession) -> None:
    """One that lets its readers run out of patience, or comes while a lock is held."""
    told = bytearray()
    stop = threading.Event()

    def tease() -> None:
        while not stop.wait(0.005):
            session.send(b"USR1\n")

    teasing = threading.Thread(target=tease)
    teasing.start()
    try:
        printing = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i + 1)); done; sleep 0.2; echo end; exit 3"
        status = session.run(
            f"/bin/sh -c '{printing}'", stdin=b"", stdout=told.extend, stderr=told.extend, deadline=None
        )
    finally:
        stop.set()
        teasing.join()
    assert (status, told.count(b"\n")) == (3, 3001)


def test_a_word_that_comes_before_a_command_is_for_it(session: SshSession) -> None:
    session.send(b"early\n")
    command = "read -r first; read -r second; echo $first $second"
    assert collect(session, command, b"order\n") == (0, b"order early\n", b"")


def test_the_end_of_one_command_is_not_taken_for_that_of_the_next(
    session: SshSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever passes on what is sent to the first may still be about to."""
    real, waits = sshsession._type, [1.0, 0.0]

    def late(*words: object) -> None:
        time.sleep(waits.pop(0))
        real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(sshsession, "_type", late)
    assert collect(session, "true") == (0, b"", b"")
    threading.Timer(0.5, session.send, (b"word\n",)).start()
    assert collect(session, "read -r said; echo got $said") == (0, b"got word\n", b"")


def test_a_word_may_come_while_the_order_is_sent(session: SshSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a signal handler, in which paramiko's own locks are held already."""
    real = paramiko.Channel._wait_for_send_window

    def interrupted(channel: paramiko.Channel, size: int) -> int:
        monkeypatch.undo()
        session.send(b"TERM\n")
        return int(real(channel, size))

    monkeypatch.setattr(paramiko.Channel, "_wait_for_send_window", interrupted)
    assert collect(session, "head -c 11", b"order\n") == (0, b"order\nTERM\n", b"")


def test_a_terminals_new_size_waits_for_nothing_in_a_signal_handler(session: SshSession) -> None:
    """Slurm's pty sends two SIGWINCH at once: the second handler finds the first one with paramiko's lock held."""
    size, up, typed = [(80, 24)], threading.Event(), Queue[bytes]()

    def shown(data: bytes) -> None:
        if b"up" in data:
            up.set()

    terminal = Terminal(term="vt220", size=lambda: size[0], read=typed.get, write=shown)
    statuses: list[int] = []
    command = "echo up; until [ \"$(stty size)\" = '50 132' ]; do sleep 0.05; done; exit 7"
    running = threading.Thread(
        target=lambda: statuses.append(session.interact(command, terminal=terminal)), daemon=True
    )
    running.start()
    assert up.wait(20)
    with session._transport.clear_to_send_lock:
        size[0] = (132, 50)
        changing = threading.Thread(target=session.resize, daemon=True)
        changing.start()
        changing.join(20)
        assert not changing.is_alive()
    running.join(20)
    typed.put(b"")
    assert statuses == [7]


def test_the_end_of_much_output_comes_over_a_slow_link(daemon: Daemon) -> None:
    """sshd says that a command has ended before it has sent what it holds for a link that is slower."""
    size = 6_000_000
    with link(daemon, bytes_a_second=2_000_000) as port:
        session = login(replace(daemon, port=port))
        status, out, _ = collect(session, f"head -c {size} /dev/zero")
        session.close()
    assert (status, len(out)) == (0, size)


def test_a_command_ends_though_nobody_takes_what_it_prints(session: SshSession) -> None:
    """Three windows full."""
    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputLost, match="No space left on device") as lost:
        session.run("head -c 50000000 /dev/zero; exit 3", stdin=b"", stdout=full, stderr=full, deadline=None)
    assert lost.value.status == 3


@contextlib.contextmanager
def link(daemon: Daemon, *, bytes_a_second: float) -> Iterator[int]:
    """A port that leads to the daemon, and is slow on the way back."""
    def back(ours: socket.socket, theirs: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := theirs.recv(1 << 14):
                time.sleep(len(data) / bytes_a_second)
                ours.sendall(data)

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(("127.0.0.1", daemon.port)) as theirs,
    ):
        def carry() -> None:
            with listener.accept()[0] as ours:
                returning = threading.Thread(target=back, args=(ours, theirs))
                returning.start()
                with contextlib.suppress(OSError):
                    while data := ours.recv(1 << 16):
                        theirs.sendall(data)
                with contextlib.suppress(OSError):
                    theirs.shutdown(socket.SHUT_RDWR)
                returning.join()

        carrying = threading.Thread(target=carry)
        carrying.start()
        yield listener.getsockname()[1]
        carrying.join()


def test_another_host_key_is_refused_before_the_user_is_named(daemon: Daemon) -> None:
    with pytest.raises(WrongHostKey, match="its SSH host key is SHA256:"):
        login(daemon, host_key=keys.make().public)


def test_another_user_key_is_refused(daemon: Daemon) -> None:
    with pytest.raises(LoginRefused, match=f"does not let {USER} in"):
        login(daemon, key=keys.make().private)


def test_nothing_listening_is_told_from_everything_else(daemon: Daemon) -> None:
    with pytest.raises(NotListening, match="Connection refused"):
        Ssh(1).open("127.0.0.1", user=USER, key=daemon.user.private, host_key=daemon.host.public, deadline=Deadline(5))


def test_a_host_that_accepts_and_says_nothing_is_given_up(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeadlineExceeded):
        Ssh(silent.getsockname()[1]).open(
            "127.0.0.1", user=USER, key=daemon.user.private, host_key=daemon.host.public, deadline=Deadline(1)
        )


def test_a_connection_that_is_cut_is_no_exit_status(session: SshSession) -> None:
    threading.Timer(0.5, session._transport.sock.close).start()
    with pytest.raises(TransportError, match="lost the connection"):
        collect(session, "sleep 60")


def test_a_command_that_a_signal_killed_is_no_success(session: SshSession) -> None:
    try:
        status = collect(session, "kill -KILL $$")[0]
    except TransportError:
        status = -1
    assert status != 0


def test_keys_are_new_each_time() -> None:
    assert len({keys.make().public for _ in range(10)}) == 10


def test_a_command_that_outlasts_its_deadline_is_given_up(session: SshSession) -> None:
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        session.run("sleep 60", stdin=b"", stdout=bytearray().extend, stderr=bytearray().extend, deadline=Deadline(0.3))


def test_a_machine_answers_by_taking_a_connection_or_refusing_it() -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        # The kernel lets a SYN pass unanswered when nobody takes the connections there are.
        deaf = stack.enter_context(socket.create_server(("127.0.0.3", port), backlog=0))
        for _ in range(2):
            caller = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            caller.connect_ex(deaf.getsockname())
        found = reach.answering(["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"], port=port, seconds=0.5)
    assert found == {"127.0.0.1", "127.0.0.2", "::1"}


def test_more_machines_are_asked_than_there_are_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_AT_ONCE", 2)
    addresses = [f"127.0.0.{number}" for number in range(1, 6)]
    assert reach.answering(addresses, port=1, seconds=0.5) == set(addresses)
