# SPDX-License-Identifier: Apache-2.0
"""A hypervisor in memory: it reads the XML it is given, and can be told to fail."""

import contextlib
import os
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from vtorque.backends.hypervisor import Usage
from vtorque.deadline import Deadline
from vtorque.errors import HypervisorError
from vtorque.mom.bell import Bell

_TAG = "metadata/{https://vtorque.org/xmlns/domain/1}vtorque"


@dataclass
class _Domain:
    uuid: str
    job: str
    memory_mib: int = 0


class FakeHypervisor:
    """Domains that exist only here. `fail_at` is the number of the call that fails, from 1.

    A guest takes `obeys` presses of its power button to stop.
    """

    def __init__(self, *, fail_at: int = 0) -> None:
        self._domains: MutableMapping[str, _Domain] = {}
        self.fail_at = fail_at
        self.obeys = 1
        self.calls: list[str] = []
        self._bells: list[Bell] = []

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        self._called("create", deadline)
        root = ElementTree.fromstring(domain_xml)
        tag = root.find(_TAG)
        name, uuid = root.findtext("name", ""), root.findtext("uuid", "")
        present = self._domains.get(name)
        if present and present.uuid != uuid:
            raise HypervisorError(f"cannot start guest {name}: it exists with another UUID")
        for source in root.iterfind("devices/disk/source"):
            if not Path(source.get("file", "")).exists():
                raise HypervisorError(f"cannot start guest {name}: there is no {source.get('file')}")
        for source in root.iterfind("devices/channel/source"):
            self._bind(name, Path(source.get("path", "")))
        self._domains[name] = _Domain(
            uuid=uuid, job=tag.get("job", "") if tag is not None else "",
            memory_mib=int(root.findtext("memory", "0")),
        )

    @staticmethod
    def _bind(name: str, path: Path) -> None:
        """As libvirt does: in place of whatever is there."""
        try:
            path.unlink(missing_ok=True)
            os.mknod(path, 0o664 | stat.S_IFSOCK)
        except OSError as error:
            raise HypervisorError(f"cannot start guest {name}: cannot bind {path}: {error.strerror}") from error

    def shutdown(self, name: str, *, deadline: Deadline) -> None:
        self._called("shutdown", deadline)
        self.obeys -= 1
        if self.obeys <= 0:
            self._domains.pop(name, None)
            self._ring()

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        self._called("destroy", deadline)
        there = self._domains.pop(name, None) is not None
        self._ring()
        return there

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        self._called("domains", deadline)
        return {name: domain.job for name, domain in self._domains.items() if domain.job}

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        self._called("is_running", deadline)
        return name in self._domains

    @contextlib.contextmanager
    def changes(self) -> Iterator[Bell]:
        with contextlib.closing(Bell()) as bell:
            self._bells.append(bell)
            try:
                yield bell
            finally:
                self._bells.remove(bell)

    def _ring(self) -> None:
        for bell in self._bells:
            bell.ring()

    def usage(self, name: str, *, deadline: Deadline) -> Usage | None:
        self._called("usage", deadline)
        domain = self._domains.get(name)
        if domain is None:
            return None
        return Usage(state="running", cpu_seconds=1.5, memory_mib=domain.memory_mib)

    def close(self) -> None:
        """Nothing is open."""

    def _called(self, verb: str, deadline: Deadline) -> None:
        deadline.require(verb)
        self.calls.append(verb)
        if len(self.calls) == self.fail_at:
            raise HypervisorError(f"cannot {verb}: told to fail")
