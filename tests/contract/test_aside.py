# SPDX-License-Identifier: Apache-2.0
"""A hypervisor whose library is a child's, and guests that are watched as the processes they are."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.contract.test_hypervisor import XML, soon, xml
from vtorque import wakeups
from vtorque.backends.hypervisor import Domains
from vtorque.backends.hypervisor.aside import Aside
from vtorque.backends.hypervisor.pulse import Pulses
from vtorque.deadline import Deadline

pytestmark = pytest.mark.runs

ROOT = Path(__file__).resolve().parents[2]
# It tells of its own children and libraries, of which pytest has some.
ALONE = f"""\
import json, os, sys, threading, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from vtorque.backends.hypervisor.aside import Aside
from vtorque.backends.hypervisor.pulse import Pulses
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, HypervisorError
def load():
    from vtorque.backends.hypervisor.libvirt import Libvirt
    return Libvirt("test:///default")
def soon():
    return Deadline(30)
def has_library():
    return "libvirt" in sys.modules or "libvirt" in Path("/proc/self/maps").read_text()
def children():
    return Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
XML = {XML!r}
"""


def alone(text: str) -> object:
    """What a process of its own prints as JSON."""
    argv = [sys.executable, "-c", ALONE + text]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


def test_until_it_rests_a_child_has_the_library_and_nobody_here() -> None:
    made = xml("a", uuid=str(uuid4()))
    assert alone(f"""
there = Aside(load, child=True, pulses=Pulses(Path("/nonexistent")))
there.create({made!r}, deadline=soon())
told = [has_library(), len(children()), there.is_running("a", deadline=soon()), there.domains(deadline=soon())]
told += [there.destroy("a", deadline=soon()), there.destroy("a", deadline=soon())]
there.rest()
told += [has_library(), len(children())]
# libvirt's test driver has its domains in the memory of whoever asked.
told += [there.domains(deadline=soon()), has_library(), len(children())]
there.close()
print(json.dumps(told))
""") == [False, 1, True, {"a": "7.srv"}, True, False, False, 0, {}, True, 0]


def test_without_a_child_the_library_comes_when_a_verb_needs_it() -> None:
    assert alone("""
there = Aside(load, child=False, pulses=Pulses(Path("/nonexistent")))
told = [has_library()]
there.rest()
told += [there.domains(deadline=soon()), has_library(), len(children())]
print(json.dumps(told))
""") == [False, {}, True, 0]


def test_what_the_child_is_told_fails_here_with_the_same_words() -> None:
    assert alone("""
there = Aside(load, child=True, pulses=Pulses(Path("/nonexistent")))
first, second = (XML.format(name="d", uuid=f"00000000-0000-4000-8000-00000000000{n}", tag="") for n in (1, 2))
there.create(first, deadline=soon())
try:
    there.create(second, deadline=soon())
except HypervisorError as error:
    print(json.dumps(error.brief.split(":")[0]))
""") == "cannot start guest d"


def test_many_verbs_at_once_are_carried_out_at_once() -> None:
    """Sixteen that wait for one another: one after the other none would come to its end."""
    assert alone("""
class Slow:
    together = threading.Barrier(16)
    def create(self, text, *, deadline):
        if text != "first":
            self.together.wait(60)
there = Aside(Slow, child=True, pulses=Pulses(Path("/nonexistent")))
there.create("first", deadline=soon())
late = []
def one():
    try:
        there.create("x", deadline=soon())
    except DeadlineExceeded:
        late.append(1)
threads = [threading.Thread(target=one) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps([len(late), len(children())]))
""") == [0, 1]


def test_a_child_that_does_not_answer_is_not_waited_for_beyond_the_deadline() -> None:
    assert alone("""
class Hung:
    def domains(self, *, deadline):
        time.sleep(600)
there = Aside(Hung, child=True, pulses=Pulses(Path("/nonexistent")))
try:
    there.domains(deadline=Deadline(0.2))
