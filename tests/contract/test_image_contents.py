# SPDX-License-Identifier: Apache-2.0
"""`vmgr image verify` looks into images: what guests need, who can become root, and what cannot be looked into."""

import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.contract.test_catalogue import Site, site
from vtorque import imagecontents, imageheader, images
from vtorque.deadline import Deadline
from vtorque.imagecontents import RIGHTS, Contents, disk, ext4, rules

__all__ = ["site"]

pytestmark = [pytest.mark.runs, pytest.mark.skipif(os.getuid() != 0, reason="root makes the file systems")]

FILES = {
    "etc/os-release": 'PRETTY_NAME="Tiny Linux 1"\n',
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2::/bin:/usr/sbin/nologin\n",
    "etc/shadow": "root:!*:20000:0:99999:7:::\nbin:*:20000::::::\n",
    "etc/group": "root:x:0:\nsudo:x:27:\n",
    "etc/sudoers":
        "Defaults env_reset\nroot ALL=(ALL:ALL) NOPASSWD:ALL\n%sudo ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n",
    "etc/sudoers.d/README": "# NOPASSWD is a word\n",
    "etc/cloud/cloud.cfg": 'system_info:\n  default_user:\n    sudo: ["ALL=(ALL) NOPASSWD:ALL"]\n',
    "etc/cloud/cloud.cfg.d/90_dpkg.cfg": "datasource_list: [ NoCloud, None ]\n",
    "etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\n",
    "usr/lib/modules/6.1/modules.dep": "kernel/fs/nfs/nfsv4.ko:\nkernel/fs/9p/9p.ko.xz:\nkernel/fs/fuse/virtiofs.ko:\n",
    **{f"usr/bin/{name}": "#!" for name in ("cloud-init", "sh", "awk", "ip", "timeout", "setsid", "su", "sudo")},
    **{f"usr/sbin/{name}": "#!" for name in ("sshd", "mount.nfs4")},
}
LINKS = {
    "lib": "usr/lib", "bin": "usr/bin", "sbin": "/usr/sbin",
    "etc/systemd/system/multi-user.target.wants/ssh.service": "/lib/systemd/system/ssh.service",
    "etc/systemd/system/cloud-init.target.wants/cloud-init.service": "/lib/systemd/system/cloud-init.service",
}
MODES = {"usr/bin/su": 0o4755, "usr/bin/sudo": 0o4755}
Change = Callable[[Path], object]


