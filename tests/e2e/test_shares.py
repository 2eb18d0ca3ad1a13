# SPDX-License-Identifier: Apache-2.0
"""Guests whose files the host serves, as the job's user: a job must not notice a difference."""

import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SCRIPTS, Lab
from tests.guests import tiny
from vtorque.lab import parts

pytestmark = pytest.mark.e2e

SCRIPT = """\
#!/bin/bash
cd ~ && echo from-guest >shared.txt && id -Gn && cat /proc/mounts | awk -v home="$HOME" '$2 == home { print $3 }'
echo work >/workspace/by-$PBS_JOBID && [ /scratch -ef /workspace ] && echo linked
touch /opt/mine 2>/dev/null && echo "may write /opt"
cat /opt/README
cat secret.txt 2>/dev/null && echo "read what is root's"
chmod 4755 shared.txt; stat -c %a shared.txt
cat /tmp/tried
exit 5
"""
ROOT_IN_THE_GUEST = """cd {home}
try() {{
    what=$1; shift
    if "$@" >>/tmp/seen 2>/dev/null; then echo "could $what"; else echo "could not $what"; fi >>/tmp/tried
}}
try 'read what is root' cat secret.txt
try 'write what is root' sh -c 'echo mine >>secret.txt'
try 'open up what is root' chmod 0666 secret.txt
try 'link what is root' ln secret.txt hard.txt
try 'put another in the place of what is root' mv open.txt /workspace/closed/secret.txt
try 'look into a closed directory' ls /workspace/closed
try 'read what is below a closed directory' cat /workspace/closed/secret.txt
try 'remove from a directory with a sticky bit' rm -f /workspace/others.txt
try 'give away to root' chown 0:0 open.txt
try 'give away to another' chown 1:1 open.txt
try 'make a device of characters' mknod null c 1 3
try 'make a device of blocks' mknod disk b 254 0
try 'write to what is read-only' touch /opt/mine
ln -s {root}/workspace/closed/secret.txt way-out.txt
try 'follow a link out' cat way-out.txt
try 'go above' cat ../../../..{root}/workspace/closed/secret.txt
cp /bin/busybox suid && chmod 6755 suid
try 'see it in the end' grep own /tmp/seen
"""
WISHES = re.findall("^try '(.*?)'", ROOT_IN_THE_GUEST, re.MULTILINE)
NOT_HIS = "root's own\n"


LIBVIRT = Path("/var/lib/libvirt/qemu")


@pytest.fixture
def passable() -> Iterator[None]:
    """QEMU that runs as the job's user gets to its own files, as `vmgr doctor` asks for."""
    before = LIBVIRT.stat().st_mode & 0o7777
    LIBVIRT.chmod(before | 0o001)
    yield
    LIBVIRT.chmod(before)


@pytest.fixture
def not_his(the_lab: Lab) -> Iterator[list[Path]]:
    """Files of root's where the user's shares are, which he and root in his guest must not get at."""
    closed = parts.ROOT / "workspace/closed"
    closed.mkdir(mode=0o700)
    files = [the_lab.home / "secret.txt", closed / "secret.txt", parts.ROOT / "workspace/others.txt"]
    for path in files:
        path.write_text(NOT_HIS)
        path.chmod(0o600)
    yield files
    for path in files:
        path.unlink()
    closed.rmdir()


@pytest.mark.parametrize("share", ["virtiofs", "9p"])
def test_a_job_finds_its_files_when_the_host_serves_them_and_root_in_its_guest_no_others(
    the_lab: Lab, setting: Callable[..., None], scripts: Callable[..., None], passable: None, not_his: list[Path],
    share: str,
) -> None:
    scripts(prologue=ROOT_IN_THE_GUEST.format(home=the_lab.home, root=parts.ROOT))
    setting(
        SHARE=share, VM_SHARE_WS=parts.ROOT / "workspace", VM_SHARE_OPT=parts.ROOT / "opt", VM_SCRIPTS_DIR=SCRIPTS
    )
    image = tiny.build_9p(parts.IMAGES) if share == "9p" else tiny.build(parts.IMAGES)
    the_lab.write("open.txt", "the user's own\n")
    ended = the_lab.run(SCRIPT, vm=f"img={image.name},ram=256M")
    assert ended.exit_status == 5, ended.err
    groups, fstype, scratch, opt, mode, *tried = ended.out.decode().splitlines()
    assert tried == [f"could not {wish}" for wish in WISHES]
    assert [path.read_text() for path in not_his] == [NOT_HIS] * len(not_his)
    shared = {*the_lab.home.rglob("*"), *(parts.ROOT / "workspace").rglob("*")} - {*not_his, not_his[1].parent}
    for path in shared:
        about = path.lstat()
        assert about.st_uid == the_lab.uid, path
        assert stat.S_IFMT(about.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), path
        assert about.st_gid != 0, path
    assert set(groups.split()) == {parts.USER, *parts.GROUPS}
    assert (fstype, scratch, opt, mode) == (share, "linked", "The software tree of the lab.", "4755")
    written = the_lab.home / "shared.txt"
    assert (written.read_text(), written.stat().st_uid) == ("from-guest\n", the_lab.uid)
    made = parts.ROOT / "workspace" / f"by-{ended.id}"
    assert made.stat().st_uid == the_lab.uid
    made.unlink()
