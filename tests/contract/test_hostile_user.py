# SPDX-License-Identifier: Apache-2.0
"""A user who prepares his own side of a job for root: traps at every name, directories that change, a look at root's.

What must not happen is done once by a program that is weaker: its child stays root, and follows links.
"""

import ctypes
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from tests.contract import test_lifecycle
from tests.contract.test_files import ID, USER, clerk, own
from tests.contract.test_lifecycle import Scene
from vtorque import accounts, become, userclerk
from vtorque.deadline import Deadline
from vtorque.proc import Identity

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="becomes another user"),
]

root = test_lifecycle.root

IN_JOB = ("phases", "guests.0.0.json", ".guests.0.0.json.new", "guests.1.0.json", "lost.0", "aborted", "ended")
BESIDE = ("7.srv", "7.srv.cancelled")
HUGE = 1 << 40
_PR_SET_DUMPABLE = 4


class Place:
    """A home, and beside it what is root's and would be a pity."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.job = self.home / ".vtorque" / ID
        for path in (self.home, self.job.parent, self.job):
            path.mkdir(mode=0o700)
            own(path)
        self.victims = root / "victims"
        (self.victims / "directory").mkdir(parents=True)
        for path in (self.victims / "file", self.victims / "directory/phases"):
            path.write_text("precious")

    def look(self) -> dict[str, object]:
        """All that could be seen of it if it had been touched."""
        return {
            str(path): (about.st_mode, about.st_uid, about.st_size, about.st_mtime_ns)
            for path in sorted(self.victims.rglob("*")) for about in [path.lstat()]
        }

    def orders(self) -> bool:
        """Everything that root ever asks for there; whether all of it was answered."""
        with clerk(self.home) as (_, side):
            for name in IN_JOB[:-1]:
                side.append(name, "x\n", deadline=Deadline(5))
                side.read(name, limit=1000, deadline=Deadline(5))
                side.replace(name, "y\n", deadline=Deadline(5))
                side.append(name, "z\n", deadline=Deadline(5))
                side.forget(name, deadline=Deadline(5))
            for elements in (2, 1):
                side.remove("7.srv", elements=elements, if_cancelled=elements == 2, deadline=Deadline(5))
            return side.usable


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for parent in tmp_path.parents[:-2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    return Place(tmp_path)


@pytest.fixture
def weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(become, "_become", lambda identity, keeps: None)
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    monkeypatch.setattr(userclerk, "_DIRECTORY", os.O_RDONLY | os.O_DIRECTORY)


def bound(path: Path, victims: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        # A socket's path is short.
        before = Path.cwd()
        os.chdir(path.parent)
        one.bind(path.name)
        os.chdir(before)


def sparse(path: Path, victims: Path) -> None:
    path.touch()
    os.truncate(path, HUGE)


def setuid(path: Path, victims: Path) -> None:
    path.write_text("#!/bin/sh\n")
    own(path)
    path.chmod(0o6777)


TRAPS: dict[str, Callable[[Path, Path], object]] = {
    "link to a file": lambda path, victims: path.symlink_to(victims / "file"),
    "link to a directory": lambda path, victims: path.symlink_to(victims / "directory"),
    "link to nothing yet": lambda path, victims: path.symlink_to(victims / "planted"),
    "hard link": lambda path, victims: path.hardlink_to(victims / "file"),
    "pipe": lambda path, victims: os.mkfifo(path),
    "device": lambda path, victims: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7)),
    "socket": bound,
    "directory": lambda path, victims: path.mkdir(),
    "sparse": sparse,
    "setuid": setuid,
}


def set_traps(place: Place, kind: str) -> None:
    for path in (*(place.job / name for name in IN_JOB), *(place.job.parent / name for name in BESIDE)):
        TRAPS[kind](path, place.victims)
        if kind != "hard link":
            own(path)


@pytest.mark.parametrize("kind", TRAPS)
def test_a_trap_at_every_name_harms_nobody_and_holds_nobody_up(place: Place, kind: str) -> None:
    set_traps(place, kind)
    before = place.look()
    assert place.orders()
    assert place.look() == before


@pytest.mark.parametrize("kind", ["link to a file", "link to a directory", "link to nothing yet", "hard link"])
def test_traps_catch_a_program_that_stays_root(place: Place, weaker: None, kind: str) -> None:
    set_traps(place, kind)
    before = place.look()
    place.orders()
    assert place.look() != before


@pytest.fixture(params=["the job's directory", "the directory of all jobs", "the home"])
def swapped(place: Place, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Something of the user's that becomes a link to what is root's, and back, as fast as it can."""
    which = {"the job's directory": place.job, "the directory of all jobs": place.job.parent, "the home": place.home}
    path = which[request.param]
    link = path.with_name("link")
    (place.victims / "directory" / ID).mkdir()
    (place.victims / "directory/.vtorque").symlink_to(".")
    link.symlink_to(place.victims / "directory")
    yield path