def a_tree(root: Path) -> None:
    """A root that has all that a guest needs, as small as it can be."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(MODES.get(name, 0o644))
    for name, target in LINKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)


def an_ext(path: Path, change: Change = lambda root: None, *, options: tuple[str, ...] = ("-t", "ext4")) -> Path:
    """A file system of 8 MiB with such a tree, changed; nothing is mounted for it."""
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="vtorque-test-") as name:
        a_tree(Path(name))
        change(Path(name))
        subprocess.run(["mke2fs", "-q", *options, "-d", name, path, "8M"], check=True, capture_output=True)
    return path


def look(path: Path) -> Contents:
    with imageheader.opened(path) as (handle, _):
        return imagecontents.look(handle, deadline=Deadline(60))


def appending(name: str, text: str) -> Change:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("a") as file:
            file.write(text)
    return change


def replacing(name: str, text: str) -> Change:
    return lambda root: (root / name).write_text(text)


def without(name: str) -> Change:
    return lambda root: (root / name).unlink()


def owned(name: str, mode: int, uid: int = 0) -> Change:
    def change(root: Path) -> None:
        appending(name, "#!")(root)
        os.chown(root / name, uid, uid)
        (root / name).chmod(mode)
    return change


LACKING: Mapping[str, tuple[Change, str, str]] = {
    "no cloud-init": (without("usr/bin/cloud-init"), "missing", "cloud-init is missing"),
    "cloud-init disabled": (appending("etc/cloud/cloud-init.disabled", ""), "missing", "cloud-init is disabled"),
    "cloud-init not started": (
        without("etc/systemd/system/cloud-init.target.wants/cloud-init.service"), "missing", "started by no unit"),
    "other sources": (
        appending("etc/cloud/cloud.cfg.d/99.cfg", "datasource_list:\n - Ec2\n"), "missing", "not look for NoCloud"),
    "no sshd": (without("usr/sbin/sshd"), "missing", "an SSH server is missing"),
    "sshd not started": (
        without("etc/systemd/system/multi-user.target.wants/ssh.service"), "missing", "SSH server is started by no"),
    "old sshd": (replacing("etc/ssh/sshd_config", "# Include\n"), "missing", "does not read sshd_config.d"),
    "no setsid": (without("usr/bin/setsid"), "missing", "setsid is missing"),
    "no NFS client": (without("usr/sbin/mount.nfs4"), "nfs", "mount.nfs4 is missing"),
    "no NFS module": (replacing("usr/lib/modules/6.1/modules.dep", "/9p.ko /virtiofs.ko"), "nfs", "the module nfsv4"),
    "no 9p module": (replacing("usr/lib/modules/6.1/modules.dep", "/nfsv4.ko /virtiofs.ko"), "9p", "the module 9p"),
    "no virtiofs": (replacing("usr/lib/modules/6.1/modules.dep", "/nfsv4.ko /9p.ko"), "virtiofs", "module virtiofs"),
    "root's password": (replacing("etc/shadow", "root:$6$a$b:1::::::\n"), RIGHTS, "account root has a password"),
    "root without one": (replacing("etc/shadow", "root::1::::::\n"), RIGHTS, "account root needs no password"),
    "no shadow": (replacing("etc/passwd", "root::0:0::/root:/bin/sh\n"), RIGHTS, "account root needs no password"),
    "a second root": (appending("etc/passwd", "toor:x:00:0::/:/bin/sh\n"), RIGHTS, "account toor is root"),
    "a password": (appending("etc/shadow", "admin:$y$a:1::::::\n"), RIGHTS, "account admin has a password"),
    "root's key": (appending("root/.ssh/authorized_keys", "ssh-ed25519 AAAA me\n"), RIGHTS, "has a certain key"),
    "default user": (
        appending("etc/sudoers.d/90-cloud-init-users", "debian ALL=(ALL) NOPASSWD:ALL\n"), RIGHTS, "lets debian"),
    "everybody": (appending("etc/sudoers", "ALL ALL=(ALL) \\\n  NOPASSWD: ALL\n"), RIGHTS, "lets ALL become root"),
    "a command": (appending("etc/sudoers", "%users ALL=NOPASSWD: /bin/mount\n"), RIGHTS, "lets %users become root"),
    "no password at all": (
        appending("etc/sudoers.d/x", "Defaults:%users !authenticate\n"), RIGHTS, "lets Defaults:%users become"),
    "sudoers elsewhere": (appending("etc/sudoers", "@include /opt/sudoers\n"), RIGHTS, "includes /opt/sudoers"),
    "doas": (appending("etc/doas.conf", "permit nopass :users\n"), RIGHTS, "doas.conf lets somebody"),
    "docker": (appending("etc/group", "docker:x:999:\n"), RIGHTS, "there is a group docker"),
    "a member of sudo": (replacing("etc/group", "sudo:x:27:ann\n"), RIGHTS, "ann is in group sudo"),
    "a shell of root's": (owned("usr/bin/rootsh", 0o4755), RIGHTS, "/usr/bin/rootsh runs with the rights of uid 0"),
    "a known name elsewhere": (owned("opt/su", 0o4755), RIGHTS, "/opt/su runs with the rights of uid 0"),
    "a program of everybody's": (owned("usr/bin/tool", 0o777), RIGHTS, "/usr/bin/tool can be written by everybody"),
    "a user's file": (owned("etc/profile", 0o644, 1000), RIGHTS, "/etc/profile belongs to uid 1000"),
}


def test_an_image_that_has_all_and_grants_nothing_is_sealed(tmp_path: Path) -> None:
    assert look(an_ext(tmp_path / "a.img")) == Contents(system="Tiny Linux 1") and look(tmp_path / "a.img").sealed


@pytest.mark.parametrize("case", LACKING)
def test_what_an_image_lacks_or_grants_is_one_line_that_says_what_to_do(tmp_path: Path, case: str) -> None:
    change, kind, what = LACKING[case]
    with an_ext(tmp_path / "a.img", change).open("rb", buffering=0) as file:
        found = Contents(findings=tuple(rules.check(ext4.Ext4(disk.reader(file.fileno(), "raw")))))
    assert [each.kind for each in found.findings] == [kind]
    only = found.findings[0]
    assert what in only.what and only.hint
    assert found.sealed is (kind != RIGHTS)
    assert bool(found.problems(share="nfs", trusted=True)) is (kind in ("missing", "nfs", RIGHTS))
    assert bool(found.problems(share="9p", trusted=False)) is (kind in ("missing", "9p"))


@pytest.mark.parametrize("options", [
    ("-t", "ext4", "-b", "1024"), ("-t", "ext4", "-b", "4096"), ("-t", "ext3"), ("-t", "ext2", "-b", "1024"),
    ("-t", "ext4", "-O", "64bit,metadata_csum"), ("-t", "ext4", "-O", "^64bit,^flex_bg,^extent", "-b", "1024"),
    ("-t", "ext4", "-I", "128"), ("-t", "ext4", "-g", "1024", "-b", "1024"), ("-t", "ext2", "-r", "0"),
])
def test_every_kind_of_ext_is_read_as_debugfs_reads_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    text = "".join(f"line {number}\n" for number in range(40_000))

    def change(root: Path) -> None:
        appending("usr/share/long", text)(root)
        for number in range(400):
            appending(f"usr/share/many/{'n' * 40}{number}", "x")(root)

    path = an_ext(tmp_path / "a.img", change, options=options)
    assert look(path) == Contents(system="Tiny Linux 1")
    with path.open("rb", buffering=0) as file:
        system = ext4.Ext4(disk.reader(file.fileno(), "raw"))
        assert system.text("/usr/share/long", limit=1 << 20) == text
        found = {name for name, _ in system.walk()}
        assert len(system.names("/usr/share/many")) == 400 and len(found) == len(FILES) + len(LINKS) + 401
        assert system.text("/etc/../sbin/../lib/modules/6.1/../6.1/modules.dep", limit=10) == "kernel/fs/"
        for name in ("/usr/share/long", "/usr/bin/sudo"):
            told = subprocess.run(["debugfs", "-R", f"stat {name}", path], check=True, capture_output=True, text=True)
            assert f"Mode:  0{system.inode(system.find(name)).mode & 0o7777:o}" in told.stdout


@pytest.mark.parametrize(("options", "table"), [
    ((), ""), ((), "mbr"), ((), "logical"), ((), "gpt"), (("-c",), "mbr"), (("-o", "cluster_size=512"), "gpt"),
    (("-o", "compat=0.10,cluster_size=2M"), "mbr"),
])
def test_every_partition_table_in_every_qcow2_is_found(tmp_path: Path, options: tuple[str, ...], table: str) -> None:
    whole = an_ext(tmp_path / "disk")
    scripts = {
        "mbr": "start=2048, size=1024, type=82\nstart=4096, type=83\n",
        "logical": "start=2048, type=5\nstart=2100, size=500, type=82\nstart=4096, type=83\n",
        "gpt": "label: gpt\nstart=2048, size=1024, type=U\nstart=4096, type=L\n",
    }
    if table:
        with (tmp_path / "parted").open("wb") as file:
            file.truncate(12 << 20)
            file.seek(4096 * 512)
            file.write(whole.read_bytes())
        label = "" if table == "gpt" else "label: dos\n"
        subprocess.run(["/usr/sbin/sfdisk", "-q", "--force", tmp_path / "parted"], input=label + scripts[table],
                       text=True, check=True, capture_output=True)
        whole = tmp_path / "parted"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, whole, tmp_path / "a.qcow2"],
                   check=True)
    assert look(tmp_path / "a.qcow2") == look(whole) == Contents(system="Tiny Linux 1")


def magic(offset: int, text: bytes) -> Change:
    def change(path: Path) -> None:
        with path.open("wb") as file:
            file.seek(offset)
            file.write(text)
            file.truncate(1 << 20)
    return change


@pytest.mark.parametrize(("make", "why"), [
    (magic(0, b"XFSB"), "it holds XFS"), (magic(0x10040, b"_BHRfS_M"), "it holds btrfs"),
    (magic(512, b"LABELONE"), "it holds LVM"), (magic(0, b"\0"), "no file system that is known"),
    (magic(510, b"\x55\xaa"), "no file system that is known"), (magic(1080, b"\x53\xef"), "impossible superblock"),
    (magic(0, b"QFI\xfb"), "it is of qcow2 version 0"), (magic(0, b"KDMV"), "it is VMDK"),
    (lambda path: an_ext(path, options=("-t", "ext4", "-O", "inline_data")), "feature 0x8000"),
    (lambda path: an_ext(path, without("etc/os-release")), "without an /etc/os-release"),
])
def test_what_cannot_be_looked_into_is_said_and_not_passed(tmp_path: Path, make: Change, why: str) -> None:
    make(tmp_path / "a.img")
    found = look(tmp_path / "a.img")
    assert why in found.unread and not found.sealed


def test_a_file_system_that_was_not_unmounted_is_not_looked_into(tmp_path: Path) -> None:
    path = an_ext(tmp_path / "a.img")
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", path], check=True, capture_output=True)
    assert "not unmounted cleanly" in look(path).unread


@pytest.mark.parametrize("seed", range(8))
def test_damage_neither_hangs_it_nor_makes_it_believe_nonsense(tmp_path: Path, seed: int) -> None:
    """Random bytes over all that describes files: a child that was killed by its limit would be a loop."""
    path, source = an_ext(tmp_path / "a.img", options=("-t", "ext4", "-b", "1024", "-N", "200")), random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(20 << seed):
        data[source.randrange(1024, 400 << 10)] = source.randrange(256)
    path.write_bytes(data)
    found = look(path)
    assert "signal" not in found.unread and (found.unread or found.system or found.findings)


class TestTheCommand:
    """`vmgr image verify` and what it remembers."""

    def put(self, site: Site, change: Change = lambda root: None, *words: str) -> None:
        site.run("add", "--name", "debian-12.img", *words, an_ext(site.root / "debian-12.img", change))

    def test_a_good_image_is_remembered_by_its_digest_until_it_is_not_good(self, site: Site) -> None:
        self.put(site)
        digest = images.find(site.pool, "debian-12.img").sha256
        assert not images.is_sealed(site.pool, digest)
        told = site.run("image", "verify", user=65534)
        assert told.stdout == "debian-12.img@1: raw, 8 MiB, intact, Tiny Linux 1\n"
        assert not images.is_sealed(site.pool, digest), "only root's word counts"
        assert site.run("image", "verify").stdout == told.stdout and images.is_sealed(site.pool, digest)
        (site.pool / images.SEALED / digest).write_text("0\n")
        assert not images.is_sealed(site.pool, digest), "by rules of another day"
        with (site.pool / "debian-12.img").open("r+b") as file:
            file.write(b"x")
        assert "differs from its digest" in site.run("image", "verify", fails=1).stderr

    def test_a_catalogue_that_is_only_to_be_read_can_be_verified(self, site: Site) -> None:
        self.put(site)
        digest = images.find(site.pool, "debian-12.img").sha256
        subprocess.run(["/usr/bin/mount", "--bind", "-o", "ro", site.pool, site.pool], check=True)
        try:
            assert site.run("image", "verify").stdout == "debian-12.img@1: raw, 8 MiB, intact, Tiny Linux 1\n"
        finally:
            subprocess.run(["/usr/bin/umount", site.pool], check=True)
        assert not images.is_sealed(site.pool, digest)

    def test_whoever_can_become_root_is_named_and_the_image_is_not_remembered(self, site: Site) -> None:
        self.put(site, appending("etc/sudoers", "ALL ALL=NOPASSWD: ALL\n"))
        digest = images.find(site.pool, "debian-12.img").sha256
        images.seal(site.pool, digest, sealed=True)
        done = site.run("image", "verify", "debian-12.img", fails=1)
        assert done.stderr == (
            "vmgr: debian-12.img@1: /etc/sudoers lets ALL become root without a password "
            "(remove the line: ALL ALL=NOPASSWD: ALL)\n"
        )
        assert not images.is_sealed(site.pool, digest)
        site.run("update", "--untrusted", "debian-12.img")
        assert "lets ALL become root" in site.run("image", "verify", "debian-12.img").stdout

    def test_scripts_are_told_in_json(self, site: Site) -> None:
        self.put(site, without("usr/bin/awk"))
        (site.pool / "lost").touch()
        told = json.loads(site.run("image", "verify", "--json", fails=1).stdout)
        assert told["unreferenced"] == [str(site.pool / "lost")]
        assert told["images"] == [{
            "image": "debian-12.img@1", "text": "raw, 8 MiB, intact, Tiny Linux 1", "error": "", "unread": "",
            "problems": [{"kind": "missing", "what": "awk is missing", "hint": "install what has the program awk"}],
            "notes": [],
        }]

    def test_text_from_an_image_does_nothing_to_a_terminal(self, site: Site) -> None:
        self.put(site, replacing("etc/os-release", 'PRETTY_NAME="\x1b[2Jx\ny"\n'))
        done = site.run("image", "verify")
        assert "\x1b" not in done.stdout and "?[2Jx y" in done.stdout and done.stdout.count("\n") == 1


