# SPDX-License-Identifier: Apache-2.0
"""What a guest says of itself wakes the attempts to reach it, and does nothing else, whatever it says."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import KEY, a_job, a_plan, a_site, an_account
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses, FakeSession, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.node import a_node
from vtorque import discover, names, wakeups
from vtorque.announcement import Announcement
from vtorque.backends.transport import KeyPair
from vtorque.boot import Started
from vtorque.deadline import Deadline
from vtorque.errors import HypervisorError, TransportError, VtorqueError
from vtorque.model import Guest
from vtorque.state import JobState
from vtorque.wakeups import Changes, Wakeup

pytestmark = pytest.mark.runs

VM = a_plan().vms[0]
ADDRESS = "10.0.0.1"


class Channel:
    """QEMU's end: a socket at which one listener after the other is served, as its guest writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused: OSError | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(20)

    def says(self, *pieces: bytes, then: Callable[[], object] = lambda: None) -> threading.Thread:
        """Have a guest write these, in a thread of its own, to whoever listens."""

        def write() -> None:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(20)
                then()
                try:
                    for piece in pieces:
                        connection.sendall(piece)
                    connection.recv(1)
                except OSError as error:
                    self.refused = error

        self.refused = None
        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self._listener.close()


def place(root: Path) -> Path:
    """Where the channel of the guest is, as only there one is looked for."""
    seeds = root / "seeds"
    seeds.mkdir(exist_ok=True)
    return seeds / f"{VM.name}.channel"


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[Channel]:
    made = Channel(place(tmp_path))
    yield made
    made.close()


class Sleepy(FakeAddresses):
    """An address book without news: for `deaf` seconds, if any, only what else is waited for wakes."""

    def __init__(self, *, deaf: float) -> None:
        super().__init__((ADDRESS,))
        self._deaf = deaf

    def wait(self, seconds: float, *also: Wakeup) -> None:
        wakeups.wait(self._deaf or seconds, *also)


class Scene:
    """A guest that refuses connections until `listens` is set."""

    def __init__(self, root: Path, channel: Path | None, *, deaf: float = 60.0) -> None:
        self.vm = replace(VM, channel=channel)
        self.listens, self.refused = threading.Event(), threading.Event()
        self.hypervisor = FakeHypervisor()
        tag = "<metadata><v:vtorque xmlns:v='https://vtorque.org/xmlns/domain/1' job='7.srv'/></metadata>"
        self.hypervisor.create(f"<domain><name>{VM.name}</name>{tag}</domain>", deadline=Deadline(9))
        self.transport = FakeTransport({ADDRESS: self._answer})
        rules = FakeFilter()
        self.state = JobState(root, "7.srv")
        self.state.create()
        self.node = a_node(
            a_site(state_dir=str(root)), hypervisor=self.hypervisor, transport=self.transport, filter=rules,
            addresses=lambda guests, deadline: Sleepy(deaf=deaf),
        )
        self.node.journal.begin(a_job())
        rules.loaded[names.table("7.srv", self.node.site)] = []

    def _answer(self) -> FakeSession:
        if not self.listens.is_set():
            self.refused.set()
            raise TransportError(f"the guest at {ADDRESS} does not answer SSH: Connection refused")
        return FakeSession(f"ready {VM.uuid}\n".encode())

    def find(self, seconds: float) -> Guest:
        started = Started(vm=self.vm, host_key=KEY, probe=KeyPair(private="p", public="q"))
        (guest,) = discover.guests(
            [started], job=a_job(), account=an_account(), node=self.node, state=self.state, deadline=Deadline(seconds)
        )
        return guest

    @property
    def phases(self) -> list[tuple[object, object]]:
        return [(note["phase"], note.get("word")) for note in self.node.journal.notes]


@pytest.mark.parametrize("word", [b"ready\n", b"ready 10.0.0.9 fd00::1\n", b"ready\r\n"])
def test_a_guest_that_announces_itself_is_reached_at_once(tmp_path: Path, channel: Channel, word: bytes) -> None:
    scene = Scene(tmp_path, channel.path)

    def listen_once_refused() -> None:
        scene.refused.wait(20)
        scene.listens.set()

    channel.says(word, then=listen_once_refused)
    assert scene.find(20).address == ADDRESS
    assert scene.transport.tried == [ADDRESS] * 2
    assert ("announced", "guest") in scene.phases


