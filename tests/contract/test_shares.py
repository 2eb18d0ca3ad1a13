# SPDX-License-Identifier: Apache-2.0
"""Servers of shares, for real: whose they are, what they cannot do, and that none is left."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import a_site
from tests.contract.test_lifecycle import Scene
from tests.fakes.node import a_node
from vtorque import accounts, kinds, proc, serving, teardown
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, DeadlineExceeded, RequestError, StateError
from vtorque.model import Account, Group, Resource
from vtorque.node import Node

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root starts servers"),
    pytest.mark.skipif(not serving.VIRTIOFSD.exists(), reason="no virtiofsd here"),
]

UID, GID, MORE, QEMU = 54321, 54322, 54323, 54324
ANN = Account(
    name="ann", uid=UID, group=Group(name="ann", gid=GID), shell="/bin/sh", home=Path("/"),
    groups=(Group(name="ann", gid=GID), Group(name="hpc", gid=MORE)),
)


def marked(path: Path) -> list[int]:
    """Whoever says that he is the server of the socket, or of one that was there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"VTORQUE_SHARE={path}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


class Share:
    """A directory of ann's, and a server for it."""

    def __init__(self, root: Path, *, readonly: bool = False) -> None:
        self.directory, self.path, self.log = root / "home", root / "7.srv_1of1.home.sock", root / "home.log"
        self.directory.mkdir(mode=0o700)
        os.chown(self.directory, UID, GID)
        self.readonly = readonly

    def start(self, seconds: float = 20) -> None:
        with self.log.open("w+b") as log:
            serving.start(
                self.directory, self.path, readonly=self.readonly, account=ANN, owner=(QEMU, QEMU), log=log.fileno(),
                deadline=Deadline(seconds),
            )

    def end(self) -> None:
        serving.end(self.path, deadline=Deadline(10))

    @property
    def pid(self) -> int:
        (pid,) = marked(self.path)
        return pid

    def status(self) -> dict[str, list[str]]:
        lines = (line.partition(":") for line in Path("/proc", str(self.pid), "status").read_text().splitlines())
        return {name: value.split() for name, _, value in lines}


def node_below(root: Path) -> Node:
    """A node that has all its files there."""
    return a_node(a_site(state_dir=str(root / "run"), disk_dir=str(root / "disks"), ramdisk_dir=str(root / "ram")))


def socket_below(root: Path, name: str) -> Path:
    """Where such a node has a guest's socket: root ends a server nowhere else."""
    (root / "run/seeds").mkdir(parents=True)
    return root / "run/seeds" / name


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path("/var/lib") / f"vtorque-test-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    yield path
    for each in path.rglob("*.sock"):
        serving.end(each, deadline=Deadline(10))
    shutil.rmtree(path)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until_gone(share: Share) -> None:
    for _ in Deadline(10).ticks(doing="waiting for a server to end"):
        if not marked(share.path):
            return


def test_a_server_is_the_user_with_all_his_groups_and_nobody_else_exists_for_it(root: Path) -> None:
    share = Share(root)
    share.start()
    status = share.status()
    assert (set(status["Uid"]), set(status["Gid"])) == ({str(UID)}, {str(GID)})
    assert sorted(status["Groups"]) == [str(GID), str(MORE)]
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    process = Path("/proc", str(share.pid))
    assert (process / "uid_map").read_text().split() == [str(UID), str(UID), "1"]
    assert (process / "gid_map").read_text().split() == [str(GID), str(GID), "1", str(MORE), str(MORE), "1"]
    assert (process / "ns/user").readlink() != Path("/proc/self/ns/user").readlink()


def test_only_qemu_may_connect_and_the_user_cannot_look_into_his_server(root: Path) -> None:
    share = Share(root)
    share.start()
    about = share.path.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (QEMU, UID, 0o600)
    ann = proc.Identity(uid=UID, gid=GID, groups=(GID, MORE))
    for what in ("environ", "maps", "root/"):
        done = proc.run(
            ["/usr/bin/stat" if what == "root/" else "/usr/bin/cat", f"/proc/{share.pid}/{what}"], identity=ann,
            statuses=range(256), deadline=Deadline(10),
        )
        assert (done.status, done.stdout) == (1, b""), what


