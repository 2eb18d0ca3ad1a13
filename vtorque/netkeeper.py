# SPDX-License-Identifier: Apache-2.0
"""What root's child does that keeps guests' network, and is nobody but for the one right it takes, CAP_NET_ADMIN.

What not every hook needs is loaded where it is needed.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vtorque.backends.filter.nft import Nft
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, ConfigError

if TYPE_CHECKING:
    from vtorque.options import SiteConfig
    from vtorque.surroundings import Surroundings

_DAY_SECONDS = 86400.0


class NetKeeper:
    """The rules of this site's guests, the node's packet filter and its neighbours, in words that JSON can say."""

    def __init__(self, site: "Callable[[], SiteConfig]") -> None:
        self._ask_site = site
        nft = Nft()
        self.load, self.renew, self.remove, self.tables = nft.load, nft.renew, nft.remove, nft.tables

    @classmethod
    def of_site(cls, told: Mapping[str, Any]) -> "NetKeeper":
        """That of the site that root was told of."""
        def site() -> "SiteConfig":
            from vtorque.options import SiteConfig

            return SiteConfig.told(told)

        return cls(site)

    @cached_property
    def _site(self) -> "SiteConfig":
        return self._ask_site()

    def rules(self, plan: str, addresses: dict[str, str], *, deadline: Deadline) -> tuple[str, list[str]]:
        """The text for all the plan's guests, with what is known of their addresses, and what it had to leave out.

        Raises ConfigError and AddressError.
        """
        from vtorque import netfilter, orders
        from vtorque.model import JobPlan

        around, troubles = self._look(deadline)
        if not around.networks and not addresses:
            raise ConfigError(
                f"NETWORK_FILTER: bridge {self._site.bridge} has no address, which would tell those of guests",
                hint="give it one, or CUSTOM_IP_MAPPING: true",
            )
        decided = orders.decode(JobPlan, plan.encode())
        return netfilter.rules(decided, self._site, around, addresses=addresses), troubles

    def _look(self, deadline: Deadline) -> "tuple[Surroundings, list[str]]":
        from vtorque import surroundings

        return surroundings.look(self._site, deadline)

    def watch(self, mac: str, *, handle: int, deadline: Deadline) -> None:
        """Tell the socket `handle` the guest's candidates, now and when they change: a line of JSON each time.

        Raises AddressError when the node has no such table.
        """
        from vtorque.backends.address import tables

        table = tables.of(self._site.bridge)
        reader = _Reader(os.dup(handle))
        found = table.candidates(mac)
        reader.tell(found)

        def follow() -> None:
            known = found
            with contextlib.suppress(OSError, AddressError), contextlib.closing(table), contextlib.closing(reader):
                while not reader.gone:
                    table.wait(_DAY_SECONDS, reader)
                    if (now := table.candidates(mac)) != known:
                        reader.tell(now)
                        known = now

        threading.Thread(target=follow, daemon=True).start()


class _Reader:
    """Who is told of a guest's candidates, until he closes his end: he says nothing himself."""

    def __init__(self, handle: int) -> None:
        self._socket = socket.socket(fileno=handle)
        self.gone = False

    def fileno(self) -> int:
        """What can be read when he has gone."""
        return self._socket.fileno()

    def drain(self) -> None:
        """He has gone."""
        self.gone = True

    def tell(self, candidates: tuple[str, ...]) -> None:
        """Tell him all of them."""
        self._socket.sendall(json.dumps(candidates).encode() + b"\n")

    def close(self) -> None:
        """Tell him no more."""
        self._socket.close()
