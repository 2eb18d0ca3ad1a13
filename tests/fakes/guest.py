# SPDX-License-Identifier: Apache-2.0
"""Guests in memory: addresses that show up, and machines that answer there."""

import contextlib
from collections.abc import Callable, Collection, Iterator

from vtorque.backends.transport import KeyPair
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, TransportError
from vtorque.model import VmPlan
from vtorque.wakeups import Wakeup

# proc_sys_kernel(5): pid_max is at most this.
_NO_PROCESS = 1 << 22
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGRlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn+AgYKD"


class FakeAddresses:
    """An address book: each look is one entry of `looks`, the last one stays."""

    def __init__(self, *looks: tuple[str, ...]) -> None:
        self._looks = list(looks)
        self.closed = False

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """Everything happens at once here."""

    def close(self) -> None:
        self.closed = True


class FakeSession:
    """A guest that says one thing and ends."""

    def __init__(self, says: bytes | None) -> None:
        self._says = says

    def ask(self, command: str, *, limit: int, deadline: Deadline) -> bytes:
        if self._says is None:
            raise DeadlineExceeded("the guest did not answer in time")
        return self._says[:limit]

    def close(self) -> None:
        """Nothing is open."""


class FakeTransport:
    """Machines by address: what happens when one logs in there."""

    def __init__(self, machines: dict[str, Callable[[], FakeSession]]) -> None:
        self._machines = machines
        self.tried: list[str] = []
        self.kept: list[str] = []
        self.silent: set[str] = set()

    def make_key(self) -> KeyPair:
        return KeyPair(private="private", public=HOST_KEY)

    @contextlib.contextmanager
    def prover(self) -> Iterator["FakeTransport"]:
        yield self

    @property
    def process(self) -> str:
        return f"{_NO_PROCESS} 1"

    def keep(self, address: str, *, host_key: str, listener: int, deadline: Deadline) -> None:
        self.kept.append(address)

    def answering(self, addresses: Collection[str], *, seconds: float) -> set[str]:
        return set(addresses) & set(self._machines) - self.silent

    def open(self, address: str, *, user: str, key: str, host_key: str, deadline: Deadline) -> FakeSession:
        self.tried.append(address)
        if address not in self._machines:
            raise TransportError(f"the guest at {address} does not answer SSH: Connection refused")
        return self._machines[address]()
