# SPDX-License-Identifier: Apache-2.0
"""A connection that is proven by one process, kept by it, and gone on with by another: over OpenSSH's own daemon."""

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import paramiko
import pytest

from tests.builders import a_job, a_plan, a_site, an_account
from tests.contract.test_apart import soon
from tests.contract.test_transport import USER, Daemon, collect, daemon
from tests.fakes.node import Here, a_monitor, bound_to
from vtorque import keeping, proc, published, servant
from vtorque.backends.transport import kept, keys
from vtorque.backends.transport.apart import Apart
from vtorque.backends.transport.kept import Keeper, Kept, take
from vtorque.backends.transport.speaker import Speaker
from vtorque.backends.transport.ssh import Ssh
from vtorque.backends.transport.sshsession import SshSession
from vtorque.cli import jobrun
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, TransportError, WrongHostKey
from vtorque.kinds import KEEPER
from vtorque.model import Guest
from vtorque.rootside import RootSide
from vtorque.servant import Caller, Servant
from vtorque.state import CONNECTION, JobState

pytestmark = pytest.mark.runs

assert daemon is not None, "a fixture"
HERE = "127.0.0.1"
NOBODY, STRANGER = pwd.getpwnam("nobody").pw_uid, 64399


@pytest.fixture
def ssh(daemon: Daemon) -> Ssh:
    return Ssh(daemon.port)


@pytest.fixture
def begun(ssh: Ssh, daemon: Daemon) -> Iterator[Kept]:
    with contextlib.closing(ssh.begin(HERE, host_key=daemon.host.public, deadline=soon())) as found:
        yield found


def go_on(ssh: Ssh, daemon: Daemon, found: Kept, *, host_key: str = "", key: str = "") -> SshSession:
    return ssh.open(
        HERE, user=USER, key=key or daemon.user.private, host_key=host_key or daemon.host.public, deadline=Deadline(20),
        kept=found,
    )


def handed_over(found: Kept, path: Path) -> Kept:
    """What somebody gets at the socket `path` when this is kept there."""
    with listener(path) as server, ThreadPoolExecutor(1) as pool:
        server.listen(1)
        given = pool.submit(kept.give, server, found, deadline=soon())
        taken = take(path)
        assert given.result() and taken is not None
    return taken


@contextlib.contextmanager
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        yield server


def test_whoever_goes_on_speaks_over_the_very_connection_that_was_proven(
    ssh: Ssh, daemon: Daemon, begun: Kept, tmp_path: Path
) -> None:
    port = begun.connection.getsockname()[1]
    taken = handed_over(begun, tmp_path / "s")
    begun.close()
    with contextlib.closing(go_on(ssh, daemon, taken)) as session:
        # New keys are made as on any other connection. Asked for before there is a channel: paramiko's reader answers
        # the end of one, and while there are new keys to come waits for them, for ever.
        session._transport.renegotiate_keys()
        status, out, _ = collect(session, "echo $SSH_CONNECTION; head -c 5", b"input")
        assert (status, out) == (0, f"{HERE} {port} {HERE} {daemon.port}\ninput".encode())
        assert len(collect(session, "head -c 3000000 /dev/zero")[1]) == 3_000_000


def test_it_saves_the_exchange_of_keys(ssh: Ssh, daemon: Daemon, begun: Kept) -> None:
    """What goes to the guest for it is no more than the login."""
    with contextlib.closing(ssh.open(
        HERE, user=USER, key=daemon.user.private, host_key=daemon.host.public, deadline=soon()
    )) as session:
        whole = segments(session._transport.sock)
    before = segments(begun.connection)
    with contextlib.closing(go_on(ssh, daemon, begun)) as session:
        login = segments(session._transport.sock) - before
    assert 0 < login <= whole - 3


def segments(connection: socket.socket) -> int:
    """How many with something in them have gone: linux/tcp.h, tcpi_data_segs_out of struct tcp_info."""
    return int.from_bytes(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)[156:160], sys.byteorder)


def test_whoever_goes_on_believes_nobody_and_sees_the_proof_again(
    ssh: Ssh, daemon: Daemon, begun: Kept
) -> None:
    other = keys.make()
    with pytest.raises(WrongHostKey):
        go_on(ssh, daemon, begun, host_key=other.public)


@pytest.mark.parametrize("part", ["said", "offer", "key"])
def test_a_beginning_that_was_changed_is_refused(ssh: Ssh, daemon: Daemon, begun: Kept, part: str) -> None:
    data = bytearray(getattr(begun.beginning, part))
    data[-30 if part == "said" else 5] ^= 1
    changed = replace(begun.beginning, **{part: bytes(data)})
    with pytest.raises((TransportError, WrongHostKey)):
        go_on(ssh, daemon, Kept(connection=begun.connection, beginning=changed))


def test_a_login_that_is_refused_is_so_over_either(ssh: Ssh, daemon: Daemon, begun: Kept) -> None:
    with pytest.raises(TransportError, match="does not let"):
        go_on(ssh, daemon, begun, key=keys.make().private)


