# SPDX-License-Identifier: Apache-2.0
"""Which table tells the addresses of a bridge's guests."""

from vtorque import surroundings, topology
from vtorque.backends.address.derived import Derived
from vtorque.backends.address.neighbour import Neighbours


def of(bridge: str) -> Derived | Neighbours:
    """The kernel's table of neighbours; AddressError when there is no such bridge.

    Where the bridge has IPv6 only, addresses are known, and nothing would tell the table of them.
    """
    networks = tuple(dict.fromkeys(each.network for each in surroundings.ipv6_on(bridge)))
    if networks and not topology.address_on(bridge):
        return Derived(networks)
    return Neighbours(bridge)
