# SPDX-License-Identifier: Apache-2.0
"""The hypervisor as the program has it: root starts and ends guests, their own processes tell whether they run."""

import contextlib
from collections.abc import Iterator

from vtorque.backends.hypervisor.pulse import Pulses
from vtorque.deadline import Deadline
from vtorque.rootside import RootSide
from vtorque.wakeups import Wakeup


class Watched:
    """Guests of this node."""

    def __init__(self, root: RootSide, pulses: Pulses | None = None) -> None:
        self._root = root
        self._pulses = pulses or Pulses(root.process_of)

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        """Start a transient domain."""
        self._root.start_domain(domain_xml, deadline=deadline)

    def shutdown(self, name: str, *, deadline: Deadline) -> None:
        """Press the power button, once."""
        self._root.shutdown(name, deadline=deadline)

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        """Stop and forget the domain; whether there was one."""
        self._pulses.forget(name)
        return self._root.destroy(name, deadline=deadline)

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        """Names of all domains with our tag, and the job each belongs to."""
        return self._root.domains(deadline=deadline)

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        """Whether the guest's process is there; the hypervisor is asked where there is none to be seen."""
        beats = self._pulses.beats(name)
        return self._root.is_running(name, deadline=deadline) if beats is None else beats

    @contextlib.contextmanager
    def changes(self) -> Iterator[Wakeup]:
        """What tells when one of the guests has ended that were asked about."""
        yield self._pulses

    def close(self) -> None:
        """Look no more."""
        self._pulses.close()
