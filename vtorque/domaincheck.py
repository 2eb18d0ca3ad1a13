# SPDX-License-Identifier: Apache-2.0
"""Read a rendered domain document again and compare it with the plan. Pure.

Neither a site's own template nor whoever rendered it must start another guest than the one that was
decided on. Raises ConfigError that names the template.
"""

import json
import re
from typing import Any
from xml.etree import ElementTree

from vtorque import datadisk, shares, tuning
from vtorque.config import SiteConfig
from vtorque.domainshape import MARK, Shape
from vtorque.errors import ConfigError
from vtorque.model import JobPlan, Templates, VmPlan

_OTHERWISE = re.compile(r"""<\?xml[^>]*encoding\s*=\s*['"](?!utf-8['"])""", re.IGNORECASE)


def domain(text: str, plan: JobPlan, vm: VmPlan, *, site: SiteConfig, templates: Templates) -> None:
    """Everything must stand in a template, and what opens, names or limits something be what was planned, no more."""
    root, shape = _read(text), Shape.of(templates)
    shape.require(root)
    image = plan.image
    allowed = {image.path, vm.overlay, vm.seed, vm.console, vm.channel, image.kernel, image.initrd}
    allowed |= shares.paths(plan, vm)
    found = {
        "name": root.findtext("name"),
        "uuid": root.findtext("uuid"),
        "job": [each.get("job") for each in root.iterfind(MARK)],
        "memory": root.findtext("memory"),
        "vcpu": root.findtext("vcpu"),
        "mac": [mac.get("address") for mac in root.iter("mac")],
        "interfaces": [
            (each.get("type"), [target.get("dev") for target in each.findall("target")])
            for each in root.iter("interface")
        ],
        "bridges": [each for each in _bridges(root) if each != site.bridge and not shape.says("source", each)],
        "files": sorted(_opened(root) - {str(path) for path in allowed if path}),
        "kept": [tag for tag in ("on_poweroff", "on_reboot", "on_crash") if root.findtext(tag) == "preserve"],
    }
    planned: dict[str, object] = {
        "name": vm.name, "uuid": str(vm.uuid), "job": [plan.job.key], "memory": str(vm.memory_mib),
        "vcpu": str(vm.vcpus), "mac": [vm.mac], "interfaces": [("bridge", [vm.tap])], "bridges": [], "files": [],
        "kept": [],
    }
    found |= tuning.found(root) | shares.found(root, plan) | datadisk.found(root) | {"formats": _formats(root)}
    planned |= tuning.planned(vm) | shares.planned(plan, vm) | datadisk.planned(vm)
    planned |= {"formats": _planned_formats(plan, vm)}
    if plan.runs_as is None:
        # A site's own label is that of its template.
        own = f"{site.qemu_user}:{site.qemu_user}"
        found["users"] = [each for each in _labels(root) if each != own and not shape.says("label", each)]
        planned["users"] = []
    compare("domain.xml", found, planned)


def _read(text: str) -> ElementTree.Element:
    # libvirt is to understand the same as we, by another parser.
    if "<!DOCTYPE" in text or _OTHERWISE.search(text):
        raise ConfigError("template domain.xml: a DOCTYPE, or an encoding that is not UTF-8")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeError) as error:
        raise ConfigError(f"template domain.xml: not XML: {error}") from error


def _opened(root: ElementTree.Element) -> set[str]:
    """Whatever is named to be opened."""
    found = {
        element.text or "" for tag in ("kernel", "initrd", "loader", "nvram", "emulator")
        for element in root.iter(tag)
    }
    return found | {
        value for source in root.iter("source") for name, value in source.items()
        if name in ("file", "dev", "dir", "path", "socket", "name")
    }


def _bridges(root: ElementTree.Element) -> list[str]:
    return [bridge for source in root.iter("source") if (bridge := source.get("bridge")) is not None]


def _labels(root: ElementTree.Element) -> list[str]:
    """Who QEMU is said to be."""
    return [label.text or "" for label in root.iter("label")]


def _formats(root: ElementTree.Element) -> list[list[tuple[str | None, str | None]]]:
    """Format and file of each disk that is a file, and of what lies below it, to where it is said to end.

    QEMU would guess what is not said, and open what a header names.
    """
    chains = []
    for disk in root.iter("disk"):
        if disk.get("type") == "file":
            chain, below = [_named(disk, "driver")], disk.find("backingStore")
            while below is not None and len(below):
                chain.append(_named(below, "format"))
                below = below.find("backingStore")
            chains.append(chain if below is not None else [*chain, (None, None)])
    return chains


def _planned_formats(plan: JobPlan, vm: VmPlan) -> list[list[tuple[str | None, str | None]]]:
    image = plan.image.path
    base = ("qcow2" if image.suffix == ".qcow2" else "raw", str(image))
    return [[("qcow2", str(vm.overlay)), base], [("raw", str(vm.seed))]]


def _named(element: ElementTree.Element, tag: str) -> tuple[str | None, str | None]:
    about, source = element.find(tag), element.find("source")
    return None if about is None else about.get("type"), None if source is None else source.get("file")


def compare(name: str, found: dict[str, Any], planned: dict[str, Any]) -> None:
    """Whether a template made of every thing planned what was found; ConfigError that names the first it did not."""
    for key, value in planned.items():
        if found[key] != value:
            raise ConfigError(
                f"template {name}: {key} differs from the plan",
                details=f"found {json.dumps(found[key])[:500]}, planned {json.dumps(value)[:500]}",
            )
