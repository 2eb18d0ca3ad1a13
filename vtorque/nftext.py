# SPDX-License-Identifier: Apache-2.0
"""Pieces of nft's own language, nft(8), that rules of both address families are made of."""

from collections.abc import Iterable
from ipaddress import ip_network

DNS, NTP = 53, 123
BATCH_PORTS = "15001-15007, 15051, 17001, 6817-6820"
"""Of pbs_server, mom, scheduler, data service and pbs_comm; of slurmctld, slurmd, slurmdbd and slurmrestd."""


def chain(name: str, body: str) -> str:
    """A chain with its rules, one a line."""
    return f"chain {name} {{\n{body}\n}}"


def hook(name: str, rule: str) -> str:
    """A chain of the bridge's hook of that name."""
    return chain(name, f"type filter hook {name} priority -300; policy accept;\n{rule}")


def named_set(name: str, kind: str, elements: Iterable[str]) -> str:
    """A set of the table, which may be empty."""
    held = ", ".join(elements)
    return f"set {name} {{ type {kind}; {f'elements = {{ {held} }}; ' if held else ''}}}"


def endpoints(option: str, address: str, port: str, verdict: str, *, version: int) -> str:
    """A rule for each `CIDR`, `CIDR:PORT` or `CIDR:LOW-HIGH` of an address family, IPv6 as `[CIDR]:PORT`.

    They are for all protocols when no port is named.
    """
    lines = []
    for word in option.split():
        network, _, ports = word[1:].partition("]") if word.startswith("[") else word.partition(":")
        ports = ports.removeprefix(":")
        parsed = ip_network(network, strict=False)
        if parsed.version != version:
            continue
        match = f" meta l4proto {{ tcp, udp }} th {port} {ports}" if ports else ""
        lines.append(f"{'ip6' if version == 6 else 'ip'} {address} {parsed}{match} {verdict}\n")
    return "".join(lines)


def number(mac: str) -> str:
    """A MAC address for a comparison with raw bytes."""
    return f"0x{mac.replace(':', '')}"
