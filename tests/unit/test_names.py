# SPDX-License-Identifier: Apache-2.0
"""What a job's things are called: whose a file is, and where there may be one."""

import os
from pathlib import Path

import pytest

from tests.builders import a_job, a_plan, a_request, a_site
from vtorque import names
from vtorque.errors import InternalError
from vtorque.model import JobId
from vtorque.options import SiteConfig

SITE = a_site(state_dir="/run/v", disk_dir="/disks", ramdisk_dir="/ram")


@pytest.mark.parametrize(("name", "owner"), [
    ("7.srv_1of1.iso", "7.srv"), ("58-2.srv_12of128.home.sock", "58-2.srv"), ("7_1of2.qcow2", "7"),
    ("7.srv_x_1of1.iso", "7.srv_x"), ("7.srv_1of1_2of2.iso", "7.srv_1of1"),
    ("7.srv", ""), ("7.srv_1of1", ""), ("7.srv_1of1.", ""), ("7.srv_of1.iso", ""), ("7.srv_1of1.a/b", ""),
    ("srv_1of1.iso", ""), (".7.srv_1of1.iso", ""), ("7.srv_1of1.iso\n", ""), ("7.srv_1of1.i o", ""), ("", ""),
    ("7.srv_1of1.iso~", ""), ("7.srv_1111of1.iso", ""), ("7.srv_1of1111.iso", ""), ("٧.srv_1of1.iso", ""),
    ("../7.srv_1of1.iso", ""),
])
def test_a_file_tells_by_its_name_whose_it_is(name: str, owner: str) -> None:
    assert names.owner_of(name) == owner


@pytest.mark.parametrize("site", [SITE.but(share=share) for share in ("nfs", "9p", "virtiofs")])
@pytest.mark.parametrize("fs_type", ["sharedfs", "ramdisk"])
@pytest.mark.parametrize("job", ["7.srv", "58[2].srv", "7"])
def test_whatever_a_plan_has_of_a_guest_is_at_a_place_of_it(site: SiteConfig, fs_type: str, job: str) -> None:
    whose = a_job(id=JobId(job))
    plan = a_plan(job=whose, site=site, request=a_request(fs_type=fs_type, disk="/d.img", vms_per_node=2))
    for vm in plan.vms:
        found = {vm.overlay, vm.seed, vm.console, vm.channel, *vm.share_sockets} | ({vm.disk_socket} - {None})
        assert len(found) >= 4
        for path in found:
            assert path is not None and names.guest_file(path, site, key=whose.key) == path
            with pytest.raises(InternalError):
                names.guest_file(path, site, key="8.srv")


@pytest.mark.parametrize("path", [
    "/run/v/seeds/7.srv_1of1.iso", "/disks/7.srv/7.srv_1of1.qcow2", "/ram/jobs/7.srv/7.srv_1of1.qcow2",
])
def test_there_may_be_one_with_the_seeds_and_in_the_jobs_own_directory(path: str) -> None:
    for key in ("", "7.srv"):
        assert names.guest_file(Path(path), SITE, key=key) == Path(path)


@pytest.mark.parametrize("path", [
    "/run/v/7.srv_1of1.iso", "/run/v/jobs/7.srv/7.srv_1of1.iso", "/disks/7.srv_1of1.qcow2",
    "/disks/8.srv/7.srv_1of1.qcow2", "/ram/7.srv/7.srv_1of1.qcow2", "/disks/7.srv/../7.srv/7.srv_1of1.qcow2",
    "/run/v/seeds/../seeds/7.srv_1of1.iso", "run/v/seeds/7.srv_1of1.iso", "7.srv_1of1.iso", "/run/v/seeds/x",
    "/run/v/seeds/", "/",
])
def test_there_is_none_anywhere_else(path: str) -> None:
    with pytest.raises(InternalError, match="is no place for a guest's file"):
        names.guest_file(Path(path), SITE)


def test_everything_has_its_place() -> None:
    site = a_site(
        state_dir="/run/v", disk_dir="/disks", ramdisk_dir="/ram", torque_home="/torque", log_dir="/log",
        image_cache_dir="/cache", accounting_dir="",
    )
    assert names.seeds(site) == Path("/run/v/seeds")
    assert names.jobs(site) == Path("/torque/mom_priv/jobs")
    assert names.log(site) == Path("/log/vtorque.log")
    assert names.standing(site) == Path("/disks/node")
    assert names.caches(site) == (Path("/cache"), Path("/ram/images"))
    assert names.accounting(site) == Path("/log/accounting")
    assert names.accounting(site.but(accounting_dir="/books")) == Path("/books")


@pytest.mark.skipif(os.geteuid() != 0, reason="directories have to be root's")
def test_a_job_has_directories_where_nobody_else_could_put_something(tmp_path: Path) -> None:
    site = a_site(disk_dir=str(tmp_path / "disks"), ramdisk_dir=str(tmp_path / "ram"))
    for place in names.places(site).values():
        place.mkdir(parents=True)
    assert names.directories(site, "7.srv") == {
        "sharedfs": tmp_path / "disks/7.srv", "ramdisk": tmp_path / "ram/jobs/7.srv"
    }
    (tmp_path / "disks").chmod(0o777)
    assert names.directories(site, "7.srv") == {"ramdisk": tmp_path / "ram/jobs/7.srv"}


def test_tables_of_two_installations_do_not_meet() -> None:
    usual, trial = a_site(state_dir="/run/vtorque"), a_site(state_dir="/run/trial")
    assert names.table("7.srv", usual) == "vtorque-7.srv"
    # sha256sum of the directory's name.
    assert names.table("7.srv", trial) == "vtorque_a4bcf8b2-7.srv"
    for site, other in ((usual, trial), (trial, usual)):
        assert names.key(names.table("7.srv", site), site) == "7.srv"
        assert names.key(names.table("7.srv", site), other) == ""
        assert names.key("somebody-7.srv", site) == ""


@pytest.mark.parametrize("key", ["7", "7.sr", "8.srv", "7.srv_1of1"])
def test_anothers_is_not_this_jobs(key: str) -> None:
    with pytest.raises(InternalError):
        names.guest_file(Path("/run/v/seeds/7.srv_1of1.iso"), SITE, key=key)