def test_who_is_not_the_guest_is_not_kept(ssh: Ssh) -> None:
    with pytest.raises(WrongHostKey):
        ssh.begin(HERE, host_key=keys.make().public, deadline=soon())
    with pytest.raises(TransportError):
        Ssh(1).begin(HERE, host_key=keys.make().public, deadline=Deadline(2))


def test_a_beginning_without_an_end_is_given_up() -> None:
    """Somebody who sends no keys, and a packet that has no end."""
    for words in (b"x\n" * 20_000, b"SSH-2.0-x\r\n" + b"\xff" * 100_000, b"SSH-2.0-x\r\n" + bytes(100_000)):
        with saying(words) as port, pytest.raises(TransportError):
            Ssh(port).begin(HERE, host_key=keys.make().public, deadline=Deadline(20))


@contextlib.contextmanager
def saying(words: bytes) -> Iterator[int]:
    """A port where the first who comes is told this, and no more."""
    def say() -> None:
        with contextlib.suppress(OSError), server.accept()[0] as guest:
            guest.sendall(words)
            guest.recv(1 << 16)

    with socket.create_server((HERE, 0)) as server:
        thread = threading.Thread(target=say)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_where_nobody_keeps_anything_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    assert take(path) is None
    with listener(path):
        assert take(path) is None, "nobody listens"
    path.unlink()
    monkeypatch.setattr(kept, "_TAKE_SECONDS", 0.2)
    with listener(path) as server:
        server.listen()
        assert take(path) is None, "nobody answers"
        server.accept()[0].close()
        with ThreadPoolExecutor(1) as pool:
            for words in (b"", b"nonsense", b"[1, 2, 3]", b'["", ""]', b'["a", "b", "c"]', b"[" * 70_000):
                before = descriptors()
                answered = pool.submit(answer, server, words)
                assert take(path) is None, words
                answered.result()
                assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def answer(server: socket.socket, words: bytes) -> None:
    with server.accept()[0] as taker, contextlib.suppress(OSError), Path(os.devnull).open("rb") as handle:
        socket.send_fds(taker, [b"\n"], [handle.fileno()])
        taker.sendall(words)


@pytest.mark.parametrize("how", ["kept", "lost", "changed", "never"])
def test_the_jobs_wrapper_goes_on_with_it_and_without_it_connects_itself(
    ssh: Ssh, daemon: Daemon, begun: Kept, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "lost":
        begun.connection.shutdown(socket.SHUT_RDWR)
    monkeypatch.setattr(jobrun, "Ssh", lambda: ssh)
    bridge = jobrun._Bridge.__new__(jobrun._Bridge)
    bridge._site, bridge._key = a_site(), daemon.user.private
    guest = Guest(vm=a_plan().vms[0], address=HERE, host_key=daemon.host.public)
    port = begun.connection.getsockname()[1]
    beginning = replace(begun.beginning, key=bytes(32)) if how == "changed" else begun.beginning
    found = None if how == "never" else Kept(connection=begun.connection, beginning=beginning)
    with bridge._connected(published.peer(guest), found) as session:
        assert isinstance(session, SshSession)
        own = int(collect(session, "echo $SSH_CONNECTION")[1].split()[1])
    assert (own == port) == (how == "kept")


class Node:
    """Where a hook has a connection kept, and goes."""

    def __init__(self, root: Path, port: int) -> None:
        child = Servant("SSH", partial(Speaker, port), identity=servant.NOBODY)
        # As the program asks it, whose child it is not: it goes when it likes.
        self.apart = Apart(Caller("SSH", child.orders, process=child.process))
        self.job = a_job(id="7.srv")
        self.state = JobState(root, "7.srv")
        self.state.create()
        self.path = self.state.path / CONNECTION

    def keep(self, daemon: Daemon, *, uid: int = 0) -> None:
        """As a hook does that has just proven its guest."""
        guest = Guest(vm=a_plan(job=self.job).vms[0], address=HERE, host_key=daemon.host.public)
        root = a_monitor(a_site(), bound=bound_to(self.job, an_account(uid=uid)))
        with self.apart.prover() as prover:
            keeping.keep(guest, prover, root=RootSide(Here(root)), state=self.state, deadline=soon())

    @property
    def keeper(self) -> str:
        """The process, by its name in the ledger."""
        (held,) = self.state.held()
        assert held.kind == KEEPER
        return held.name

    def gone(self) -> None:
        """Until the keeper has gone."""
        for _ in soon().ticks(doing="waiting for the keeper to go"):
            if not proc.name(int(self.keeper.split()[0])):
                return


@pytest.fixture
def node(daemon: Daemon, tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path, daemon.port)
    yield found
    found.apart.close()
    for held in found.state.held():
        proc.end(held.name, uid=NOBODY, deadline=soon())


def test_it_is_kept_when_the_hook_has_gone_and_then_whoever_kept_it_goes(
    node: Node, ssh: Ssh, daemon: Daemon
) -> None:
    node.keep(daemon)
    pid = int(node.keeper.split()[0])
    assert proc.name(pid) == node.keeper
    about = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}" in about and "CapEff:\t0000000000000000" in about
    taken = take(node.path)
    assert taken is not None
    node.gone()
    with contextlib.closing(go_on(ssh, daemon, taken)) as session:
        assert collect(session, "echo works") == (0, b"works\n", b"")
    assert take(node.path) is None, "there is one"


