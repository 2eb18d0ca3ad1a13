# SPDX-License-Identifier: Apache-2.0
"""The names of the kernel's tables, by netlink: the nft command would be a process more for each start.

Message layouts: linux/netfilter/nfnetlink.h and nf_tables.h.
"""

import errno
import os
import socket
import struct

from vtorque import netlink
from vtorque.errors import CommandError

_NETLINK_NETFILTER = 12
_NEWTABLE, _GETTABLE = 10 << 8, 10 << 8 | 1
_NFGENMSG = struct.Struct("=BBH")  # family, version, resource
_BRIDGE = 7
_TABLE_NAME = 1
_BUFFER = 1 << 16
_ANSWER_SECONDS = 5.0
# A kernel without nf_tables, or without netfilter's messages.
_ABSENT = (errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT)


def tables() -> list[str]:
    """Every table of the bridge family; CommandError when the kernel does not tell."""
    found: list[str] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asking:
            asking.settimeout(_ANSWER_SECONDS)
            asking.send(netlink.request(_GETTABLE, _NFGENMSG.pack(_BRIDGE, 0, 0)))
            while _enter(asking.recv(_BUFFER), found):
                pass
    except OSError as error:
        if error.errno not in _ABSENT:
            raise CommandError(f"the kernel does not tell the tables of the network filter: {error}") from error
    return found


def _enter(data: bytes, found: list[str]) -> bool:
    """Note the tables that the messages tell of; whether there may be more."""
    for kind, body in netlink.messages(data):
        if kind == netlink.DONE:
            return False
        if kind == netlink.ERROR:
            number = -struct.unpack_from("=i", body)[0]
            raise OSError(number, os.strerror(number))
        if kind == _NEWTABLE and body[:1] == bytes([_BRIDGE]):
            names = (value for kind, value in netlink.attributes(body[_NFGENMSG.size:]) if kind == _TABLE_NAME)
            found += [name.rstrip(b"\0").decode() for name in names]
    return True