except DeadlineExceeded as error:
    told = [error.brief]
there.close()
print(json.dumps(told + [len(children())]))
""") == ["libvirt did not answer in time: domains", 0]


@pytest.mark.parametrize("how", ["os._exit(9)", "os.kill(os.getpid(), 11)", "os.close(3)"])
def test_when_the_child_dies_the_verb_is_carried_out_here(how: str) -> None:
    assert alone(f"""
mother = os.getpid()
class Dying:
    def domains(self, *, deadline):
        if os.getpid() != mother:
            {how}
            os._exit(0)
        return {{"a": "7.srv"}}
there = Aside(Dying, child=True, pulses=Pulses(Path("/nonexistent")))
print(json.dumps([there.domains(deadline=soon()), there.domains(deadline=soon())]))
""") == [{"a": "7.srv"}] * 2


def test_the_child_does_not_outlive_whoever_is_killed_and_holds_none_of_his_files(tmp_path: Path) -> None:
    """A lock of the ledger that it held would keep an epilogue waiting."""
    (tmp_path / "lock").touch()
    program = ALONE + f"""
lock = open({str(tmp_path / "lock")!r})
there = Aside(load, child=True, pulses=Pulses(Path("/nonexistent")))
there.domains(deadline=soon())
print(json.dumps([os.getpid(), int(children()[0])]), flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as mother:
        assert mother.stdout is not None
        _, child = json.loads(mother.stdout.readline())
        ends = os.pidfd_open(child)
        held = [str(each.readlink()) for each in Path(f"/proc/{child}/fd").iterdir()]
        mother.kill()
        mother.wait()
    assert not [each for each in held if "lock" in each]
    with os.fdopen(ends) as file:
        assert wakeups.wait(30, Waiting(file.fileno())), "the child lives on"


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


def never() -> Domains:
    pytest.fail("no library is needed for this")


def unused() -> Deadline:
    return Deadline(0)


def test_guests_are_seen_to_run_and_to_end_without_asking_anybody(tmp_path: Path) -> None:
    with (
        guest("7.srv_1of2", tmp_path) as first, guest("7.srv_2of2", tmp_path),
        contextlib.closing(Aside(never, child=False, pulses=Pulses(tmp_path))) as there, there.changes() as ends,
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
    pulses = Pulses(tmp_path)
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
    pulses = Pulses(tmp_path)
    with guest("g", tmp_path):
        spoil(tmp_path / "g.pid")
        assert pulses.beats("g") is None
    pulses.close()
    assert descriptors() == before


@pytest.mark.parametrize("words", ["guest={}0", "{}", "guest=x{}", "other,guest={}"])
def test_a_guest_of_another_name_is_not_taken_for_it(tmp_path: Path, words: str) -> None:
    pulses = Pulses(tmp_path)
    with guest("g", tmp_path, words=words):
        assert pulses.beats("g") is None
    pulses.close()


def test_a_guest_that_is_destroyed_is_looked_for_anew(tmp_path: Path) -> None:
    class Kept:
        def destroy(self, name: str, *, deadline: Deadline) -> bool:
            return True

        def close(self) -> None:
            """Nothing is open."""

    there = Aside(Kept, child=False, pulses=Pulses(tmp_path))  # type: ignore[arg-type]
    with guest("g", tmp_path):
        assert there.is_running("g", deadline=unused())
    assert not there.is_running("g", deadline=unused())
    assert there.destroy("g", deadline=soon())
    with guest("g", tmp_path):
        assert there.is_running("g", deadline=unused())
    there.close()


def test_an_end_is_told_to_one_of_all_who_wait_and_breaks_none(tmp_path: Path) -> None:
    pulses, broken = Pulses(tmp_path), list[BaseException]()

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
    pulses = Pulses(tmp_path)
    before = descriptors()
    with guest("g", tmp_path):
        threads = [threading.Thread(target=pulses.beats, args=("g",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert descriptors() == before + 1
    pulses.close()