def test_nothing_waits_for_the_end_of_its_output(node: Node, daemon: Daemon) -> None:
    """As slurmd does for a Prolog's."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.contract.test_kept import Node\n"
        "from tests.contract.test_transport import Daemon\n"
        "from vtorque.backends.transport import KeyPair\n"
        "host = KeyPair(private='', public=sys.argv[3])\n"
        "found = Node(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "found.keep(Daemon(port=int(sys.argv[2]), host=host, user=host))\n"
        "print(found.keeper)\n"
    )
    root = node.path.parents[2] / "other"
    argv = [sys.executable, "-c", program, str(root), str(daemon.port), daemon.host.public]
    said = subprocess.run(
        argv, capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).resolve().parents[2]
    ).stdout.strip()
    assert proc.name(int(said.split()[0])) == said
    proc.end(said, uid=NOBODY, deadline=soon())
    assert not proc.name(int(said.split()[0]))


def test_only_its_user_may_take_it(node: Node, daemon: Daemon) -> None:
    for path in (node.path, *node.path.parents):
        if path.exists() and path.owner() == pwd.getpwuid(os.getuid()).pw_name:
            path.chmod(path.stat().st_mode | 0o111)
    node.keep(daemon, uid=STRANGER)
    assert not as_user(STRANGER + 1, node.path)
    assert as_user(STRANGER, node.path)


def as_user(uid: int, path: Path) -> bool:
    """Whether such a user gets it."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            status = 0 if take(path) is not None else 1
        finally:
            os._exit(status)
    return {0: True, 1: False}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


def test_a_guest_that_hangs_up_meanwhile_is_connected_to_again(daemon: Daemon, tmp_path: Path) -> None:
    """sshd ends the connections of those who do not log in, after two minutes."""
    calls: list[Kept] = []

    def begin(deadline: Deadline) -> Kept:
        calls.append(Ssh(daemon.port).begin(HERE, host_key=daemon.host.public, deadline=deadline))
        if len(calls) == 1:
            # What its end looks like from here.
            calls[0].connection.shutdown(socket.SHUT_RDWR)
        return calls[-1]

    path = tmp_path / "s"
    with ThreadPoolExecutor(1) as pool, listener(path) as server:
        waiting = pool.submit(Keeper(begin, server).wait)
        taken = take(path)
        waiting.result()
        assert taken is not None and len(calls) == 2
    with contextlib.closing(go_on(Ssh(daemon.port), daemon, taken)) as session:
        assert collect(session, "echo again") == (0, b"again\n", b"")


def test_a_guest_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    with listener(tmp_path / "s") as server, pytest.raises(TransportError):
        Keeper(partial(Ssh(1).begin, HERE, host_key=keys.make().public), server).wait()


def test_a_job_that_is_being_torn_down_has_nothing_kept(node: Node, daemon: Daemon) -> None:
    with node.state.closing(deadline=soon()):
        pass
    with pytest.raises(GenerationClosed):
        node.keep(daemon)
    assert node.state.held() == [] and not node.path.exists()


def test_where_nothing_can_be_kept_the_job_goes_on(
    daemon: Daemon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path / ("x" * 108), daemon.port)
    node.keep(daemon)
    assert "no connection to guest" in caplog.text and "path too long" in caplog.text
    assert take(node.path) is None
    node.gone()


def test_with_a_library_that_has_changed_jobs_start_as_before(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said in resumable.py rests on names that paramiko has never promised."""
    monkeypatch.delattr(paramiko.Transport, "_kex_info")
    monkeypatch.delitem(sys.modules, "vtorque.backends.transport.resumable")
    node = Node(tmp_path, daemon.port)
    node.keep(daemon)
    assert take(node.path) is None
    node.gone()


def test_a_process_that_has_its_number_by_now_is_left_alone() -> None:
    other = subprocess.Popen(["/usr/bin/sleep", "60"], user=NOBODY)
    try:
        proc.end(f"{other.pid} 1", uid=NOBODY, deadline=soon())
        proc.end(f"{1 << 22} 1", uid=NOBODY, deadline=soon())
        proc.end(proc.name(other.pid), uid=STRANGER, deadline=soon())
        assert other.poll() is None
        proc.end(proc.name(other.pid), uid=NOBODY, deadline=soon())
        assert other.wait(10) < 0
    finally:
        other.kill()
        other.wait()
