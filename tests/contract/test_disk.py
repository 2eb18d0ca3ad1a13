# SPDX-License-Identifier: Apache-2.0
"""Users' own disks, for real: whose server it is, who is told what, and that none is left."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import a_request
from tests.contract.test_lifecycle import USER, Scene
from tests.contract.test_shares import marked, node_below, socket_below
from vtorque import accounts, diskserver, diskserving, kinds, proc, request, serving, teardown
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, DeadlineExceeded, RequestError
from vtorque.model import Account, Group, Resource

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root starts servers"),
    pytest.mark.skipif(not diskserver.QEMU_NBD.exists(), reason="no qemu-nbd here"),
]

UID, GID, MORE, QEMU = 54321, 54322, 54323, 54324
ANN = Account(
    name="ann", uid=UID, group=Group(name="ann", gid=GID), shell="/bin/sh", home=Path("/"),
    groups=(Group(name="ann", gid=GID), Group(name="hpc", gid=MORE)),
)


class Disk:
    """An image of ann's, and servers for it."""

    def __init__(self, root: Path, name: str = "data.img", *, new_mib: int = 0) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir(mode=0o700, exist_ok=True)
        os.chown(self.home, UID, GID)
        self.image = self.home / name
        self.request = a_request(disk=str(self.image), disk_new_mib=new_mib)
        self.path = root / "7.srv_1of1.data.sock"

    def make(self, size: str = "4M", *options: str, owner: int = UID) -> "Disk":
        image_format = "qcow2" if self.image.suffix == ".qcow2" else "raw"
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *options, self.image, size], check=True)
        os.chown(self.image, owner, owner)
        return self

    def make_raw(self) -> "Disk":
        """Zeros, whatever its name says."""
        self.image.write_bytes(bytes(1 << 20))
        os.chown(self.image, UID, UID)
        return self

    def start(self, job: int = 7, seconds: float = 20) -> Path:
        """Serve it for a job; the socket."""
        path = self.path.with_name(f"{job}.srv_1of1.data.sock")
        diskserving.start(
            self.request.disk, self.request.disk_new_mib, path, account=ANN, owner=(QEMU, QEMU),
            holder=f"job {job}.srv on node n{job}", deadline=Deadline(seconds),
        )
        return path

    def refusal(self, job: int = 8) -> str:
        with pytest.raises(RequestError) as caught:
            self.start(job)
        assert marked(self.root / f"{job}.srv_1of1.data.sock") == []
        return caught.value.one_line().removeprefix(f"-vm disk={self.image}: ")

    def end(self) -> None:
        serving.end(self.path, patience=20.0, deadline=Deadline(20))

    def holder(self) -> str:
        """What vsub finds, as the user."""
        code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n" \
            "from vtorque import diskserver; print(diskserver.holder(Path(sys.argv[2])))"
        done = proc.run(
            ["/usr/bin/python3", "-I", "-S", "-c", code, Path(diskserver.__file__).parents[1], self.image],
            identity=proc.Identity(uid=UID, gid=GID, groups=(GID,)), deadline=Deadline(20),
        )
        return done.stdout.decode().strip()


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path("/var/lib") / f"vtorque-test-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    yield path
    for each in path.rglob("*.sock"):
        serving.end(each, deadline=Deadline(10))
    shutil.rmtree(path)


def contents(path: Path) -> str:
    """What QEMU is told of the disk that is served."""
    os.chown(path, 0, -1)
    done = proc.run(["/usr/bin/qemu-img", "info", f"nbd+unix:///?socket={path}"], deadline=Deadline(20))
    return done.stdout.decode()


def test_a_server_is_the_user_with_all_his_groups_and_no_way_to_more_rights(root: Path) -> None:
    disk = Disk(root).make()
    path = disk.start()
    about = path.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (QEMU, UID, 0o600)
    (pid,) = marked(path)
    lines = (line.partition(":") for line in Path("/proc", str(pid), "status").read_text().splitlines())
    status = {name: value.split() for name, _, value in lines}
    assert (set(status["Uid"]), set(status["Gid"])) == ({str(UID)}, {str(GID)})
    assert (sorted(status["Groups"]), status["NoNewPrivs"]) == ([str(GID), str(MORE)], ["1"])
    assert pid in proc.session_members(os.getsid(pid)) and os.getsid(pid) != os.getsid(0)
    disk.end()
    assert marked(path) == [] and not path.exists()
    disk.end()


