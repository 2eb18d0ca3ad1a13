# SPDX-License-Identifier: Apache-2.0
"""A small network, to be run in a network namespace of its own (unshare --net), which goes when this ends.

Each node's bridge hangs on the LAN's, like a node on a switch. At the other end of each port is a guest, or a
host on the LAN. Standard input is JSON: the ports of each bridge and the name of who is there, MAC addresses,
the bridges' settings, rules for nft, and frames in hexadecimal with the name of who sends each and a mark within
it. Standard output says to whom each mark came, and which MAC addresses the bridges have learned.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LAN = "lan"
_ETH_P_ALL = 3
_NOBODY = "02:00:00:00:00:99"
_HOPS = 6
_PATIENCE_SECONDS = 20.0


def main() -> None:
    """Build, send, and say what arrived."""
    wanted = json.load(sys.stdin)
    # On one CPU frames do not overtake one another.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ports = wanted["ports"]
    _build(ports, wanted["macs"], wanted["bridge"])
    for rules in wanted["rules"]:
        subprocess.run(["/usr/sbin/nft", "-f", "-"], input=rules.encode(), check=True)
    ends = [end for each in ports.values() for end in each.values()] + [each for each in ports if each != LAN]
    wire = Wire(ends, [bytes.fromhex(frame["mark"]) for frame in wanted["frames"]])
    for frame in wanted["frames"]:
        wire.send(frame["from"], bytes.fromhex(frame["bytes"]))
    wire.settle(min(ports[LAN].values()))
    fdb = subprocess.run(["/usr/sbin/bridge", "-j", "fdb"], stdout=subprocess.PIPE, check=True).stdout
    learned = sorted({entry["mac"] for entry in json.loads(fdb) if entry.get("state") != "permanent"})
    json.dump({"arrived": {mark.hex(): sorted(found) for mark, found in wire.found.items()}, "learned": learned},
              sys.stdout)


class Wire:
    """A raw socket on every interface that somebody listens at."""

    def __init__(self, ends: Sequence[str], marks: Sequence[bytes]) -> None:
        self._ends = {end: _socket(end) for end in ends}
        self.found: dict[bytes, set[str]] = {mark: set() for mark in marks}

    def send(self, end: str, frame: bytes) -> None:
        self._ends[end].send(frame)
        self.drain()

    def drain(self) -> None:
        for name, end in self._ends.items():
            while (data := _next(end)) is not None:
                for mark in self.found:
                    if mark in data:
                        self.found[mark].add(name)

    def settle(self, host: str) -> None:
        """Send what reaches everybody, once for every hop of what may still be under way, and wait for it."""
        for number in range(_HOPS):
            mark = f"settled-{number}".encode()
            self.found[mark] = set()
            broadcast = b"\xff" * 6 + bytes.fromhex(_NOBODY.replace(":", "")) + b"\x08\x06" + bytes(28) + mark
            self.send(host, broadcast)
            patience = time.monotonic() + _PATIENCE_SECONDS
            while len(self.found[mark]) < len(self._ends) - 1:
                self.drain()
                if time.monotonic() > patience:
                    raise TimeoutError(f"only {self.found[mark]} were reached")
            del self.found[mark]


def _build(ports: Mapping[str, Mapping[str, str]], macs: Mapping[str, str], about: str) -> None:
    lines, links = [], list(ports)
    kind = f"bridge forward_delay 0 mcast_snooping 0 {about}"
    for bridge, ends in ports.items():
        lines.append(f"link add name {bridge} address {macs[bridge]} type {kind}")
        for name, end in ends.items():
            lines.append(f"link add name {name} type veth peer name {end} address {macs[end]}")
            lines.append(f"link set dev {name} master {bridge}")
            links += [name, end]
    for bridge in (each for each in ports if each != LAN):
        lines.append(f"link add name {bridge}-up type veth peer name {bridge}-down")
        lines.append(f"link set dev {bridge}-up master {bridge}")
        lines.append(f"link set dev {bridge}-down master {LAN}")
        links += [f"{bridge}-up", f"{bridge}-down"]
    lines += [f"link set dev {link} up" for link in links]
    # The kernel's own frames would be in the way, and so would br_netfilter's ideas of what IP is.
    for name, value in (("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1"),
                        ("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")):
        path = Path("/proc/sys/net", name)
        if path.exists():
            path.write_text(value)
    subprocess.run(["/usr/sbin/ip", "-batch", "-"], input="\n".join(lines).encode(), check=True)
    # The kernel tells a bridge later that there is somebody at the other end of a port (linkwatch).
    patience = time.monotonic() + _PATIENCE_SECONDS
    while not _are_forwarding():
        if time.monotonic() > patience:
            raise TimeoutError("not all ports came up")
        time.sleep(0.005)


def _are_forwarding() -> bool:
    listed = subprocess.run(["/usr/sbin/bridge", "-j", "link"], stdout=subprocess.PIPE, check=True).stdout
    return all(port["state"] == "forwarding" for port in json.loads(listed))


def _socket(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    opened.bind((interface, _ETH_P_ALL))
    opened.setblocking(False)
    return opened


def _next(end: socket.socket) -> bytes | None:
    """What came in; nothing of what went out is heard, and None is the end of it."""
    try:
        data, about = end.recvfrom(1 << 16)
    except BlockingIOError:
        return None
    return b"" if about[2] == socket.PACKET_OUTGOING else data


if __name__ == "__main__":
    main()
