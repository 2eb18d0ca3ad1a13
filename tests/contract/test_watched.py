# SPDX-License-Identifier: Apache-2.0
"""Guests that are watched as the processes they are, by the program, which only root can start and end."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from tests.builders import a_site
from tests.contract.test_hypervisor import XML, soon
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.node import a_monitor
from vtorque import monitor, wakeups
from vtorque.backends.hypervisor.pulse import Pulses, find
from vtorque.backends.hypervisor.watched import Watched
from vtorque.deadline import Deadline
from vtorque.rootside import RootSide
from vtorque.servant import Servant

pytestmark = pytest.mark.runs


class Waiting:
    """A descriptor to wait for."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def fileno(self) -> int:
        return self._handle

    def drain(self) -> None:
        """It goes on telling."""


@contextlib.contextmanager
def guest(name: str, directory: Path, *, words: str = "guest={},debug-threads=on") -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like libvirt's QEMU for the domain, noted where libvirt does."""
    argv = ["qemu-system-x86_64", "-c", "import time; time.sleep(600)", "-name", words.format(name)]
    with subprocess.Popen(argv, executable=sys.executable) as child:
        (directory / f"{name}.pid").write_text(f"{child.pid}\n")
        # Between fork and exec it still has our command line.
        while b"-name" not in Path(f"/proc/{child.pid}/cmdline").read_bytes():
            time.sleep(0.005)
        try:
            yield child
        finally:
            child.kill()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def pulses_in(directory: Path) -> Pulses:
    """The guests that are noted there."""
    return Pulses(partial(find, directory=directory))


class Unasked:
    """Root, who is not needed for this."""

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: object = None) -> object:
        pytest.fail(f"root is asked: {verb}")

    def dismiss(self) -> None:
        """There is nobody."""


def unused() -> Deadline:
    return Deadline(0)


def test_guests_are_seen_to_run_and_to_end_without_asking_anybody(tmp_path: Path) -> None:
    with (
        guest("7.srv_1of2", tmp_path) as first, guest("7.srv_2of2", tmp_path),
        contextlib.closing(Watched(RootSide(Unasked()), pulses_in(tmp_path))) as there, there.changes() as ends,
    ):
        names = ("7.srv_1of2", "7.srv_2of2")
        assert [there.is_running(name, deadline=unused()) for name in names] == [True, True]
        assert wakeups.wait(0.05, ends) == []
        first.kill()
        assert wakeups.wait(30, ends) == [ends]
        assert [there.is_running(name, deadline=unused()) for name in names] == [False, True]
        # It has told, and is silent until the next one ends.
        assert wakeups.wait(0.05, ends) == []
        (tmp_path / "7.srv_1of2.pid").unlink()
        assert not there.is_running("7.srv_1of2", deadline=unused())


def test_an_end_before_anybody_waits_is_told_as_well(tmp_path: Path) -> None:
    pulses = pulses_in(tmp_path)
    with guest("g", tmp_path) as child:
        assert pulses.beats("g") is True
        child.kill()
        child.wait()
        assert wakeups.wait(0, pulses) == [pulses] and pulses.beats("g") is False
    pulses.close()


@pytest.mark.parametrize("spoil", [
    pytest.param(lambda file: file.unlink(), id="no file"),
    pytest.param(lambda file: file.write_text(""), id="empty"),
    pytest.param(lambda file: file.write_text("-1"), id="no number of a process"),
    pytest.param(lambda file: file.write_text("7\n7"), id="two"),
    pytest.param(lambda file: file.write_text("999999999999999999999"), id="too large"),
    pytest.param(lambda file: file.write_text(str(os.getpid())), id="somebody else's by now"),
    pytest.param(lambda file: file.write_bytes(b"\xff\xfe"), id="no text"),
])
def test_a_file_that_tells_of_no_guest_says_nothing(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    before = descriptors()
    pulses = pulses_in(tmp_path)
    with guest("g", tmp_path):
        spoil(tmp_path / "g.pid")
        assert pulses.beats("g") is None
    pulses.close()
    assert descriptors() == before


@pytest.mark.parametrize("words", ["guest={}0", "{}", "guest=x{}", "other,guest={}"])
def test_a_guest_of_another_name_is_not_taken_for_it(tmp_path: Path, words: str) -> None:
    pulses = pulses_in(tmp_path)
    with guest("g", tmp_path, words=words):
        assert pulses.beats("g") is None
    pulses.close()


def test_a_guest_that_is_destroyed_is_looked_for_anew(tmp_path: Path) -> None:
    asked = list[str]()

    class Root(Unasked):
        def ask(self, verb: str, *words: object, deadline: Deadline, handle: object = None) -> bool:
            asked.append(verb)
            return True

    there = Watched(RootSide(Root()), pulses_in(tmp_path))
    with guest("g", tmp_path):
        assert there.is_running("g", deadline=unused())
    assert not there.is_running("g", deadline=unused())
    assert there.destroy("g", deadline=soon())
    with guest("g", tmp_path):
        assert there.is_running("g", deadline=unused())
    assert asked == ["destroy"]
    there.close()


def test_root_hands_over_the_process_of_a_guest_and_without_one_asks_the_hypervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is told by the kernel, although it may not see what libvirt notes."""
    hypervisor, name = FakeHypervisor(), "7.srv_1of2"
    hypervisor.create(XML.format(name=name, uuid=uuid4(), tag=""), deadline=soon())
    monkeypatch.setattr(monitor, "find", partial(find, directory=tmp_path))
    child = Servant("root", lambda: a_monitor(a_site(), hypervisor=hypervisor), identity=None)
    before = descriptors()
    with contextlib.closing(Watched(RootSide(child))) as there:
        assert there.is_running(name, deadline=soon()), "the hypervisor says so"
        assert not there.is_running("7.srv_2of2", deadline=soon())
        with guest(name, tmp_path) as running, there.changes() as ends:
            assert there.is_running(name, deadline=soon())
            running.kill()
            assert wakeups.wait(30, ends) == [ends]
            assert not there.is_running(name, deadline=soon()), "whatever the hypervisor says"
    assert descriptors() == before
    child.dismiss()


def test_an_end_is_told_to_one_of_all_who_wait_and_breaks_none(tmp_path: Path) -> None:
    pulses, broken = pulses_in(tmp_path), list[BaseException]()

    def hear() -> None:
        try:
            for _ in range(50):
                wakeups.wait(0.001, pulses)
        except OSError as error:
            broken.append(error)

    with contextlib.ExitStack() as guests:
        children = [guests.enter_context(guest(f"g{number}", tmp_path)) for number in range(20)]
        assert all(pulses.beats(f"g{number}") for number in range(20))
        threads = [threading.Thread(target=hear) for _ in range(8)]
        for thread in threads:
            thread.start()
        for child in children:
            child.kill()
        for thread in threads:
            thread.join()
        assert not broken
    pulses.close()


def test_threads_that_ask_about_the_same_guest_hold_one_descriptor(tmp_path: Path) -> None:
    pulses = pulses_in(tmp_path)
    before = descriptors()
    with guest("g", tmp_path):
        threads = [threading.Thread(target=pulses.beats, args=("g",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert descriptors() == before + 1
    pulses.close()
