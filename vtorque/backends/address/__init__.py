# SPDX-License-Identifier: Apache-2.0
"""Where a guest's address may be learned. An address is a candidate until its key is proven."""

import ipaddress
from typing import Protocol

from vtorque.model import VmPlan
from vtorque.wakeups import Wakeup


class AddressBook(Protocol):
    """A source of candidates for guests' addresses."""

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        """Addresses that might be the guest's, likeliest first; AddressError when the source is broken."""
        ...

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """Return when something may have changed, one of `also` has something to tell, or after `seconds`."""
        ...

    def close(self) -> None:
        """Give back what the book holds open."""
        ...


def usable(text: str) -> str:
    """The address as everybody writes it, or nothing when no guest can be reached there without a zone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return ""
    special = address.is_link_local or address.is_multicast or address.is_unspecified or address.is_loopback
    return "" if special else str(address)
