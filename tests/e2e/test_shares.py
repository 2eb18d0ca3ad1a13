# SPDX-License-Identifier: Apache-2.0
"""Guests whose files the host serves, as the job's user: a job must not notice a difference."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab
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
exit 5
"""


LIBVIRT = Path("/var/lib/libvirt/qemu")


@pytest.fixture
def passable() -> Iterator[None]:
    """QEMU that runs as the job's user gets to its own files, as `vmgr doctor` asks for."""
    before = LIBVIRT.stat().st_mode & 0o7777
    LIBVIRT.chmod(before | 0o001)
    yield
    LIBVIRT.chmod(before)


@pytest.mark.parametrize("share", ["virtiofs", "9p"])
def test_a_job_finds_its_files_when_the_host_serves_them(
    the_lab: Lab, setting: Callable[..., None], passable: None, share: str
) -> None:
    setting(SHARE=share, VM_SHARE_WS=parts.ROOT / "workspace", VM_SHARE_OPT=parts.ROOT / "opt")
    image = tiny.build_9p(parts.IMAGES) if share == "9p" else tiny.build(parts.IMAGES)
    secret = the_lab.home / "secret.txt"
    secret.write_text("root's own\n")
    secret.chmod(0o600)
    ended = the_lab.run(SCRIPT, vm=f"img={image.name},ram=256M")
    secret.unlink()
    assert ended.exit_status == 5, ended.err
    groups, fstype, scratch, opt, mode = ended.out.decode().splitlines()
    assert set(groups.split()) == {parts.USER, *parts.GROUPS}
    assert (fstype, scratch, opt, mode) == (share, "linked", "The software tree of the lab.", "4755")
    written = the_lab.home / "shared.txt"
    assert (written.read_text(), written.stat().st_uid) == ("from-guest\n", the_lab.uid)
    made = parts.ROOT / "workspace" / f"by-{ended.id}"
    assert made.stat().st_uid == the_lab.uid
    made.unlink()
