# SPDX-License-Identifier: Apache-2.0
"""Guests' addresses from the arp command, as the original took them: a process for every look, IPv4 only."""

import re
from pathlib import Path

from vtorque.backends.address import usable
from vtorque.deadline import Deadline
from vtorque.model import VmPlan
from vtorque.sitecommand import ask
from vtorque.wakeups import Wakeup

_RUN_SECONDS = 5.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
# net-tools, arp -an: "? (10.0.0.5) at 52:54:00:12:34:56 [ether] PERM on br0"; no MAC but <incomplete> when unknown.
_ENTRY = re.compile(
    r"\S+ \((?P<address>[0-9.]+)\) at (?P<mac>[0-9a-f]{2}(?::[0-9a-f]{2}){5})(?: .*)? on (?P<interface>\S+)",
    re.ASCII | re.IGNORECASE,
)


class ArpTable:
    """What ARP_BIN tells of one bridge, looked at in growing intervals: nothing announces a change."""

    def __init__(self, program: Path, *, bridge: str, deadline: Deadline) -> None:
        self._program = program
        self._bridge = bridge
        self._deadline = deadline
        self._next_look = deadline.within(0.0)
        self._pause = _FIRST_PAUSE
        self._entries: tuple[tuple[str, str], ...] = ()

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        """Addresses at the guest's MAC, in the order of the table."""
        if self._next_look.expired:
            said = ask("ARP_BIN", (self._program, "-an"), deadline=self._deadline.within(_RUN_SECONDS))
            self._entries = entries(said.decode(errors="replace"), self._bridge)
            self._next_look = self._deadline.within(self._pause)
            self._pause = min(self._pause * 1.5, _LONGEST_PAUSE)
        return tuple(address for address, mac in self._entries if mac == vm.mac.lower())

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """Return when the next look is due."""
        self._deadline.pause(min(seconds, self._next_look.remaining), *also)

    def close(self) -> None:
        """Nothing is open."""


def entries(text: str, bridge: str) -> tuple[tuple[str, str], ...]:
    """Address and MAC of each complete line about the bridge, each once; what is no such line is passed over."""
    found = (
        (usable(match["address"]), match["mac"].lower())
        for match in map(_ENTRY.fullmatch, map(str.strip, text.splitlines()))
        if match and match["interface"] == bridge
    )
    return tuple(dict.fromkeys(entry for entry in found if entry[0]))