@pytest.mark.parametrize("readonly", [True, False])
def test_the_hosts_kernel_forbids_devices_foreign_rights_and_if_told_to_writing(root: Path, readonly: bool) -> None:
    share = Share(root, readonly=readonly)
    share.start()
    lines = [line.split() for line in Path("/proc", str(share.pid), "mountinfo").read_text().splitlines()]
    (options,) = (set(line[5].split(",")) for line in lines if line[4] == str(share.directory))
    assert {"nosuid", "nodev"} <= options
    assert ("ro" in options) == readonly
    assert "ro" not in Path("/proc/self/mountinfo").read_text().split(str(share.directory))[-1][:3]


def test_a_server_comes_up_to_qemu_and_ends_with_it(root: Path) -> None:
    """Its own sandbox within ours: it would end at once if it could not make that."""
    share = Share(root)
    share.start()
    os.chown(share.path, 0, -1)
    qemu = subprocess.Popen([
        "qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64",
        "-machine", "q35,memory-backend=m", "-object", "memory-backend-memfd,id=m,size=64M,share=on",
        "-chardev", f"socket,id=c,path={share.path}", "-device", "vhost-user-fs-pci,chardev=c,tag=home",
    ])
    try:
        for _ in Deadline(20).ticks(doing="waiting for two processes of the server"):
            if len(marked(share.path)) == 2:
                break
        time.sleep(0.3)
        assert len(marked(share.path)) == 2, share.log.read_text()
        assert qemu.poll() is None
        (share.directory / "all there is").touch()
        # Its number may be the lower one, once numbers begin anew.
        (within,) = (pid for pid in marked(share.path) if parent_of(pid) in marked(share.path))
        inner = Path("/proc", str(within), "root")
        assert [each.name for each in inner.iterdir()] == ["all there is"]
        capabilities = (inner.parent / "status").read_text().partition("CapPrm:")[2].split()[0]
        assert int(capabilities, 16) == 1 << 6 | 1 << 7, "setgid and setuid"
    finally:
        qemu.kill()
        qemu.wait()
    until_gone(share)


def test_ending_is_complete_and_may_be_repeated(root: Path) -> None:
    share = Share(root)
    share.start()
    share.end()
    assert marked(share.path) == []
    assert not share.path.exists()
    share.end()


def test_a_directory_that_the_user_cannot_read_is_refused_with_the_reason(root: Path) -> None:
    share = Share(root)
    os.chown(share.directory, 0, 0)
    with pytest.raises(RequestError, match=f"^cannot serve {share.directory}: Permission denied"):
        share.start()
    assert marked(share.path) == []


def test_without_a_namespace_virtiofsd_cannot_be_the_users(root: Path) -> None:
    """Why there is a script between root and virtiofsd."""
    share = Share(root)
    done = proc.run(
        [serving.VIRTIOFSD, f"--socket-path={share.directory}/s", "-o", f"source={share.directory}"],
        identity=proc.Identity(uid=UID, gid=GID, groups=(GID, MORE)), statuses=range(1, 256), deadline=Deadline(10),
    )
    assert b"setgroups() failed" in done.stderr


def test_a_path_that_no_socket_can_have_is_refused(root: Path) -> None:
    share = Share(root)
    share.path = root / ("x" * 100)
    with pytest.raises(ConfigError, match="too long for a socket"):
        share.start()


