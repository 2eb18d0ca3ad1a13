# SPDX-License-Identifier: Apache-2.0
"""What root makes sure of in a domain document before it starts it, whoever wrote that and whatever was planned. Pure.

It consists of what stands in a template, belongs to the job, opens nothing but files of that job's guests,
images and what its user may have, and makes QEMU nobody but whom the site says. ConfigError names the template.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from vtorque import names
from vtorque.domainshape import MARK, Shape
from vtorque.errors import ConfigError
from vtorque.identity import Account
from vtorque.kinds import Templates
from vtorque.settings import Settings

_OTHERWISE = re.compile(r"""<\?xml[^>]*encoding\s*=\s*['"](?!utf-8['"])""", re.IGNORECASE)


def require(text: str, *, key: str, account: Account | None, site: Settings, templates: Templates) -> None:
    """Refuse a document that could do more than a guest of job `key` of this user may."""
    root, shape = read(text), Shape.of(templates)
    shape.require(root)
    name = root.findtext("name", "")
    wrong = {
        "name": [] if names.owner_of(f"{name}.xml") == key else [name],
        "job": [each.get("job") for each in root.iterfind(MARK)] != [key],
        "interfaces": [each.get("type") for each in root.iter("interface") if each.get("type") != "bridge"],
        "bridges": [each for each in bridges(root) if each != site.bridge and not shape.says("source", each)],
        "files": sorted(path for how, path in opened(root) if path and not _may_open(how, path, key, account, site)),
        "disks": [each.attrib for each in root.iter("disk") if not _is_said_whole(each, key, site)],
        "filesystems": [each.attrib for each in root.iter("filesystem") if not _is_as_served(each, site)],
        # Without it libvirt gives what QEMU opens to QEMU, be it the site's image.
        "labels": [] if shape.whole("seclabel", root) else ["seclabel"],
        "users": [each for each in labels(root) if each not in _users(account, site) and not shape.says("label", each)],
        "nobody": [] if labels(root) or not shape.has("label") else ["label"],
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


def _is_said_whole(disk: ElementTree.Element, key: str, site: Settings) -> bool:
    """Whether what a guest writes to is its own, and what lies below that is said to where it ends, with formats.

    libvirt would look for what is not said in headers, and open what they name.
    """
    if disk.get("type") == "network":
        return True
    sources, below = disk.findall("source"), disk.findall("backingStore")
    if disk.get("type") != "file" or [_is_guests(each.get("file", ""), key, site) for each in sources] != [True]:
        return False
    said = [disk.find("driver")]
    while len(below) == 1 and len(below[0]):
        said.append(below[0].find("format"))
        below = below[0].findall("backingStore")
    return len(below) == 1 and all(each is not None and each.get("type") for each in said)


def _is_as_served(share: ElementTree.Element, site: Settings) -> bool:
    """Whether a server of ours serves it; or QEMU, as the site has said.

    What virtiofs does without a server libvirt starts as root. Without a mode of access what a guest makes set-uid is.
    """
    ways = [(how, name) for source in share.findall("source") for how, name in source.items()]
    if share.find("driver") is not None:
        return [how for how, _ in ways] == ["socket"]
    never_written = {site.vm_share_ws: site.vm_share_ws_readonly, site.vm_share_opt: site.vm_share_opt_readonly}
    return [how for how, _ in ways] == ["dir"] and share.get("accessmode") == "squash" and (
        share.find("readonly") is not None or not never_written.get(ways[0][1], False)
    )


def _users(account: Account | None, site: Settings) -> tuple[str, ...]:
    if site.share == "9p" and account is not None:
        return (f"+{account.uid}:+{account.group.gid}",)
    return (f"{site.qemu_user}:{site.qemu_user}",)


def _is_guests(name: str, key: str, site: Settings) -> bool:
    return names.owner_at(Path(name), site) == key


def _may_open(how: str, name: str, key: str, account: Account | None, site: Settings) -> bool:
    path = Path(name)
    if ".." in path.parts or not path.is_absolute():
        return False
    if _is_guests(name, key, site):
        return True
    if how in ("file", "kernel", "initrd"):
        # What is a disk QEMU opens, who may not write to them. To what is a log or a socket root's daemons do.
        images = (site.vm_img_dir, site.image_cache_dir, f"{site.ramdisk_dir}/images")
        return any(path.is_relative_to(each) for each in images)
    own = (account.home, site.vm_share_ws, site.vm_share_opt) if account and site.share == "9p" else ()
    return how == "dir" and path in [Path(each) for each in own if each]
