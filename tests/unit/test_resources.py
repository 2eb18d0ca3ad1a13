# SPDX-License-Identifier: Apache-2.0
"""What a job has to ask for so that its guests fit: raised in every chunk, added where nothing is said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_request, a_site
from vtorque import resources
from vtorque.errors import RequestError
from vtorque.overhead import guest_memory_mib, qemu_memory_mib
from vtorque.resolve import Room
from vtorque.resources import Fitted, Need

NEED = Need(cores=5, memory_mib=6000, why_cores="4 for the guest, 1 for the host", why_memory="m")


def fit(*given: str, header: tuple[str, ...] = (), openpbs: bool = False, exclusive: bool = False) -> Fitted:
    return resources.fit(
        [("l", text) for text in given], [("l", text) for text in header], NEED, openpbs=openpbs, exclusive=exclusive
    )


def test_what_a_node_must_give_adds_up() -> None:
    site = a_site(host_os_core_count=2, host_os_ram_mb=1000)
    need = resources.need(a_request(vcpus=3, memory_mib=1024, vms_per_node=2, iocm=True, iocm_max_cores=4), site)
    assert (need.cores, need.memory_mib) == (2 + 6 + 4, 1000 + 2 * qemu_memory_mib(1024, 3))
    assert need.why_cores == "6 for 2 guests, 2 for the host, 4 for IOcm"


def test_what_no_node_has_is_refused_with_the_numbers() -> None:
    with pytest.raises(RequestError, match=r"9 cores are needed on a node \(8 for the guest, 1 .*largest has 8"):
        resources.need(a_request(vcpus=8), a_site(node_core_count=8))
    with pytest.raises(RequestError, match=r"MiB are needed on a node .*; the largest has 2000 MiB"):
        resources.need(a_request(memory_mib=4096), a_site(node_ram_mb=2000))


class TestTorque:
    def test_nothing_given_is_added(self) -> None:
        fitted = fit()
        assert (fitted.added, fitted.changed, fitted.notes) == (["nodes=1:ppn=5", "mem=6000mb"], {}, [])

    def test_too_little_is_raised_in_every_chunk_and_said(self) -> None:
        fitted = fit("walltime=5,nodes=2:ppn=4:fast+big:ppn=8+hostA", "mem=1gb")
        assert fitted.changed == {
            0: "walltime=5,nodes=2:ppn=5:fast+big:ppn=8+hostA:ppn=5", 1: "mem=24000mb",
        }
        assert fitted.added == []
        assert fitted.notes == [
            "-l nodes=2:ppn=4:fast: ppn raised to 5 (4 for the guest, 1 for the host)",
            "-l mem=1gb: raised to 24000mb (m, on each node)",
        ]

    def test_enough_is_left_alone(self) -> None:
        fitted = fit("nodes=2:ppn=8:mem=8gb#shared,mem=16gb")
        assert (fitted.changed, fitted.added, fitted.notes) == ({}, [], [])

    def test_memory_of_a_chunk_is_raised_as_well(self) -> None:
        assert fit("nodes=1:mem=2gb:ppn=5", "mem=1tb").changed == {0: "nodes=1:mem=6000mb:ppn=5"}

    def test_properties_of_all_chunks_stay_behind_the_last(self) -> None:
        assert fit("nodes=1:ppn=1+2#excl", "mem=1tb").changed == {0: "nodes=1:ppn=5+2:ppn=5#excl"}

    def test_what_the_script_asks_for_is_raised_on_the_command_line(self) -> None:
        fitted = fit(header=("nodes=2:ppn=1,mem=1gb",))
        assert fitted.added == ["nodes=2:ppn=5", "mem=12000mb"] and fitted.changed == {}

    def test_the_last_of_several_is_the_one_that_counts(self) -> None:
        assert fit("nodes=9:ppn=9", "nodes=1:ppn=1,mem=9gb").changed == {1: "nodes=1:ppn=5,mem=9gb"}

    def test_cores_without_nodes_are_raised_as_they_are(self) -> None:
        fitted = fit("ncpus=2")
        assert fitted.changed == {0: "ncpus=5"} and fitted.added == ["mem=6000mb"]

    def test_nodes_are_for_one_user_where_the_site_wants_it(self) -> None:
        assert "naccesspolicy=uniqueuser" in fit(exclusive=True).added
        assert "naccesspolicy=uniqueuser" not in fit("naccesspolicy=shared", exclusive=True).added

    def test_the_room_that_a_request_leaves(self) -> None:
        site = a_site(host_os_core_count=1, host_os_ram_mb=1024)
        room = resources.room([("l", "nodes=2:ppn=8+x:ppn=6,mem=12gb")], site, openpbs=False)
        assert (room.cores, room.memory_mib) == (5, 3072)
        room = resources.room([("l", "nodes=1:ppn=4:mem=4gb")], site, openpbs=False)
        assert (room.cores, room.memory_mib) == (3, 3072)
        assert resources.room([("l", "walltime=1")], site, openpbs=False) == Room()


@pytest.mark.parametrize("entry", [
    "mem=16GiB", "mem=1.5gb", "nodes=1:ppn=16x", "nodes=1:ppn=all", "nodes=1:ppn=", "ncpus=4x",
    "nodes=1:ppn=9:mem=1GiB",
])
def test_what_is_not_understood_is_the_batch_systems_affair(entry: str) -> None:
    for words, header in (((entry,), ()), ((), (entry,))):
        fitted = fit(*words, header=header)
        assert fitted.changed == {} and fitted.notes == []
        assert not any(word.partition("=")[0] == entry.partition("=")[0] for word in fitted.added)
    chunk = f"select=1:ncpus=9:{entry}" if entry.startswith("mem") else "select=1:ncpus=4x"
    assert fit(chunk, openpbs=True).notes == []


def test_what_is_not_understood_leaves_no_room() -> None:
    for entry in ("mem=16GiB", "nodes=1:ppn=16x", "ncpus=all"):
        assert resources.room([("l", entry)], a_site(), openpbs=False) == Room()


class TestOpenPbs:
    def test_nothing_given_is_added(self) -> None:
        assert fit(openpbs=True, exclusive=True).added == ["select=1:ncpus=5:mem=6000mb"]

    def test_chunks_are_raised(self) -> None:
        fitted = fit("select=2:ncpus=4:mem=1gb+1:ncpus=9:mpiprocs=2", openpbs=True)
        assert fitted.changed == {0: "select=2:ncpus=5:mem=6000mb+1:ncpus=9:mpiprocs=2:mem=6000mb"}

    def test_torques_nodes_are_understood(self) -> None:
        assert fit("nodes=1:ppn=1", openpbs=True).changed == {0: "nodes=1:ppn=5"}

    def test_the_room_that_a_request_leaves(self) -> None:
        room = resources.room([("l", "select=1:ncpus=8:mem=8gb")], a_site(host_os_ram_mb=1024), openpbs=True)
        assert (room.cores, room.memory_mib) == (7, 7168)


@pytest.mark.parametrize(
    ("value", "nodes"),
    [
        ("walltime=5", 1), ("nodes=3", 3), ("nodes=2:ppn=4", 2), ("nodes=hostA:ppn=2", 1),
        ("nodes=2:ppn=4+hostA:ppn=2+1:bigmem", 4), ("mem=1gb,nodes=2,walltime=5", 2), ("mem=1gb, nodes = 2", 2),
        ("nodes=2#shared", 2),
    ],
)
def test_nodes_are_counted_over_all_chunks(value: str, nodes: int) -> None:
    assert resources.count_nodes([("N", "nodes=9"), ("l", value)], openpbs=False) == nodes


@given(st.lists(st.text(alphabet="nodesmpcu=:+#,0123456789gb", max_size=30), max_size=3))
@settings(max_examples=500, derandomize=True, deadline=None)
def test_whatever_is_asked_for_enough_comes_out_and_no_more_is_raised_twice(texts: list[str]) -> None:
    given = [("l", text) for text in texts]
    fitted = resources.fit(given, [], NEED, openpbs=False, exclusive=False)
    words = [fitted.changed.get(number, text) for number, (_, text) in enumerate(given)] + fitted.added
    again = resources.fit([("l", word) for word in words], [], NEED, openpbs=False, exclusive=False)
    assert (again.changed, again.added, again.notes) == ({}, [], [])


@given(st.integers(64, 1 << 22), st.integers(1, 256))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_guest_fits_the_memory_it_was_made_for(node: int, vcpus: int) -> None:
    memory = guest_memory_mib(node, vcpus)
    assert memory == 0 or qemu_memory_mib(memory, vcpus) <= node <= qemu_memory_mib(memory, vcpus) + 1
