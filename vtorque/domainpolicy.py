# SPDX-License-Identifier: Apache-2.0
"""What root makes sure of in a domain document before it starts it, whoever wrote that and whatever was planned. Pure.

It consists of what stands in a template, belongs to the job, opens nothing but files of that job's guests,
images and what its user may have, and makes QEMU nobody but whom the site says. ConfigError names the template.
"""

import contextlib
import re
from pathlib import Path
from xml.etree import ElementTree

from vtorque import names
from vtorque.domainshape import Shape
from vtorque.errors import ConfigError, InternalError
from vtorque.identity import Account
from vtorque.kinds import Templates
from vtorque.settings import Settings

MARK = "metadata/{https://vtorque.org/xmlns/domain/1}vtorque"
_OTHERWISE = re.compile(r"""<\?xml[^>]*encoding\s*=\s*['"](?!utf-8['"])""", re.IGNORECASE)


def require(text: str, *, key: str, account: Account | None, site: Settings, templates: Templates) -> None:
    """Refuse a document that could do more than a guest of job `key` of this user may."""
    root, shape = read(text), Shape.of(templates)
    shape.require(root)
    name = root.findtext("name", "")
    wrong = {
        "name": [] if names.owner_of(f"{name}.xml") == key else [name],
        "job": [each.get("job") for each in root.iterfind(MARK)] != [key],
        "foreign": [each.tag for each in root.iter() if each.tag.startswith("{") and "vtorque.org" not in each.tag],
        "interfaces": [each.get("type") for each in root.iter("interface") if each.get("type") != "bridge"],
        "bridges": [each for each in bridges(root) if each != site.bridge and not shape.says("source", each)],
        "files": sorted(path for how, path in opened(root) if path and not _may_open(how, path, key, account, site)),
        # Without it libvirt gives what QEMU opens to QEMU, be it the site's image.
        "labels": [] if shape.whole("seclabel", root) else ["seclabel"],
        "users": [each for each in labels(root) if each not in _users(account, site) and not shape.says("label", each)],
    }
    for what, found in wrong.items():
        if found:
            raise ConfigError(f"template domain.xml: {what} not of this job", details=str(found)[:500])


def read(text: str) -> ElementTree.Element:
    """The document, as libvirt's parser will understand it, too."""
    if "<!DOCTYPE" in text or _OTHERWISE.search(text):
        raise ConfigError("template domain.xml: a DOCTYPE, or an encoding that is not UTF-8")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeError) as error:
        raise ConfigError(f"template domain.xml: not XML: {error}") from error


def opened(root: ElementTree.Element) -> set[tuple[str, str]]:
    """Whatever is named to be opened, each with the element or the attribute that names it."""
    found = {
        (tag, element.text or "") for tag in ("kernel", "initrd", "loader", "nvram", "emulator")
        for element in root.iter(tag)
    }
    return found | {
        (name, value) for tag in ("source", "host") for source in root.iter(tag) for name, value in source.items()
        if name in ("file", "dev", "dir", "path", "socket", "name")
    }


def bridges(root: ElementTree.Element) -> list[str]:
    """The bridges that interfaces are attached to."""
    return [bridge for source in root.iter("source") if (bridge := source.get("bridge")) is not None]


def labels(root: ElementTree.Element) -> list[str]:
    """Who QEMU is said to be."""
    return [label.text or "" for label in root.iter("label")]


def _users(account: Account | None, site: Settings) -> tuple[str, ...]:
    if site.share == "9p" and account is not None:
        return (f"+{account.uid}:+{account.group.gid}",)
    return (f"{site.qemu_user}:{site.qemu_user}",)


def _may_open(how: str, name: str, key: str, account: Account | None, site: Settings) -> bool:
    path = Path(name)
    if ".." in path.parts or not path.is_absolute():
        return False
    with contextlib.suppress(InternalError):
        names.guest_file(path, site, key=key)
        return True
    if how in ("file", "kernel", "initrd"):
        # What is a disk QEMU opens, who may not write to them. To what is a log or a socket root's daemons do.
        images = (site.vm_img_dir, site.image_cache_dir, f"{site.ramdisk_dir}/images")
        return any(path.is_relative_to(each) for each in images)
    own = (account.home, site.vm_share_ws, site.vm_share_opt) if account and site.share == "9p" else ()
    return how == "dir" and path in [Path(each) for each in own if each]