def test_a_directory_that_is_swapped_all_the_time_leads_nowhere(place: Place, swapped: Path) -> None:
    before = place.look()
    link, aside = swapped.with_name("link"), swapped.with_name("aside")
    swapper = os.fork()
    if not swapper:
        for _ in cycle([None]):
            swapped.rename(aside)
            link.rename(swapped)
            swapped.rename(link)
            aside.rename(swapped)
    try:
        with clerk(place.home) as (_, side):
            done = [side.append("phases", "x\n", deadline=Deadline(20)) for _ in range(300)]
            done += [side.replace("lost.0", "x\n", deadline=Deadline(20)) for _ in range(100)]
            assert side.usable and len(done) == 400
    finally:
        os.kill(swapper, 9)
        os.waitpid(swapper, 0)
    assert place.look() == before


def test_a_swapped_directory_catches_a_program_that_stays_root(place: Place, weaker: None, swapped: Path) -> None:
    before = place.look()
    swapped.rename(swapped.with_name("aside"))
    swapped.with_name("link").rename(swapped)
    place.orders()
    assert place.look() != before


def traced(pid: int) -> bool:
    """Whether the user sees anything of what the process has in memory."""
    program = f"open('/proc/{pid}/mem', 'rb'); open('/proc/{pid}/environ', 'rb').read()"
    return subprocess.run(
        [sys.executable, "-I", "-c", program], user=USER.pw_uid, group=USER.pw_gid, extra_groups=[], cwd="/",
        stderr=subprocess.DEVNULL, check=False,
    ).returncode == 0


def test_the_child_that_has_become_the_user_is_still_closed_to_him(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was forked from root, and has all of root's memory."""
    become_user = become._become

    def open_up(identity: Identity, keeps: Collection[int]) -> None:
        become_user(identity, keeps)
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)

    seen = []
    for weakened in (False, True):
        if weakened:
            monkeypatch.setattr(become, "_become", open_up)
        with clerk(place.home) as (pid, side):
            assert side.append("phases", "x\n", deadline=Deadline(10))
            seen.append(traced(pid))
    assert seen == [False, True]


@pytest.mark.parametrize("kind", [*TRAPS, "no room", "nothing there"])
def test_no_start_and_no_end_depends_on_what_a_user_has_prepared(
    root: Path, place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    known = accounts.account
    monkeypatch.setattr(accounts, "account", lambda user, min_uid: known(user, min_uid=min_uid)._replace(
        home=place.home
    ))
    if kind in TRAPS:
        set_traps(place, kind)
    elif kind == "no room":
        place.job.chmod(0o500)
    else:
        place.job.rmdir()
    before = place.look()
    scene = Scene(root)
    scene.prologue()
    assert scene.markers() == {"ready"}
    scene.epilogue()
    assert scene.left() == [] and place.look() == before


def reach(root: Path) -> list[str]:
    """What another user can list, read, add, rename or remove below a directory."""
    program = """if True:
        import os, sys
        for at, directories, files in os.walk(sys.argv[1]):
            for name in (*directories, *files):
                if os.access(os.path.join(at, name), os.R_OK): print("read", os.path.join(at, name))
            if os.access(at, os.W_OK): print("write", at)
        for path in sys.argv[2:]:
            if os.access(path, os.W_OK): print("write", path)
    """
    # Whoever wants to connect to a socket has to be able to write it.
    every = [str(path) for path in root.rglob("*") if not path.is_symlink()]
    return subprocess.run(
        [sys.executable, "-I", "-c", program, str(root), *every], user=65534, group=65534, extra_groups=[], cwd="/",
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()


def test_another_user_finds_nothing_to_read_or_to_change_in_a_live_job(root: Path) -> None:
    scene = Scene(root)
    scene.prologue()
    found = reach(root / "run") + reach(root / "disks")
    assert found == []
    (root / "run/seeds").chmod(0o777)
    assert reach(root / "run")
    scene.epilogue()
