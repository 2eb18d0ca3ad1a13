# SPDX-License-Identifier: Apache-2.0
"""Users who act upon processes: their own that root waits for, and those that call themselves another's server.

What must not happen is done once by a program that is weaker in one place.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract import test_shares
from tests.contract.test_disk import Disk
from tests.contract.test_files import ID, IDENTITY
from tests.contract.test_shares import GID, QEMU, UID, Share, marked
from vtorque import become, diskserver, diskserving, proc, serving
from vtorque.cli import rooted
from vtorque.deadline import Deadline
from vtorque.errors import Blame, DeadlineExceeded, VtorqueError
from vtorque.userclerk import Clerk
from vtorque.userside import UserSide

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="becomes other users"),
]

root = test_shares.root
STRANGER = 54399
ANN = proc.Identity(uid=UID, gid=GID, groups=())
_PTRACE_ATTACH = 16
# Who has the mark is there for as long as he lives, and followed by another at once; who starts them has none.
_CROWD = """if True:
    import subprocess, sys, time
    crowd = []
    while time.time() < float(sys.argv[2]):
        crowd = [each for each in crowd if each.poll() is None]
        while len(crowd) < 10:
            crowd.append(subprocess.Popen(["/usr/bin/sleep", "30"], env={"VTORQUE_SHARE": sys.argv[1]}))
"""


def as_user(uid: int, gid: int, act: Callable[[], object]) -> int:
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def finishes(act: Callable[[], object], *, release: Callable[[], object]) -> bool:
    """Whether it does so in a few seconds; `release` is what lets it otherwise."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(15)
    held = thread.is_alive()
    release()
    thread.join(20)
    assert not thread.is_alive()
    return not held


@pytest.mark.parametrize("weakened", [False, True])
def test_a_side_that_its_user_has_stopped_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, weakened: bool) -> None:
    pid, orders = become.fork_as(IDENTITY, lambda orders: Clerk(Path("/")).serve(orders))
    side = UserSide(orders, ID)
    side.forget("phases", deadline=Deadline(10))
    assert side.usable
    os.waitpid(as_user(IDENTITY.uid, IDENTITY.gid, lambda: os.kill(pid, signal.SIGSTOP)), 0)
    handle = os.pidfd_open(pid)

    def release() -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)

    def close() -> None:
        # The program asks no more, and root lets him go.
        side.close()
        rooted._let_go(pid)

    with monkeypatch.context() as weaker:
        if weakened:
            weaker.setattr(os, "kill", lambda pid, number: None)
            weaker.setattr(os, "WNOHANG", 0)
        assert finishes(close, release=release) != weakened
    os.close(handle)


def tracer(of: Callable[[], list[int]]) -> int:
    """Somebody with that uid who attaches to all of them, and never takes a status."""
    def act() -> None:
        attach = ctypes.CDLL(None).ptrace
        attach.argtypes = [ctypes.c_long] * 4
        while True:
            for pid in of():
                attach(_PTRACE_ATTACH, pid, 0, 0)

    return as_user(UID, GID, act)


