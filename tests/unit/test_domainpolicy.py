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


@pytest.mark.parametrize("kind", ["qemu", "kvm"])
@pytest.mark.parametrize("share", ["nfs", "9p", "virtiofs"])
@pytest.mark.parametrize("arguments", [
    {}, {"request": a_request(disk="/home/ann/d.qcow2")}, {"request": a_request(pinning="auto", vcpus=4)},
    {"image": DIRECT}, {"request": a_request(fs_type="ramdisk")},
    {"image": an_image(path=Path("/var/cache/vtorque/images/0.qcow2"))},
], ids=["plain", "disk", "auto", "direct", "ramdisk", "cached"])
def test_whatever_our_own_templates_make_of_a_plan_is_started(kind: str, share: str, arguments: dict[str, Any]) -> None:
    site = of(share, hypervisor_type=kind, image_cache_dir="/var/cache/vtorque/images")
    require(document(site, **arguments), site)


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
    ("<devices>", "<q:devices xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/><devices>", "foreign"),
    ("<domain ", "<!DOCTYPE domain><domain ", "a DOCTYPE"), ("</domain>", "", "not XML"),
    ("<domain ", "<?xml version='1.0' encoding='UTF-7'?><domain ", "an encoding that is not UTF-8"),
])
def test_what_is_not_this_jobs_is_not(old: str, new: str, what: str) -> None:
    honest = document()
    assert old in honest
    with pytest.raises(ConfigError, match=rf"^template domain\.xml: .*{what}"):
        require(honest.replace(old, new))


@pytest.mark.parametrize("element", [
    *(f"<{tag}>{{}}</{tag}>" for tag in ("kernel", "initrd", "loader", "nvram", "emulator")),
    *(f"<disk><source {name}='{{}}'/></disk>" for name in ("file", "dev", "dir", "path", "socket", "name")),
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
    site = of(share)
    honest = document(site)
    assert old in honest
    with pytest.raises(ConfigError, match=f"{what} not of this job"):
        require(honest.replace(old, new), site)


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
