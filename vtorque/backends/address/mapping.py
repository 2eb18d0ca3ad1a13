# SPDX-License-Identifier: Apache-2.0
"""Guests' addresses from the site's own script: IP_TO_MAC_SCRIPT NODE VMS NUMBER prints the guest's IP.

The manual's arguments: the node's short host name, how many guests the job has
on it, and the guest's number among these, from 1.
"""

from pathlib import Path

from vtorque.backends.address import usable
from vtorque.deadline import Deadline
from vtorque.errors import AddressError
from vtorque.model import VmPlan
from vtorque.rootside import RootSide
from vtorque.wakeups import Wakeup

_RUN_SECONDS = 10.0
_SHOWN = 80


class MappingScript:
    """One address for each guest, asked for once; the guest there has to prove itself like any other."""

    def __init__(self, script: Path, *, root: RootSide, guests: int, deadline: Deadline) -> None:
        self._script = script
        self._root = root
        self._guests = guests
        self._deadline = deadline
        self._known: dict[int, str] = {}

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        """The address that the script gives; AddressError in one line when it does anything else."""
        if vm.slot not in self._known:
            self._known[vm.slot] = self._ask(vm)
        return (self._known[vm.slot],)

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """The answer never changes; the guest may still have to boot."""
        self._deadline.pause(seconds, *also)

    def close(self) -> None:
        """Nothing is open."""

    def _ask(self, vm: VmPlan) -> str:
        try:
            said = self._root.mapped(self._guests, vm.slot + 1, deadline=self._deadline.within(_RUN_SECONDS))
        except AddressError as error:
            raise AddressError(f"guest {vm.hostname}: {error.brief}", hint=error.hint, details=error.details) from error
        return self._address(vm, said)

    def _address(self, vm: VmPlan, said: str) -> str:
        text = said.strip()
        address = usable(text)
        if not address:
            raise AddressError(
                f"guest {vm.hostname}: IP_TO_MAC_SCRIPT {self._script} printed {text[:_SHOWN]!r}, "
                "not one address of a guest, IPv4 or IPv6"
            )
        return address
