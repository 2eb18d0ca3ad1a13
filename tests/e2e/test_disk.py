# SPDX-License-Identifier: Apache-2.0
"""A user's own disk from job to job, and the site's own scripts in guests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SCRIPTS, TINY, Lab
from vtorque import diskserver, guestnames
from vtorque.lab import parts

pytestmark = pytest.mark.e2e


@pytest.fixture
def disk(the_lab: Lab) -> Iterator[Path]:
    """Where jobs of the test have their disk."""
    path = the_lab.home / "data.img"
    for each in (path, diskserver.note_of(path)):
        each.unlink(missing_ok=True)
    yield path
    for each in (path, diskserver.note_of(path)):
        each.unlink(missing_ok=True)


def test_a_disk_is_made_once_and_keeps_what_jobs_write(the_lab: Lab, disk: Path) -> None:
    vm = f"{TINY},vms_per_node=2,disk={disk.name}:64M"
    first = the_lab.run("#!/bin/sh\necho kept >/data/file && grep ' /data ' /proc/mounts\n"
                        "ssh -n $(tail -n 1 $PBS_NODEFILE) grep -c /data /proc/mounts\nexit 0\n", vm=vm)
    assert first.exit_status == 0, first.err
    mounted, elsewhere = first.out.decode().splitlines()
    assert mounted.split()[2:4] == ["ext4", "rw,nosuid,nodev,noatime"]
    assert elsewhere == "0", "rank 0 alone has it"
    assert (disk.stat().st_uid, disk.stat().st_size) == (the_lab.uid, 64 << 20)
    again = the_lab.run("#!/bin/sh\ncat /data/file; stat -c %U /data/file\n",
                        vm=f"{TINY},disk={disk.name}")
    assert again.out.decode().split() == ["kept", parts.USER], again.err
    assert diskserver.holder(disk) == ""


def test_a_second_job_is_told_who_has_the_disk(the_lab: Lab, disk: Path) -> None:
    vm = f"{TINY},disk={disk.name}:64M"
    first = the_lab.submit(the_lab.write("first.sh", "#!/bin/sh\nsleep 1000\n"), vm=vm)
    the_lab.until(first, "running")
    noted = the_lab.as_user("vsub", "--dry-run", "-vm", vm, "first.sh")
    assert f"in use by job {first} on node".encode() in noted.stderr
    second = the_lab.run("#!/bin/sh\necho never\n", vm=vm)
    assert (second.exit_status, second.out) == (65, b"")
    assert f"-vm disk={disk}: is in use by job {first} on node ".encode() in second.err
    the_lab.as_user("qdel", first)
    the_lab.ended(first)
    assert diskserver.holder(disk) == ""


def test_a_blank_disk_is_left_alone_unless_its_user_asks(the_lab: Lab, disk: Path) -> None:
    the_lab.write(disk.name, "")
    with disk.open("r+b") as file:
        file.truncate(8 << 20)
    ended = the_lab.run("#!/bin/sh\necho never\n", vm=f"{TINY},disk={disk.name}")
    assert (ended.exit_status, ended.out) == (65, b"")
    assert f"-vm disk={disk}: holds no file system".encode() in ended.err
    assert disk.stat().st_blocks == 0


def test_the_sites_scripts_are_root_in_every_guest(
    the_lab: Lab, disk: Path, scripts: Callable[..., None]
) -> None:
    scripts(**{
        "prologue": "echo $* as $(id -un) >/tmp/by-site; [ -d /data ] && [ -d /workspace ] && "
                    "cat /sys/module/nfs/parameters/nfs4_unique_id >>/tmp/by-site",
        "prologue.parallel": "echo parallel $* as $(id -un) >/tmp/by-site",
        "epilogue": "cp /tmp/by-site /data/epilogue; echo $3 >>/data/epilogue",
    })
    vm = f"{TINY},vms_per_node=2,disk={disk.name}:64M"
    ended = the_lab.run("#!/bin/sh\ncat /tmp/by-site; ssh -n $(tail -n 1 $PBS_NODEFILE) cat /tmp/by-site\n", vm=vm)
    assert ended.exit_status == 0, ended.err
    # Guests of two jobs have the same host name, and must not be one client to a file server.
    client = str(guestnames.guest_uuid(ended.id, 0))
    assert ended.out.decode().splitlines() == [
        f"{ended.id} {parts.USER} 0 as root", client, f"parallel {ended.id} {parts.USER} 1 as root",
    ]
    again = the_lab.run("#!/bin/sh\ncat /data/epilogue\n", vm=vm)
    # It ran as the guest ended.
    assert again.out.decode().splitlines() == [f"{ended.id} {parts.USER} 0 as root", client, "0"]


def test_a_prologue_of_the_sites_that_fails_is_named(the_lab: Lab, scripts: Callable[..., None]) -> None:
    scripts(prologue="echo no licence; exit 3")
    ended = the_lab.run("#!/bin/sh\necho never\n")
    assert (ended.exit_status, ended.out) == (69, b"")
    assert b"the site's prologue ended with status 3" in ended.err
    assert "site's prologue: no licence" in (parts.ROOT / "log/vtorque.log").read_text()


def test_a_guest_that_hangs_at_its_end_is_destroyed_and_its_disk_given_back(
    the_lab: Lab, disk: Path, scripts: Callable[..., None]
) -> None:
    # What the power button leads to comes to no end.
    hang = "#!/bin/sh\n[ $1 != poweroff ] || sleep 1000\n"
    scripts(prologue=f"printf '{hang}' >/usr/local/sbin/systemctl".replace("\n", "\\n"))
    vm = f"{TINY},disk={disk.name}:64M"
    job = the_lab.submit(the_lab.write("job.sh", "#!/bin/sh\necho kept >/data/file; sync\nsleep 2\n"), vm=vm)
    the_lab.until(job, "running")
    config = the_lab.mom_priv / "config"
    before = config.read_bytes() if config.exists() else b""
    # Of what is left of an epilogue's time half is for the guest.
    config.write_bytes(before + b"$prologalarm 30\n")
    ended = the_lab.ended(job)
    config.write_bytes(before)
    assert ended.exit_status == 0, ended.err
    assert "not shut down cleanly" in (parts.ROOT / "log/vtorque.log").read_text()
    assert the_lab.leftovers() == [] and diskserver.holder(disk) == ""
    (SCRIPTS / "prologue").unlink()
    again = the_lab.run("#!/bin/sh\ncat /data/file\n", vm=vm)
    assert again.out == b"kept\n", again.err
