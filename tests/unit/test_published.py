# SPDX-License-Identifier: Apache-2.0
"""What a node publishes is believed only when it is exactly the guests of its ranks."""

import json
from typing import Any

import pytest

from tests.builders import KEY, a_job, a_plan, a_request
from vtorque import published
from vtorque.errors import Blame
from vtorque.guestnames import guest_uuid
from vtorque.model import Guest, Peer
from vtorque.published import NodeFailed

REQUEST = a_request(vms_per_node=2)
PEERS = [
    {"rank": rank, "node": "n2", "hostname": f"vn2-{rank - 1}", "uuid": str(guest_uuid("7.srv", rank)),
     "address": f"10.0.0.{rank}", "host_key": KEY, "cpus": "4,5"}
    for rank in (2, 3)
]


def said(**changes: Any) -> tuple[Peer, ...]:
    text = json.dumps({"schema": 1, "guests": PEERS} | changes)
    return published.read(text, job="7.srv", node_index=1, request=REQUEST)


def test_what_a_node_publishes_is_read_by_the_others() -> None:
    vms = a_plan(request=REQUEST).vms
    guests = [Guest(vm=vm, address=f"10.0.0.{vm.rank}", host_key=f"{KEY} root@{vm.hostname}") for vm in vms]
    text = published.guests_text(guests)
    assert published.read(text, job="7.srv", node_index=0, request=REQUEST) == tuple(
        Peer(
            rank=vm.rank, node="n1", hostname=vm.hostname, uuid=str(vm.uuid), address=f"10.0.0.{vm.rank}",
            host_key=KEY, cpus=",".join(map(str, vm.cpus)),
        )
        for vm in vms
    )


def test_the_guests_of_a_node_are_those_of_its_ranks() -> None:
    assert [published.as_json(peer) for peer in said()] == PEERS
    longest = PEERS[0] | {"hostname": f"v{'a' * 62}-999", "node": "n" * 253, "cpus": "", "address": "fd00::1"}
    assert [published.as_json(peer) for peer in said(guests=[longest, PEERS[1]])] == [longest, PEERS[1]]


@pytest.mark.parametrize("guests", [
    [], PEERS[:1], PEERS[::-1], PEERS + PEERS[:1], [PEERS[0], PEERS[0]], [PEERS[0] | {"rank": 0}, PEERS[1]],
    [PEERS[0] | {"uuid": PEERS[1]["uuid"]}, PEERS[1]],
])
def test_other_guests_than_those_of_its_ranks_are_refused(guests: object) -> None:
    with pytest.raises(NodeFailed, match="what node 1 published are not the guests of its ranks") as refused:
        said(guests=guests)
    # It is the user's own fault, whose directory it is in: it neither counts against a node nor drains one.
    assert refused.value.blame is Blame.USER


@pytest.mark.parametrize(("key", "value"), [
    ("rank", "2"), ("rank", True), ("rank", 2.0), ("rank", None), ("node", ""), ("node", "-n2"), ("node", "n" * 254),
    ("node", "n2\n"), ("node", 2), ("hostname", "n2-1"), ("hostname", "vn2-1\n10.0.0.9 other"), ("hostname", "v-1"),
    ("hostname", f"v{'a' * 63}-1"), ("hostname", "vn2-1000"), ("uuid", "x"), ("uuid", ""), ("uuid", 1),
    ("address", "10.0.0"), ("address", "10.0.0.1 evil"), ("address", "0.0.0.0/0"), ("address", 5),
    ("address", "fe80::1%\x1b]0;owned\x07\n99.srv  root"), ("address", "fd00::1%br0"), ("address", ""),
    ("host_key", KEY + " x"), ("host_key", KEY[:-1]), ("host_key", "ssh-rsa " + KEY[12:]), ("host_key", KEY + "\n"),
    ("cpus", "a"), ("cpus", "1,"), ("cpus", "100000"), ("cpus", "1,100000"), ("cpus", "1-2"), ("cpus", None),
])
def test_what_is_no_guest_is_refused(key: str, value: object) -> None:
    with pytest.raises(NodeFailed, match="what node 1 published is not its guests") as refused:
        said(guests=[PEERS[0] | {key: value}, PEERS[1]])
    assert refused.value.blame is Blame.USER


@pytest.mark.parametrize("text", [
    "", "null", "[]", "{}", '{"schema": 1}', '{"schema": 2, "guests": []}', '{"schema": 1, "guests": 5}',
    '{"schema": 1, "guests": [[]]}', "[" * 100000, '{"schema": 1, "reason": "x"}',
    '{"schema": 1, "reason": "x", "node": "n 2", "blame": "user"}',
    '{"schema": 1, "reason": "x\\n", "node": "n2", "blame": "user"}',
    '{"schema": 1, "reason": "x", "node": "n2", "blame": "me"}',
])
def test_what_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(NodeFailed, match="what node 1 published is not its guests") as refused:
        published.read(text, job="7.srv", node_index=1, request=REQUEST)
    assert refused.value.blame is Blame.USER


def test_a_failure_has_the_node_the_beginning_of_the_reason_and_whose_fault_it_is() -> None:
    for text in (
        published.failure_text("n2", "x" * 900, Blame.USER),
        json.dumps({"schema": 1, "node": "n2", "reason": "x" * 900, "blame": "user"}),
    ):
        with pytest.raises(NodeFailed) as caught:
            published.read(text, job="7.srv", node_index=1, request=REQUEST)
        assert (caught.value.brief, caught.value.blame) == (f"node n2: {'x' * 500}", Blame.USER)


def test_files_are_named_by_the_node() -> None:
    job = a_job(node_index=3)
    assert (published.name(job), published.name(job, 1)) == ("guests.3.0.json", "guests.1.0.json")
    assert (published.lost_name(3), published.LIMIT) == ("lost.3", 524288)


def test_of_each_start_they_have_a_name_of_its_own() -> None:
    """slurmd starts the Prologs of all nodes at once: the first one's must not find what a late sister said before."""
    job = a_job(node_index=1)
    assert published.name(job) != published.name(job._replace(restarts=1))
