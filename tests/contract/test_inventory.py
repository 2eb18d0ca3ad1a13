# SPDX-License-Identifier: Apache-2.0
"""The leak inventory sees each kind of thing that a job could leave, and each change to what is somebody else's."""

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.fakes.filter import FakeFilter
from tests.fakes.hypervisor import FakeHypervisor
from tests.inventory import Node, Watched, differences
from vtorque.deadline import Deadline

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="namespaces, other people's files and processes"),
]

# Nobody else on the machine is it.
NOBODY = 3999999
SECRET = b"PRIVATE" + b" KEY of nobody's"
KEEPER = "mount -t tmpfs none /sys/fs/cgroup && mount -t tmpfs none /var/lib && echo ready && read over"
DOMAIN = """<domain type="test"><name>7.srv_1of1</name><uuid>6ba7b810-9dad-41d1-80b4-00c04fd430c8</uuid>\
<memory>1</memory><metadata><t:vtorque xmlns:t="https://vtorque.org/xmlns/domain/1" job="7.srv"/></metadata></domain>"""
RULES = "table bridge vtorque_x { chain a { type filter hook forward priority 0; }; }"


class Scene:
    """A node with a network, mounts and cgroups of its own, and places on it that are watched."""

    def __init__(self, root: Path, keeper: int) -> None:
        self.root = root
        self.keeper = keeper
        self.place, self.home = root / "place", root / "home"
        for path in (self.place, self.place / "log", self.home):
            path.mkdir()
        (self.place / "foreign").write_text("somebody's own\n")
        (self.home / "users").write_text("the user's own\n")
        os.chown(self.home / "users", NOBODY, NOBODY)
        self.hypervisor, self.filter = FakeHypervisor(), FakeFilter()
        self.undo = contextlib.ExitStack()
        self.watched = Watched(
            places=(self.place,), homes=(self.home,), stays=(f"{root}/place/log/**", f"{root}/p*/its-own"),
            domains=self.hypervisor, tables=self.filter, nodes=(Node(pid=keeper),), words=(f"{root}/".encode(),),
            users=(NOBODY,), secrets=(SECRET,),
        )

    def on(self, *argv: str) -> None:
        """Run a command on the node, as root."""
        subprocess.run(["/usr/bin/nsenter", "--mount", "--net", f"--target={self.keeper}", *argv], check=True)

    def starts(self, *enter: str, user: int = 0, words: str = "") -> None:
        """Have a process until the test is over."""
        argv = [*enter, "/bin/sh", "-c", "echo; read over", words]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user)
        self.undo.callback(child.communicate)
        assert child.stdout is not None and child.stdout.readline()

    def opens(self, path: Path) -> IO[str]:
        """Hold a file open until the test is over."""
        return self.undo.enter_context(path.open())


@pytest.fixture
def scene() -> Iterator[Scene]:
    argv = ["/usr/bin/unshare", "--mount", "--net", "--propagation", "private", "/bin/sh", "-c", KEEPER]
    with tempfile.TemporaryDirectory(prefix="vtorque-inventory-") as root, subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None and keeper.stdout.readline() == b"ready\n"
        made = Scene(Path(root), keeper.pid)
        yield made
        made.undo.close()
        keeper.communicate()


def leased(scene: Scene) -> None:
    scene.on("/bin/mkdir", "-p", "/var/lib/libvirt/dnsmasq")
    scene.on("/bin/sh", "-c", "echo >/var/lib/libvirt/dnsmasq/virbr0.status")


KINDS: list[tuple[str, Callable[[Scene], object]]] = [
    ("left: file {place}/new", lambda scene: (scene.place / "new").touch()),
    ("left: directory {place}/new", lambda scene: (scene.place / "new").mkdir()),
    ("gone: file {place}/foreign", lambda scene: (scene.place / "foreign").unlink()),
    ("changed: file {place}/foreign: -rw-r--r-- 0:0", lambda scene: (scene.place / "foreign").write_text("mine\n")),
    ("changed: file {place}/foreign: -rw-r--r-- 0:0", lambda scene: (scene.place / "foreign").chmod(0o666)),
    ("left: file {home}/new", lambda scene: (scene.home / "new").touch()),
    ("gone: directory {home}", lambda scene: os.chown(scene.home, NOBODY, NOBODY)),
    ("left: secret in {place}/log/log", lambda scene: (scene.place / "log/log").write_bytes(b"a " + SECRET)),
    ("left: secret in {home}/users", lambda scene: (scene.home / "users").write_bytes(SECRET)),
    ("left: lock on {place}/foreign", lambda scene: fcntl.flock(scene.opens(scene.place / "foreign"), fcntl.LOCK_EX)),
    ("left: domain 7.srv_1of1", lambda scene: scene.hypervisor.create(DOMAIN, deadline=Deadline(60))),
    ("left: table vtorque_y", lambda scene: scene.filter.loaded.update(vtorque_y=[])),
    ("left: table bridge vtorque_x", lambda scene: scene.on("/usr/sbin/nft", RULES)),
    ("left: interface vtg0", lambda scene: scene.on("/usr/sbin/ip", "tuntap", "add", "dev", "vtg0", "mode", "tap")),
    ("left: mount /mnt of tmpfs", lambda scene: scene.on("/usr/bin/mount", "-t", "tmpfs", "none", "/mnt")),
    ("gone: mount /var/lib of tmpfs", lambda scene: scene.on("/usr/bin/umount", "/var/lib")),
    ("left: cgroup 7.srv", lambda scene: scene.on("/bin/mkdir", "-p", "/sys/fs/cgroup/pids/machine/7.srv")),
    ("left: leases virbr0.status", leased),
    ("left: process", lambda scene: scene.starts("/usr/bin/nsenter", "--net", "--mount", f"--target={scene.keeper}")),
    ("left: process", lambda scene: scene.starts(words=f"{scene.root}/program")),
    ("left: process", lambda scene: scene.starts(user=NOBODY)),
    ("left: secret in process", lambda scene: scene.starts(user=NOBODY, words=SECRET.decode())),
    ("left: descriptor of /usr/bin/true", lambda scene: scene.opens(Path("/usr/bin/true"))),
]


@pytest.mark.parametrize(("told", "act"), KINDS, ids=[told for told, _ in KINDS])
def test_what_is_left_gone_or_changed_is_told(scene: Scene, told: str, act: Callable[[Scene], object]) -> None:
    before = scene.watched.take()
    act(scene)
    told = told.format(place=scene.place, home=scene.home)
    assert [line for line in differences(before, scene.watched.take()) if line.startswith(told)]


def test_rules_of_somebody_elses_are_told_to_have_changed(scene: Scene) -> None:
    scene.on("/usr/sbin/nft", RULES)
    before = scene.watched.take()
    scene.on("/usr/sbin/nft", "add rule bridge vtorque_x a drop")
    [line] = differences(before, scene.watched.take())
    assert line.startswith("changed: table bridge vtorque_x: ")


def test_what_stays_what_is_the_users_and_what_daemons_do_is_not_told(scene: Scene) -> None:
    before = scene.watched.take()
    (scene.place / "log/log").write_text("a line\n")
    (scene.place / "its-own").mkdir()
    (scene.home / "users").write_text("another text\n")
    (scene.home / "users").chmod(0o600)
    assert differences(before, scene.watched.take()) == []
    (scene.place / "its-own/new").touch()
    assert differences(before, scene.watched.take()) == [f"left: file {scene.place}/its-own/new"]