def test_it_ends_with_its_client_and_the_image_is_free(root: Path) -> None:
    disk = Disk(root).make()
    assert "4 MiB" in contents(disk.start())
    for _ in Deadline(10).ticks(doing="waiting for a server to end"):
        if not marked(disk.path):
            break
    assert disk.holder() == ""


def test_a_second_job_is_told_who_has_it_until_nobody_has_whatever_the_note_says(root: Path) -> None:
    disk = Disk(root).make()
    disk.start(7)
    assert disk.refusal(8) == "is in use by job 7.srv on node n7"
    assert disk.holder() == "job 7.srv on node n7"
    for pid in marked(disk.path):
        os.kill(pid, 9)
    for _ in Deadline(10).ticks(doing="waiting for a server to end"):
        if not marked(disk.path):
            break
    assert diskserver.note_of(disk.image).read_text() == "job 7.srv on node n7\n", "a crash leaves it"
    assert disk.holder() == ""
    disk.start(9)
    assert disk.holder() == "job 9.srv on node n9"


@pytest.mark.parametrize("spoil", ["link", "fifo", "garbage", "absent"])
def test_a_note_that_is_none_is_not_believed_and_harms_nobody(root: Path, spoil: str) -> None:
    disk = Disk(root).make()
    note, secret = diskserver.note_of(disk.image), root / "secret"
    secret.write_text("root's own\n")
    if spoil == "link":
        note.symlink_to(secret)
    elif spoil == "fifo":
        os.mkfifo(note)
    disk.start(7)
    assert secret.read_text() == "root's own\n"
    if spoil == "garbage":
        note.write_bytes(b"\x1b[2J\n")
    elif spoil == "absent":
        note.unlink()
    assert disk.refusal(8) == "is in use by another program"


def test_a_guest_that_the_user_has_started_himself_is_respected(root: Path) -> None:
    disk = Disk(root).make()
    other = subprocess.Popen([
        "qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "16",
        "-drive", f"if=virtio,format=raw,file={disk.image}", "-qmp", f"unix:{root}/other,server=on,wait=off",
    ])
    try:
        for _ in Deadline(20).ticks(doing="waiting for a guest"):
            if (root / "other").exists():
                break
        for _ in Deadline(20).ticks(doing="waiting for its locks"):
            if str(disk.image.stat().st_ino) in Path("/proc/locks").read_text():
                break
        assert 'Failed to get "write" lock' in disk.refusal()
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("name", ["new.img", "new.qcow2"])
def test_a_new_one_is_the_users_takes_no_room_and_is_made_once(root: Path, name: str) -> None:
    disk = Disk(root, name, new_mib=1 << 10)
    assert "1 GiB" in contents(disk.start())
    about = disk.image.stat()
    assert (about.st_uid, about.st_mode & 0o777) == (UID, 0o600)
    assert about.st_blocks * 512 < 1 << 20
    disk.end()
    disk.request = disk.request._replace(disk_new_mib=1 << 12)
    assert "1 GiB" in contents(disk.start(9)), "its size counts only when it is made"


def test_what_cannot_be_served_is_the_users_fault_and_said_in_one_line(root: Path) -> None:
    missing = Disk(root)
    assert missing.refusal() == f"there is no such file (disk={missing.image}:20G makes one)"
    assert Disk(root, "theirs.img").make(owner=0).refusal(9) == "Permission denied"
    (root / "home/dir.img").mkdir()
    assert Disk(root, "dir.img").refusal(10) == "Is a directory"
    os.mkfifo(root / "home/fifo.img")
    os.chown(root / "home/fifo.img", UID, GID)
    assert Disk(root, "fifo.img").refusal(11) == "is not a regular file"
    (root / "home/link.img").symlink_to("/etc/passwd")
    assert Disk(root, "link.img").refusal(12) == "Too many levels of symbolic links"
    empty = Disk(root, "empty.img")
    empty.image.touch()
    os.chown(empty.image, UID, GID)
    assert empty.refusal(13).startswith("is empty (disk=")
    assert Disk(root, "fake.qcow2").make_raw().refusal(14) == "is not qcow2, as its name says"