def test_of_more_groups_than_a_namespace_takes_the_primary_one_is_among_those_that_are_left(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(Group(name="", gid=gid) for gid in range(1_000_000, 1_000_250))
    monkeypatch.setitem(globals(), "ANN", ANN._replace(groups=many, group=many[-1]))
    share = Share(root)
    os.chown(share.directory, UID, many[-1].gid)
    share.start()
    groups = {int(each) for each in share.status()["Groups"]}
    assert groups == {many[-1].gid, *range(1_000_000, 1_000_000 + 4095 // len("1000000 1000000 1\n") - 1)}


def test_what_is_there_by_an_old_log_is_not_read_whole(root: Path) -> None:
    log = root / "a.log"
    log.touch()
    os.truncate(log, 1 << 40)
    with log.open("ab") as file:
        file.write(b"\nthe reason\n")
    with log.open("rb") as file:
        said = serving.said(file.fileno())
    assert said.endswith("the reason") and len(said) < 8100


def test_out_of_time_leaves_nothing(root: Path) -> None:
    share = Share(root)
    with pytest.raises(DeadlineExceeded):
        share.start(0)
    assert marked(share.path) == []


def test_a_root_that_dies_while_it_gives_the_order_leaves_nothing(root: Path) -> None:
    share = Share(root)
    order = ["/usr/bin/python3", "-I", "-S", str(Path(serving.__file__).with_name("shareserver.py"))]
    env = {**proc.CLEAN_ENV, "VTORQUE_SHARE": str(share.path)}
    child = proc.spawn(order, stdin=proc.PIPE, stdout=proc.PIPE, stderr=proc.DEVNULL, env=env, cwd=Path("/"))
    assert child.stdin is not None and child.stdout is not None
    with child.stdout:
        with child.stdin as orders:
            orders.write(b"{}\n")
            orders.flush()
            assert child.stdout.readline() == b"unshared\n"
        assert child.wait(10) == 1


@pytest.mark.parametrize("recorded", [True, False])
def test_teardown_ends_servers_with_and_without_a_ledger(root: Path, recorded: bool) -> None:
    share, node = Share(root), node_below(root)
    share.path = socket_below(root, share.path.name)
    state = node.state("7.srv")
    state.create()
    if recorded:
        with pytest.raises(KeyboardInterrupt), state.taking(
            Resource(kind=kinds.SHARE, name=str(share.path)), deadline=Deadline(5)
        ):
            share.start()
            raise KeyboardInterrupt
        teardown.release(state, node, deadline=Deadline(10))
    else:
        share.start()
        teardown.release_unrecorded("7.srv", node, deadline=Deadline(10))
    assert marked(share.path) == []
    assert not share.path.exists()


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_job_has_a_server_until_it_ends_or_cannot_start(root: Path, fail_at: int) -> None:
    accounts.account("games", min_uid=1)
    scene = Scene(root, fail_at=fail_at, share="virtiofs", vm_share_ws="", vm_share_opt="")
    path = root / "run/seeds/7.srv_1of1.home.sock"
    scene.prologue()
    assert bool(marked(path)) == path.exists() == (not fail_at)
    scene.epilogue()
    assert marked(path) == []
    assert not [name for name in scene.left() if "7.srv" in name]


def test_what_qemu_opens_is_the_users_when_it_runs_as_him(root: Path) -> None:
    scene = Scene(root, share="9p")
    scene.prologue()
    overlay, seed = root / "disks/7.srv/7.srv_1of1.qcow2", root / "run/seeds/7.srv_1of1.iso"
    assert {path.stat().st_uid for path in (overlay, seed)} == {accounts.account("games", min_uid=1).uid}
    scene.epilogue()
    assert not [name for name in scene.left() if "7.srv" in name]


def test_a_stranger_who_calls_himself_a_server_is_all_that_is_killed(root: Path) -> None:
    share = Share(root)
    with serving.listening(share.path, QEMU, ANN.uid):
        env = {"VTORQUE_SHARE": f"{share.path}"}
    same = subprocess.Popen(["/bin/sleep", "60"], env=env)
    other = subprocess.Popen(["/bin/sleep", "60"], env={"VTORQUE_SHARE": f"{share.path}2"})
    try:
        while not marked(share.path):
            time.sleep(0.01)
        share.end()
        assert same.wait(60) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_node_without_virtiofsd_is_the_sites_affair(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "VIRTIOFSD", root / "virtiofsd")
    with pytest.raises(ConfigError, match=r"SHARE: virtiofs needs .*/virtiofsd"):
        Share(root).start()


@pytest.mark.parametrize(("script", "kind", "why"), [
    ("import sys; sys.exit('user namespace: no')", StateError, "user namespace: no"),
    ("print('no', flush=True)", RequestError, "its server ended with status 0"),
    ("import os; os.kill(0, 9)", RequestError, "its server ended with status -9"),
])
def test_a_server_that_cannot_confine_itself_is_not_told_to_go_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[Exception], why: str
) -> None:
    share = Share(root)
    (root / "script.py").write_text(script)
    monkeypatch.setattr(serving, "_SCRIPT", root / "script.py")
    with pytest.raises(kind, match=f"cannot serve {share.directory}: {why}"):
        share.start()
    assert marked(share.path) == []


def test_a_number_that_is_another_process_by_now_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [[os.getpid()], []]
    monkeypatch.setattr(serving, "serving", lambda path, before: seen.pop(0))
    serving.end(root / "a.sock", deadline=Deadline(5))
    assert seen == []
