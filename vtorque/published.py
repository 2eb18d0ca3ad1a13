# SPDX-License-Identifier: Apache-2.0
"""What the nodes of a job tell one another, through the user's job directory and as the user.

Only the user's own job depends on it, and every word is checked all the same:
what a user writes there himself must not become more than a name, an address
and a key.
"""

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from vtorque.errors import Blame, StateError, printable
from vtorque.guestnames import guest_uuid
from vtorque.model import Guest, Job, Peer, VmRequest

_SCHEMA = 1
_HOSTNAME = re.compile(r"v[A-Za-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?-[0-9]{1,3}", re.ASCII)
_NODE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})", re.ASCII)
# Without a zone, %eth0 of IPv6, which ipaddress lets be any text.
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]+", re.ASCII)
_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}", re.ASCII)
_CPUS = re.compile(r"(?:[0-9]{1,5}(?:,[0-9]{1,5})*)?", re.ASCII)
_FORMS = {"hostname": _HOSTNAME, "node": _NODE, "address": _ADDRESS, "host_key": _KEY, "cpus": _CPUS}
_REASON = 500

LIMIT = 1 << 19
"""Bytes of what one node may publish: 256 guests need a tenth of it."""


class NodeFailed(StateError):
    """A sister said that her guests do not come; `fault` is whose fault she says it is."""

    def __init__(self, brief: str, fault: Blame) -> None:
        super().__init__(brief)
        self.blame = fault


def name(job: Job, node_index: int | None = None) -> str:
    """The file in which a node publishes its guests, the job's own if none is given: one for each start of the job."""
    return f"guests.{job.node_index if node_index is None else node_index}.{job.restarts}.json"


LOST = "lost.*"
"""What all such files match."""


def lost_name(node_index: int) -> str:
    """The file in which a node says that a guest was lost."""
    return f"lost.{node_index}"


def peer(guest: Guest) -> Peer:
    """What others have to know of a guest."""
    vm = guest.vm
    return Peer(
        rank=vm.rank, node=vm.node, hostname=vm.hostname, uuid=str(vm.uuid), address=guest.address,
        host_key=" ".join(guest.host_key.split()[:2]), cpus=",".join(map(str, vm.cpus)),
    )


def guests_text(guests: Iterable[Guest]) -> str:
    """The guests of one node, for the others."""
    return json.dumps({"schema": _SCHEMA, "guests": [as_json(peer(guest)) for guest in guests]})


def failure_text(node: str, reason: str, blame: Blame) -> str:
    """Why a node's guests do not come."""
    return json.dumps({"schema": _SCHEMA, "node": node, "reason": printable(reason)[:_REASON], "blame": blame.value})


def as_json(peer: Peer) -> dict[str, object]:
    """A guest as it is written down."""
    return {field: getattr(peer, field) for field in peer.__slots__}


def read(text: str, *, job: str, node_index: int, request: VmRequest) -> tuple[Peer, ...]:
    """The guests that a node has published; NodeFailed when it says why there are none, or says nonsense.

    That is the user's, whose directory it is in, and no reason to count or drain any node.
    """
    try:
        data = json.loads(text)
        if data["schema"] != _SCHEMA:
            raise ValueError("schema")
        if "reason" in data:
            raise _failed(data)
        peers = tuple(from_json(each) for each in data["guests"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NodeFailed(f"what node {node_index} published is not its guests", Blame.USER) from None
    first = node_index * request.vms_per_node
    expected = [(rank, str(guest_uuid(job, rank))) for rank in range(first, first + request.vms_per_node)]
    if [(each.rank, each.uuid) for each in peers] != expected:
        raise NodeFailed(f"what node {node_index} published are not the guests of its ranks", Blame.USER)
    return peers


def from_json(data: Mapping[str, Any]) -> Peer:
    """A guest that was written down; ValueError, KeyError or TypeError when it is not one."""
    if type(data["rank"]) is not int or not all(isinstance(data[key], str) for key in data if key != "rank"):
        raise ValueError("types")
    for key, pattern in _FORMS.items():
        if pattern.fullmatch(data[key]) is None:
            raise ValueError(key)
    return Peer(
        rank=data["rank"], node=data["node"], hostname=data["hostname"], uuid=str(UUID(data["uuid"])),
        address=str(ipaddress.ip_address(data["address"])), host_key=data["host_key"], cpus=data["cpus"],
    )


def _failed(data: Mapping[str, Any]) -> NodeFailed:
    node, reason = str(data["node"]), str(data["reason"])
    if _NODE.fullmatch(node) is None or not reason.isprintable():
        raise ValueError("node")
    return NodeFailed(f"node {node}: {reason[:_REASON]}", Blame(data["blame"]))
