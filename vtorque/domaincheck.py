# SPDX-License-Identifier: Apache-2.0
"""Read a rendered domain document again and compare it with the plan. Pure.

Neither a site's own template nor whoever rendered it must start another guest than the one that was
decided on. Raises ConfigError that names the template.
"""

import json
from typing import Any
from xml.etree import ElementTree

from vtorque import datadisk, shares, tuning
from vtorque.errors import ConfigError
from vtorque.model import JobPlan, VmPlan


def domain(text: str, plan: JobPlan, vm: VmPlan) -> None:
    """Everything that opens, names or limits something must be what was planned, no more."""
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeError) as error:
        raise ConfigError(f"template domain.xml: not XML: {error}") from error
    image = plan.image
    opened = {
        element.text or "" for tag in ("kernel", "initrd", "loader", "nvram", "emulator")
        for element in root.iter(tag)
    }
    opened |= {
        value for source in root.iter("source") for name, value in source.items()
        if name in ("file", "dev", "dir", "path", "socket", "name")
    }
    allowed = {image.path, vm.overlay, vm.seed, vm.console, vm.channel, image.kernel, image.initrd}
    allowed |= shares.paths(plan, vm)
    found = {
        "name": root.findtext("name"),
        "uuid": root.findtext("uuid"),
        "memory": root.findtext("memory"),
        "vcpu": root.findtext("vcpu"),
        "mac": [mac.get("address") for mac in root.iter("mac")],
        "interfaces": [
            (each.get("type"), [target.get("dev") for target in each.findall("target")])
            for each in root.iter("interface")
        ],
        "files": sorted(opened - {str(path) for path in allowed if path}),
        "kept": [tag for tag in ("on_poweroff", "on_reboot", "on_crash") if root.findtext(tag) == "preserve"],
        "foreign": [e.tag for e in root.iter() if e.tag.startswith("{") and "vtorque.org" not in e.tag],
    }
    planned: dict[str, object] = {
        "name": vm.name, "uuid": str(vm.uuid), "memory": str(vm.memory_mib), "vcpu": str(vm.vcpus),
        "mac": [vm.mac], "interfaces": [("bridge", [vm.tap])], "files": [], "kept": [], "foreign": [],
    }
    found |= tuning.found(root) | shares.found(root, plan) | datadisk.found(root) | {"formats": _formats(root)}
    planned |= tuning.planned(vm) | shares.planned(plan, vm) | datadisk.planned(vm)
    planned |= {"formats": _planned_formats(plan, vm)}
    compare("domain.xml", found, planned)


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
