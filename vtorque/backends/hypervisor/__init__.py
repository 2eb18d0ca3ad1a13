# SPDX-License-Identifier: Apache-2.0
"""What we need of a hypervisor. Every verb may be repeated."""

from typing import Protocol

from vtorque.deadline import Deadline


class Hypervisor(Protocol):
    """Domains of this node. `job` is the key of the job in a domain's own metadata."""

    def define(self, domain_xml: str, *, deadline: Deadline) -> None:
        """Make the domain known, not running; HypervisorError when it is refused."""
        ...

    def start(self, name: str, *, deadline: Deadline) -> None:
        """Start a defined domain; HypervisorError when it cannot run."""
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
