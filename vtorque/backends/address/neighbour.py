# SPDX-License-Identifier: Apache-2.0
"""Guests' addresses from the kernel's neighbour table, by rtnetlink: no process, no polling.

Message layouts: rtnetlink(7), linux/neighbour.h.
"""

import errno
import select
import socket
import struct
from ipaddress import ip_address

from vtorque import netlink, wakeups
from vtorque.backends.address import usable
from vtorque.deadline import Deadline
from vtorque.errors import AddressError
from vtorque.wakeups import Wakeup

_NDMSG = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type

_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_RTMGRP_NEIGH = 4
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_INCOMPLETE, _NUD_REACHABLE, _NUD_STALE, _NUD_DELAY, _NUD_PROBE, _NUD_FAILED = 1, 2, 4, 8, 16, 32
_NUD_NOARP, _NUD_PERMANENT = 64, 128
_FRESH = _NUD_REACHABLE | _NUD_DELAY | _NUD_PERMANENT | _NUD_PROBE
_USABLE = _FRESH | _NUD_STALE
_BUFFER = 1 << 16
_DUMP_SECONDS = 2.0


class Neighbours:
    """The neighbour table of one bridge, kept up to date by the kernel's own messages."""

    def __init__(self, bridge: str) -> None:
        try:
            self._interface = socket.if_nametoindex(bridge)
        except OSError:
            raise AddressError(
                f"there is no bridge {bridge!r} on this node", hint="see BRIDGE in the configuration"
            ) from None
        self._entries: dict[str, tuple[str, int]] = {}
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, _RTMGRP_NEIGH))
        self._request()
        deadline = Deadline(_DUMP_SECONDS)
        while self._is_told(deadline) and not self._receive():
            pass

    def candidates(self, mac: str) -> tuple[str, ...]:
        """Addresses at a guest's MAC: those the kernel has just talked to first, IPv4 before IPv6."""
        found = [
            (not state & _FRESH, ":" in address, address)
            for address, (entry, state) in self._entries.items()
            if entry == mac.lower()
        ]
        return tuple(address for _, _, address in sorted(found, key=lambda each: each[:2]))

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """Return when the table of this bridge has changed, one of `also` has something to tell, or after `seconds`.

        Other interfaces of the node may have hundreds of messages a second.
        """
        deadline = Deadline(seconds)
        before = dict(self._entries)
        while self._entries == before and not deadline.expired:
            if any(told is not self for told in wakeups.wait(deadline.remaining, self, *also)):
                return

    def fileno(self) -> int:
        """Where the kernel's messages come."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Enter what has come into the table."""
        self._receive()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _request(self) -> None:
        """Ask for the whole table."""
        self._entries.clear()
        body = _NDMSG.pack(socket.AF_UNSPEC, self._interface, 0, 0, 0)
        self._socket.send(netlink.request(_RTM_GETNEIGH, body))

    def _is_told(self, deadline: Deadline) -> bool:
        """Whether there is a message before the deadline."""
        return not deadline.expired and bool(select.select([self._socket], [], [], deadline.remaining)[0])

    def _receive(self) -> bool:
        """Enter what has come; whether it ends a dump."""
        try:
            return self._take(self._socket.recv(_BUFFER))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise AddressError(f"lost the neighbour table: {error.strerror}") from error
            # The kernel drops messages that nobody fetches: the table comes again, between other messages.
            self._request()
            return False

    def _take(self, data: bytes) -> bool:
        """Enter messages into the table; whether they end a dump."""
        for kind, body in netlink.messages(data):
            if kind in (netlink.DONE, netlink.ERROR):
                return True
            entry = neighbour(body)
            if entry is None or entry[0] != self._interface:
                continue
            _, address, mac, state = entry
            if kind == _RTM_NEWNEIGH and mac and state & _USABLE:
                self._entries[address] = (mac, state)
            elif kind in (_RTM_NEWNEIGH, _RTM_DELNEIGH):
                self._entries.pop(address, None)
        return False


def neighbour(body: bytes) -> tuple[int, str, str, int] | None:
    """Interface, address, MAC (empty when unknown) and state of one neighbour message."""
    if len(body) < _NDMSG.size:
        return None
    _, interface, state, _, _ = _NDMSG.unpack_from(body)
    address, mac = "", ""
    for kind, value in netlink.attributes(body[_NDMSG.size :]):
        if kind == _NDA_DST:
            address = _address(value)
        elif kind == _NDA_LLADDR:
            mac = value.hex(":")
    return (interface, address, mac, state) if address else None


def _address(value: bytes) -> str:
    """The text of an address that can be connected to without a zone, or nothing."""
    return usable(str(ip_address(value))) if len(value) in (4, 16) else ""
