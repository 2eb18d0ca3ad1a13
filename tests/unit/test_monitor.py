# SPDX-License-Identifier: Apache-2.0
"""What root does for the program, asked as the program asks it, and what it refuses whoever got the better of it."""

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_plan, a_site, an_account, some_keys
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.node import OURSELVES, TEXTS, Here, a_monitor, bound_to
from vtorque import audit, diskserving, guestfiles, monitor, proc, render, servant, serving
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, DeadlineExceeded, InternalError, StateError
from vtorque.model import Account, Group, JobId
from vtorque.monitor import Bound, Monitor
from vtorque.proc import Identity
from vtorque.rootside import RootSide

ROOT = os.geteuid() == 0
# Of nobody in particular: who is not root gives nothing away but to himself.
HIS = an_account(uid=2000, group=Group(name="ann", gid=2000)) if ROOT else an_account(
    uid=os.geteuid(), group=Group(name="ann", gid=os.getegid())
)
Act = Callable[[RootSide, Path], object]


def soon() -> Deadline:
    return Deadline(20)


class Scene:
    """A node's directories, and root, who acts for job 7.srv there."""

    def __init__(self, root: Path, *, bound: Bound | None, **site: Any) -> None:
        self.root = root
        self.site = a_site(**{
            "state_dir": str(root / "run"), "disk_dir": str(root / "disks"), "ramdisk_dir": str(root / "ram"),
            "torque_home": str(root / "torque"), "vm_img_dir": "/images", **site,
        })
        self.seeds, self.disks = root / "run/seeds", root / "disks"
        for path in (self.seeds, self.disks, root / "torque/mom_priv/jobs"):
            path.mkdir(parents=True, exist_ok=True)
        self.hypervisor = FakeHypervisor()
        self.monitor = self.acting_for(bound)
        self.rootside = RootSide(Here(self.monitor))

    def acting_for(self, bound: Bound | None, **parts: Any) -> Monitor:
        return a_monitor(self.site, hypervisor=self.hypervisor, bound=bound, **parts)

    def own(self, ending: str = "iso", *, key: str = "7.srv") -> Path:
        return self.seeds / f"{key}_1of1.{ending}"

    def serve(self, verb: str, path: Path) -> None:
        """Ask for a server of the user's files there."""
        if verb == "serve_share":
            self.rootside.serve_share(path, Path("/"), readonly=False, log=0, deadline=soon())
        else:
            self.rootside.serve_disk(path, "/d", new_mib=0, holder="x", deadline=soon())

    def document(self, key: str = "7.srv") -> str:
        """A domain document, with the files that it needs in place."""
        (vm,) = (plan := a_plan(job=a_job(id=JobId(key)), site=self.site)).vms
        for path in (vm.overlay, vm.seed):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return render.guest(
            plan, vm, site=self.site, keys=some_keys(), announce="", templates=TEXTS
        ).domain_xml


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, bound=bound_to(a_job(), HIS))


@pytest.fixture
def nobodys(tmp_path: Path) -> Scene:
    """Root in a sweep, who acts for no job."""
    return Scene(tmp_path, bound=None)


@pytest.fixture
def homeless(tmp_path: Path) -> Scene:
    """Root for the job of a user who may have no guests."""
    return Scene(tmp_path, bound=bound_to(a_job())._replace(account=None))


