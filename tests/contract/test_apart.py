# SPDX-License-Identifier: Apache-2.0
"""Talking to guests without root's rights: what root's child may do, and what root believes of it."""

import base64
import contextlib
import errno
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.contract.test_transport import USER, Daemon, daemon
from vtorque import become, errors, servant
from vtorque.backends.transport import Prover, keys
from vtorque.backends.transport.apart import Apart
from vtorque.backends.transport.speaker import Speaker
from vtorque.deadline import Deadline
from vtorque.errors import (
    DeadlineExceeded,
    GuestError,
    InternalError,
    RequestError,
    StateError,
    TransportError,
    VtorqueError,
    WrongHostKey,
)
from vtorque.proc import Identity
from vtorque.servant import Gone, Handle, Servant

pytestmark = pytest.mark.runs

assert daemon is not None, "a fixture"


def soon() -> Deadline:
    return Deadline(30)


def told(make: Callable[[], object]) -> Apart:
    """SSH as what `make` makes speaks it, in a child that is nobody."""
    return Apart(Servant("SSH", make, identity=servant.NOBODY))


def at(port: int) -> Apart:
    """The same, at the port of the tests' daemon."""
    return told(partial(Speaker, port))


@pytest.fixture
def prover(daemon: Daemon) -> Iterator[Prover]:
    with at(daemon.port).prover() as found:
        yield found


def test_a_guest_is_asked_through_the_child(daemon: Daemon, prover: Prover) -> None:
    guest = prover.open(
        "127.0.0.1", user=USER, key=daemon.user.private, host_key=daemon.host.public, deadline=soon()
    )
    assert guest.ask("printf 'ready \\xff\\0 yes'", limit=4096, deadline=soon()) == b"ready \xff\0 yes"
    assert guest.ask("head -c 10000000 /dev/zero; echo no >&2", limit=7, deadline=soon()) == bytes(7)
    with pytest.raises(DeadlineExceeded):
        guest.ask("sleep 3", limit=7, deadline=Deadline(0.3))
    guest.close()
    guest.close()


def test_who_is_not_the_guest_is_told_apart_there_as_here(daemon: Daemon, prover: Prover) -> None:
    with pytest.raises(WrongHostKey):
        prover.open("127.0.0.1", user=USER, key=daemon.user.private, host_key=keys.make().public, deadline=soon())
    with pytest.raises(TransportError, match="does not let"):
        prover.open("127.0.0.1", user=USER, key=keys.make().private, host_key=daemon.host.public, deadline=soon())
    with at(1).prover() as nobody, pytest.raises(TransportError, match="does not answer SSH"):
        nobody.open("127.0.0.1", user=USER, key=daemon.user.private, host_key=daemon.host.public, deadline=Deadline(5))


class Looking:
    """Tells what the child it is in may do."""

    def look(self, secret: str, *, deadline: Deadline) -> dict[str, object]:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {
            "ids": [list(os.getresuid()), list(os.getresgid()), os.getgroups()],
            "rights": [status[name].strip() for name in ("CapPrm", "CapEff", "CapInh", "CapAmb", "NoNewPrivs")],
            "descriptors": sorted(int(each.name) for each in Path("/proc/self/fd").iterdir()),
            "reads the secret": os.access(secret, os.R_OK),
            "session": os.getsid(0) == os.getpid(),
        }


