# SPDX-License-Identifier: Apache-2.0
"""The user's side: everything below a home is done as the user, and a home that hangs is given up."""

import contextlib
import ctypes
import os
import pwd
import select
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vtorque import become
from vtorque.cli import rooted
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError
from vtorque.files import give, hand_over, new_directory, read, require_trusted
from vtorque.identity import Account, Group
from vtorque.monitor import Bound
from vtorque.proc import Identity
from vtorque.userclerk import Clerk
from vtorque.userside import UserSide

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="becomes another user"),
]

USER = pwd.getpwnam("games")
ID = "0123456789abcdef"
IDENTITY = Identity(uid=USER.pw_uid, gid=USER.pw_gid, groups=(USER.pw_gid,))


def own(path: Path) -> Path:
    os.chown(path, USER.pw_uid, USER.pw_gid, follow_symlinks=False)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for parent in tmp_path.parents[:-2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    for part in ("", ".vtorque", f".vtorque/{ID}"):
        path = tmp_path / "home" / part
        path.mkdir()
        path.chmod(0o700)
        own(path)
    return tmp_path / "home"


@pytest.fixture
def side(home: Path) -> Iterator[UserSide]:
    with clerk(home) as (_, opened):
        yield opened


@contextlib.contextmanager
def clerk(home: Path) -> Iterator[tuple[int, UserSide]]:
    """The child that root makes for the job's user, by its number, and who tells it what to do."""
    account = Account(
        name=USER.pw_name, uid=USER.pw_uid, group=(own := Group(name=USER.pw_name, gid=USER.pw_gid)), groups=(own,),
        home=home, shell=USER.pw_shell,
    )
    made = rooted._clerk(Bound(id="7.srv", key="7.srv", user=account.name, account=account, group=own.gid))
    assert made is not None
    pid, orders = made
    with contextlib.closing(UserSide(orders, ID)) as opened:
        yield pid, opened
    # Who is not asked any more goes by himself.
    os.waitpid(pid, 0)


def soon() -> Deadline:
    return Deadline(10)


def test_lines_are_appended_as_the_user(side: UserSide, home: Path) -> None:
    assert side.append("phases", "one\n", deadline=soon()) and side.append("phases", "two\n", deadline=soon())
    path = home / ".vtorque" / ID / "phases"
    assert path.read_text() == "one\ntwo\n"
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (USER.pw_uid, 0o600)


@pytest.mark.parametrize("target", ["/etc/shadow", "{outside}/victim", "nowhere"])
def test_a_link_is_not_followed(side: UserSide, home: Path, tmp_path: Path, target: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (home / ".vtorque" / ID / "phases").symlink_to(target.format(outside=tmp_path))
    assert not side.append("phases", "x\n", deadline=soon())
    assert victim.read_text() == "precious"


def test_directories_that_several_threads_make_have_their_modes_and_the_umask_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    paths = [tmp_path / str(number) for number in range(2000)]
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(partial(new_directory, mode=0o711), paths))
    finally:
        after = os.umask(before)
    assert after == 0o077
    assert {path.stat().st_mode & 0o7777 for path in paths} == {0o711}


def test_a_job_directory_that_is_a_link_is_not_entered(side: UserSide, home: Path, tmp_path: Path) -> None:
    (home / ".vtorque" / ID).rmdir()
    (home / ".vtorque" / ID).symlink_to(tmp_path)
    assert not side.append("phases", "x\n", deadline=soon())
    assert not (tmp_path / "phases").exists()


def test_what_is_roots_stays_roots(side: UserSide, home: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    (home / ".vtorque" / ID / "link").symlink_to(tmp_path / "tree")
    assert side.remove("7.srv", elements=1, if_cancelled=False, deadline=soon())
    assert (tmp_path / "tree" / "file").exists()
    assert not (home / ".vtorque" / ID).exists()


def test_the_link_by_job_id_goes_only_when_it_is_this_jobs(side: UserSide, home: Path) -> None:
    for name, target in (("7.srv", ID), ("8.srv", "another")):
        (home / ".vtorque" / name).symlink_to(target)
    side.remove("8.srv", elements=1, if_cancelled=False, deadline=soon())
    assert (home / ".vtorque" / "8.srv").is_symlink()


def test_a_pipe_that_nobody_reads_is_not_waited_for(side: UserSide, home: Path) -> None:
    os.mkfifo(home / ".vtorque" / ID / "fifo")
    own(home / ".vtorque" / ID / "fifo")
    assert not side.append("fifo", "x\n", deadline=soon())


def test_a_side_that_hangs_is_given_up_and_not_asked_again(home: Path) -> None:
    with clerk(home) as (pid, side):
        os.kill(pid, signal.SIGSTOP)
        assert not side.append("phases", "x\n", deadline=Deadline(0.1))
        os.kill(pid, signal.SIGCONT)
        assert not side.append("phases", "x\n", deadline=soon()), "it was asked again after it had not answered"


def test_one_that_hangs_is_let_go_all_the_same(home: Path) -> None:
    """Its user may have stopped it for good."""
    pid, ours = become.fork_as(IDENTITY, lambda orders: os.kill(os.getpid(), signal.SIGSTOP))
    os.waitpid(pid, os.WUNTRACED)
    ended = os.pidfd_open(pid)
    rooted._let_go(pid)
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)
    ours.close()
    rooted._let_go(pid)


def test_root_reads_only_regular_files_of_the_right_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read(path, limit=5, owner=0) == b"12345"
    assert read(path, limit=5, owner=1) == b"12345", "root's are everybody's to believe"
    with pytest.raises(StateError, match="larger than"):
        read(path, limit=4, owner=0)
    own(path)
    assert read(path, limit=5, owner=USER.pw_uid) == b"12345"
    for owner in (0, 1):
        with pytest.raises(StateError, match="belongs to uid"):
            read(path, limit=5, owner=owner)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "."):
        with pytest.raises(StateError):
            read(tmp_path / name, limit=5)


