# SPDX-License-Identifier: Apache-2.0
"""What a node's files say of its health, and what becomes of a check that fails or hangs."""

import grp
import json
import os
import pwd
import py_compile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.builders import a_shape, a_site
from vtorque import doctor, doctor_checks, doctor_network, doctor_site, shares
from vtorque.deadline import Deadline
from vtorque.doctor import Finding, Level
from vtorque.doctor_checks import error, ok, warning
from vtorque.errors import ConfigError
from vtorque.shape import HugePages, NumaNode

GIB = 1 << 30
FINE, ODD, BAD = ok("a", "fine"), warning("b", "odd", "mend it"), error("c", "bad\nand worse", "mend it")
MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
srv:/opt /opt nfs4 rw 0 0
srv:/a\\040b /with\\040blank nfs rw 0 0
/dev/vdb /twice ext4 rw 0 0
tmpfs /twice tmpfs rw 0 0
"""


@pytest.mark.parametrize(("findings", "status"), [
    ([], 0), ([FINE], 0), ([FINE, ODD], 1), ([BAD, FINE, ODD], 2),
])
def test_the_worst_finding_makes_the_status(findings: list[Finding], status: int) -> None:
    assert doctor.exit_status(findings) == status


def test_mom_hears_of_errors_only_in_one_line_that_fits_her_buffer() -> None:
    assert doctor.nhc([FINE, ODD]) == ""
    assert doctor.nhc([FINE, BAD, ODD, error("d", "more")]) == "ERROR c: bad and worse; d: more"
    long = doctor.nhc([error("x", "ä" * 5000)])
    assert long.startswith("ERROR x: ") and len(long.encode()) < 1000


def test_a_finding_is_one_line_and_becomes_json() -> None:
    assert BAD.text == "bad and worse"
    assert json.loads(json.dumps(asdict(ODD))) == {"name": "b", "level": "warning", "text": "odd", "hint": "mend it"}


def test_checks_that_fail_are_errors_and_spoil_no_other() -> None:
    def late() -> Iterator[Finding]:
        yield FINE
        raise ConfigError("wrong", hint="do this")

    def missing() -> Iterator[Finding]:
        yield ok("x", Path("/nowhere/at/all").read_text())

    def broken() -> Iterator[Finding]:
        yield ok("x", str(1 // 0))

    found = doctor.conclude(
        [("late", late), ("missing", missing), ("broken", broken), ("good", lambda: iter([FINE]))],
        deadline=Deadline(10),
    )
    assert found[:2] == [FINE, error("late", "wrong", "do this")]
    assert found[2] == error("missing", "/nowhere/at/all: No such file or directory")
    assert found[3].text.startswith("the check itself failed: ZeroDivisionError")
    assert found[4:] == [FINE]


GROUPS = {0: "root", 6: "disk", 100: "users", 107: "kvm", 128: "libvirt", 990: "vtorque", 991: "hpc"}


def accounts_of(
    monkeypatch: pytest.MonkeyPatch, *, uid: int | None, gid: int = 990, more: tuple[int, ...] = ()
) -> None:
    """A node on which vtorque has these numbers, or is not known, and QEMU is 64055, in the group kvm."""
    users = {"root": (0, 0), "nobody": (65534, 65534), "libvirt-qemu": (64055, 107)}
    if uid is not None:
        users["vtorque"] = (uid, gid)

    def entry(name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", *users[name], "", "/", "/"))

    monkeypatch.setattr(pwd, "getpwnam", entry)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry(next(name for name in users if users[name][0] == uid)))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((GROUPS[gid], "x", gid, [])))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, *more])


def account() -> list[Finding]:
    return list(doctor_site.account(a_site(), Path("/opt/vtorque")))


def test_the_programs_account_has_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts_of(monkeypatch, uid=990, more=(991,))
    assert account() == [ok("account", "vtorque has uid 990 and gid 990")]
    accounts_of(monkeypatch, uid=1000)
    says = "vtorque has uid 1000, as people have who submit jobs: MIN_UID is 1000"
    assert account() == [warning("account", says, "usermod -u N vtorque, if it is nobody's login")]
    accounts_of(monkeypatch, uid=None)
    says = "there is no user 'vtorque' on this node"
    assert account() == [error("account", says, "/opt/vtorque/contrib/make-account")]
    accounts_of(monkeypatch, uid=0)
    assert account() == [error("account", "user 'vtorque' is root", "usermod -u N vtorque")]


def test_a_program_that_is_not_compiled_for_everybody_is_noticed(tmp_path: Path) -> None:
    modules = [tmp_path / "a.py", tmp_path / "cli/b.py"]
    for path in modules:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    hint = f"(umask 022; python3 -m compileall -qf {tmp_path})"

    def looks(bad: int) -> None:
        text = f"{bad} of 2 modules below {tmp_path} are not compiled for everybody"
        well = ok("compiled", f"all 2 modules below {tmp_path} are")
        assert list(doctor_site.compiled(tmp_path)) == ([warning("compiled", text, hint)] if bad else [well])

    looks(bad=2)
    done = [Path(py_compile.compile(str(path)) or "") for path in modules]
    looks(bad=0)
    done[0].chmod(0o600)
    looks(bad=1)
    os.utime(done[1], (0, 0))
    looks(bad=2)


@pytest.mark.parametrize(("uid", "who"), [(64055, "libvirt-qemu"), (65534, "nobody")])
def test_nobody_else_has_the_number_of_the_programs_account(
    monkeypatch: pytest.MonkeyPatch, uid: int, who: str
) -> None:
    accounts_of(monkeypatch, uid=uid)
    assert account() == [error("account", f"vtorque has uid {uid}, and so has {who}", "usermod -u N vtorque")]


@pytest.mark.parametrize("gid", [0, 6, 107, 128])
def test_no_group_gives_the_programs_account_back_what_it_has_not(monkeypatch: pytest.MonkeyPatch, gid: int) -> None:
    accounts_of(monkeypatch, uid=990, gid=gid)
    (found,) = account()
    assert (found.level, found.text) == (
        Level.ERROR, f"the group of vtorque is {GROUPS[gid]}, which it is not to be in")
    accounts_of(monkeypatch, uid=990, more=(991, gid))
    hint = "usermod -G '' vtorque"
    assert account() == [warning("account", f"vtorque is in {GROUPS[gid]}, which it is not to be in", hint)]


def test_a_group_of_the_programs_account_that_others_are_in_may_read_what_is_its(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts_of(monkeypatch, uid=990, gid=100)
    (found,) = account()
    assert (found.level, found.text) == (
        Level.WARNING, "the group of vtorque is users, which may read logs and accounting")


def test_a_check_that_hangs_is_left_behind() -> None:
    over = threading.Event()

    def hang() -> Iterator[Finding]:
        yield FINE
        over.wait(30)

    found = doctor.conclude([("hang", hang), ("good", lambda: iter([ODD]))], deadline=Deadline(0.2))
    over.set()
    assert [each.text for each in found] == ["fine", "the check did not end in time", "odd"]


@pytest.mark.parametrize(("kind", "device", "level", "text"), [
    ("kvm", "absent", Level.ERROR, "there is no /dev/kvm"),
    ("kvm", "file", Level.ERROR, "refuses to make a guest"),
    ("kvm", "/dev/null", Level.ERROR, "refuses to make a guest"),
    ("qemu", "absent", Level.OK, "sees no /dev/kvm"),
    ("qemu", "file", Level.OK, "sees no /dev/kvm"),
    ("qemu", "/dev/null", Level.WARNING, "of no use"),
])
def test_a_kvm_that_is_only_there_does_not_count(
    tmp_path: Path, kind: str, device: str, level: Level, text: str
) -> None:
    (tmp_path / "file").touch()
    site = a_site(hypervisor_type=kind)
    (found,) = doctor_checks.accelerator(site, device=tmp_path / device, cpuinfo=Path("/proc/cpuinfo"))
    assert found.level is level and text in found.text
    assert found.hint or level is Level.OK


def test_kvm_is_looked_for_where_libvirts_daemon_lives(tmp_path: Path) -> None:
    assert doctor_checks.kvm_of_libvirt(tmp_path) == Path("/dev/kvm")
    for pid, name in (("7", "sh"), ("8", "virtqemud")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{name}\n")
    assert doctor_checks.kvm_of_libvirt(tmp_path) == tmp_path / "8/root/dev/kvm"


@pytest.mark.parametrize(("name", "level", "text"), [
    ("br0", Level.OK, "bridge br0 is up, with 2 ports"),
    ("br1", Level.ERROR, "bridge br1 is down"),
    ("eth0", Level.ERROR, "interface eth0 is not a bridge"),
    ("br7", Level.ERROR, "there is no interface br7; bridges are: br0, br1"),
])
def test_a_bridge_has_to_be_one_and_to_be_up(tmp_path: Path, name: str, level: Level, text: str) -> None:
    for port in ("br0/bridge", "br0/brif/tap0", "br0/brif/tap1", "br1/bridge", "br1/brif", "eth0"):
        (tmp_path / port).mkdir(parents=True)
    for interface, flags in (("br0", "0x1003"), ("br1", "0x1002"), ("eth0", "0x1003")):
        (tmp_path / interface / "flags").write_text(f"{flags}\n")
    (found,) = doctor_checks.bridge(name, net=tmp_path)
    assert (found.level, found.text) == (level, text)


@pytest.mark.parametrize(("chosen", "nic", "told"), [("1", False, True), ("3", False, False), ("1", True, False)])
def test_a_bridge_needs_a_mac_address_that_stays(tmp_path: Path, chosen: str, nic: bool, told: bool) -> None:
    assert list(doctor_network.own_address(a_site(bridge="br0"), net=tmp_path)) == []
    for port in ("br0/brif/vtg1", "vtg1", *(["br0/brif/eno1", "eno1"] if nic else [])):
        (tmp_path / port).mkdir(parents=True)
    for name, text in (("br0/addr_assign_type", chosen), ("br0/address", "02:00:00:00:00:07"), ("vtg1/tun_flags", "")):
        (tmp_path / name).write_text(f"{text}\n")
    found = list(doctor_network.own_address(a_site(bridge="br0"), net=tmp_path))
    assert [(each.level, each.hint) for each in found] == (
        [(Level.WARNING, "ip link set br0 address 02:00:00:00:00:07, for good")] if told else []
    )


@pytest.mark.parametrize(("free", "level"), [
    (GIB - 1, Level.ERROR), (GIB, Level.WARNING), (10 * GIB - 1, Level.WARNING), (10 * GIB, Level.OK),
])
def test_overlays_need_room(free: int, level: Level) -> None:
    assert doctor_checks.space(Path("/disks"), free).level is level


def test_room_is_measured_where_the_directory_will_be(tmp_path: Path) -> None:
    (found,) = doctor_checks.disk_space(tmp_path / "not" / "yet")
    assert found.text.partition(" ")[0].replace(".", "").isdecimal() and f"{tmp_path}/not/yet" in found.text


@pytest.mark.parametrize(("path", "kind"), [
    ("/", "ext4"), ("/run/x/y", "tmpfs"), ("/running", "ext4"), ("/opt/vtorque", "nfs4"),
    ("/with blank/x", "nfs"), ("/twice/x", "tmpfs"),
])
def test_the_innermost_and_last_mount_is_the_one_that_counts(path: str, kind: str) -> None:
    assert doctor_checks.filesystem(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(("directory", "level"), [("/run/vtorque", Level.OK), ("/no/such/place", Level.WARNING)])
def test_the_record_belongs_on_a_tmpfs(tmp_path: Path, directory: str, level: Level) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    (found,) = doctor_checks.state_directory(Path(directory), mounts=tmp_path / "mounts")
    assert found.level is level and directory in found.text


@pytest.mark.parametrize(("config", "level", "seconds"), [
    (None, Level.OK, "290 s"), ("$prologalarm 161\n", Level.OK, "151 s"),
    ("$prologalarm 160\n", Level.WARNING, "150 s"), ("$prologalarm 100\n", Level.WARNING, "90 s"),
])
def test_mom_has_to_give_a_hook_its_time(tmp_path: Path, config: str | None, level: Level, seconds: str) -> None:
    if config is not None:
        (tmp_path / "config").write_text(config)
    site = a_site(timeout=120, undo_reserve=30)
    (found,) = doctor_checks.hook_time(site, tmp_path)
    assert found.level is level and seconds in found.text and "150 s together" in found.text
    if level is Level.WARNING:
        assert f"$prologalarm 165 into {tmp_path}/config" in found.hint
        (tmp_path / "config").write_text("$prologalarm 165\n")
        (found,) = doctor_checks.hook_time(site, tmp_path)
        assert found.level is Level.OK, "its own advice is not enough"


def test_without_a_mom_nothing_is_said_of_her_time(tmp_path: Path) -> None:
    assert not list(doctor_checks.hook_time(a_site(), tmp_path / "mom_priv"))
    (found,) = doctor_checks.hooks(tmp_path / "mom_priv", tmp_path, install="install")
    assert found.level is Level.ERROR and "TORQUE_HOME" in found.hint


@pytest.mark.parametrize(("changes", "levels"), [
    ({"host_os_core_count": 1, "vcpus_default": 7, "ram_default": 1024}, [Level.OK]),
    ({"host_os_core_count": 2, "vcpus_default": 7, "ram_default": 1024}, [Level.WARNING]),
    ({"host_os_core_count": 1, "vcpus_default": 1, "ram_default": 14336}, [Level.WARNING]),
    ({"vms_per_node_default": 2, "vcpus_default": 4, "ram_default": 1024}, [Level.WARNING]),
    ({"host_os_core_count": 8, "host_os_ram_mb": 512}, [Level.ERROR]),
    ({"host_os_core_count": 9, "host_os_ram_mb": 16384}, [Level.ERROR, Level.ERROR]),
])
def test_something_has_to_be_left_for_guests(changes: dict[str, int], levels: list[Level]) -> None:
    found = list(doctor_checks.room(a_site(**changes), a_shape()))
    assert [each.level for each in found] == levels


@pytest.mark.parametrize(("pages", "level", "text"), [
    (0, Level.ERROR, "no huge pages aside"), (511, Level.WARNING, "1022 MiB"), (512, Level.OK, "1024 MiB"),
])
def test_huge_pages_that_guests_are_to_have_are_there(pages: int, level: Level, text: str) -> None:
    there = (HugePages(size_kib=2048, total=pages, free=0),) if pages else ()
    shape = a_shape(numa=(NumaNode(id=0, cpus=(0,), memory_mib=2048, pages=there),))
    (found,) = doctor_site.huge_pages(a_site(hugepages=True, ram_default=1024), shape)
    assert found.level is level and text in found.text and (found.hint or level is Level.OK)
    assert not list(doctor_site.huge_pages(a_site(), shape))


@pytest.mark.parametrize("switch", ["sys/bridge-nf-call-iptables", "sys/bridge-nf-call-ip6tables",
                                    "net/br0/bridge/nf_call_iptables"])
def test_rules_of_the_hosts_own_leave_guests_frames_alone(tmp_path: Path, switch: str) -> None:
    def look() -> list[Finding]:
        return list(doctor_network.host_rules(a_site(bridge="br0"), sysctl=tmp_path / "sys", net=tmp_path / "net"))

    assert look() == [], "br_netfilter is not loaded"
    path = tmp_path / switch
    path.parent.mkdir(parents=True)
    path.write_text("0\n")
    assert look() == []
    path.write_text("1\n")
    (found,) = look()
    assert found.level is Level.WARNING and f"{path} is 1" in found.text and f"echo 0 >{path}" in found.hint


@pytest.mark.parametrize(("system", "qsub", "level"), [
    ("torque", "/bin/sh", Level.OK), ("torque", "/nowhere/qsub", Level.ERROR), ("slurm", "/bin/sh", Level.OK),
])
def test_a_front_end_has_what_vsub_submits_with(system: str, qsub: str, level: Level) -> None:
    (found,) = doctor_site.submits(a_site(batch_system=system, pbs_qsub_on_fe=qsub))
    assert found.level is level and qsub in found.text


def test_with_slurm_vsub_submits_with_sbatch_unless_told_otherwise() -> None:
    (found,) = doctor_site.submits(a_site(batch_system="slurm"))
    assert "/usr/bin/sbatch" in found.text


@pytest.mark.parametrize(("share", "options", "expected"), [
    ("nfs:/home", "rw,hard", ("nfs", 2049)),
    ("nfs.site.org:/a:/b", "rw,port=20049,hard", ("nfs.site.org", 20049)),
    ("[fd00::1]:/home", "mountport=7", ("fd00::1", 2049)),
])
def test_a_share_names_its_server(share: str, options: str, expected: tuple[str, int]) -> None:
    assert shares.server_of(share, options) == expected


@pytest.mark.parametrize(("now", "synchronised", "level"), [
    (0, True, Level.ERROR), (1704067199, None, Level.ERROR), (1704067200, True, Level.OK),
    (1704067200, None, Level.OK), (1704067200, False, Level.WARNING),
])
def test_a_clock_is_set_and_kept_right(now: int, synchronised: bool | None, level: Level) -> None:
    found = doctor.clock_says(now, synchronised)
    assert found.level is level and "UTC" in found.text
