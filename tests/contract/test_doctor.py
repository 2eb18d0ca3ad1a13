# SPDX-License-Identifier: Apache-2.0
"""The examination over real files, sockets and libvirt; every fault of a hook that Torque punishes."""

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import a_site
from vtorque import accounts, doctor, doctor_checks, doctor_site, images, proc
from vtorque.deadline import Deadline
from vtorque.doctor import Finding, Level
from vtorque.errors import ConfigError
from vtorque.model import PelogKind

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="gives files to other users"),
]

KVM = Path("/dev/kvm")
NOBODY = 65534
INSTALL = "vmgr install --system torque"
ROOT = Path(__file__).resolve().parents[2]


def soon() -> Deadline:
    return Deadline(20)


@pytest.fixture
def mom_priv(tmp_path: Path) -> Path:
    """A mom whose five hooks are links to ours."""
    tmp_path.chmod(0o755)
    for name in ("scripts", "mom_priv"):
        (tmp_path / name).mkdir(mode=0o755)
    for kind in PelogKind:
        script = tmp_path / "scripts" / kind
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
        (tmp_path / "mom_priv" / kind).symlink_to(script)
    return tmp_path / "mom_priv"


def look(mom_priv: Path, mounts: Path = doctor_checks.MOUNTS) -> list[Finding]:
    return list(doctor_checks.hooks(mom_priv, mom_priv.parent / "scripts", install=INSTALL, mounts=mounts))


def dangle(hook: Path) -> None:
    hook.resolve().unlink()


def replace_by_file(hook: Path) -> None:
    hook.unlink()
    shutil.copy(hook.parents[1] / "scripts/epilogue", hook)


def replace_by_directory(hook: Path) -> None:
    hook.unlink()
    hook.mkdir()


def lead_elsewhere(hook: Path) -> None:
    hook.unlink()
    hook.symlink_to(hook.parents[1] / "scripts/epilogue")


def open_directory(hook: Path) -> None:
    hook.resolve().parent.chmod(0o777)


FAULTS: dict[str, tuple[Callable[[Path], object], Level, str]] = {
    "missing": (Path.unlink, Level.ERROR, "which Torque takes for success: prologue"),
    "dangling": (dangle, Level.ERROR, "which is not there"),
    "foreign": (lambda hook: os.chown(hook, NOBODY, 0), Level.ERROR, f"belongs to uid {NOBODY}"),
    "writable by its group": (lambda hook: hook.chmod(0o775), Level.ERROR, "has mode 0775"),
    "writable by others": (lambda hook: hook.chmod(0o757), Level.ERROR, "has mode 0757"),
    "not executable": (lambda hook: hook.chmod(0o644), Level.ERROR, "has mode 0644"),
    "a directory": (replace_by_directory, Level.ERROR, "is not a regular file"),
    "in an open directory": (open_directory, Level.ERROR, "scripts is writable by others"),
    "the site's own": (replace_by_file, Level.WARNING, "not "),
    "another of ours": (lead_elsewhere, Level.WARNING, "not "),
}


def test_hooks_that_lead_to_ours_are_well(mom_priv: Path) -> None:
    (found,) = look(mom_priv)
    assert found.level is Level.OK and found.text.startswith("5 in ")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hook_that_torque_would_skip_or_refuse_is_found(mom_priv: Path, fault: str) -> None:
    spoil, level, text = FAULTS[fault]
    spoil(mom_priv / "prologue")
    found = look(mom_priv)[0]
    assert found.level is level and text in found.text and found.hint
    if fault not in ("in an open directory", "missing"):
        assert str(mom_priv / "prologue") in found.text + found.hint or "scripts/prologue" in found.text


def test_the_hints_mend_what_they_are_for(mom_priv: Path) -> None:
    os.chown(mom_priv / "prologue", NOBODY, 0)
    (mom_priv / "prologue.parallel").chmod(0o666)
    found = look(mom_priv)
    assert len(found) == 2
    for each in found:
        proc.run(["/bin/sh", "-euc", each.hint], deadline=soon())
    (after,) = look(mom_priv)
    assert after.level is Level.OK


def test_links_are_left_to_the_command_that_keeps_the_sites_own(mom_priv: Path) -> None:
    """See test_install for what it does."""
    for name in ("prologue", "epilogue"):
        (mom_priv / name).unlink()
    replace_by_file(mom_priv / "epilogue.precancel")
    dangle(mom_priv / "prologue.parallel")
    found = look(mom_priv)
    assert [each.hint for each in found] == [INSTALL] * 3
    assert found[-1].text.endswith("success: prologue, epilogue"), "one finding for all"