def test_trust_ends_where_others_may_write(tmp_path: Path) -> None:
    require_trusted(Path("/usr/bin/env").resolve())
    for parent in tmp_path.parents[:-1]:
        assert parent.stat().st_uid == 0
    directory = tmp_path / "d"
    directory.mkdir()
    directory.chmod(0o775)
    with pytest.raises(ConfigError, match="is writable by others"):
        require_trusted(directory)
    directory.chmod(0o755)
    own(directory)
    with pytest.raises(ConfigError, match="belongs to uid"):
        require_trusted(directory / ".")


def test_a_child_that_ends_without_an_answer_is_not_asked_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clerk, "serve", lambda clerk, orders: orders.recv(1 << 16))
    with clerk(home) as (_, side):
        assert not side.append("phases", "x\n", deadline=soon())
        assert not side.usable


def test_a_link_is_given_to_nobody(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o600)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        give(tmp_path / "link", uid=USER.pw_uid, mode=0o666)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o600)
    give(path, uid=USER.pw_uid, mode=0o640)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (USER.pw_uid, 0o640)


def test_a_directory_is_handed_over_with_what_is_in_it_and_nothing_else(tmp_path: Path) -> None:
    place, outside = tmp_path / "above" / "jobs", tmp_path / "outside"
    outside.touch()
    (place / "7.srv").mkdir(parents=True)
    (place / "7.srv" / "ledger").touch()
    (place / "link").symlink_to(outside)
    for name in ("ready", "connection"):
        (place / "7.srv" / name).touch()
    os.chown(place / "7.srv/ready", 0, 12345)
    os.chown(place / "7.srv/connection", 12345, 0)
    hand_over(place, mode=0o711, uid=USER.pw_uid, gid=USER.pw_gid)
    for path in (place, place / "7.srv", place / "7.srv" / "ledger", place / "link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (USER.pw_uid, USER.pw_gid)
    assert (place.parent.stat().st_uid, outside.stat().st_uid) == (0, 0)
    ready, connection = ((place / "7.srv" / name).stat() for name in ("ready", "connection"))
    assert (ready.st_uid, ready.st_gid) == (USER.pw_uid, 12345), "the job's user reads it"
    assert (connection.st_uid, connection.st_gid) == (12345, USER.pw_gid)
    # What root puts there later stays as it is: it has been handed over.
    (place / "8.srv").touch()
    hand_over(place, mode=0o711, uid=USER.pw_uid, gid=USER.pw_gid)
    assert (place / "8.srv").stat().st_uid == 0
    hand_over(tmp_path / "new", mode=0o750, uid=USER.pw_uid, gid=USER.pw_gid)
    about = (tmp_path / "new").stat()
    assert (about.st_uid, about.st_mode & 0o777) == (USER.pw_uid, 0o750)


def somebody_elses(path: Path) -> None:
    path.mkdir()
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("make", [
    pytest.param(lambda path: path.touch(), id="a file"),
    pytest.param(lambda path: path.symlink_to("/etc"), id="a link"),
    pytest.param(somebody_elses, id="somebody else's"),
])
def test_what_is_no_directory_of_roots_is_not_handed_over(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "place")
    before = (tmp_path / "place").lstat()
    with pytest.raises(ConfigError, match="is no directory of root's"):
        hand_over(tmp_path / "place", mode=0o700, uid=USER.pw_uid, gid=USER.pw_gid)
    assert (tmp_path / "place").lstat().st_uid == before.st_uid and Path("/etc").stat().st_uid == 0


class Refusing:
    """A C library without the one call."""

    def prctl(self, *arguments: int) -> int:
        return -1


@pytest.mark.parametrize(("where", "name", "does"), [
    (os, "setresuid", lambda *ids: None), (os, "setresgid", lambda *ids: None),
    (ctypes, "CDLL", lambda name: Refusing()),
], ids=["uid", "gid", "no_new_privs"])
def test_a_child_that_cannot_become_the_user_does_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, does: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, name, does)
    with clerk(home) as (_, side):
        assert not side.append("phases", "x\n", deadline=soon())
    assert list((home / ".vtorque" / ID).iterdir()) == []


@pytest.mark.parametrize(("identity", "uid"), [(IDENTITY, USER.pw_uid), (None, 0)])
def test_a_child_is_who_it_should_be_and_gets_no_new_rights(identity: Identity | None, uid: int) -> None:
    pid, ours = become.fork_as(identity, lambda call: call.sendall(Path("/proc/self/status").read_bytes()))
    with ours, ours.makefile("rb") as answer:
        lines = (line.split(b":") for line in answer)
        status = {name: values.split() for name, values in lines}
    assert status[b"Uid"] == [b"%d" % uid] * 4 and status[b"NoNewPrivs"] == [b"1"]
    assert os.waitpid(pid, 0) == (pid, 0)
