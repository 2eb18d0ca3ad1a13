# SPDX-License-Identifier: Apache-2.0
"""Large jobs cost in proportion: calls are counted, since times depend on the machine."""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import KEY, a_job, a_plan, a_request, a_shape, a_site, some_keys
from tests.unit.test_render import TEMPLATES
from vtorque import guestnames, markers, published, render, run
from vtorque.deadline import Deadline
from vtorque.model import Guest, JobPlan, NodeShape, Peer, Resource
from vtorque.run import Guests
from vtorque.state import JobState

# Ten times as much may cost a little more than ten times: sorting, and tables that grow.
LINEAR = 13


def calls(work: Callable[[], object]) -> int:
    """How many Python functions run."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def a_node(guests: int, *, index: int = 0) -> JobPlan:
    shape = NodeShape(name=f"n{index}", cpus=tuple(range(guests + 1)), memory_mib=guests * 512)
    request = a_request(vcpus=1, memory_mib=128, vms_per_node=guests)
    return a_plan(job=a_job(nodes=(), node_index=index), request=request, shape=shape, site=a_site(host_os_ram_mb=0))


def peers(nodes: int) -> list[Peer]:
    return [
        published.peer(Guest(vm=vm, address=f"10.{index >> 8}.{index & 255}.{vm.slot + 1}", host_key=KEY))
        for index in range(nodes) for vm in a_node(4, index=index).vms
    ]


def test_a_node_of_many_guests_is_planned_in_proportion() -> None:
    assert calls(lambda: a_node(64)) <= LINEAR * calls(lambda: a_node(7))


def test_many_guests_are_rendered_in_proportion() -> None:
    def rendered(guests: int) -> None:
        made = a_node(guests)
        for vm in made.vms:
            render.guest(made, vm, site=a_site(), keys=some_keys(), announce="", templates=TEMPLATES)

    rendered(1)  # templates are compiled once
    assert calls(lambda: rendered(64)) <= LINEAR * calls(lambda: rendered(6))


def forgetful(record: JobState) -> None:
    """Reads all that is there before each act, as if nobody had."""
    record._understood = ""


@pytest.mark.parametrize(("before", "is_linear"), [(lambda record: None, True), (forgetful, False)])
def test_what_many_guests_take_is_entered_in_proportion(
    tmp_path: Path, before: Callable[[JobState], None], is_linear: bool
) -> None:
    def taken(number: int) -> None:
        record = JobState(tmp_path / str(number), "7.srv")
        record.create()
        for each in range(number):
            before(record)
            with record.taking(Resource(kind="file", name=f"/x/{each}"), deadline=Deadline(60)):
                pass

    assert (calls(lambda: taken(100)) <= LINEAR * calls(lambda: taken(10))) is is_linear


@pytest.fixture(scope="module")
def cluster() -> dict[int, list[Peer]]:
    return {nodes: peers(nodes) for nodes in (100, 1000)}


def test_a_thousand_nodes_are_gathered_and_merged_in_proportion(cluster: dict[int, list[Peer]]) -> None:
    request = a_request(vcpus=1, memory_mib=128, vms_per_node=4)

    def merged(nodes: int) -> None:
        found: list[Peer] = []
        for index in range(nodes):
            text = published.guests_text(())
            assert text
            own = cluster[nodes][4 * index:4 * index + 4]
            said = '{"schema": 1, "guests": [' + ", ".join(map(_json, own)) + "]}"
            found += published.read(said, job="7.srv", node_index=index, request=request)
        marker = markers.ready_marker(a_node(4), found)
        assert len(marker["guests"]) == 4 * nodes  # type: ignore[arg-type]
        run.furnishing(Guests(peers=tuple(found), vcpus=4, environment={"PBS_NODEFILE": "/n"}), "key")

    assert calls(lambda: merged(1000)) <= LINEAR * calls(lambda: merged(100))


def test_what_a_guest_is_told_of_four_thousand_others_is_modest(cluster: dict[int, list[Peer]]) -> None:
    tracemalloc.start()
    try:
        guests = Guests(peers=tuple(cluster[1000]), vcpus=4, environment={"PBS_NODEFILE": "/n"})
        text = run.order(
            environment={}, directory="/", shell="/bin/sh", command=[], files=run.furnishing(guests, "key")
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(text) < 300 * len(guests.peers), "a line each in hosts and known hosts, and one for every vCPU"
    assert peak < 20 * len(text)


def test_ranks_and_names_of_a_thousand_nodes_are_all_different() -> None:
    shape = a_shape(cpus=tuple(range(8)))
    request = a_request(vcpus=1, memory_mib=128, vms_per_node=4)
    vms = [
        vm for index in range(1000)
        for vm in a_plan(job=a_job(nodes=(), node_index=index), request=request, shape=shape).vms
    ]
    assert [vm.rank for vm in vms] == list(range(4000))
    assert len({vm.uuid for vm in vms}) == 4000
    assert len({guestnames.guest_uuid("7.srv", vm.rank) for vm in vms} ^ {vm.uuid for vm in vms}) == 0


def _json(peer: Peer) -> str:
    import json

    return json.dumps(published.as_json(peer))
