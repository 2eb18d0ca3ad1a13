# SPDX-License-Identifier: Apache-2.0
"""Guests' addresses where there is IPv6 only: what each MAC address gives in the bridge's networks.

Nothing has to be learned then, and nobody has to announce himself.
"""

from collections.abc import Sequence
from ipaddress import IPv6Network

from vtorque import netfilter6
from vtorque.deadline import Deadline
from vtorque.model import VmPlan
from vtorque.wakeups import Wakeup


class Derived:
    """The same addresses always; the guest there has to prove itself like any other."""

    def __init__(self, networks: Sequence[IPv6Network], *, deadline: Deadline) -> None:
        self._networks = networks
        self._deadline = deadline

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        """The guest's address in each network of 64 bits."""
        return tuple(map(str, netfilter6.own(vm.mac, self._networks, taken=())))

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """The guest may still have to boot."""
        self._deadline.pause(seconds, *also)

    def close(self) -> None:
        """Nothing is open."""