def test_a_link_that_bites_its_tail_is_an_error(mom_priv: Path, tmp_path: Path) -> None:
    (mom_priv / "prologue").unlink()
    (mom_priv / "prologue").symlink_to(mom_priv / "prologue")
    (found,) = doctor.conclude([("hooks", lambda: iter(look(mom_priv)))], deadline=soon())
    assert found.level is Level.ERROR and "prologue: Too many levels" in found.text


def test_a_hook_on_a_file_server_is_a_risk(mom_priv: Path, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nsrv:/x {tmp_path}/scripts nfs4 rw 0 0\n")
    found = look(mom_priv, mounts)
    assert len(found) == 5 and all("is on nfs4" in each.text and each.level is Level.WARNING for each in found)


def test_the_catalogue_is_roots_and_holds_the_default(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    directory = tmp_path / "images"

    def first() -> Finding:
        return next(doctor_checks.catalogue(directory, "debian.img"))

    assert first().level is Level.ERROR and "there is no image directory" in first().text
    assert first().hint.startswith("vmgr image build debian-12")
    directory.mkdir(mode=0o755)
    assert first().level is Level.ERROR and "there are no images" in first().text
    for name, level in (("other.img", Level.WARNING), ("debian.img", Level.OK)):
        (tmp_path / name).write_bytes(bytes(1024))
        entry = {"name": name, "distro": "debian", "arch": "x86_64", "description": ""}
        images.publish(directory, entry, {name: tmp_path / name})
        assert first().level is level and "debian.img" in first().text
    os.chown(directory / "debian.img", NOBODY, 0)
    with pytest.raises(ConfigError, match="belongs to uid"):
        first()


def test_a_server_answers_or_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        site = a_site(
            vm_nfs_home="127.0.0.1:/home", vm_nfs_ws="", vm_nfs_opt="127.0.0.1:/opt",
            vm_nfs_options=f"rw,port={port}", vm_nfs_opt_options=f"port={port},ro",
        )
        (found,) = doctor.shares(site, deadline=soon())
        assert found.level is Level.OK and "VM_NFS_HOME, VM_NFS_OPT" in found.text
    (found,) = doctor.shares(site, deadline=soon())
    assert found.level is Level.ERROR and f"127.0.0.1 port {port}" in found.text and "refused" in found.text
    (found,) = doctor.shares(a_site(vm_nfs_home="", vm_nfs_ws="", vm_nfs_opt=""), deadline=soon())
    assert found.level is Level.OK


def test_virtiofs_needs_its_server(tmp_path: Path) -> None:
    server = tmp_path / "virtiofsd"
    found = doctor_site.served("virtiofs", directory=tmp_path, server=server)
    assert found.level is Level.ERROR and str(server) in found.text and "SHARE: nfs" in found.hint
    server.touch()
    assert doctor_site.served("virtiofs", directory=tmp_path, server=server).level is Level.OK


@pytest.mark.parametrize(("share", "mode", "level"), [
    ("9p", 0o750, Level.ERROR), ("9p", 0o751, Level.OK), ("virtiofs", 0o750, Level.OK)
])
def test_a_user_has_to_reach_libvirts_directory_where_qemu_is_his(
    tmp_path: Path, share: str, mode: int, level: Level
) -> None:
    tmp_path.chmod(mode)
    (tmp_path / "virtiofsd").touch()
    assert doctor_site.served(share, directory=tmp_path, server=tmp_path / "virtiofsd").level is level


def test_libvirt_tells_its_version_and_defines_a_guest() -> None:
    found = doctor.version("test:///default", deadline=soon())
    assert found.level is Level.OK and "TEST" in found.text
    found = doctor.defining("test:///default", kind="test", machine="", deadline=soon())
    assert found.level is Level.OK and found.text.endswith(" ms")


def test_a_libvirt_that_refuses_or_is_not_there_is_an_error() -> None:
    found = doctor.defining("test:///default", kind="nosuch", machine="q35", deadline=soon())
    assert found.level is Level.ERROR and "cannot define a guest" in found.text
    site = a_site(libvirt_uri="qemu:///system?socket=/nonexistent")
    (found,) = doctor.libvirt(site, deadline=soon())
    assert found.level is Level.ERROR and "/nonexistent" in found.text and found.hint


def test_the_emulator_knows_its_machines() -> None:
    if shutil.which("qemu-system-x86_64", path=proc.PATH) is None:
        pytest.skip("no emulator here")
    for name, level in (("q35", Level.OK), ("pc", Level.OK), ("vax", Level.ERROR)):
        (found,) = doctor.machine(a_site(machine_type=name), deadline=soon())
        assert found.level is level and name in found.text


@pytest.mark.skipif(not KVM.exists(), reason="no /dev/kvm here")
def test_a_processor_without_virtualisation_makes_kvm_useless(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    faults = []
    for flags in ("fpu hypervisor", "fpu svm", "fpu vmx"):
        cpuinfo.write_text(f"flags\t\t: {flags}\n")
        faults.append(doctor_checks.kvm_fault(KVM, cpuinfo))
    if faults[0].startswith("/dev/kvm"):
        pytest.skip(faults[0])
    assert faults == ["the processor has neither vmx nor svm", "", ""]


def test_a_node_with_everything_wrong_is_examined_to_the_end(tmp_path: Path) -> None:
    site = a_site(
        torque_home=f"{tmp_path}/torque", vm_img_dir=f"{tmp_path}/images", disk_dir=f"{tmp_path}/disks",
        libvirt_uri="qemu:///system?socket=/nonexistent", bridge="nosuch0", qemu_user="nosuchuser",
        vm_nfs_home="127.0.0.1:/home", vm_nfs_ws="", vm_nfs_opt="", vm_nfs_options="port=1",
    )
    found = doctor.examine(site, prefix=tmp_path, deadline=soon())
    wrong = {each.name for each in found if each.level is Level.ERROR}
    assert {"libvirt", "bridge", "nfs", "images", "hooks", "qemu-user"} <= wrong
    assert all(each.hint for each in found if each.level is not Level.OK)
    assert doctor.exit_status(found) == 2 and doctor.nhc(found).startswith("ERROR libvirt: ")
    assert not any("\n" in each.text or each.text.endswith(".") for each in found)


def test_a_node_without_the_programs_account_is_told_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (well,) = doctor_site.account(a_site(), ROOT)
    uid, gid = accounts.program()
    assert (well.level, well.text) == (Level.OK, f"vtorque has uid {uid} and gid {gid}")
    monkeypatch.setattr(accounts, "PROGRAM", "nosuchuser")
    (ill,) = (each for each in doctor.examine(a_site(), prefix=ROOT, deadline=soon()) if each.name == "account")
    assert (ill.level, ill.text) == (Level.ERROR, "there is no user 'nosuchuser' on this node")
    assert os.access(ill.hint, os.X_OK)


def test_a_front_end_is_not_told_what_nodes_need(tmp_path: Path) -> None:
    site = a_site(
        torque_home=f"{tmp_path}/torque", vm_img_dir=f"{tmp_path}/images", bridge="nosuch0", qemu_user="nosuchuser",
        libvirt_uri="qemu:///system?socket=/nonexistent", pbs_qsub_on_fe=f"{tmp_path}/qsub",
    )
    found = doctor.examine(site, prefix=tmp_path, front_end=True, deadline=soon())
    assert {each.name for each in found} == {"role", "submit", "commands", "compiled", "images", "clock"}
    assert {each.name for each in found if each.level is Level.ERROR} == {"submit", "images"}
    assert not any("vmgr install" in each.hint for each in found)


class TestWhatTheConfigurationNames:
    """Each of these makes jobs fail, and nothing else of the doctor's would find it."""

    def look(self, tmp_path: Path, **options: object) -> list[Finding]:
        tmp_path.chmod(0o755)
        usual = {"template_dir": str(tmp_path / "templates"), "ramdisk_dir": str(tmp_path / "ramdisk")}
        return list(doctor_site.named(a_site(**usual | options), tmp_path))

    def error(self, tmp_path: Path, **options: object) -> str:
        (found,) = self.look(tmp_path, **options)
        assert found.level is Level.ERROR and found.hint
        return found.text

    def test_nothing_named_is_well(self, tmp_path: Path) -> None:
        (found,) = self.look(tmp_path)
        assert found.level is Level.OK

    def test_templates_that_others_can_write_stop_every_hook(self, tmp_path: Path) -> None:
        (tmp_path / "templates").mkdir()
        (tmp_path / "templates").chmod(0o777)
        assert "TEMPLATE_DIR: " in self.error(tmp_path) and "no job gets guests" in self.error(tmp_path)
        (tmp_path / "templates").rmdir()
        (tmp_path / "scripts").mkdir()
        os.chown(tmp_path / "scripts", NOBODY, 0)
        assert f"belongs to uid {NOBODY}" in self.error(tmp_path)

    def test_scripts_of_the_sites_own(self, tmp_path: Path) -> None:
        assert "VM_SCRIPTS_DIR: there is no" in self.error(tmp_path, vm_scripts_dir=str(tmp_path / "own"))
        mapping = tmp_path / "map"
        named = {"custom_ip_mapping": True, "ip_to_mac_script": str(mapping)}
        assert f"IP_TO_MAC_SCRIPT: there is no program {mapping}" in self.error(tmp_path, **named)
        mapping.write_text("#!/bin/sh\n")
        assert "there is no program" in self.error(tmp_path, **named), "root cannot run it"
        mapping.chmod(0o777)
        assert f"{mapping} is writable by others" in self.error(tmp_path, **named)
        mapping.chmod(0o755)
        (found,) = self.look(tmp_path, **named)
        assert found.level is Level.OK

    @pytest.mark.parametrize(("key", "meaning"), [
        ("disk_dir", "no job gets guests"), ("ramdisk_dir", "no job gets fs_type=ramdisk"),
        ("image_cache_dir", "no job gets an image by URL"),
    ])
    def test_where_disks_are_made_others_write_nothing(self, tmp_path: Path, key: str, meaning: str) -> None:
        place = tmp_path / "open" / "vtorque"
        assert self.look(tmp_path, **{key: str(place)})[0].level is Level.OK
        place.parent.mkdir()
        place.parent.chmod(0o777)
        said = self.error(tmp_path, **{key: str(place)})
        assert said == f"{key.upper()}: {place.parent} is writable by others, so {meaning}"

    @pytest.mark.parametrize("key", ["disk_dir", "ramdisk_dir", "image_cache_dir"])
    def test_of_these_only_the_cache_of_images_may_be_the_programs(self, tmp_path: Path, key: str) -> None:
        place, (uid, gid) = tmp_path / "place", accounts.program()
        place.mkdir(mode=0o711)
        os.chown(place, uid, gid)
        if key == "image_cache_dir":
            assert self.look(tmp_path, **{key: str(place)})[0].level is Level.OK
            os.chown(place, NOBODY, NOBODY)
            uid = NOBODY
        assert f"{place} belongs to uid {uid}, so no job gets" in self.error(tmp_path, **{key: str(place)})

    def test_a_ramdisk_for_every_job_is_there(self, tmp_path: Path) -> None:
        assert "no RAMDISK_DIR" in self.error(tmp_path, filesystem_type_default="ramdisk")
        (tmp_path / "ramdisk").mkdir()
        assert self.look(tmp_path, filesystem_type_default="ramdisk")[0].level is Level.OK

    def test_a_place_for_metrics_is_there(self, tmp_path: Path) -> None:
        (found,) = self.look(tmp_path, prometheus_file=str(tmp_path / "none/vtorque.prom"))
        assert found.level is Level.WARNING and f"there is no {tmp_path}/none" in found.text

    def test_users_own_disks_need_a_server(self, tmp_path: Path) -> None:
        (found,) = doctor_site.own_disks(a_site(), program=tmp_path / "qemu-nbd")
        assert found.level is Level.WARNING and "disk=" in found.text and "DISK_ALLOWED: false" in found.hint
        assert not list(doctor_site.own_disks(a_site(disk_allowed=False), program=tmp_path / "qemu-nbd"))
        assert not list(doctor_site.own_disks(a_site(), program=Path("/bin/sh")))

    def test_room_for_images_by_url_if_there_are_any(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site = a_site(vm_img_dir=str(tmp_path / "images"), image_cache_dir=str(tmp_path / "cache/not/yet"))
        entry = {"name": "a.img", "distro": "debian", "arch": "x86_64", "description": ""}
        (tmp_path / "a.img").write_bytes(bytes(512))
        images.publish(tmp_path / "images", entry, {"a.img": tmp_path / "a.img"})
        assert not list(doctor_site.image_cache(site))
        images.publish(tmp_path / "images", {**entry, "name": "b.img", "url": "http://h/b", "sha256": "0" * 64}, {})
        for free, level in ((10 << 30, Level.OK), ((10 << 30) - 1, Level.WARNING)):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(0, 0, free))
            (found,) = doctor_site.image_cache(site)
            assert found.level is level and f"{tmp_path}/cache/not/yet" in found.text


def test_an_examination_without_time_still_ends() -> None:
    started = time.monotonic()
    found = doctor.examine(a_site(), prefix=Path("/nowhere"), deadline=Deadline(0))
    assert time.monotonic() - started < 60 and doctor.exit_status(found) == 2
