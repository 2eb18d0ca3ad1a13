# SPDX-License-Identifier: Apache-2.0
"""A hypervisor in memory: it reads the XML it is given, and can be told to fail."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from vtorque.backends.hypervisor import Usage
from vtorque.deadline import Deadline
from vtorque.errors import HypervisorError

_TAG = "metadata/{https://vtorque.org/xmlns/domain/1}vtorque"


@dataclass
class _Domain:
    uuid: str
    job: str
    running: bool = False
    memory_mib: int = 0


class FakeHypervisor:
    """Domains that exist only here. `fail_at` is the number of the call that fails, from 1.

    After `stops_after` looks at them guests have stopped by themselves.
    """

    def __init__(self, *, fail_at: int = 0) -> None:
        self._domains: dict[str, _Domain] = {}
        self.fail_at = fail_at
        self.stops_after = 1 << 30
        self.calls: list[str] = []

    def define(self, domain_xml: str, *, deadline: Deadline) -> None:
        self._called("define", deadline)
        root = ElementTree.fromstring(domain_xml)
        tag = root.find(_TAG)
        name, uuid = root.findtext("name", ""), root.findtext("uuid", "")
        present = self._domains.get(name)
        if present and present.uuid != uuid:
            raise HypervisorError(f"cannot define a guest: domain {name} exists with another UUID")
        self._domains[name] = _Domain(
            uuid=uuid, job=tag.get("job", "") if tag is not None else "",
            running=bool(present and present.running), memory_mib=int(root.findtext("memory", "0")),
        )

    def start(self, name: str, *, deadline: Deadline) -> None:
        self._called("start", deadline)
        if name not in self._domains:
            raise HypervisorError(f"cannot start guest {name}: no domain of that name")
        self._domains[name].running = True

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        self._called("destroy", deadline)
        return self._domains.pop(name, None) is not None

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        self._called("domains", deadline)
        return {name: domain.job for name, domain in self._domains.items() if domain.job}

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        self._called("is_running", deadline)
        if self.calls.count("is_running") > self.stops_after:
            return False
        return name in self._domains and self._domains[name].running

    def usage(self, name: str, *, deadline: Deadline) -> Usage | None:
        self._called("usage", deadline)
        domain = self._domains.get(name)
        if domain is None:
            return None
        state = "running" if domain.running else "stopped"
        return Usage(state=state, cpu_seconds=1.5, memory_mib=domain.memory_mib)

    def close(self) -> None:
        """Nothing is open."""

    def _called(self, verb: str, deadline: Deadline) -> None:
        deadline.require(verb)
        self.calls.append(verb)
        if len(self.calls) == self.fail_at:
            raise HypervisorError(f"cannot {verb}: told to fail")
