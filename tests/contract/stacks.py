# SPDX-License-Identifier: Apache-2.0
"""Guests with the kernel's own network stack on a node's bridge: who can connect to whom.

To be run in network and mount namespaces of its own, which go when this ends. Standard input is JSON: the node's
address, guests with the names of their interfaces, MAC and IP addresses, rules for nft, and connections as
[from, to, port], where the node is "node". Standard output says of each whether it came about.
"""

import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_PATIENCE_SECONDS = 1.5
_DETECTION_SECONDS = 60.0


def main() -> None:
    """Build, connect, and say what came about."""
    wanted = json.load(sys.stdin)
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    _build(wanted["node"], wanted["guests"])
    for rules in wanted["rules"]:
        subprocess.run(["/usr/sbin/nft", "-f", "-"], input=rules.encode(), check=True)
    _settle(["node", *wanted["guests"]])
    addresses = {"node": wanted["node"]} | {name: guest["address"] for name, guest in wanted["guests"].items()}
    json.dump([_connects(source, target, addresses[target], port) for source, target, port in wanted["connections"]],
              sys.stdout)


def _build(node: str, guests: dict[str, Any]) -> None:
    _ip("link", "set", "dev", "lo", "up")
    _ip("link", "add", "name", "br0", "type", "bridge", "forward_delay", "0")
    _ip("address", "add", f"{node}/{_bits(node)}", "dev", "br0")
    _ip("link", "set", "dev", "br0", "up")
    for name, guest in guests.items():
        _ip("netns", "add", name)
        _ip("link", "add", "name", guest["tap"], "type", "veth", "peer", "name", "eth0", "address", guest["mac"],
            "netns", name)
        _ip("link", "set", "dev", guest["tap"], "master", "br0", "up")
        _ip("-n", name, "address", "add", f"{guest['address']}/{_bits(guest['address'])}", "dev", "eth0")
        _ip("-n", name, "link", "set", "dev", "eth0", "up")


def _bits(address: str) -> int:
    return 64 if ":" in address else 24


def _settle(places: Sequence[str]) -> None:
    """Wait until every place knows that its addresses are its own."""
    end = time.monotonic() + _DETECTION_SECONDS
    for place in places:
        words = ["/usr/sbin/ip", *([] if place == "node" else ["-n", place]), "-6", "address", "show", "tentative"]
        while subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout:
            if time.monotonic() > end:
                raise TimeoutError(f"{place} does not know whether its addresses are its own")
            time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["/usr/sbin/ip", *words], check=True)


def _connects(source: str, target: str, address: str, port: int) -> bool:
    """Whether a connection is made and carries data both ways."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with _socket_on(target, family) as listener, _socket_on(source, family) as caller:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        caller.setblocking(False)
        caller.connect_ex((address, port))
        if not select.select([], [caller], [], _PATIENCE_SECONDS)[1]:
            return False
        if caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        with listener.accept()[0] as called:
            called.sendall(b"hello")
            caller.setblocking(True)
            caller.sendall(caller.recv(5))
            return called.recv(5) == b"hello"


def _socket_on(host: str, family: socket.AddressFamily) -> socket.socket:
    """A socket belongs to the namespace in which it was made."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = here if host == "node" else os.open(Path("/run/netns", host), os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.setns(there, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        return socket.socket(family, socket.SOCK_STREAM)
    finally:
        libc.setns(here, _CLONE_NEWNET)
        os.close(here)
        if there != here:
            os.close(there)


if __name__ == "__main__":
    main()