def test_without_its_word_only_the_clock_wakes(tmp_path: Path) -> None:
    """So what the one before shows is the announcement's doing."""
    scene = Scene(tmp_path, None, deaf=2.0)

    def listen_once_refused() -> None:
        scene.refused.wait(20)
        scene.listens.set()

    threading.Thread(target=listen_once_refused, daemon=True).start()
    with pytest.raises(VtorqueError, match="was not proven"):
        scene.find(1.5)


def test_a_guest_of_an_old_image_that_never_announces_is_found_all_the_same(tmp_path: Path, channel: Channel) -> None:
    scene = Scene(tmp_path, channel.path, deaf=0)
    threading.Timer(0.3, scene.listens.set).start()
    assert scene.find(20).address == ADDRESS
    assert "announced" not in [phase for phase, _ in scene.phases]


@pytest.mark.parametrize(
    "pieces",
    [(b"x" * (1 << 22),), (b"ready" * (1 << 16),), (b"\xff\0\x1b[2J" * 100,), (b"ready",), (b"\n",), (b"READY\n",),
     (b"readynot\n",), (b"a\n" * 10000,), tuple(bytes([each % 256]) for each in range(2000)), ()],
    ids=["flood", "for ever", "binary", "no end", "nothing", "capitals", "another word", "lines", "drip", "silence"],
)
def test_a_guest_that_floods_or_lies_is_found_as_if_it_were_silent(
    tmp_path: Path, channel: Channel, pieces: tuple[bytes, ...]
) -> None:
    scene = Scene(tmp_path, channel.path, deaf=0)
    threading.Timer(0.2, scene.listens.set).start()
    channel.says(*pieces)
    assert scene.find(20).address == ADDRESS
    assert "announced" not in [phase for phase, _ in scene.phases]


def test_of_a_flood_a_few_hundred_bytes_are_read_and_the_guest_is_left_alone(channel: Channel) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(channel.path))
    word = Announcement(connection)
    thread = channel.says(b"x" * (1 << 22))
    looks = 0
    while word.fileno() >= 0:
        assert wakeups.wait(20, word) == [word]
        looks += 1
    thread.join(20)
    assert looks == 1 and isinstance(channel.refused, ConnectionError) and not word.heard


def test_a_guest_that_lies_is_not_believed(tmp_path: Path, channel: Channel) -> None:
    scene = Scene(tmp_path, channel.path, deaf=0)
    channel.says(b"ready\n")
    with pytest.raises(VtorqueError, match="does not answer SSH: Connection refused"):
        scene.find(1.0)
    assert len(scene.transport.tried) <= 25


def missing(path: Path) -> None:
    """A site's own template has no channel."""


def left_over(path: Path) -> None:
    Channel(path).close()


@pytest.mark.parametrize("make", [missing, left_over, Path.mkdir, Path.touch], ids=lambda each: each.__name__)
def test_without_a_channel_nothing_is_lost(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(place(tmp_path))
    scene = Scene(tmp_path, place(tmp_path), deaf=0)
    scene.listens.set()
    assert scene.find(20).address == ADDRESS


def test_who_comes_too_late_to_be_heard_is_told_so_by_the_end_of_the_connection(
    tmp_path: Path, channel: Channel
) -> None:
    scene = Scene(tmp_path, channel.path)
    scene.listens.set()
    found = threading.Event()
    thread = channel.says(b"ready\n", then=lambda: found.wait(20))
    assert scene.find(20).address == ADDRESS
    found.set()
    thread.join(20)
    assert not thread.is_alive() and "announced" not in [phase for phase, _ in scene.phases]


def test_a_guest_that_stops_is_noticed_without_looking(tmp_path: Path) -> None:
    scene = Scene(tmp_path, None)
    stop = threading.Timer(0.1, lambda: scene.hypervisor.destroy(VM.name, deadline=Deadline(9)))
    stop.start()
    with pytest.raises(HypervisorError, match="stopped while it was booting"):
        scene.find(20)


def test_a_directory_tells_of_what_comes_and_goes_in_it(tmp_path: Path) -> None:
    changes = Changes(tmp_path, tmp_path / "none")
    assert wakeups.wait(0.01, changes) == []
    for act in ((tmp_path / "a").touch, lambda: (tmp_path / "a").rename(tmp_path / "b"), (tmp_path / "b").unlink):
        act()
        assert wakeups.wait(20, changes) == [changes]
        assert wakeups.wait(0.01, changes) == []
    changes.close()