def test_the_child_is_nobody_and_holds_nothing_of_roots(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    with secret.open() as held, told_by(Looking) as child:
        told = child.ask("look", str(secret), deadline=soon())
        assert held.fileno() > 2
    assert told["ids"] == [[65534] * 3, [65534] * 3, []]
    assert told["rights"] == ["0" * 16] * 4 + ["1"]
    assert not told["reads the secret"] and told["session"]
    # 0 to 2, the orders, this call, and the directory that is being read.
    assert len(told["descriptors"]) <= 6


@contextmanager
def told_by(make: Callable[[], object], *, identity: Identity | None = servant.NOBODY) -> Iterator[Servant]:
    child = Servant("it", make, identity=identity)
    try:
        yield child
    finally:
        child.dismiss()


def test_others_who_are_nobody_cannot_look_into_it() -> None:
    """What it has in memory of root's are the keys of a job's guests, and many daemons are nobody."""
    peep = "import sys; [open(f'/proc/{sys.argv[1]}/{name}').close() for name in sys.argv[2:]]"

    def peeps(pid: int, *names: str) -> bool:
        argv = [sys.executable, "-c", peep, str(pid), *names]
        return subprocess.run(argv, user=65534, stderr=subprocess.DEVNULL, check=False).returncode == 0

    with told_by(Looking) as child:
        child.ask("look", "/", deadline=soon())
        assert not any(peeps(child._pid, name) for name in ("mem", "environ", "maps"))
        assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{child._pid}/limits").read_text())
    with subprocess.Popen(["/usr/bin/sleep", "60"], user=65534) as ordinary:
        while Path(f"/proc/{ordinary.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.005)
        assert peeps(ordinary.pid, "environ", "maps"), "the test would see it"
        ordinary.kill()


@pytest.mark.parametrize("ignored", [False, True])
def test_one_that_has_ended_is_let_go_as_well(ignored: bool) -> None:
    """A mom may hand down that nobody waits for children."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with told_by(Hostile) as child:
            with pytest.raises(Gone):
                child.ask("die", deadline=soon())
            ends = Deadline(20).ticks(doing="see it end")
            while next(ends, True) is None and Path(f"/proc/{child._pid}/exe").exists():
                pass
        with told_by(Hostile):
            pass
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_child_that_stays_root_would_be_noticed() -> None:
    child = Servant("it", Looking, identity=Identity(uid=0, gid=0, groups=()))
    try:
        assert child.ask("look", "/etc/shadow", deadline=soon())["reads the secret"]
    finally:
        child.dismiss()


class Hostile:
    """Fails in the way that it is told, like somebody who has taken the child over might."""

    def fail(self, name: str, *, deadline: Deadline) -> None:
        raise getattr(errors, name)("two\nlines \x1b[31m", hint="h\x07", details="d" * 100_000)

    def foreign(self, *, deadline: Deadline) -> None:
        raise ZeroDivisionError("no")

    def large(self, *, deadline: Deadline) -> str:
        return "x" * (servant._LONGEST_ANSWER + 1)

    def hang(self, *, deadline: Deadline) -> None:
        time.sleep(600)

    def die(self, *, deadline: Deadline) -> None:
        os._exit(0)

    def unsayable(self, *, deadline: Deadline) -> object:
        return object()


@pytest.mark.parametrize("name", sorted(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, VtorqueError)
))
def test_what_fails_there_fails_here_in_one_line(name: str) -> None:
    with told_by(Hostile) as child, pytest.raises(getattr(errors, name)) as error:
        child.ask("fail", name, deadline=soon())
    assert error.value.one_line() == "two lines ?[31m (h?)" and len(error.value.details) < 5000


def test_one_that_hangs_answers_too_much_or_nothing_is_given_up() -> None:
    with told_by(Hostile) as child:
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            child.ask("foreign", deadline=soon())
        with pytest.raises(InternalError, match="not JSON serializable"):
            child.ask("unsayable", deadline=soon())
        with pytest.raises(DeadlineExceeded):
            child.ask("hang", deadline=Deadline(0.1))
        for verb in ("large", "die", "large"):
            with pytest.raises(Gone):
                child.ask(verb, deadline=soon())


@pytest.mark.parametrize("answer", [
    b"", b"\n", b"null\n", b"[]\n", b"{}\n", b"7\n", b'{"failed": ""}\n', b'{"failed": "x"}\n', b"\xff\n",
    b"[" * 90000 + b"\n", b'{"failed": "", "found": 1}',
])
def test_an_answer_that_makes_no_sense_is_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def obey(served: object, asker: int) -> None:
        with socket.socket(fileno=asker) as call:
            call.sendall(answer)

    monkeypatch.setattr(servant, "_obey", obey)
    with told_by(Hostile) as child, pytest.raises(Gone):
        child.ask("fail", "x", deadline=soon())


@pytest.mark.parametrize("name", ["os", "json", "Blame", "printable", "known", "NoSuch", "__name__"])
def test_only_kinds_of_failures_are_raised_for_it(name: str) -> None:
    line = json.dumps({"failed": name, "brief": "b", "hint": "", "details": ""}).encode()
    with pytest.raises(InternalError):
        servant._understood(line)


class Blaming:
    """Says that it is the user's fault, or a proof of something else."""

    def open(self, *words: str, deadline: Deadline) -> str:
        if words[1] == "opens":
            return "0"
        raise getattr(errors, words[1])("no")

    def ask(self, number: str, command: str, limit: int, *, deadline: Deadline) -> object:
        return {"long": base64.b64encode(b"x" * 100).decode(), "list": [1], "none": None, "text": "?"}[command]


class Ending:
    """Whoever is to open a connection ends."""

    def open(self, *words: str, deadline: Deadline) -> str:
        os._exit(0)


def test_a_guest_that_ends_the_child_has_said_nothing() -> None:
    with told(Ending).prover() as prover, pytest.raises(GuestError, match="a guest has ended what talks to it for us"):
        prover.open("a", user="x", key="", host_key="", deadline=soon())


def test_whose_fault_it_is_is_not_for_the_child_to_say() -> None:
    with told(Blaming).prover() as prover:
        for name in ("RequestError", "ConfigError", "GenerationClosed", "InternalError", "NodeBusy"):
            with pytest.raises(TransportError) as error:
                prover.open("a", user=name, key="", host_key="", deadline=soon())
            assert not isinstance(error.value, RequestError)
        guest = prover.open("a", user="opens", key="", host_key="", deadline=soon())
        assert guest.ask("long", limit=5, deadline=soon()) == b"xxxxx"
        for command in ("list", "none"):
            with pytest.raises(GuestError):
                guest.ask(command, limit=5, deadline=soon())
        guest.close()


def test_where_nobody_talks_there_is_nobody_to_prove() -> None:
    with pytest.raises(StateError, match="nobody talks to guests here"), Apart(None).prover():
        pass


def test_ssh_is_spoken_nowhere_but_in_the_child() -> None:
    """A hook that starts and finds a guest must never load the library."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vtorque.cli import assembly, hooked, pbsverbs, pelog, pbshook, rooted\n"
        "from vtorque import lifecycle, guard, servant, shareserver\n"
        "from vtorque.backends.transport.apart import Apart\n"
        "from vtorque.deadline import Deadline\n"
        "from vtorque.errors import TransportError\n"
        "with Apart(servant.Servant('SSH', rooted._speaker, identity=servant.NOBODY)).prover() as prover:\n"
        "    try:\n"
        "        prover.open('127.0.0.1', user='ann', key='', host_key='', deadline=Deadline(60))\n"
        "    except TransportError:\n"
        "        pass\n"
        "print([name for name in ('paramiko', 'vtorque.backends.transport.ssh') if name in sys.modules])\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_child_makes_the_keys_and_a_dead_one_is_done_without(daemon: Daemon) -> None:
    with contextlib.closing(at(daemon.port)) as apart:
        first, second = apart.make_key(), apart.make_key()
        assert first != second and first.private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
        with apart.prover() as prover:
            prover.open(
                "127.0.0.1", user=USER, key=daemon.user.private, host_key=daemon.host.public, deadline=soon()
            ).close()
    child = Servant("SSH", partial(Speaker, daemon.port), identity=servant.NOBODY)
    with contextlib.closing(Apart(child)) as apart:
        os.kill(child._pid, signal.SIGKILL)
        assert apart.make_key().public.startswith("ssh-ed25519 ")


def opened() -> dict[int, str]:
    """What is open here, but for the directory that tells it."""
    found = {}
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(each.name)] = str(each.readlink())
    return found


class Handing:
    """Hands over a descriptor, or fails as the kernel says; and tells what it has open."""

    def give(self, path: str, *, deadline: Deadline) -> Handle:
        return Handle(os.open(path, os.O_RDONLY))

    def holds(self, path: str, *, deadline: Deadline) -> bool:
        return path in opened().values()

    def without(self, *, deadline: Deadline) -> None:
        raise OSError(errno.EIO, "two\nlines")


def test_a_descriptor_comes_back_and_is_closed_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("root's")
    path.chmod(0o600)
    with told_by(Handing, identity=None) as child:
        with os.fdopen(child.ask("give", str(path), deadline=soon())) as given:
            assert given.read() == "root's"
        # Who has the answer may look before it is closed there.
        for _ in soon().ticks(doing="seeing it closed"):
            if not child.ask("holds", str(path), deadline=soon()):
                break
    assert str(path) not in opened().values()


def test_what_the_kernel_refuses_there_it_has_refused_here(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with told_by(Handing, identity=None) as child:
        with pytest.raises(FileNotFoundError) as missing:
            child.ask("give", path, deadline=soon())
        with pytest.raises(OSError, match="two lines") as error:
            child.ask("without", deadline=soon())
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, path)
    assert (error.value.errno, error.value.filename) == (errno.EIO, None)


def test_a_child_that_dies_with_us_ends_when_its_parent_is_killed() -> None:
    """Also as somebody else: to become that takes the wish back, if it came before."""
    pid, ours = become.fork_as(None, _mother)
    with ours, ours.makefile("rb") as said:
        child = os.pidfd_open(int(said.readline()))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert select.select([child], [], [], 30)[0], "the child lives on"
    os.close(child)


def _mother(orders: socket.socket) -> None:
    def live(ours: socket.socket) -> None:
        ours.sendall(b"here\n")
        time.sleep(600)

    child, call = become.fork_as(servant.NOBODY, live, dies_with_us=True)
    assert call.recv(8) == b"here\n"
    orders.sendall(b"%d\n" % child)
    time.sleep(600)


def test_a_child_holds_just_what_it_is_to_hold(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        pid, ours = become.fork_as(servant.NOBODY, _tell_open)
        with ours, ours.makefile() as said:
            found, own = json.loads(said.read())
    assert os.waitpid(pid, 0) == (pid, 0)
    named = {number: what for number, what in found if number > 2}
    assert named.pop(own).startswith("socket:") and named == {}


def _tell_open(orders: socket.socket) -> None:
    orders.sendall(json.dumps([list(opened().items()), orders.fileno()]).encode())
