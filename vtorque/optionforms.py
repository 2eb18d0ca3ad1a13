# SPDX-License-Identifier: Apache-2.0
"""How an option of the configuration is declared, and what a text of each kind has to look like."""

import re
from typing import Any

INERT = "inert"

# Each number in one way only: two ways for each of 64 networks are 2^64 for a list of them that ends wrong.
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ADDRESS = rf"(?:{_OCTET}(?:\.{_OCTET}){{3}}|(?=[^ ]*[0-9A-Fa-f])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{0,4}})"
_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_GROUPS = r"(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,5})?"
# Eight groups, or fewer around one "::", which stands for two at least: no more than seven colons.
_IPV6 = rf"(?:(?:[0-9A-Fa-f]{{1,4}}:){{7}}[0-9A-Fa-f]{{1,4}}|(?!(?:[^:\]/]*:){{8}}){_GROUPS}::{_GROUPS})"
_NETWORK = (
    rf"(?:{_OCTET}(?:\.{_OCTET}){{3}}(?:/(?:[12]?[0-9]|3[0-2]))?"
    rf"|\[{_IPV6}(?:/(?:[1-9]?[0-9]|1[01][0-9]|12[0-8]))?\])"
)
_ENDPOINT = rf"{_NETWORK}(?::{_PORT}(?:-{_PORT})?)?"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,9}"

FORMS = {
    "share": (
        r"[A-Za-z0-9.:_\[\]-]{1,253}:/[^\s,'\"\\]{0,1023}",
        "empty or server:/export",
    ),
    # An odd second digit would make it a multicast address.
    "mac": (
        r"[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){0,2}",
        "1 to 3 octets of a unicast address, like 5a or 52:54:00",
    ),
    # The kernel's IFNAMSIZ is 16, with the final NUL (linux/if.h).
    "interface": (
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}",
        "the name of a network interface, at most 15 characters",
    ),
    "mount": (
        r"[A-Za-z0-9=._:,+/-]{1,255}",
        "mount options with commas between them",
    ),
    "user": (r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", "the name of a user"),
    "uri": (r"[a-z][a-z0-9+]{0,31}://\S{0,255}", "a URI, like qemu:///system"),
    # The resolver of the C library asks no more than three.
    "addresses": (
        rf"{_ADDRESS}(?: {_ADDRESS}){{0,2}}", "1 to 3 IP addresses, blanks between them"
    ),
    "domain": (_NAME, "the name of a domain"),
    "domains": (rf"{_NAME}(?: {_NAME}){{0,5}}", "1 to 6 names of domains, blanks between them"),
    "host": (rf"{_NAME}|{_ADDRESS}", "the name or IP address of a host"),
    "endpoints": (
        rf"{_ENDPOINT}(?: {_ENDPOINT}){{0,63}}",
        "networks like 10.1.0.0/16 or [fd00::/8], with a port :80 or ports :80-90 perhaps, blanks between them",
    ),
    "image": (
        r"[A-Za-z0-9](?=.{0,127}\Z)[A-Za-z0-9._+-]*\.(?:qcow2|img)(?:@[0-9]{1,6})?",
        "the name of a .qcow2 or .img file in the catalogue",
    ),
}
"""What a text of each kind has to look like (an expression in ASCII, compiled when it is asked), and how to say so."""


def fits(kind: str, text: str) -> bool:
    """Whether a text has the form of its kind."""
    return re.fullmatch(FORMS[kind][0], text, re.ASCII) is not None


class Option:
    """A declared option: `metadata` has its `text`, how its value is read (`kind`), its range and so on."""

    __slots__ = ("default", "metadata", "name", "type")

    def __init__(self, default: Any, metadata: dict[str, Any]) -> None:
        self.default = default
        self.metadata = metadata

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.type = owner.__annotations__[name]


def option(default: Any, text: str, **about: Any) -> Any:
    """A field of SiteConfig: `kind` is how its value is read, `low` and `high` its range."""
    return Option(default, {"text": text, **about})


def inert(default: Any, text: str, why: str, **about: Any) -> Any:
    """An option of the original that is accepted and has no effect; `why` says so to whoever sets it."""
    return option(default, text, **{INERT: why}, **about)