class TestGuestsFiles:
    @pytest.mark.skipif(not ROOT, reason="directories have to be root's")
    def test_a_guests_files_come_and_go(self, scene: Scene) -> None:
        scene.seeds.rmdir()
        scene.rootside.make_place("sharedfs", deadline=soon())
        assert scene.seeds.stat().st_mode & 0o777 == 0o711
        place = scene.disks / "7.srv"
        assert place.stat().st_mode & 0o777 == 0o711
        for path in (scene.own(), place / "7.srv_1of1.qcow2"):
            handle = scene.rootside.create(path, deadline=soon())
            os.write(handle, b"x")
            os.close(handle)
            assert (path.stat().st_mode & 0o777, path.read_text()) == (0o600, "x")
            scene.rootside.give(path, deadline=soon())
        assert scene.rootside.listing(deadline=soon()) == {
            place: {"7.srv_1of1.qcow2": False}, scene.seeds: {"7.srv_1of1.iso": False},
        }
        with pytest.raises(OSError, match="not empty"):
            scene.rootside.leave_place(place, deadline=soon())
        for path in (scene.own(), place / "7.srv_1of1.qcow2"):
            scene.rootside.remove(path, deadline=soon())
        for _ in range(2):
            scene.rootside.leave_place(place, deadline=soon())
        assert not place.exists()

    @pytest.mark.skipif(not ROOT, reason="only root gives files away")
    @pytest.mark.parametrize(("share", "owner"), [
        ("nfs", (64055, 107)), ("virtiofs", (64055, 107)), ("9p", (2000, 2000)),
    ])
    def test_they_are_whose_guests_are(self, tmp_path: Path, share: str, owner: tuple[int, int]) -> None:
        scene = Scene(tmp_path, bound=bound_to(a_job()), share=share)
        root = RootSide(Here(scene.acting_for(bound_to(a_job()), qemu=(64055, 107))))
        os.close(root.create(scene.own(), deadline=soon()))
        root.give(scene.own(), deadline=soon())
        assert (scene.own().stat().st_uid, scene.own().stat().st_gid) == owner

    @pytest.mark.parametrize("verb", ["create", "give", "console", "connect"])
    @pytest.mark.parametrize("path", [
        "run/seeds/8.srv_1of1.iso", "run/seeds/../seeds/7.srv_1of1.iso", "run/seeds/7.srv", "run/seeds/7.srv_1of1",
        "run/seeds/7.srv_1of1.iso/..", "run/seeds/x_1of1.iso", "run/jobs/7.srv_1of1.iso", "disks/7.srv_1of1.qcow2",
        "disks/8.srv/7.srv_1of1.qcow2", "disks/7.srv/8.srv_1of1.qcow2", "disks/8.srv/../7.srv/7.srv_1of1.qcow2",
        "elsewhere/7.srv/7.srv_1of1.qcow2", "run/seeds/7.srv_1of1.a/b", "run/seeds/7.srv_1of1.\n",
        "ram/7.srv/7.srv_1of1.qcow2",
    ])
    def test_nothing_else_is_made_given_away_or_read(self, scene: Scene, verb: str, path: str) -> None:
        for place in ("run/jobs", "disks/7.srv", "disks/8.srv", "elsewhere/7.srv", "ram/7.srv"):
            (scene.root / place).mkdir(parents=True, exist_ok=True)
        words: list[Any] = [Path(f"{scene.root}/{path}")]
        ask = getattr(scene.rootside, verb)
        named = {"deadline": soon()} if verb in ("create", "give") else {}
        with pytest.raises(InternalError, match="no place for a guest's file"):
            ask(*words, **named)
        assert not [each for each in scene.root.rglob("*") if each.is_file()]

    @pytest.mark.parametrize("path", ["7.srv_1of1.iso", "../seeds/7.srv_1of1.iso", "//7.srv_1of1.iso", ""])
    def test_a_path_that_is_not_whole_leads_nowhere(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        monkeypatch.chdir(scene.seeds)
        scene.own().touch()
        for ask in (scene.rootside.give, scene.rootside.remove, scene.rootside.end_server):
            with pytest.raises(InternalError, match="no place for a guest's file"):
                ask(Path(path), deadline=soon())
        assert scene.own().exists()

    @pytest.mark.parametrize("verb", ["serve_share", "serve_disk"])
    def test_a_server_of_the_users_files_is_not_where_the_program_may_connect(self, scene: Scene, verb: str) -> None:
        with pytest.raises(InternalError, match="root refuses serving at"):
            scene.serve(verb, scene.own("channel"))
        assert not list(scene.seeds.iterdir())

    @pytest.mark.skipif(not ROOT, reason="only root gives files away")
    def test_who_has_written_a_file_writes_to_it_no_more(self, scene: Scene) -> None:
        """QEMU takes it as it was looked at."""
        part = scene.own("iso.9")
        part.write_text("a hook's that was killed")
        handle = scene.rootside.create(scene.own(), deadline=soon())
        os.truncate(handle, 1 << 20)
        os.pwrite(handle, b"x", 1 << 19)
        scene.rootside.give(scene.own(), deadline=soon())
        os.pwrite(handle, b"later", 0)
        os.close(handle)
        assert scene.own().read_bytes() == bytes(1 << 19) + b"x" + bytes((1 << 19) - 1)
        assert (scene.own().stat().st_mode & 0o777, part.exists()) == (0o600, False)

    @pytest.mark.parametrize(("head", "refused"), [
        (b"QFI\xfb" + bytes(68) + bytes(7) + b"\4", True), (b"QFI\xfb" + bytes(68) + b"\1" + bytes(7), True),
        (b"QFI\xfb" + bytes(68) + bytes(8) + b"\4", False), (b"QFI\xfa" + bytes(68) + b"\4" * 8, False),
        (b"QFI\xfb", False),
    ])
    def test_no_overlay_names_another_file(self, scene: Scene, head: bytes, refused: bool) -> None:
        """An external data file is one of the features that who reads it has to know."""
        handle = scene.rootside.create(scene.own(), deadline=soon())
        os.write(handle, head)
        os.close(handle)
        if refused:
            with pytest.raises(InternalError, match="root refuses an overlay with features"):
                scene.rootside.give(scene.own(), deadline=soon())
        else:
            scene.rootside.give(scene.own(), deadline=soon())
        assert scene.own().read_bytes() == head
        scene.rootside.remove(scene.own(), deadline=soon())
        assert not list(scene.seeds.iterdir())

    def test_nothing_large_is_copied(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guestfiles, "_LARGEST", 4096)
        handle = scene.rootside.create(scene.own(), deadline=soon())
        os.truncate(handle, 4096)
        scene.rootside.give(scene.own(), deadline=soon())
        os.close(handle)
        os.truncate(scene.own(), 4097)
        with pytest.raises(InternalError, match="root refuses a file of 4097 bytes"):
            scene.rootside.give(scene.own(), deadline=soon())

    @pytest.mark.skipif(not ROOT, reason="only root gives files away")
    def test_what_is_written_meanwhile_is_not_waited_for_and_looked_at_as_it_was_copied(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle = scene.rootside.create(scene.own(), deadline=soon())
        os.write(handle, b"QFI\xfb" + bytes(96))
        real, calls = os.sendfile, 0

        def sendfile(out: int, source: int, offset: None, count: int) -> int:
            nonlocal calls
            calls += 1
            os.pwrite(handle, b"\xff", 72)
            os.pwrite(handle, b"more", os.fstat(handle).st_size)
            return real(out, source, offset, min(count, 90))

        monkeypatch.setattr(os, "sendfile", sendfile)
        with pytest.raises(InternalError, match="root refuses an overlay with features"):
            scene.rootside.give(scene.own(), deadline=soon())
        os.close(handle)
        assert calls == 2

    @pytest.mark.parametrize("verb", ["serve_share", "serve_disk"])
    def test_at_another_place_of_the_guests_they_are_served(
        self, scene: Scene, verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        places: list[Path] = []

        def start(*words: Any, **named: object) -> bytes:
            places.append(words[-1])
            return b""

        monkeypatch.setattr(serving, "start", start)
        monkeypatch.setattr(diskserving, "start", start)
        scene.serve(verb, scene.own("home.sock"))
        assert places == [scene.own("home.sock")]

    def test_a_socket_is_not_given_away(self, scene: Scene) -> None:
        os.mknod(scene.own("home.sock"), 0o600 | stat.S_IFSOCK)
        with pytest.raises(OSError, match="No such device"):
            scene.rootside.give(scene.own("home.sock"), deadline=soon())
        assert scene.own("home.sock").is_socket()

    def test_what_is_there_is_not_made_again_be_it_a_link(self, scene: Scene) -> None:
        scene.own().symlink_to(scene.root / "passwd")
        with pytest.raises(FileExistsError):
            scene.rootside.create(scene.own(), deadline=soon())
        with pytest.raises(OSError, match="symbolic links"):
            scene.rootside.give(scene.own(), deadline=soon())
        assert scene.rootside.console(scene.own()) == "no console output"

    def test_what_is_not_there_is_removed(self, scene: Scene) -> None:
        scene.own("channel").touch()
        for path in (scene.own(), scene.disks / "7.srv/7.srv_1of1.console", scene.own(key="8.srv")):
            scene.rootside.remove(path, deadline=soon())
        scene.rootside.leave_place(scene.disks / "7.srv", deadline=soon())
        assert [*scene.seeds.iterdir(), *scene.disks.iterdir()] == [scene.own("channel")]

    def test_another_jobs_is_removed_too_by_who_sweeps_and_nothing_but_guests_files_is(self, nobodys: Scene) -> None:
        old, own = nobodys.own(key="8.srv"), nobodys.root / "own"
        console = nobodys.disks / "8.srv/8.srv_1of1.console"
        console.parent.mkdir()
        for path in (old, own, console, console.with_name(f"{console.name}.0"), console.with_name("notes")):
            path.touch()
        for path in (old, console):
            nobodys.rootside.remove(path, deadline=soon())
        for path in (own, console.with_name("notes"), nobodys.seeds / ".." / "seeds" / old.name):
            with pytest.raises(InternalError, match="no place for a guest's file"):
                nobodys.rootside.remove(path, deadline=soon())
        assert (old.exists(), own.exists()) == (False, True)
        assert [path.name for path in console.parent.iterdir()] == ["notes"]

    @pytest.mark.parametrize("path", [
        "run/seeds", "disks", "disks/strange", "disks/7.srv/..", "disks/7.srv/below", "elsewhere/7.srv", "ram/7.srv",
        "disks/../elsewhere/7.srv",
    ])
    def test_no_other_directory_is_left(self, scene: Scene, path: str) -> None:
        for place in ("disks/7.srv/below", "disks/strange", "elsewhere/7.srv", "ram/7.srv"):
            (scene.root / place).mkdir(parents=True)
        with pytest.raises(InternalError, match="root refuses removing"):
            scene.rootside.leave_place(Path(f"{scene.root}/{path}"), deadline=soon())
        assert (scene.root / path).is_dir()

    @pytest.mark.skipif(not ROOT, reason="directories have to be root's")
    def test_there_is_no_place_where_others_could_put_something(self, scene: Scene) -> None:
        scene.disks.chmod(0o777)
        with pytest.raises(ConfigError, match="writable by others"):
            scene.rootside.make_place("sharedfs", deadline=soon())
        assert not list(scene.disks.iterdir())

    @pytest.mark.skipif(not ROOT, reason="directories have to be root's")
    def test_a_job_that_ends_meanwhile_hides_no_other_jobs_files(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in ("7.srv", "8.srv"):
            (scene.disks / key).mkdir()
        read = os.listdir

        def late(path: Any) -> list[str]:
            if Path(path).name == "8.srv":
                Path(path).rmdir()
            return read(path)

        monkeypatch.setattr(os, "listdir", late)
        assert scene.rootside.listing(deadline=soon()) == {scene.disks / "7.srv": {}, scene.seeds: {}}


class TestShare:
    """What of the program's the job's user gets to see."""

    @pytest.mark.skipif(not ROOT, reason="only root gives files away")
    def test_a_file_is_his_groups_to_read_and_a_socket_his_to_connect_to(self, scene: Scene) -> None:
        file, at = scene.root / "ready", scene.root / "connection"
        file.touch(mode=0o640)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(at))
            for path in (file, at):
                scene.rootside.share(path, deadline=soon())
        assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (0, 2000, 0o640)
        assert (at.lstat().st_uid, at.lstat().st_gid) == (2000, 0)

    @pytest.mark.parametrize("kind", ["directory", "two links", "pipe", "symbolic link", "device"])
    def test_what_is_neither_is_given_to_nobody(self, scene: Scene, kind: str) -> None:
        path = scene.root / "it"
        match kind:
            case "directory":
                path.mkdir()
            case "two links":
                path.touch()
                path.with_name("other").hardlink_to(path)
            case "pipe":
                os.mkfifo(path)
            case "symbolic link":
                path.with_name("file").touch()
                path.symlink_to(path.with_name("file"))
            case "device":
                path = Path("/dev/null")
        before = path.lstat()
        with pytest.raises(InternalError, match="root refuses giving away what is n"):
            scene.rootside.share(path, deadline=soon())
        assert (path.lstat().st_uid, path.lstat().st_gid) == (before.st_uid, before.st_gid)

    def test_what_is_not_the_programs_is_not_the_programs_to_give(self, scene: Scene) -> None:
        (scene.root / "file").touch()
        program = Identity(uid=OURSELVES.uid + 1, gid=OURSELVES.gid, groups=())
        other = Monitor(
            scene.site, program, load=lambda: scene.hypervisor, templates=TEXTS, qemu=(0, 0), node="n1",
            bound=bound_to(a_job(), HIS), downloads=lambda: -1,
        )
        with pytest.raises(InternalError, match="giving away what is not the program's"):
            RootSide(Here(other)).share(scene.root / "file", deadline=soon())


JOBS: dict[str, Act] = {
    "make_place": lambda root, own: root.make_place("sharedfs", deadline=soon()),
    "create": lambda root, own: root.create(own, deadline=soon()),
    "give": lambda root, own: root.give(own, deadline=soon()),
    "console": lambda root, own: root.console(own),
    "connect": lambda root, own: root.connect(own),
    "start_domain": lambda root, own: root.start_domain("<domain/>", deadline=soon()),
}
USERS: dict[str, Act] = {
    "serve_share": lambda root, own: root.serve_share(own, Path("/home"), readonly=False, log=0, deadline=soon()),
    "serve_disk": lambda root, own: root.serve_disk(own, "/d", new_mib=0, holder="x", deadline=soon()),
}


class TestWhom:
    """For whom root acts: one job, and its user."""

    @pytest.mark.parametrize("verb", [*JOBS, *USERS])
    def test_without_a_job_root_acts_for_none(self, nobodys: Scene, verb: str) -> None:
        with pytest.raises(InternalError, match=r"root refuses acting for a (job|user)"):
            (JOBS | USERS)[verb](nobodys.rootside, nobodys.own())
        assert not list(nobodys.seeds.iterdir()) and not list(nobodys.disks.iterdir())

    @pytest.mark.parametrize("verb", USERS)
    def test_without_an_account_root_is_nobody(self, homeless: Scene, verb: str) -> None:
        with pytest.raises(InternalError, match="root refuses acting for a user"):
            USERS[verb](homeless.rootside, homeless.own())

    @pytest.mark.parametrize("verb", USERS)
    @pytest.mark.parametrize("path", ["run/seeds/8.srv_1of1.sock", "run/seeds/x", "elsewhere/7.srv_1of1.sock"])
    def test_nothing_is_served_elsewhere(self, scene: Scene, verb: str, path: str) -> None:
        with pytest.raises(InternalError, match="no place for a guest's file"):
            USERS[verb](scene.rootside, scene.root / path)

    @pytest.mark.skipif(not ROOT, reason="only root gives files away")
    def test_a_socket_of_a_job_whose_user_is_none_stays_the_programs(self, homeless: Scene) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(homeless.root / "connection"))
            with pytest.raises(InternalError, match="acting for a user"):
                homeless.rootside.share(homeless.root / "connection", deadline=soon())

    def test_a_guard_is_that_of_the_job(self, scene: Scene) -> None:
        with pytest.raises(InternalError, match="root refuses starting a guard"):
            scene.rootside.launch(b"{}", 0, talks=False)
        started: list[tuple[Bound, bytes, bool]] = []

        def launch(bound: Bound, told: bytes, place: int, talks: bool) -> None:
            started.append((bound, told, talks))

        ours = bound_to(a_job(), HIS)
        root = RootSide(Here(scene.acting_for(ours, launch=launch)))
        root.launch(b'{"job": "8.srv"}', 0, talks=True)
        assert started == [(ours, b'{"job": "8.srv"}', True)]
        for_none = scene.acting_for(None, launch=launch)
        with pytest.raises(InternalError, match="acting for a job"):
            RootSide(Here(for_none)).launch(b"{}", 0, talks=True)
        assert len(started) == 1


class TestGuests:
    def test_a_guest_of_the_job_is_started_and_ended(self, scene: Scene) -> None:
        scene.rootside.start_domain(scene.document(), deadline=soon())
        assert scene.rootside.domains(deadline=soon()) == {"7.srv_1of1": "7.srv"}
        assert scene.rootside.is_running("7.srv_1of1", deadline=soon())
        assert scene.rootside.process_of("7.srv_1of1") is None
        assert scene.rootside.destroy("7.srv_1of1", deadline=soon())
        assert not scene.rootside.destroy("7.srv_1of1", deadline=soon())

    @pytest.mark.parametrize(("old", "new"), [
        ("<name>7.srv", "<name>8.srv"), (" job='7.srv'", " job='8.srv'"), ("7.srv_1of1.iso", "8.srv_1of1.iso"),
        ("/images/debian-12.qcow2", "/etc/shadow"), ("bridge='br0'", "bridge='br1'"),
        ("libvirt-qemu:libvirt-qemu", "root:root"), ("<memballoon", "<hostdev type='pci'/><memballoon"),
    ])
    def test_what_is_none_is_not_started(self, scene: Scene, old: str, new: str) -> None:
        honest = scene.document()
        assert old in honest
        with pytest.raises(ConfigError, match=r"template domain\.xml"):
            scene.rootside.start_domain(honest.replace(old, new), deadline=soon())
        with pytest.raises(ConfigError, match=r"template domain\.xml"):
            scene.rootside.start_domain(scene.document("8.srv"), deadline=soon())
        assert scene.hypervisor.calls == []

    def test_the_process_of_a_guest_is_handed_over(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = os.pipe()
        monkeypatch.setattr(monitor, "find", lambda name: ours if name == "7.srv_1of1" else None)
        assert scene.rootside.process_of("7.srv_1of1") == ours
        for name in ("7.srv_2of2", "somebody's"):
            assert scene.rootside.process_of(name) is None
        os.close(ours)
        os.close(theirs)

    def test_whose_a_guest_is_is_asked_once(self, scene: Scene) -> None:
        scene.rootside.start_domain(scene.document(), deadline=soon())
        scene.rootside.domains(deadline=soon())
        scene.rootside.shutdown("7.srv_1of1", deadline=soon())
        assert scene.hypervisor.calls.count("domains") == 1

    def test_only_guests_are_asked_to_end(self, scene: Scene) -> None:
        scene.hypervisor.create("<domain><name>somebody's</name></domain>", deadline=soon())
        scene.rootside.shutdown("somebody's", deadline=soon())
        assert "shutdown" not in scene.hypervisor.calls
        scene.rootside.start_domain(scene.document(), deadline=soon())
        scene.rootside.shutdown("7.srv_1of1", deadline=soon())
        assert "shutdown" in scene.hypervisor.calls

    @pytest.mark.parametrize("lines", [0, 3, 20, 21, 50])
    def test_the_end_of_a_console_is_shown(self, scene: Scene, lines: int) -> None:
        console = scene.own("console")
        assert scene.rootside.console(console) == "no console output"
        console.write_bytes(b"".join(b"%d \xff\n" % number for number in range(lines)))
        shown = scene.rootside.console(console).splitlines()
        assert shown == [rf"{number} \xff" for number in range(max(0, lines - 20), lines)]

    @pytest.mark.parametrize(("size", "shown"), [(1 << 16, "1"), ((1 << 16) + 1, "0"), (9 << 20, "0")])
    def test_of_a_console_without_end_no_more_is_read_than_can_be_told(
        self, scene: Scene, size: int, shown: str
    ) -> None:
        console = scene.own("console")
        console.write_bytes(b"1")
        os.truncate(console, size)
        text = scene.rootside.console(console)
        assert (len(text), text[0]) == (1 << 16, "\0" if shown == "0" else "1")

    def test_nobody_reads_another_jobs_keys_as_a_console(self, scene: Scene) -> None:
        scene.own(key="8.srv").write_text("-----BEGIN KEY-----")
        with pytest.raises(InternalError, match="no place for a guest's file"):
            scene.rootside.console(scene.own(key="8.srv"))

    def test_a_channel_that_is_not_there_or_at_which_nobody_listens_is_none(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        channel = scene.own("channel")
        assert scene.rootside.connect(channel) is None
        with pytest.raises(InternalError, match="root refuses connecting"):
            scene.rootside.connect(scene.own("home.sock"))
        os.mknod(channel, 0o600 | stat.S_IFSOCK)
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert scene.rootside.connect(channel) is None
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_a_channel_is_handed_over(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(socket.socket, "connect", lambda channel, path: asked.append(path))
        os.mknod(scene.own("channel"), 0o600 | stat.S_IFSOCK)
        found = scene.rootside.connect(scene.own("channel"))
        assert found is not None
        with found:
            assert (found.family, asked) == (socket.AF_UNIX, [str(scene.own("channel"))])

    def test_what_serves_nothing_any_more_is_ended(self, scene: Scene) -> None:
        os.mknod(scene.own("home.sock"), 0o600 | stat.S_IFSOCK)
        for _ in range(2):
            scene.rootside.end_server(scene.own("home.sock"), deadline=soon())
        assert not scene.own("home.sock").exists()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    found: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append(pid))
    yield found


class TestKeepers:
    def test_nobody_is_killed_but_who_is_nobody(self, scene: Scene, killed: list[int]) -> None:
        """What of root's own is not dumpable, and whoever else, looks in /proc like a keeper."""
        for pid in (os.getpid(), 1):
            scene.rootside.end_keeper(proc.name(pid), deadline=soon())
        assert killed == []

    def test_who_has_its_number_now_is_left_alone(
        self, scene: Scene, killed: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(monitor, "NOBODY", Identity(uid=os.getuid(), gid=os.getgid(), groups=()))
        scene.rootside.end_keeper(f"{os.getpid()} 1", deadline=soon())
        assert killed == []
        with pytest.raises(DeadlineExceeded):
            scene.rootside.end_keeper(proc.name(os.getpid()), deadline=Deadline(0.05))
        assert set(killed) == {os.getpid()}, "the test would see it"


class TestNode:
    @pytest.mark.parametrize("key", ["", "..", "../../../etc/passwd", "x", "7/../8", "7.srv\0", "7 8", "*", "7[1]"])
    def test_a_job_that_can_be_none_is_not_looked_for(self, scene: Scene, key: str) -> None:
        with pytest.raises(InternalError, match="root refuses looking for"):
            scene.rootside.knows(key)

    @pytest.mark.parametrize(("file", "key"), [
        ("7.srv.SC", "7.srv"), ("7.srv.JB", "7.srv"), ("58-2.srv.SC", "58-2.srv"), ("58[2].srv.SC", "58-2.srv"),
    ])
    def test_mom_knows_a_job_while_she_has_its_files(self, scene: Scene, file: str, key: str) -> None:
        assert not scene.rootside.knows(key)
        (scene.root / "torque/mom_priv/jobs" / file).touch()
        assert scene.rootside.knows(key) and not scene.rootside.knows("5.srv")

    def test_a_jobs_script_is_looked_for_and_nothing_else(self, scene: Scene) -> None:
        script = scene.root / "torque/mom_priv/jobs/7.srv.SC"
        assert not scene.rootside.has_script(script)
        script.touch()
        assert scene.rootside.has_script(script)
        for other in (script.with_suffix(".JB"), scene.root, Path("/etc/shadow")):
            with pytest.raises(InternalError, match="root refuses looking for"):
                scene.rootside.has_script(other)

    def test_who_watches_is_told_of_moms_jobs(self, scene: Scene) -> None:
        handle = scene.rootside.watch()
        with os.fdopen(handle, "rb", buffering=0) as told:
            assert told.read(4096) is None
            (scene.root / "torque/mom_priv/jobs/7.srv.SC").touch()
            assert b"7.srv.SC" in (told.read(4096) or b"")

    def test_downloads_are_asked_for_at_a_socket(self, scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            root = RootSide(Here(scene.acting_for(None, downloads=theirs.detach)))
            root.downloader().dismiss()
            assert ours.recv(1) == b""

    @pytest.mark.skipif(not ROOT, reason="directories have to be root's")
    def test_the_program_has_caches_and_a_standing_of_its_own(self, tmp_path: Path) -> None:
        caches = {"image_cache_dir": str(tmp_path / "cache"), "ramdisk_dir": str(tmp_path / "ram")}
        scene = Scene(tmp_path, bound=None, **caches)
        program = Identity(uid=64322, gid=64322, groups=())
        other = Monitor(
            scene.site, program, load=lambda: scene.hypervisor, templates=TEXTS, qemu=(0, 0), node="n1",
            bound=None, downloads=lambda: -1,
        )
        root = RootSide(Here(other))
        (tmp_path / "ram").mkdir()
        for path in (tmp_path / "cache", tmp_path / "ram/images"):
            root.make_cache(path, deadline=soon())
        root.make_standing()
        found = {path: path.stat() for path in (tmp_path / "cache", tmp_path / "ram/images", scene.disks / "node")}
        assert [about.st_mode & 0o777 for about in found.values()] == [0o711, 0o711, 0o700]
        assert {(about.st_uid, about.st_gid) for about in found.values()} == {(64322, 64322)}
        for path in (tmp_path / "ram", tmp_path / "other", tmp_path / "cache/.."):
            with pytest.raises(InternalError, match="root refuses making"):
                root.make_cache(path, deadline=soon())
        assert not (tmp_path / "other").exists()
        (tmp_path / "ram/images").rmdir()
        (tmp_path / "ram").chmod(0o777)
        with pytest.raises(ConfigError, match="writable by others"):
            root.make_cache(tmp_path / "ram/images", deadline=soon())
        assert not (tmp_path / "ram/images").exists()

    @pytest.mark.parametrize(("length", "written"), [(10, True), ((1 << 20) - 1, True), (1 << 20, False)])
    def test_metrics_are_written_where_the_site_wants_them(self, tmp_path: Path, length: int, written: bool) -> None:
        told = Scene(tmp_path, bound=None, prometheus_file=str(tmp_path / "prom"))
        told.rootside.tell_prometheus("x" * length)
        assert (tmp_path / "prom").exists() is written
        assert not written or (tmp_path / "prom").stat().st_mode & 0o777 == 0o644
        Scene(tmp_path / "other", bound=None).rootside.tell_prometheus("x")

    def test_scripts_and_templates_are_those_that_root_has_read(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, bound=None)
        assert scene.rootside.templates() == TEXTS
        assert scene.rootside.scripts() == {}
        missing = Scene(tmp_path / "other", bound=None, vm_scripts_dir=str(tmp_path / "absent"))
        with pytest.raises(ConfigError, match="VM_SCRIPTS_DIR"):
            missing.rootside.scripts()

    def test_a_script_that_others_could_change_maps_nothing(self, tmp_path: Path) -> None:
        script = tmp_path / "map"
        script.touch()
        script.chmod(0o777)
        scene = Scene(tmp_path, bound=None, custom_ip_mapping=True, ip_to_mac_script=str(script))
        with pytest.raises(ConfigError, match=r"IP_TO_MAC_SCRIPT: .*map (is writable by|belongs to)"):
            scene.rootside.mapped(1, 1, deadline=soon())

    def test_a_line_of_the_audit_log_is_roots_own(self, scene: Scene) -> None:
        audit.setup("file", scene.root, step="prologue")
        with contextlib.closing(audit.log.handlers[0]):
            scene.rootside.note({"act": "begin", "job": "7.srv", "step": "another", "more": "x"})
        audit.setup("none", Path("/"), step="")
        text = (scene.root / audit.FILE).read_text()
        assert '"act": "begin"' in text and '"step": "prologue"' in text and "more" not in text


class TestAsking:
    """The program's side."""

    def test_who_acts_for_it_no_more_is_missed(self) -> None:
        class Ended:
            def ask(self, verb: str, *words: object, deadline: Deadline, handle: object = None) -> Any:
                raise servant.Gone("killed")

            def dismiss(self) -> None:
                """There is nobody to go."""

        with pytest.raises(StateError, match="what is root for this hook has ended") as missed:
            RootSide(Ended()).domains(deadline=soon())
        assert missed.value.details == "killed"

    def test_what_is_shared_is_open_no_longer_than_root_needs_it(self, scene: Scene) -> None:
        (scene.root / "directory").mkdir()
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(InternalError):
            scene.rootside.share(scene.root / "directory", deadline=soon())
        with pytest.raises(FileNotFoundError):
            scene.rootside.share(scene.root / "missing", deadline=soon())
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_whose_a_job_is_is_what_root_was_started_for() -> None:
    account: Account = an_account(uid=2001)
    assert bound_to(a_job(), account) == Bound(id="7.srv", key="7.srv", user="ann", account=account, group=2000)
