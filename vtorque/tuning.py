# SPDX-License-Identifier: Apache-2.0
"""Where a guest runs and where its memory lies: what was planned, and what a domain document says."""

from typing import Any
from xml.etree.ElementTree import Element

from vtorque import units
from vtorque.model import VmPlan


def planned(vm: VmPlan) -> dict[str, Any]:
    """The plan in the words of `found`."""
    hypervisor = [_text(vm.emulator_cpus)] if vm.emulator_cpus else []
    nodes = _text(vm.numa_nodes)
    topology = (1, vm.vcpus // vm.sockets // vm.threads, vm.threads, vm.sockets)
    return {
        "vcpupin": [(str(vcpu), _text(cpus)) for vcpu, cpus in enumerate(vm.pins)],
        "emulatorpin": hypervisor,
        "iothreadpin": [("1", *hypervisor)] if vm.iothread else [],
        "iothreads": "1" if vm.iothread else None,
        "numatune": [("memory", None, "strict", nodes)] * bool(vm.numa_nodes) + [
            ("memnode", str(number), "strict", str(cell.node)) for number, cell in enumerate(vm.cells)
        ],
        "cell": [
            (str(number), _text(cell.vcpus), str(cell.memory_mib), "MiB") for number, cell in enumerate(vm.cells)
        ],
        "page": [(str(vm.page_kib), "KiB", None)] if vm.page_kib else [],
        "topology": [tuple(map(str, topology))] if vm.sockets * vm.threads > 1 else [],
        "other tuning": [],
    }


def found(root: Element) -> dict[str, Any]:
    """What a document says of it, lists of CPUs in one spelling."""
    known = {"vcpupin", "emulatorpin", "iothreadpin", "memory", "memnode"}
    tuned = [each for name in ("cputune", "numatune") for parent in root.iter(name) for each in parent]
    return {
        "vcpupin": [(each.get("vcpu"), _spelt(each.get("cpuset"))) for each in root.iter("vcpupin")],
        "emulatorpin": [_spelt(each.get("cpuset")) for each in root.iter("emulatorpin")],
        "iothreadpin": [(each.get("iothread"), _spelt(each.get("cpuset"))) for each in root.iter("iothreadpin")],
        "iothreads": root.findtext("iothreads"),
        "numatune": [
            (each.tag, each.get("cellid"), each.get("mode"), _spelt(each.get("nodeset")))
            for each in tuned if each.tag in ("memory", "memnode")
        ],
        "cell": [
            (each.get("id"), _spelt(each.get("cpus")), each.get("memory"), each.get("unit"))
            for each in root.iter("cell")
        ],
        "page": [(each.get("size"), each.get("unit"), each.get("nodeset")) for each in root.iter("page")],
        "topology": [
            (each.get("dies", "1"), each.get("cores"), each.get("threads"), each.get("sockets"))
            for each in root.iter("topology")
        ],
        "other tuning": [each.tag for each in tuned if each.tag not in known],
    }


def _text(numbers: tuple[int, ...]) -> str:
    return units.cpu_list_text(numbers)


def _spelt(text: str | None) -> str | None:
    try:
        return units.cpu_list_text(units.cpu_list(text or ""))
    except ValueError:
        return text
