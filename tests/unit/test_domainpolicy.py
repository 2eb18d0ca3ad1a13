# SPDX-License-Identifier: Apache-2.0
"""Which domain documents root starts, whoever wrote them: those of a guest of the job, and no other."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_plan, a_request, a_site, an_account, an_image, some_keys
from tests.fakes.node import TEXTS
from vtorque import domainpolicy, render
from vtorque.errors import ConfigError
from vtorque.model import JobId, Templates
from vtorque.options import SiteConfig

END = "  </devices>"
DIRECT = an_image(kernel=Path("/images/debian-12.vmlinux"), initrd=Path("/images/debian-12.initrd"), cmdline="ro a&b")


def of(share: str = "nfs", **changes: Any) -> SiteConfig:
    return a_site(share=share, vm_img_dir="/images", vm_share_ws="/ws", vm_share_opt="/opt", **changes)


def document(site: SiteConfig | None = None, *, templates: Templates = TEXTS, **arguments: Any) -> str:
    ours = site or of()
    plan = a_plan(site=ours, **arguments)
    return render.guest(
        plan, plan.vms[0], site=ours, keys=some_keys(), announce="", templates=templates
    ).domain_xml


def require(text: str, site: SiteConfig | None = None, *, key: str = "7.srv", templates: Templates = TEXTS) -> None:
    domainpolicy.require(text, key=key, account=an_account(), site=site or of(), templates=templates)


def refuses(says: str, old: str, new: str, site: SiteConfig | None = None) -> None:
    """The document that we make is taken, and with `new` where `old` stands in it is not."""
    honest = document(site)
    assert old in honest
    require(honest, site)
    with pytest.raises(ConfigError, match=says):
        require(honest.replace(old, new), site)


@pytest.mark.parametrize("kind", ["qemu", "kvm"])
@pytest.mark.parametrize("share", ["nfs", "9p", "virtiofs"])
@pytest.mark.parametrize("arguments", [
    {}, {"request": a_request(disk="/home/ann/d.qcow2")}, {"request": a_request(pinning="auto", vcpus=4)},
    {"image": DIRECT}, {"request": a_request(fs_type="ramdisk")},
    {"image": an_image(path=Path("/var/cache/vtorque/images/0.qcow2"))},
], ids=["plain", "disk", "auto", "direct", "ramdisk", "cached"])
def test_whatever_our_own_templates_make_of_a_plan_is_started(kind: str, share: str, arguments: dict[str, Any]) -> None:
    site = of(share, hypervisor_type=kind, image_cache_dir="/var/cache/vtorque/images")
    text = document(site, **arguments)
    require(text, site)
    with pytest.raises(ConfigError, match="name not of this job"):
        require(text, site, key="8.srv")


@pytest.mark.parametrize(("old", "new", "what"), [
    ("<name>7.srv_1of1<", "<name>8.srv_1of1<", "name"), ("<name>7.srv_1of1<", "<name>7.srv_x_1of1<", "name"),
    ("<name>7.srv_1of1<", "<name>7.srv_<", "name"), ("<name>7.srv_1of1<", "<name>7.srv_/../8.srv_1of1<", "name"),
    (" job='7.srv'", " job='8.srv'", "job"), (" job='7.srv'", "", "job"),
    ("type='bridge'", "type='network'", "no template has <interface>"),
    ("bridge='br0'", "bridge='br-storage'", "bridges"),
    ("7.srv/7.srv_1of1.qcow2", "8.srv/8.srv_1of1.qcow2", "files"),
    ("seeds/7.srv_1of1.iso", "seeds/8.srv_1of1.iso", "files"),
    ("7.srv/7.srv_1of1.qcow2", "7.srv/../7.srv/7.srv_1of1.qcow2", "files"),
    ("/images/debian-12.qcow2", "/etc/shadow", "files"), ("/images/debian-12.qcow2", "/images/../etc/shadow", "files"),
    ("/images/debian-12.qcow2", "images/debian-12.qcow2", "files"),
    ("7.srv_1of1.console", "../../8.srv/8.srv_1of1.console", "files"),
    ("seeds/7.srv_1of1.channel", "seeds/8.srv_1of1.channel", "files"),
    (">libvirt-qemu:libvirt-qemu<", ">root:root<", "users"), (">libvirt-qemu:libvirt-qemu<", ">+2000:+2000<", "users"),
    (">libvirt-qemu:libvirt-qemu<", "><", "users"),
    ("<seclabel type='static' ", "<seclabel ", "labels"), (" relabel='no'", "", "labels"),
    (" relabel='no'", " relabel='yes'", "no template has <seclabel>"),
    (END, "<graphics type='vnc' listen='0.0.0.0'/>" + END, "no template has <graphics>"),
    (END, "<hostdev mode='subsystem' type='pci'/>" + END, "no template has <hostdev>"),
    ("<features>", "<q:a xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/><features>", "no template has <a>"),
    ("<devices>", "<q:devices xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/><devices>", "has <devices>"),
    ("<domain ", "<!DOCTYPE domain><domain ", "a DOCTYPE"), ("</domain>", "", "not XML"),
    ("<domain ", "<?xml version='1.0' encoding='UTF-7'?><domain ", "an encoding that is not UTF-8"),
])
def test_what_is_not_this_jobs_is_not(old: str, new: str, what: str) -> None:
    refuses(rf"^template domain\.xml: .*{what}", old, new)


@pytest.mark.parametrize("element", [
    *(f"<{tag}>{{}}</{tag}>" for tag in ("kernel", "initrd", "loader", "nvram", "emulator")),
    *(f"<redirdev><source {name}='{{}}'/></redirdev>" for name in ("file", "dev", "dir", "path", "socket", "name")),
    "<tpm><host path='{}'/></tpm>",
])
def test_an_expression_opens_nothing_else(element: str) -> None:
    """Where a site's template has one, the shape lets anything pass."""
    text = dict(TEXTS)["domain.xml"].replace(END, element.format("{{ vm.seed }}") + END)
    own = tuple((dict(TEXTS) | {"domain.xml": text}).items())
    honest, seed = document(), "/run/vtorque/seeds/7.srv_1of1.iso"
    require(honest.replace(END, element.format(seed) + END), templates=own)
    for other in ("/etc/shadow", "/run/vtorque/seeds/8.srv_1of1.iso"):
        with pytest.raises(ConfigError, match="files not of this job"):
            require(honest.replace(END, element.format(other) + END), templates=own)


