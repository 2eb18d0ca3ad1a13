# SPDX-License-Identifier: Apache-2.0
"""Where a guest's address may be learned. An address is a candidate until its key is proven."""

from typing import Protocol

from vtorque.model import VmPlan


class AddressBook(Protocol):
    """A source of candidates for guests' addresses."""

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        """Addresses that might be the guest's, likeliest first."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when something may have changed, after `seconds` at the latest."""
        ...

    def close(self) -> None:
        """Give back what the book holds open."""
        ...
