# SPDX-License-Identifier: Apache-2.0
"""What we need of a hypervisor. Every verb may be repeated."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from vtorque.deadline import Deadline
from vtorque.wakeups import Wakeup


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a domain does and has used so far; `state` is running, paused, stopping, stopped or crashed."""

    state: str
    cpu_seconds: float
    memory_mib: int


class Domains(Protocol):
    """Domains of this node. `job` is the key of the job in a domain's own metadata."""

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        """Start the domain, transient: it ends with its guest. HypervisorError when it cannot run."""
        ...

    def shutdown(self, name: str, *, deadline: Deadline) -> None:
        """Press the power button of the domain, which may take its time, or not notice. Absent is success."""
        ...

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        """Stop and forget the domain; says whether there was one. Absent is success."""
        ...

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        """Every domain that carries our tag, running or not: its name, and its job's key."""
        ...

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        """Whether the domain exists and has not stopped."""
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...


class Hypervisor(Domains, Protocol):
    """The same for whoever also waits for them."""

    def changes(self) -> AbstractContextManager[Wakeup]:
        """While it lasts, what tells that one of the domains that `is_running` was asked about has stopped.

        It says no more than that it is time to look. Where nothing is told it stays silent: look now and then.
        """
        ...
