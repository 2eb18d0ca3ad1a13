# SPDX-License-Identifier: Apache-2.0
"""Guests' addresses from the kernel's table, which a child of root's reads: whoever is on the bridge writes there."""

import json
import socket

from vtorque import servant, wakeups
from vtorque.backends.address import usable
from vtorque.deadline import Deadline
from vtorque.errors import AddressError
from vtorque.model import VmPlan
from vtorque.servant import Asked
from vtorque.wakeups import Wakeup

_BUFFER, _LONGEST = 1 << 12, 1 << 20


class TableApart:
    """What the child tells of each guest that it is asked about."""

    def __init__(self, child: Asked, *, deadline: Deadline) -> None:
        self._child = child
        self._deadline = deadline
        self._told: dict[str, _Told] = {}

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        """Addresses at the guest's MAC, likeliest first."""
        if vm.mac not in self._told:
            ours, theirs = socket.socketpair()
            self._told[vm.mac] = _Told(ours)
            with theirs:
                try:
                    self._child.ask("watch", vm.mac, deadline=self._deadline, handle=theirs.fileno())
                except servant.Gone as error:
                    raise AddressError("who reads the table of neighbours for us has gone") from error
            self._told[vm.mac].drain()
        return self._told[vm.mac].addresses

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """Return when there are other candidates, one of `also` has something to tell, or after `seconds`."""
        wakeups.wait(seconds, *self._told.values(), *also)

    def close(self) -> None:
        """Ask about no guest any more."""
        for each in self._told.values():
            each.close()


class _Told:
    """The newest candidates of one guest."""

    def __init__(self, tells: socket.socket) -> None:
        tells.setblocking(False)
        self._socket = tells
        self._said = b""
        self.addresses: tuple[str, ...] = ()

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Take the last line that came; AddressError when there will be no more, or it makes no sense."""
        try:
            while len(self._said) < _LONGEST:
                part = self._socket.recv(_BUFFER)
                self._said += part
                if not part:
                    raise AddressError("who reads the table of neighbours for us has gone")
        except BlockingIOError:
            pass
        *lines, self._said = self._said.split(b"\n")
        try:
            if len(self._said) >= _LONGEST:
                raise ValueError("no end of a line")
            for line in lines[-1:]:
                self.addresses = tuple(found for each in json.loads(line) if (found := usable(str(each))))
        except (ValueError, TypeError) as error:
            raise AddressError("who reads the table of neighbours for us makes no sense") from error

    def close(self) -> None:
        self._socket.close()
