# SPDX-License-Identifier: Apache-2.0
"""What plans become: golden files, and documents that differ from the plan are refused."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import a_plan, a_request, a_site, an_account, an_image, some_keys
from vtorque import render, submit
from vtorque.errors import ConfigError
from vtorque.model import Group, JobPlan
from vtorque.optionforms import fits
from vtorque.options import SiteConfig

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
TEMPLATES = ROOT / "templates-vm"

DIRECT = an_image(kernel=Path("/images/debian-12.vmlinux"), initrd=Path("/images/debian-12.initrd"), cmdline="ro a&b")
TOLD = a_site(
    name_server="10.0.0.53 fd00::53", domain="cluster.example.org", search_domain="cluster.example.org example.org",
    ntp_server_1="ntp1.example.org", ntp_server_2="10.0.0.123", sw_packages_debian=("gdb", "libgomp1"),
    sw_packages_redhat=("gdb", "libgomp"), security_updates=True,
)
CASES = {
    "debian-plain": (a_plan(), a_site()),
    "debian-kvm": (a_plan(), a_site(hypervisor_type="kvm", machine_type="pc")),
    "debian-direct": (a_plan(image=DIRECT), a_site()),
    "debian-told": (a_plan(), TOLD),
    "redhat-plain": (a_plan(request=a_request(distro="redhat")), a_site()),
    "redhat-told": (a_plan(request=a_request(distro="centos")), TOLD),
    "debian-9p": (a_plan(site=a_site(share="9p")), a_site(share="9p")),
    "debian-virtiofs": (a_plan(site=a_site(share="virtiofs")), a_site(share="virtiofs")),
    "debian-disk": (a_plan(request=a_request(disk="/home/ann/data.img", disk_new_mib=1024)), a_site()),
    "osv-plain": (a_plan(request=a_request(distro="osv")), a_site()),
    "debian-unpinned-raw": (
        a_plan(image=an_image(name="x.img", path=Path("/images/x.img")), request=a_request(pinning="false")),
        a_site(),
    ),
}


def rendered(plan: JobPlan, site: SiteConfig, templates: Path = TEMPLATES) -> render.Rendered:
    return render.guest(
        plan, plan.vms[0], site=site, keys=some_keys(), announce="10.0.0.1", templates=templates
    )


@pytest.mark.parametrize("case", CASES)
def test_documents_are_the_golden_ones(case: str, request: pytest.FixtureRequest) -> None:
    made = rendered(*CASES[case])
    for ending, text in {
        "domain.xml": made.domain_xml,
        "user-data.yaml": made.user_data,
        "meta-data.yaml": made.meta_data,
        "network-config.yaml": made.network_config,
    }.items():
        golden = GOLDEN / f"{case}.{ending}"
        if request.config.getoption("--regenerate"):
            golden.write_text(text)
        assert text == golden.read_text(), f"{golden.name} differs: make golden, then review"


def test_the_wrapper_keeps_directives_byte_for_byte_and_hands_everything_over() -> None:
    wrapper = submit.wrapper(
        (ROOT / "templates/job-wrapper.sh").read_bytes(),
        directives=b"#PBS -N caf\xe9\n", command=["/opt/vtorque/scripts/jobrun", "id"],
    )
    assert wrapper == b'#!/bin/sh\n#PBS -N caf\xe9\nexec /opt/vtorque/scripts/jobrun id "$@"\n'


def test_values_cannot_leave_their_place_in_the_xml() -> None:
    hostile = an_image(path=Path("/images/a'/><disk type='block'>&.qcow2"))
    root = ElementTree.fromstring(rendered(a_plan(image=hostile), a_site()).domain_xml)
    assert len(root.findall("devices/disk")) == 2


def test_what_a_user_may_add_to_the_cloud_config_is_there() -> None:
    made = rendered(a_plan(request=a_request(metadata='{"locale":"de_DE.UTF-8","timezone":"Europe/Berlin"}')), a_site())
    data = yaml.safe_load(made.user_data)
    assert (data["timezone"], data["locale"]) == ("Europe/Berlin", "de_DE.UTF-8")


def test_values_cannot_leave_their_place_in_the_cloud_config() -> None:
    group = Group(name='x"\nruncmd: [reboot]\n', gid=3000)
    made = rendered(a_plan(account=an_account(groups=(group,))), a_site())
    data = yaml.safe_load(made.user_data)
    assert "runcmd" not in data
    assert group.name in data["bootcmd"][0]


def test_every_group_and_share_reaches_the_guest() -> None:
    words = yaml.safe_load(rendered(a_plan(), a_site()).user_data)["bootcmd"][0]
    text = " ".join(words[4:])
    assert "user ann 2000 2000 /home/ann /bin/bash" in text
    assert "group ann 2000 group hpc 3000" in text
    assert "nfs4 rw,hard,noatime,vers=4.2 nfs:/home/ann /home/ann" in text
    assert "nfs4 ro,hard,noatime,vers=4.2 nfs:/opt /opt" in text


WITH_DISK = a_plan(request=a_request(disk="/home/ann/data.img", vms_per_node=2))


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("{{ vm.disk_socket }}", "/run/other.sock"), ("<serial>vtorque-data", "<serial>other"),
        ("type='raw' discard", "type='qcow2' discard"), ("transport='unix'", "transport='tcp'"),
        ("protocol='nbd'", "protocol='iscsi'"), ("<serial>vtorque-data</serial>", "<readonly/>"),
        ("{% if vm.disk_socket %}", "{% if not vm.disk_socket %}"),
    ],
)
def test_a_sites_template_cannot_attach_another_disk_than_the_users(tmp_path: Path, was: str, becomes: str) -> None:
    text = (TEMPLATES / "domain.xml").read_text()
    assert was in text
    (tmp_path / "domain.xml").write_text(text.replace(was, becomes))
    with pytest.raises(ConfigError, match="served disks differs"):
        rendered(WITH_DISK, a_site(template_dir=str(tmp_path)))


def test_only_rank_0_has_the_users_disk_and_is_told_what_to_do_with_it() -> None:
    first, second = (
        render.guest(WITH_DISK, vm, site=a_site(), keys=some_keys(), announce="", templates=TEMPLATES)
        for vm in WITH_DISK.vms
    )
    words = yaml.safe_load(first.user_data)["bootcmd"][0]
    assert words[words.index("disk"):] == ["disk", "vtorque-data", "/data", "keep", "/home/ann/data.img"]
    assert "nbd" not in second.domain_xml and "disk" not in yaml.safe_load(second.user_data)["bootcmd"][0]


@pytest.mark.parametrize("distro", ["debian", "redhat"])
def test_the_sites_scripts_are_roots_and_run_before_the_guest_is_ready_and_when_it_ends(distro: str) -> None:
    plan = a_plan(request=a_request(distro=distro))
    scripts = {"prologue.parallel": "#!/bin/sh\n", "epilogue.parallel": "#!/bin/sh\nexit 1\n"}
    data = yaml.safe_load(render.guest(
        plan, plan.vms[0], site=a_site(), keys=some_keys(), announce="", templates=TEMPLATES, scripts=scripts
    ).user_data)
    files = {each["path"]: each for each in data["write_files"]}
    for name, text in scripts.items():
        file = files[f"/usr/local/lib/vtorque/site/{name}"]
        assert (file["permissions"], file["content"]) == ("0700", text)
    assert files["/usr/local/lib/vtorque/site.words"]["content"] == "7.srv\nann\n0\n"
    stop = files["/etc/systemd/system/vtorque-site-epilogue.service"]["content"]
    assert "ExecStop=/bin/sh /usr/local/lib/vtorque/site-script epilogue.parallel\n" in stop
    script, units, release = data["runcmd"]
    assert script == ["sh", "/usr/local/lib/vtorque/site-script", "prologue.parallel"]
    assert units[-2:] == ["vtorque-power-button.service", "vtorque-site-epilogue.service"]
    assert "mv /run/vtorque/held /run/vtorque/status" in release[-1], "not ready before"
    assert not data["package_update"]


@pytest.mark.parametrize(
    ("template", "was", "becomes", "says"),
    [
        ("domain.xml", "{{ vm.memory_mib }}</memory>", "1</memory>", "memory differs"),
        ("domain.xml", "</devices>", "<disk><source file='/etc/shadow'/></disk></devices>", "files differs"),
        ("domain.xml", "<driver name='qemu' type='raw'/>", "<driver name='qemu'/>", "formats differs"),
        ("domain.xml", "<format type='{{ base_format }}'/>", "<format type='vmdk'/>", "formats differs"),
        ("domain.xml", "<format type='{{ base_format }}'/>", "", "formats differs"),
        ("domain.xml", "        <backingStore/>\n", "", "formats differs"),
        ("domain.xml", "      <backingStore/>\n", "", "formats differs"),
        ("domain.xml", "<acpi/>", "<acpi>", "not XML"),
        ("domain.xml", "<name>{{ vm.name }}", "<name>other", "name differs"),
        ("domain.xml", "{{ vm.uuid }}", "00000000-0000-0000-0000-000000000000", "uuid differs"),
        ("domain.xml", "{{ vm.vcpus }}</vcpu>", "64</vcpu>", "vcpu differs"),
        ("domain.xml", "<vcpupin vcpu='{{ loop.index0 }}'", "<vcpupin vcpu='7'", "vcpupin differs"),
        ("domain.xml", "{{ vm.tap }}", "eth0", "interfaces differs"),
        ("domain.xml", "{{ vm.mac }}", "52:54:00:00:00:01", "mac differs"),
        ("domain.xml", "<on_crash>destroy", "<on_crash>preserve", "kept differs"),
        ("domain.xml", "<on_poweroff>destroy", "<on_poweroff>preserve", "kept differs"),
        ("domain.xml", "<on_reboot>destroy", "<on_reboot>preserve", "kept differs"),
        (
            "domain.xml", "<devices>", "<q:a xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/><devices>",
            "no template has <a>",
        ),
        ("domain.xml", "{{ vm.name }}", "{{ vm.nmae }}", "nmae"),
        ("user-data.common.yaml", "ssh_pwauth: false", "ssh_pwauth: true", "ssh_pwauth differs"),
        ("user-data.common.yaml", "users: [[]]", "users: [default]", "users differs"),
        ("user-data.common.yaml", "users: [[]]", "users: [", "not YAML"),
        ("user-data.common.yaml", "\nhostname: {{ vm.hostname | tojson }}", "\nhostname: other", "hostname differs"),
        ("user-data.common.yaml", "disable_root: true", "disable_root: false", "disable_root differs"),
        ("user-data.common.yaml", "{{ keys.host_private | tojson }}", "x", "ssh_keys differs"),
        ("user-data.common.yaml", "{{ keys.host_public | tojson }}", "x", "ssh_keys differs"),
        ("user-data.common.yaml", "{{ file.path | tojson }}", "/etc/shadow", "write_files differs"),
        ("user-data.common.yaml", "{{ file.permissions | tojson }}", "'4755'", "write_files differs"),
        ("user-data.common.yaml", "{{ file.content | tojson }}", "x", "write_files differs"),
        ("user-data.common.yaml", "bootcmd:", "bootcmd:\n  - [reboot]", "bootcmd differs"),
        ("user-data.common.yaml", "{% if runcmd %}", "{% if not runcmd %}", "runcmd differs"),
        ("user-data.debian.yaml", "common", "other", "user-data.other.yaml is missing"),
        ("meta-data.yaml", "{{ vm.hostname | tojson }}", '"other"', "local-hostname differs"),
        ("meta-data.yaml", (TEMPLATES / "meta-data.yaml").read_text(), "- x", "meta-data.yaml: not a mapping"),
    ],
)
def test_a_sites_template_cannot_start_another_guest(
    tmp_path: Path, template: str, was: str, becomes: str, says: str
) -> None:
    text = (TEMPLATES / template).read_text()
    assert was in text
    (tmp_path / template).write_text(text.replace(was, becomes))
    with pytest.raises(ConfigError, match=says):
        rendered(a_plan(), TOLD.but(template_dir=str(tmp_path)))


@pytest.mark.parametrize("element", [
    *(f"<{tag}>/etc/shadow</{tag}>" for tag in ("kernel", "initrd", "loader", "nvram", "emulator")),
    *(f"<serial><source {name}='/etc/shadow'/></serial>" for name in ("file", "dev", "dir", "path", "socket", "name")),
])
def test_a_sites_template_cannot_open_another_file(tmp_path: Path, element: str) -> None:
    text = (TEMPLATES / "domain.xml").read_text()
    (tmp_path / "domain.xml").write_text(text.replace("</devices>", f"{element}</devices>"))
    with pytest.raises(ConfigError, match="files differs") as caught:
        rendered(a_plan(), a_site(template_dir=str(tmp_path)))
    assert caught.value.details == 'found ["/etc/shadow"], planned []'


@pytest.mark.parametrize("key", ["hostname", "mounts"])
def test_a_sites_template_cannot_tell_osv_something_else(tmp_path: Path, key: str) -> None:
    text = (TEMPLATES / "user-data.osv.yaml").read_text()
    (tmp_path / "user-data.osv.yaml").write_text(text.replace(f"{key}:", f"{key}: other #"))
    with pytest.raises(ConfigError, match=f"{key} differs"):
        rendered(a_plan(request=a_request(distro="osv")), a_site(template_dir=str(tmp_path)))


def test_a_distribution_without_a_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="gentoo are not supported yet"):
        rendered(a_plan(request=a_request(distro="gentoo")), a_site())


def cloud_config(distro: str, site: SiteConfig) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(rendered(a_plan(request=a_request(distro=distro)), site).user_data)
    return data


@pytest.mark.parametrize(
    ("distro", "packages"),
    [("debian", ["a", "b"]), ("ubuntu", ["a", "b"]), ("redhat", ["c", "d"]), ("centos", ["c", "d"])],
)
def test_all_packages_of_the_family_are_installed_each_once(distro: str, packages: list[str]) -> None:
    site = a_site(sw_packages_debian=("a", "b", "a"), sw_packages_redhat=("c", "d"))
    data = cloud_config(distro, site)
    assert (data["packages"], data["package_update"], data["package_upgrade"]) == (packages, True, False)


@pytest.mark.parametrize("distro", ["debian", "redhat"])
def test_a_guest_that_installs_something_is_not_ready_before(distro: str) -> None:
    for site in (a_site(security_updates=True), a_site(sw_packages_debian=("a",), sw_packages_redhat=("a",))):
        data = cloud_config(distro, site)
        assert "mv /run/vtorque/status /run/vtorque/held" in data["bootcmd"][-1][-1]
        assert "mv /run/vtorque/held /run/vtorque/status" in data["runcmd"][-1][-1]


@pytest.mark.parametrize("distro", ["debian", "redhat"])
def test_what_the_site_leaves_open_is_left_to_dhcp_and_the_image(distro: str) -> None:
    data = cloud_config(distro, a_site())
    assert not {"packages", "ntp", "runcmd"} & data.keys()
    assert (data["package_update"], data["package_upgrade"]) == (False, False)
    assert not any("resolv.conf" in word for command in data["bootcmd"] for word in command)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name_server": "10.0.0.1"}, "nameserver 10.0.0.1\n"),
        ({"name_server": "10.0.0.1", "domain": "a.b"}, "nameserver 10.0.0.1\nsearch a.b\n"),
        (
            {"name_server": "10.0.0.1 ::1", "domain": "a.b", "search_domain": "c d"},
            "nameserver 10.0.0.1\nnameserver ::1\nsearch c d\n",
        ),
    ],
)
def test_name_servers_are_there_before_shares_are_mounted(changes: dict[str, str], text: str) -> None:
    first, setup = cloud_config("debian", a_site(**changes))["bootcmd"]
    assert first[-1] == text
    assert "guest-setup" in setup


def test_a_domain_is_part_of_the_guests_own_name() -> None:
    words = cloud_config("debian", a_site(domain="a.b"))["bootcmd"][0]
    assert words[words.index("hosts") + 1] == "vn1-1.a.b vn1-1"


def test_two_names_of_one_time_server_are_one() -> None:
    site = a_site(ntp_server_1="ntp.a.b", ntp_server_2="ntp.a.b")
    assert cloud_config("redhat", site)["ntp"] == {"enabled": True, "servers": ["ntp.a.b"]}


def test_osv_is_told_no_more_than_it_understands() -> None:
    plan = a_plan(request=a_request(distro="osv", metadata='{"timezone":"UTC"}', public_key=""))
    silent = render.guest(plan, plan.vms[0], site=TOLD, keys=some_keys(), announce="", templates=TEMPLATES)
    assert yaml.safe_load(silent.user_data).keys() == {"hostname", "mounts", "files"}
    assert yaml.safe_load(rendered(plan, TOLD).user_data)["run"][0]["PUT"] == "/app/"


@pytest.mark.parametrize(
    ("kind", "text", "good"),
    [
        ("addresses", "10.0.0.53", True), ("addresses", "10.0.0.53 fd00::53 ::1", True), ("addresses", "::", False),
        ("addresses", "10.0.0.256", False), ("addresses", "1.2.3.4 1.2.3.5 1.2.3.6 1.2.3.7", False),
        ("addresses", "ns.a.b", False), ("addresses", "1.2.3.4\noptions x", False), ("addresses", "fd00", False),
        ("domain", "a.b-c.org", True), ("domain", "a b", False), ("domain", "a..b", False), ("domain", "-a", False),
        ("domains", "a.b c", True), ("domains", "a  b", False), ("domains", "a b c d e f g", False),
        ("host", "ntp.a.b", True), ("host", "10.0.0.1", True), ("host", "fd00::1", True), ("host", "a b", False),
    ],
)
def test_what_a_site_may_say_of_its_network(kind: str, text: str, good: bool) -> None:
    assert fits(kind, text) is good