def test_an_image_that_names_another_file_is_refused(root: Path) -> None:
    base = Disk(root, "base.qcow2").make()
    overlay = Disk(root, "overlay.qcow2").make("4M", "-b", str(base.image), "-F", "qcow2")
    assert overlay.refusal() == "has a backing file"
    data = Disk(root, "data.qcow2").make("4M", "-o", f"data_file={root}/home/raw")
    assert data.refusal(9) == "keeps its data in another file"


def test_a_node_without_qemu_nbd_is_to_blame_itself_and_for_no_end_of_the_users_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(root).make()
    monkeypatch.setattr(diskserving, "_SCRIPT", root / "absent.py")
    with pytest.raises(RequestError, match="its server ended with status 2"):
        disk.start()
    monkeypatch.setattr(diskserving, "QEMU_NBD", root / "absent")
    with pytest.raises(ConfigError, match=r"needs .*absent on the node"):
        disk.start(8)


def test_out_of_time_leaves_nothing(root: Path) -> None:
    disk = Disk(root).make()
    with pytest.raises(DeadlineExceeded):
        disk.start(seconds=0)
    assert marked(disk.path) == []


@pytest.mark.parametrize("recorded", [True, False])
def test_teardown_ends_a_server_whose_start_was_cut_short(root: Path, recorded: bool) -> None:
    disk, node = Disk(root).make(), node_below(root)
    disk.path = socket_below(root, disk.path.name)
    state = node.state("7.srv")
    state.create()
    if recorded:
        with pytest.raises(KeyboardInterrupt), state.taking(
            Resource(kind=kinds.DISK, name=str(disk.path)), deadline=Deadline(5)
        ):
            disk.start()
            raise KeyboardInterrupt
        teardown.release(state, node, deadline=Deadline(30))
    else:
        disk.start()
        teardown.release_unrecorded("7.srv", node, deadline=Deadline(10))
    assert marked(disk.path) == []
    assert not disk.path.exists()


class DiskScene(Scene):
    """A job with a disk on a node of fakes."""

    def __init__(self, root: Path, *, new_mib: int = 8, fail_at: int = 0, says: bytes = b"") -> None:
        super().__init__(root, fail_at=fail_at, says=says)
        account = accounts.account(USER, min_uid=1)
        (root / "home").mkdir()
        os.chown(root / "home", account.uid, account.group.gid)
        self.image = root / "home/data.img"
        self.request = self.request._replace(disk=str(self.image), disk_new_mib=new_mib)
        self.job = self.job._replace(request=request.encode(self.request))
        self.socket = root / "run/seeds/7.srv_1of1.data.sock"


def test_a_job_has_its_disk_until_its_guest_has_shut_down(root: Path) -> None:
    scene = DiskScene(root)
    scene.prologue()
    assert scene.markers() == {"ready"}
    assert marked(scene.socket) and scene.image.stat().st_size == 8 << 20
    held = [each.kind for each in scene.state.held()]
    assert held.index(kinds.SHUTDOWN) < held.index(kinds.DOMAIN) < held.index(kinds.DISK)
    scene.epilogue()
    assert scene.hypervisor.calls.index("shutdown") < scene.hypervisor.calls.index("destroy")
    assert marked(scene.socket) == [] and scene.left() == []


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_start_that_fails_presses_no_button_and_leaves_no_server(root: Path, fail_at: int) -> None:
    scene = DiskScene(root, fail_at=fail_at)
    scene.prologue()
    assert scene.markers() == {"failed"}
    assert "shutdown" not in scene.hypervisor.calls and marked(scene.socket) == []
    scene.epilogue()


@pytest.mark.parametrize(("new_mib", "says"), [(0, b""), (8, b"refused: -vm disk=x: holds no file system\n")])
def test_a_disk_that_cannot_be_had_is_the_users_fault(root: Path, new_mib: int, says: bytes) -> None:
    scene = DiskScene(root, new_mib=new_mib, says=says)
    scene.prologue()
    failed = (scene.state.path / "failed").read_text()
    assert '"blame": "user"' in failed and "-vm disk=" in failed
    scene.epilogue()
    assert scene.left() == []
