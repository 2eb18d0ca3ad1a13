# SPDX-License-Identifier: Apache-2.0
"""What root believes of a domain document that somebody else has filled in."""

from pathlib import Path

import pytest

from tests.builders import a_plan, a_request, a_site, some_keys
from tests.fakes.node import TEMPLATES, TEXTS
from vtorque import domaincheck, render
from vtorque.domainshape import Shape
from vtorque.errors import ConfigError
from vtorque.model import JobPlan, Templates
from vtorque.options import SiteConfig

SITE = a_site()
PLAN = a_plan()
DEVICE = (
    "<hostdev mode='subsystem' type='pci' managed='yes'><source><address bus='0x3b' slot='0x00'/></source></hostdev>"
)
END = "  </devices>"


def document(plan: JobPlan = PLAN, site: SiteConfig = SITE, templates: Templates = TEXTS) -> str:
    return render.guest(
        plan, plan.vms[0], site=site, keys=some_keys(), announce="", templates=templates
    ).domain_xml


HONEST = document()


def check(text: str, plan: JobPlan = PLAN, site: SiteConfig = SITE, templates: Templates = TEXTS) -> None:
    domaincheck.domain(text, plan, plan.vms[0], site=site, templates=templates)


def believed(text: str, plan: JobPlan = PLAN, site: SiteConfig = SITE) -> bool:
    try:
        check(text, plan, site)
    except ConfigError:
        return False
    return True


def own(text: str, name: str = "domain.xml") -> Templates:
    """All templates, with one that is the site's own."""
    return tuple((dict(TEXTS) | {name: text}).items())


DOMAIN = dict(TEXTS)["domain.xml"]


@pytest.mark.parametrize("plan", [
    PLAN, a_plan(request=a_request(pinning="auto", vcpus=4)), a_plan(request=a_request(disk="/home/ann/d.qcow2")),
    a_plan(site=a_site(share="virtiofs")), a_plan(site=a_site(share="9p")), a_plan(request=a_request(pinning="false")),
])
@pytest.mark.parametrize("kind", ["qemu", "kvm"])
def test_whatever_our_own_templates_make_is_believed(plan: JobPlan, kind: str) -> None:
    site = a_site(hypervisor_type=kind)
    assert believed(document(plan, site), plan, site)


@pytest.mark.parametrize(("old", "new", "what"), [
    (END, DEVICE + END, "no template has <hostdev>"),
    (END, "<graphics type='vnc' listen='0.0.0.0'/>" + END, "no template has <graphics>"),
    (END, "<tpm><backend type='passthrough'/></tpm>" + END, "no template has <tpm>"),
    ("<os>", "<sysinfo type='fwcfg'><entry name='x' file='/etc/shadow'/></sysinfo><os>", "no template has <sysinfo>"),
    ("<serial type='file'>", "<serial type='tcp'>", "no template has <serial>"),
    ("/dev/urandom", "/dev/sda", "no template has <backend>"),
    ("relabel='no'", "relabel='yes'", "no template has <seclabel>"),
    ("<rom enabled='no'/>", "<rom enabled='no' file='/etc/shadow'/>", "no template has <rom>"),
    ("<target port='0'/>", "<target port=''/>", "no template has <target>"),
    ("<acpi/>", "<acpi/>text", "no template has <acpi>"),
    ("<acpi/>", "<acpi>text</acpi>", "no template has <acpi>"),
    (":libvirt-qemu</label>", ":root</label>", "users differs"),
    ("<label>libvirt-qemu:", "<label>+0:", "users differs"),
    ("bridge='br0'", "bridge='br-storage'", "bridges differs"),
    (" job='7.srv'", " job='8.srv'", "job differs"),
    (" job='7.srv'", "", "job differs"),
    ("<domain ", "<!DOCTYPE domain><domain ", "a DOCTYPE"),
    ("<domain ", "<?xml version='1.0' encoding='UTF-7'?><domain ", "an encoding that is not UTF-8"),
    ("<domain ", '<?xml version="1.0" encoding = "utf-16"?><domain ', "an encoding that is not UTF-8"),
])
def test_what_no_template_has_or_no_plan_is_refused(old: str, new: str, what: str) -> None:
    assert old in HONEST
    with pytest.raises(ConfigError, match=what):
        check(HONEST.replace(old, new, 1))


@pytest.mark.parametrize("first", [
    "<?xml version='1.0'?>", '<?xml version="1.0" encoding="UTF-8"?>', "<!-- ours -->\n",
])
def test_a_document_may_say_that_it_is_what_it_is(first: str) -> None:
    assert believed(first + HONEST)


def test_a_sites_own_template_may_have_other_devices_and_what_it_leaves_to_values_may_be_any() -> None:
    given = DEVICE.replace("0x3b", "{{ '0x%02x' % (vm.slot + 7) }}")
    texts = own(DOMAIN.replace(END, given + END))
    made = document(templates=texts)
    assert "bus='0x07'" in made
    check(made, templates=texts)
    check(made.replace("bus='0x07'", "bus='0x08'"), templates=texts)
    with pytest.raises(ConfigError, match="no template has <address>"):
        check(made.replace("slot='0x00'", "slot='0x01'"), templates=texts)


def test_what_a_template_includes_counts_whatever_its_name_and_what_is_behind_a_comment_does_not() -> None:
    texts = own(DOMAIN.replace(END, "{% include 'site/devices' %}" + END))
    texts = tuple((dict(texts) | {"site/devices": f"{{% if vm.slot == 0 %}}{DEVICE}{{% endif %}}"}).items())
    made = document(templates=texts)
    assert "<hostdev" in made
    check(made, templates=texts)
    for mark in ("{# %s #}", "<!-- %s -->"):
        with pytest.raises(ConfigError, match="no template has <hostdev>"):
            check(made, templates=own(DOMAIN.replace(END, mark % DEVICE + END)))


def test_elements_that_are_expressions_are_refused_with_the_way_out() -> None:
    texts = own(DOMAIN.replace(END, "{{ '<hub type=\"usb\"/>' | safe }}" + END))
    with pytest.raises(ConfigError) as refused:
        document(templates=texts)
    assert refused.value.one_line() == (
        "template domain.xml: no template has <hub> as it is there "
        "(elements and attributes are written out in templates; only values may be expressions)"
    )


def test_a_sites_own_label_and_bridge_are_those_of_its_template() -> None:
    texts = own(DOMAIN.replace("{{ site.bridge }}", "br&quot;&apos;7").replace(
        "{{ site.qemu_user }}:{{ site.qemu_user }}", "kvm-guests:kvm"))
    made = document(templates=texts)
    assert "<label>kvm-guests:kvm</label>" in made
    check(made, templates=texts)
    with pytest.raises(ConfigError, match="no template has <label>"):
        check(made.replace("kvm-guests:kvm", "root:root"), templates=texts)


def test_templates_in_directories_are_looked_at_as_well(tmp_path: Path) -> None:
    (tmp_path / "domain.xml").write_text("{{ '<domain>' | safe }}</domain>")
    (tmp_path / "junk").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="no template has <domain>"):
        render.guest(PLAN, PLAN.vms[0], site=a_site(template_dir=str(tmp_path)), keys=some_keys(), announce="",
                     templates=TEMPLATES)


def test_a_shape_is_made_once_for_all_guests() -> None:
    assert Shape.of(TEXTS) is Shape.of(TEXTS)