def test_an_interface_whose_type_is_an_expression_is_on_a_bridge() -> None:
    text = dict(TEXTS)["domain.xml"].replace("type='bridge'", "type='{{ site.bridge }}'")
    own = tuple((dict(TEXTS) | {"domain.xml": text}).items())
    honest = document()
    require(honest, templates=own)
    with pytest.raises(ConfigError, match="interfaces not of this job"):
        require(honest.replace("type='bridge'", "type='direct'"), templates=own)


def test_a_guest_of_another_job_is_not_this_jobs() -> None:
    other = document(job=a_job(id=JobId("8.srv")))
    require(other, key="8.srv")
    for key in ("7.srv", "8", "8.sr", "8.srv_1of1"):
        with pytest.raises(ConfigError, match="name not of this job"):
            require(other, key=key)


CONSOLE = "<source path='/var/lib/vtorque/disks/7.srv/7.srv_1of1.console'/>"
LABEL = "<label>libvirt-qemu:libvirt-qemu</label>"
OVERLAY = "<source file='/var/lib/vtorque/disks/7.srv/7.srv_1of1.qcow2'/>"
URN = "xmlns:q='urn:q' q:"


@pytest.mark.parametrize(("old", "new", "name"), [
    (CONSOLE, f"<source {URN}path='/etc/cron.d/x'/>", "source"),
    (CONSOLE, "<v:source xmlns:v='https://vtorque.org/' path='/etc/cron.d/x'/>", "source"),
    (CONSOLE, "<vt:source xmlns:vt='https://vtorque.org/xmlns/domain/1' path='/etc/cron.d/x'/>", "source"),
    ("<source bridge='br0'/>", f"<source {URN}bridge='br-storage'/>", "source"),
    (OVERLAY, f"<source {URN}file='/dev/sda'/>", "source"),
    (" relabel='no'", f" {URN}type='static'", "seclabel"),
    ("<domain ", "<domain xmlns='urn:q' ", "domain"),
])
def test_nothing_hides_in_a_namespace(old: str, new: str, name: str) -> None:
    """libvirt takes a path from an attribute of whichever: virtlogd, who is root, would write there."""
    refuses(f"no template has <{name}>", old, new)


@pytest.mark.parametrize(("old", "new", "name"), [
    ("<boot dev='hd'/>", "<kernel><name>/etc/shadow</name></kernel>", "kernel"),
    (">/dev/urandom<", "><name>/etc/shadow</name><", "backend"),
    ("qemu</label>", "qemu<name>1</name></label>", "label"),
])
def test_no_text_is_put_together_of_what_is_below(old: str, new: str, name: str) -> None:
    """libvirt's library joins them, and ours does not."""
    refuses(f"no template has <{name}>", old, new)


