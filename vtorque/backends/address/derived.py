# SPDX-License-Identifier: Apache-2.0
"""Guests' addresses where there is IPv6 only: what each MAC address gives in the bridge's networks.

Nothing has to be learned then, and nobody has to announce himself.
"""

from collections.abc import Sequence
from ipaddress import IPv6Network

from vtorque import netfilter6, wakeups
from vtorque.wakeups import Wakeup


class Derived:
    """The same addresses always; the guest there has to prove itself like any other."""

    def __init__(self, networks: Sequence[IPv6Network]) -> None:
        self._networks = networks

    def candidates(self, mac: str) -> tuple[str, ...]:
        """The guest's address in each network of 64 bits."""
        return tuple(map(str, netfilter6.own(mac, self._networks, taken=())))

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """The guest may still have to boot."""
        wakeups.wait(seconds, *also)

    def close(self) -> None:
        """Nothing is open."""
