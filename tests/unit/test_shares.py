# SPDX-License-Identifier: Apache-2.0
"""Shares: what is mounted from where, who may have it, and domains that serve something else."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import a_plan, a_request, a_site, an_account, an_image, some_keys
from vtorque import render
from vtorque.errors import ConfigError, RequestError
from vtorque.model import Mount

TEMPLATES = Path(__file__).resolve().parents[2] / "templates-vm"
UNTRUSTED = an_image(trusted=False)


def mounts(**site: Any) -> dict[str, Mount]:
    return {str(mount.target): mount for mount in a_plan(site=a_site(**site)).mounts}


def domain(share: str, template: str = "", was: str = "", becomes: str = "", where: Path = TEMPLATES) -> str:
    site = a_site(share=share, template_dir=str(where))
    if template:
        text = (TEMPLATES / template).read_text()
        assert was in text
        (where / template).write_text(text.replace(was, becomes))
    plan = a_plan(site=site)
    made = render.guest(plan, plan.vms[0], site=site, keys=some_keys(), announce="", templates=TEMPLATES)
    return made.domain_xml


class TestNfs:
    @pytest.mark.parametrize(("export", "source"), [
        ("nfs:/home", "nfs:/home/ann"), ("nfs:/home/", "nfs:/home/ann"), ("nfs:/", "nfs:/ann"),
        ("nfs:/home/[username]", "nfs:/home/ann"), ("nfs:/%u/home", "nfs:/ann/home"),
        ("nfs:/vol/__USER_NAME__/data", "nfs:/vol/ann/data"),
    ])
    def test_the_users_name_goes_where_the_export_says_or_to_its_end(self, export: str, source: str) -> None:
        assert mounts(vm_nfs_home=export)["/home/ann"].source == source

    def test_an_export_may_have_options_of_its_own(self) -> None:
        made = mounts(vm_nfs_options="rw,vers=4.2", vm_nfs_ws_options="ro,vers=3", vm_nfs_opt_options="ro")
        assert [each.options for each in made.values()] == ["rw,vers=4.2", "ro,vers=3", "ro"]
        assert mounts(vm_nfs_home_options="rw,sec=krb5p")["/home/ann"].options == "rw,sec=krb5p"

    def test_an_image_that_was_not_verified_where_that_is_asked_for_gets_none_either(self) -> None:
        image = an_image(verified=False)
        with pytest.raises(RequestError, match=r"is not verified, .*on nfs:/home/ann$") as refusal:
            a_plan(image=image, site=a_site())
        assert refusal.value.hint.startswith("vmgr image verify debian-12.qcow2; ")
        site = a_site(vm_nfs_options="sec=krb5p", vm_nfs_opt_options="sec=krb5p")
        assert len(a_plan(image=image, site=site).mounts) == 3

    @pytest.mark.parametrize("options", ["rw", "sec=sys", "rw,sec=krb5,sec=sys", "sec=krb5:sys", "sec=none"])
    def test_an_image_whose_root_is_not_trusted_gets_no_export_that_believes_it(self, options: str) -> None:
        with pytest.raises(RequestError, match=r"^image debian-12.qcow2 is not trusted, .*on nfs:/home/ann$"):
            a_plan(image=UNTRUSTED, site=a_site(vm_nfs_options=options))

    def test_with_kerberos_it_gets_them_all(self) -> None:
        site = a_site(vm_nfs_options="rw,sec=krb5p", vm_nfs_opt_options="ro,sec=krb5:krb5i")
        assert len(a_plan(image=UNTRUSTED, site=site).mounts) == 3

    def test_each_export_is_looked_at(self) -> None:
        with pytest.raises(RequestError, match=r"on nfs:/opt$"):
            a_plan(image=UNTRUSTED, site=a_site(vm_nfs_options="rw,sec=krb5p"))

    def test_without_any_export_there_is_nothing_to_refuse(self) -> None:
        assert a_plan(image=UNTRUSTED, site=a_site(vm_nfs_home="", vm_nfs_ws="", vm_nfs_opt="")).mounts == ()


@pytest.mark.parametrize("share", ["9p", "virtiofs"])
class TestServedByTheHost:
    def test_files_are_where_they_are_with_nfs(self, share: str) -> None:
        assert list(mounts(share=share)) == list(mounts())

    def test_the_host_serves_its_own_directories_and_opt_only_to_be_read(self, share: str) -> None:
        made = mounts(share=share, vm_share_ws="/data/ws")
        assert [(each.source, str(each.directory), each.readonly) for each in made.values()] == [
            ("home", "/home/ann", False), ("workspace", "/data/ws", False), ("opt", "/opt", True),
        ]
        assert {each.fstype for each in made.values()} == {share}
        assert made["/opt"].options.startswith("ro,nosuid,nodev")

    def test_what_is_empty_is_not_served(self, share: str) -> None:
        assert list(mounts(share=share, vm_share_ws="", vm_share_opt="")) == ["/home/ann"]

    def test_an_image_that_is_not_trusted_is_fine(self, share: str) -> None:
        assert a_plan(image=UNTRUSTED, site=a_site(share=share)).mounts

    def test_osv_is_refused(self, share: str) -> None:
        with pytest.raises(RequestError, match="OSv guests mount NFS only"):
            a_plan(request=a_request(distro="osv"), site=a_site(share=share))

    def test_the_guest_is_told_what_to_mount(self, share: str) -> None:
        site = a_site(share=share)
        plan = a_plan(site=site)
        made = render.guest(plan, plan.vms[0], site=site, keys=some_keys(), announce="", templates=TEMPLATES)
        mount = plan.mounts[1]
        assert f'"{share}", "{mount.options}", "workspace", "/workspace"' in made.user_data


@given(
    share=st.sampled_from(["nfs", "9p", "virtiofs"]), ws=st.sampled_from(["", "/a"]),
    opt=st.sampled_from(["", "/b"]), guests=st.integers(1, 3),
)
def test_every_guest_has_a_server_for_each_share_or_none(share: str, ws: str, opt: str, guests: int) -> None:
    site = a_site(share=share, vm_share_ws=ws, vm_share_opt=opt)
    plan = a_plan(site=site, request=a_request(vms_per_node=guests, vcpus=1))
    every = [path for vm in plan.vms for path in vm.share_sockets]
    assert len(set(every)) == len(every) == (len(plan.mounts) * guests if share == "virtiofs" else 0)
    # The files of a job without a ledger are found by this beginning.
    assert all(path.name.startswith(f"{plan.job.key}_") and path.parent == plan.vms[0].seed.parent for path in every)


def test_qemu_is_the_user_exactly_when_it_serves_his_files_itself() -> None:
    account = an_account(uid=2001)
    assert a_plan(account=account, site=a_site(share="9p")).runs_as == (2001, 2000)
    assert a_plan(account=account, site=a_site(share="virtiofs")).runs_as is None
    assert a_plan(account=account).runs_as is None
    assert "<label>+2000:+2000</label>" in domain("9p")
    assert "<label>libvirt-qemu:libvirt-qemu</label>" in domain("virtiofs")


def test_virtiofs_shares_the_guests_memory_and_nothing_else_does() -> None:
    assert "<access mode='shared'/>" in domain("virtiofs")
    assert "memoryBacking" not in domain("9p") + domain("nfs")


@pytest.mark.parametrize(("share", "was", "becomes", "says"), [
    ("9p", "<source dir='{{ mount.directory }}'/>", "<source dir='/'/>", "files differs"),
    ("9p", "<source dir='{{ mount.directory }}'/>", "<source dir='/home/ann'/>", "filesystems differs"),
    ("9p", "{% if mount.readonly %}", "{% if false %}", "filesystems differs"),
    ("9p", "accessmode='squash'", "accessmode='passthrough'", "filesystems differs"),
    ("9p", "+{{ plan.runs_as[0] }}:", "+0:", "labels differs"),
    ("virtiofs", "socket='{{ vm.share_sockets[loop.index0] }}'", "dir='/home/ann'", "files differs"),
    ("virtiofs", "<source socket='{{ vm.share_sockets[loop.index0] }}'/>",
     "<source socket='{{ vm.share_sockets[0] }}'/>", "filesystems differs"),
    ("virtiofs", "<access mode='shared'/>", "", "memory access differs"),
    ("nfs", "<memballoon", "<filesystem><source dir='/x'/></filesystem><memballoon", "files differs"),
])
def test_a_sites_template_cannot_serve_anything_else(
    tmp_path: Path, share: str, was: str, becomes: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        domain(share, "domain.xml", was, becomes, tmp_path)