def processes_of(uid: int) -> list[int]:
    """Those that are really his, and no tracer of them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "status").read_text(errors="replace").partition("\nUid:")[2].split()
        except OSError:
            continue
        if words and words[0] == str(uid) and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def run_one() -> None:
    with pytest.raises(DeadlineExceeded):
        proc.run(["/usr/bin/sleep", "60"], identity=ANN, deadline=Deadline(1))


def wait_for_one() -> None:
    child = proc.spawn(["/usr/bin/sleep", "60"], stdin=proc.DEVNULL, stdout=proc.DEVNULL, stderr=proc.DEVNULL,
                       env={}, cwd=Path("/"), identity=ANN)
    with pytest.raises(DeadlineExceeded):
        proc.wait_in_group(child, deadline=Deadline(1))


@pytest.mark.parametrize("weakened", [False, True])
@pytest.mark.parametrize("what", ["run", "wait", "disk"])
def test_a_process_that_its_user_traces_is_not_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, what: str, weakened: bool
) -> None:
    if weakened:
        monkeypatch.setattr(proc, "reap", lambda child: child.wait())
    disk = Disk(root)
    (root / "script.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(diskserving, "_SCRIPT", root / "script.py")

    def serve() -> None:
        with pytest.raises(VtorqueError, match="cannot be opened in time") as caught:
            disk.start(seconds=1)
        assert caught.value.blame is Blame.USER

    attacker = tracer(lambda: processes_of(UID))

    def release() -> None:
        os.kill(attacker, signal.SIGKILL)
        os.waitpid(attacker, 0)

    act = {"run": run_one, "wait": wait_for_one, "disk": serve}[what]
    assert finishes(act, release=release) != weakened


@pytest.fixture
def crowd() -> Iterator[Callable[[int, Path], None]]:
    """Processes of a user, always new ones, that have a mark; until the test has ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(uid: int, path: Path) -> None:
        words = [sys.executable, "-ISc", _CROWD, str(path), str(time.time() + 30)]
        started.append(subprocess.Popen(words, user=uid, group=uid, extra_groups=[], cwd="/"))
        while len(marked(path)) < 10:
            time.sleep(0.01)

    yield start
    for each in started:
        each.kill()
        each.wait()
    for pid in (*processes_of(STRANGER), *processes_of(UID)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def by_the_mark_alone(process: Path, path: Path, before: float) -> bool:
    with contextlib.suppress(OSError):
        return f"VTORQUE_SHARE={path}".encode() in (process / "environ").read_bytes().split(b"\0")
    return False


def keeps(crowd: Callable[[int, Path], None], uid: int, path: Path) -> bool:
    """Whether a crowd keeps whoever ends the server until his deadline; one that is starved is killed to the last."""
    crowd(uid, path)
    try:
        serving.end(path, deadline=Deadline(4))
    except DeadlineExceeded:
        return True
    return False


@pytest.mark.parametrize(("uid", "weakened"), [(STRANGER, False), (UID, False), (STRANGER, True)])
def test_processes_without_end_that_say_they_are_a_server_keep_no_job_here(
    root: Path, monkeypatch: pytest.MonkeyPatch, crowd: Callable[[int, Path], None], uid: int, weakened: bool
) -> None:
    path = root / "7.srv_1of1.data.sock"
    if weakened:
        monkeypatch.setattr(serving, "_serves", by_the_mark_alone)
        monkeypatch.setattr(serving, "_DYING_SECONDS", 1000)
    with serving.listening(path, QEMU, test_shares.ANN.uid):
        if weakened:
            assert any(keeps(crowd, uid, path) for _ in range(5))
        else:
            crowd(uid, path)
            serving.end(path, deadline=Deadline(30))
            assert not path.exists()
            assert uid == UID or marked(path), "a stranger's processes are his"


def test_what_a_kill_does_not_end_is_left_to_its_user(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as waits for a file system of his own, in the kernel."""
    share = Share(root)
    with serving.listening(share.path, QEMU, test_shares.ANN.uid):
        stuck = subprocess.Popen(["/usr/bin/sleep", "60"], env={"VTORQUE_SHARE": str(share.path)}, user=UID)
        while not serving.serving(share.path):
            time.sleep(0.01)
        told: list[int] = []
        monkeypatch.setattr(serving, "_signal", lambda pid, path, number: told.append(number))
        monkeypatch.setattr(serving, "_DYING_SECONDS", 1.0)
        serving.end(share.path, patience=20.0, deadline=Deadline(5))
        assert not share.path.exists() and "counts as ended" in caplog.text
        assert (told[0], told[-1]) == (signal.SIGTERM, signal.SIGKILL)
        stuck.kill()
        stuck.wait()


def test_a_name_that_is_no_text_hides_nobody_and_stops_nobody(root: Path) -> None:
    share = Share(root)
    with serving.listening(share.path, QEMU, test_shares.ANN.uid):
        program = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\xff\\nUid:\\t0', 0, 0, 0); time.sleep(60)"
        stranger = subprocess.Popen(
            [sys.executable, "-ISc", program], env={"VTORQUE_SHARE": str(share.path)}, user=STRANGER, group=STRANGER,
        )
        while b"\xff" not in Path(f"/proc/{stranger.pid}/comm").read_bytes():
            time.sleep(0.01)
        assert serving.serving(share.path) == []
        stranger.kill()
        stranger.wait()


@pytest.mark.skipif(not diskserver.QEMU_NBD.exists(), reason="no qemu-nbd here")
def test_a_users_server_has_no_file_of_roots_open(root: Path) -> None:
    path = Disk(root).make().start()
    (pid,) = serving.serving(path)
    handles = [handle for handle in Path(f"/proc/{pid}/fd").iterdir() if handle.exists()]
    assert handles and [each for each in handles if each.is_file() and each.stat().st_uid != UID] == []


def test_a_server_that_talks_without_end_is_read_for_a_while(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(root)
    (root / "script.py").write_text("import os\nwhile True: os.write(2, b'x' * 60000)")
    monkeypatch.setattr(diskserving, "_SCRIPT", root / "script.py")
    with pytest.raises(VtorqueError, match="cannot be opened in time") as caught:
        disk.start(seconds=1)
    assert caught.value.blame is Blame.USER
    assert len(caught.value.details) <= serving.SAID_LIMIT


@pytest.mark.parametrize(("script", "why"), [
    ("import os; os.kill(os.getpid(), 9)", "its server ended with status -9"), ("import os; os._exit(9)", "status 9"),
    ("raise Exception", "its server ended with status 1"),
    ("import sys; sys.exit('\\x1b[2J no')", r"-vm disk=.*: \?\[2J no"),
])
def test_however_a_users_process_ends_it_is_not_the_nodes_fault(
    root: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    (root / "script.py").write_text(script)
    monkeypatch.setattr(diskserving, "_SCRIPT", root / "script.py")
    with pytest.raises(VtorqueError, match=why) as caught:
        Disk(root).start()
    assert caught.value.blame is Blame.USER


@pytest.mark.skipif(not serving.VIRTIOFSD.exists(), reason="no virtiofsd here")
@pytest.mark.parametrize(("number", "why"), [(signal.SIGSTOP, "in time"), (signal.SIGKILL, "ended with status -9")])
def test_who_stops_or_kills_the_server_of_his_share_gets_to_know_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, why: str
) -> None:
    share = Share(root)
    # Nothing is ever ready, so that there is time for it.
    monkeypatch.setattr(serving, "_READY", b"never")

    def act() -> None:
        while not (found := [pid for pid in processes_of(UID) if pid in marked(share.path)]):
            pass
        os.kill(found[0], number)

    attacker = os.fork()
    if not attacker:
        act()
        os._exit(0)
    with pytest.raises(VtorqueError, match=f"cannot serve {share.directory}: .*{why}") as caught:
        share.start(3)
    os.waitpid(attacker, 0)
    assert caught.value.blame is Blame.USER and marked(share.path) == []