@pytest.mark.parametrize("above", ["metadata", "devices", "os", "domain"])
def test_an_element_stands_where_a_template_has_it(above: str) -> None:
    """A label that libvirt does not find is none, and where there is none it changes owners of files."""
    honest = document()
    begin, end = honest.index("  <seclabel"), honest.index("</domain>")
    label, rest = honest[begin:end], honest[:begin] + honest[end:]
    require(rest.replace("</domain>", f"{label}</domain>"))
    wrong = label.replace("<seclabel", "<domain><seclabel") + "</domain>" if above == "domain" else label
    with pytest.raises(ConfigError, match=r"no template has <(seclabel|domain)>"):
        require(rest.replace(f"</{above}>", f"{wrong}</{above}>"))


def test_a_label_says_who() -> None:
    refuses("nobody not of this job", LABEL, "")


def test_of_several_labels_none_is_missing() -> None:
    other = "<seclabel type='none' model='selinux'/>"
    text = dict(TEXTS)["domain.xml"].replace("</domain>", f"{other}</domain>")
    own = tuple((dict(TEXTS) | {"domain.xml": text}).items())
    honest = document(templates=own)
    require(honest, templates=own)
    begin, end = honest.index("  <seclabel type='static'"), honest.index(other)
    for less in (honest.replace(other, ""), honest[:begin] + honest[end:]):
        with pytest.raises(ConfigError, match="labels not of this job"):
            require(less, templates=own)


@pytest.mark.parametrize(("old", "new"), [
    ("<backingStore/>", ""), ("<format type='qcow2'/>", ""), ("<format ", "<backingStore/><format "),
    (OVERLAY, "<source file='/images/debian-12.qcow2'/>"), (OVERLAY, ""), (OVERLAY, OVERLAY + OVERLAY),
    (OVERLAY, "<source/>"), ("<driver name='qemu' type='qcow2' ", "<driver name='qemu' "),
    ("<disk type='file'", "<disk"),
])
def test_a_disk_is_said_to_its_end_and_only_its_own_is_written(old: str, new: str) -> None:
    """QEMU opens what headers name where it is not said, and libvirt what its user may write to is its own."""
    refuses("disks not of this job", old, new)


SHARE = "<filesystem type='mount' accessmode='squash' multidevs='remap'>"
WS = "<source dir='/ws'/>"


@pytest.mark.parametrize(("share", "old", "new"), [
    ("9p", SHARE, "<filesystem type='mount'><driver type='virtiofs'/>"), ("9p", " accessmode='squash'", ""),
    ("9p", "<readonly/>\n    </filesystem>", "</filesystem>"), ("9p", WS, ""), ("9p", WS, WS + WS),
    ("virtiofs", "<driver type='virtiofs'/>", ""),
    ("virtiofs", "<source socket='/run/vtorque/seeds/7.srv_1of1.home.sock'/>", "<source dir='/home/ann'/>"),
    ("virtiofs", "<source socket='/run/vtorque/seeds/7.srv_1of1.home.sock'/>", ""),
])
def test_a_share_is_served_as_the_site_has_said(share: str, old: str, new: str) -> None:
    """What virtiofs is to serve without a server of ours libvirt would, as root."""
    refuses(r"(filesystems|files) not of this job", old, new, of(share, vm_share_ws_readonly=True))


@pytest.mark.parametrize("only", ["ws", "opt"])
def test_what_is_only_to_be_read_is(only: str) -> None:
    site = of("9p", vm_share_ws_readonly=only == "ws", vm_share_opt_readonly=only == "opt")
    honest = document(site)
    assert honest.count("<readonly/>\n    </filesystem>") == 1
    require(honest, site)
    require(honest.replace("</filesystem>", "<readonly/></filesystem>"), site)
    with pytest.raises(ConfigError, match="filesystems not of this job"):
        require(honest.replace("<readonly/>\n    </filesystem>", "</filesystem>"), site)


