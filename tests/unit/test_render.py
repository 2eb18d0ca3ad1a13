# SPDX-License-Identifier: Apache-2.0
"""What plans become: golden files, and documents that differ from the plan are refused."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from tests.builders import a_plan, a_request, a_site, an_account, an_image, some_keys
from vtorque import render, submit
from vtorque.errors import ConfigError
from vtorque.model import Group, JobPlan
from vtorque.options import SiteConfig

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
TEMPLATES = ROOT / "templates-vm"

DIRECT = an_image(kernel=Path("/images/debian-12.vmlinux"), initrd=Path("/images/debian-12.initrd"), cmdline="ro a&b")
CASES = {
    "plain": (a_plan(), a_site()),
    "kvm": (a_plan(), a_site(hypervisor_type="kvm", machine_type="pc")),
    "direct": (a_plan(image=DIRECT), a_site()),
    "unpinned-raw": (
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
        golden = GOLDEN / f"debian-{case}.{ending}"
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


@pytest.mark.parametrize(
    ("template", "was", "becomes", "says"),
    [
        ("domain.xml", "{{ vm.memory_mib }}</memory>", "1</memory>", "memory differs"),
        ("domain.xml", "</devices>", "<disk><source file='/etc/shadow'/></disk></devices>", "files differs"),
        ("domain.xml", "<acpi/>", "<acpi>", "not XML"),
        ("domain.xml", "{{ vm.mac }}", "52:54:00:00:00:01", "mac differs"),
        ("domain.xml", "<devices>", "<q:a xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/><devices>", "foreign"),
        ("domain.xml", "{{ vm.name }}", "{{ vm.nmae }}", "nmae"),
        ("user-data.debian.yaml", "ssh_pwauth: false", "ssh_pwauth: true", "ssh_pwauth differs"),
        ("user-data.debian.yaml", "users: []", "users: [default]", "users differs"),
        ("user-data.debian.yaml", "users: []", "users: [", "not YAML"),
        ("meta-data.yaml", "{{ vm.hostname | tojson }}", '"other"', "local-hostname differs"),
    ],
)
def test_a_sites_template_cannot_start_another_guest(
    tmp_path: Path, template: str, was: str, becomes: str, says: str
) -> None:
    text = (TEMPLATES / template).read_text()
    assert was in text
    (tmp_path / template).write_text(text.replace(was, becomes))
    with pytest.raises(ConfigError, match=says):
        rendered(a_plan(), a_site(template_dir=str(tmp_path)))


def test_a_distribution_without_a_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="osv are not supported yet"):
        rendered(a_plan(request=a_request(distro="osv")), a_site())
