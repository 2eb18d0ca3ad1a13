# SPDX-License-Identifier: Apache-2.0
"""How an option of the configuration is declared, and what a text of each kind has to look like."""

import re
from dataclasses import field
from typing import Any

INERT = "inert"

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_ADDRESS = rf"(?:{_OCTET}(?:\.{_OCTET}){{3}}|(?=[^ ]*[0-9A-Fa-f])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{0,4}})"
_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_ENDPOINT = rf"{_OCTET}(?:\.{_OCTET}){{3}}(?:/(?:[12]?[0-9]|3[0-2]))?(?::{_PORT}(?:-{_PORT})?)?"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,9}"

FORMS = {
    "share": (
        re.compile(r"[A-Za-z0-9.:_\[\]-]{1,253}:/[^\s,'\"\\]{0,1023}", re.ASCII),
        "empty or server:/export",
    ),
    # An odd second digit would make it a multicast address.
    "mac": (
        re.compile(r"[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){0,2}", re.ASCII),
        "1 to 3 octets of a unicast address, like 52:54:00",
    ),
    # The kernel's IFNAMSIZ is 16, with the final NUL (linux/if.h).
    "interface": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII),
        "the name of a network interface, at most 15 characters",
    ),
    "mount": (
        re.compile(r"[A-Za-z0-9=._:,+/-]{1,255}", re.ASCII),
        "mount options with commas between them",
    ),
    "user": (re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII), "the name of a user"),
    "uri": (re.compile(r"[a-z][a-z0-9+]{0,31}://\S{0,255}", re.ASCII), "a URI, like qemu:///system"),
    # The resolver of the C library asks no more than three.
    "addresses": (
        re.compile(rf"{_ADDRESS}(?: {_ADDRESS}){{0,2}}", re.ASCII), "1 to 3 IP addresses, blanks between them"
    ),
    "domain": (re.compile(_NAME, re.ASCII), "the name of a domain"),
    "domains": (re.compile(rf"{_NAME}(?: {_NAME}){{0,5}}", re.ASCII), "1 to 6 names of domains, blanks between them"),
    "host": (re.compile(rf"{_NAME}|{_ADDRESS}", re.ASCII), "the name or IP address of a host"),
    "endpoints": (
        re.compile(rf"{_ENDPOINT}(?: {_ENDPOINT}){{0,63}}", re.ASCII),
        "networks like 10.1.0.0/16, with a port :80 or ports :80-90 perhaps, blanks between them",
    ),
    "image": (
        re.compile(r"[A-Za-z0-9](?=.{0,127}\Z)[A-Za-z0-9._+-]*\.(?:qcow2|img)(?:@[0-9]{1,6})?", re.ASCII),
        "the name of a .qcow2 or .img file in the catalogue",
    ),
}
"""What a text of each kind has to look like, and how to say so."""


def option(default: Any, text: str, **about: Any) -> Any:
    """A field of SiteConfig: `kind` is how its value is read, `low` and `high` its range."""
    return field(default=default, metadata={"text": text, **about})


def inert(default: Any, text: str, why: str, **about: Any) -> Any:
    """An option of the original that is accepted and has no effect; `why` says so to whoever sets it."""
    return option(default, text, **{INERT: why}, **about)