@pytest.mark.parametrize(("old", "new"), [
    ("<hub type='usb'/>", "{% if site.x %}<hub type='usb'>{% else %}<hub type='{{ site.y }}'>{% endif %}</hub>"),
    ("<hub type='usb'/>", "{% for each in y %}<hub type='usb'/>{% endfor %}"),
    ("<hub type='usb'/>", "{% for each in y %}<hub type='usb'>{% else %}<hub type='usb'>{% endfor %}</hub>"),
    ("<hub type='usb'/>", "{%- if x -%}<hub type='usb'>{%+ elif y %}<hub type='usb'>{% endif %}</hub>"),
    (
        "<hub type='usb'/>",
        "{% if x %}{% if y %}<hub type='usb'>{% else %}<hub type='usb'>{% endif %}</hub>{% else %}<hub type='usb'/>"
        "{% endif %}{% if x %}<hub type='usb'>{% if y %}{% endif %}{% else %}<hub type='usb'>{% endif %}</hub>",
    ),
    ("<hub type='usb'/>", "{% set x = 1 %}{# <hub> #}<!-- <hub> --></other><hub type='usb'/>"),
    ("<hub type='usb'/>", "{% endif %}{% else %}<hub {% if site.x %}type='usb'{% endif %}/>"),
])
def test_what_stands_in_branches_of_a_template_stands_side_by_side(old: str, new: str) -> None:
    text = dict(TEXTS)["domain.xml"].replace(END, new + END)
    own = (*TEXTS, ("included.xml", "<input type='mouse'/>"), ("domain.xml", text))
    honest = document()
    require(honest.replace(END, old + "<input type='mouse'/>" + END), templates=own)
    for wrong in ("<hub type='usb'><hub type='usb'/></hub>", "<serial>" + old + "</serial>", "<hub type='usb' x=''/>"):
        with pytest.raises(ConfigError, match="no template has <hub>"):
            require(honest.replace(END, wrong + END), templates=own)


def test_without_a_label_libvirt_would_give_the_sites_image_away() -> None:
    honest = document()
    begin, end = honest.index("  <seclabel"), honest.index("</domain>")
    with pytest.raises(ConfigError, match="labels not of this job"):
        require(honest[:begin] + honest[end:])


@pytest.mark.parametrize(("name", "place"), [
    ("/run/vtorque/seeds/7.srv_1of1.channel", "/images/debian-12.qcow2"),
    ("/var/lib/vtorque/disks/7.srv/7.srv_1of1.console", "/images/debian-12.qcow2"),
])
def test_an_image_is_neither_a_log_nor_a_socket(name: str, place: str) -> None:
    """virtlogd would write to it, and libvirtd put a socket in its place: both are root."""
    honest = document()
    assert name in honest
    with pytest.raises(ConfigError, match="files not of this job"):
        require(honest.replace(f"path='{name}'", f"path='{place}'"))


@pytest.mark.parametrize("socket", ["/run/docker.sock", "/run/vtorque/seeds/8.srv_1of1.data.sock"])
def test_another_jobs_disk_is_not_attached(socket: str) -> None:
    honest = document(request=a_request(disk="/home/ann/d.qcow2"))
    assert "socket='/run/vtorque/seeds/7.srv_1of1.data.sock'" in honest
    with pytest.raises(ConfigError, match="files not of this job"):
        require(honest.replace("/run/vtorque/seeds/7.srv_1of1.data.sock", socket))


@pytest.mark.parametrize(("share", "old", "new", "what"), [
    ("9p", "dir='/home/ann'", "dir='/home/bob'", "files"), ("9p", "dir='/home/ann'", "dir='/'", "files"),
    ("9p", "dir='/ws'", "dir='/ws/..'", "files"), ("9p", "file='/images/debian-12.qcow2'", "file='/home/ann'", "files"),
    ("9p", "+2000:+2000", "+0:+0", "users"), ("9p", "+2000:+2000", "libvirt-qemu:libvirt-qemu", "users"),
    ("9p", "dir='/ws'", "dir='/images'", "files"),
    ("virtiofs", "seeds/7.srv_1of1.home.sock", "seeds/8.srv_1of1.home.sock", "files"),
])
def test_a_guest_has_its_own_users_shares_as_that_user(share: str, old: str, new: str, what: str) -> None:
    refuses(f"{what} not of this job", old, new, of(share))


def test_a_directory_of_the_users_is_his_where_the_host_serves_it_only() -> None:
    site = of("9p")
    with pytest.raises(ConfigError, match="files not of this job"):
        require(document(site).replace("+2000:+2000", "libvirt-qemu:libvirt-qemu"), of("nfs"))
    with pytest.raises(ConfigError, match="files not of this job"):
        domainpolicy.require(document(site), key="7.srv", account=None, site=site, templates=TEXTS)


def test_a_sites_own_template_may_have_other_bridges_devices_and_labels() -> None:
    text = dict(TEXTS)["domain.xml"]
    for old, new in (
        ("bridge='{{ site.bridge }}'", "bridge='br-own'"), (END, "<hub type='usb'/>" + END),
        ("<label>{{ site.qemu_user }}:{{ site.qemu_user }}</label>", "<label>own:own</label>"),
    ):
        assert old in text
        text = text.replace(old, new)
    own = tuple((dict(TEXTS) | {"domain.xml": text}).items())
    require(document(templates=own), templates=own)
    with pytest.raises(ConfigError):
        require(document(templates=own))
