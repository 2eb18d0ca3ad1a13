# SPDX-License-Identifier: Apache-2.0
"""CPUs, NUMA nodes and huge pages of guests, over random nodes: never the host's, never twice, always the same."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_job, a_plan, a_request, a_shape, a_site, some_keys
from vtorque import numa, render, reservation, rooms, topology
from vtorque.errors import ConfigError, NodeBusy, RequestError
from vtorque.model import JobId, JobPlan, NodeShape, VmPlan
from vtorque.shape import HugePages, NumaNode, Reservation

TEMPLATES = Path(__file__).resolve().parents[2] / "templates-vm"
GIB = 1024


def a_node(
    nodes: int = 2, cores: int = 4, threads: int = 2, *, mib: int = 16 * GIB, pages: int = 0, **changes: Any
) -> NodeShape:
    """As Linux counts: first one thread of every core, then the other ones; nodes one after the other."""
    every = nodes * cores
    siblings = tuple(tuple(core + thread * every for thread in range(threads)) for core in range(every))
    huge = (HugePages(size_kib=2048, total=pages, free=pages),) if pages else ()
    parts = tuple(
        NumaNode(
            id=node, socket=node // 2, memory_mib=mib, pages=huge,
            cpus=tuple(sorted(itertools.chain(*siblings[node * cores:(node + 1) * cores]))),
        )
        for node in range(nodes)
    )
    whole = NodeShape(
        name="n1", cpus=tuple(range(every * threads)), memory_mib=nodes * mib, cores=siblings, numa=parts
    )
    return replace(whole, **changes)


def plan_on(shape: NodeShape, *, site: dict[str, Any] | None = None, key: str = "7.srv", **request: Any) -> JobPlan:
    told = {"host_os_core_count": 2, "host_os_ram_mb": GIB, **(site or {})}
    return a_plan(shape=shape, site=a_site(**told), request=a_request(**request), job=a_job(id=JobId(key)))


def domain(decided: JobPlan, vm: VmPlan, **site: Any) -> str:
    """The document, which has been compared with the plan."""
    return render.guest(
        decided, vm, site=a_site(**site), keys=some_keys(), announce="", templates=TEMPLATES
    ).domain_xml


SHAPES = st.builds(
    a_node, st.integers(1, 4), st.integers(2, 8), st.sampled_from([1, 2, 4]),
    mib=st.sampled_from([4 * GIB, 8 * GIB, 64 * GIB]), pages=st.sampled_from([0, 640, 1024]),
)
REQUESTS = st.fixed_dictionaries({
    "vcpus": st.integers(1, 12), "vms_per_node": st.integers(1, 4),
    "memory_mib": st.sampled_from([64, 500, 1024, 6001]), "pinning": st.sampled_from(["true", "auto", "false"]),
    "iocm": st.booleans(), "iocm_max_cores": st.integers(0, 3),
})
SITES = st.fixed_dictionaries({"host_os_core_count": st.integers(0, 5), "hugepages": st.booleans()})


@settings(deadline=None, max_examples=300)
@given(shape=SHAPES, request=REQUESTS, site=SITES)
def test_guests_are_disjoint_and_where_they_may_be(
    shape: NodeShape, request: dict[str, Any], site: dict[str, Any]
) -> None:
    try:
        made = plan_on(shape, site=site, **request)
    except (RequestError, ConfigError):
        return
    assert made == plan_on(shape, site=site, **request)
    check_promises(made, shape, site)
    assert domain(made, made.vms[0], **site)


def check_promises(made: JobPlan, shape: NodeShape, site: dict[str, Any]) -> None:
    host = set(numa.host_cpus(shape, site["host_os_core_count"]))
    named = [cpu for vm in made.vms for cpu in vm.cpus] + list(made.iocm_cpus)
    assert len(named) == len(set(named))
    everywhere = {*named, *(cpu for vm in made.vms for cpus in vm.pins for cpu in cpus)}
    assert everywhere <= set(shape.cpus) - host
    assert len(made.iocm_cpus) == (made.request.iocm_max_cores if made.request.iocm else 0)
    of = {cpu: node.id for node in shape.numa for cpu in node.cpus}
    for vm in made.vms:
        assert len(vm.pins) == (0 if made.request.pinning == "false" else vm.vcpus)
        assert set(vm.emulator_cpus) <= host
        assert all(cpus and host.isdisjoint(cpus) and set(made.iocm_cpus).isdisjoint(cpus) for cpus in vm.pins)
        assert (len(vm.cells) > 1) == (len(vm.numa_nodes) > 1)
        if vm.cells:
            assert sum(cell.memory_mib for cell in vm.cells) == vm.memory_mib
            assert [vcpu for cell in vm.cells for vcpu in cell.vcpus] == list(range(vm.vcpus))
            assert all(of[cpu] == cell.node for cell in vm.cells for vcpu in cell.vcpus for cpu in vm.pins[vcpu])
        elif vm.numa_nodes:
            assert {of[cpu] for cpus in vm.pins for cpu in cpus} == set(vm.numa_nodes)
        assert vm.vcpus % (vm.sockets * vm.threads) == 0
        if vm.threads > 1:
            assert {vm.cpus[at:at + vm.threads] for at in range(0, vm.vcpus, vm.threads)} <= set(shape.cores)


@settings(deadline=None, max_examples=300)
@given(
    shape=SHAPES, site=SITES,
    wanted=st.lists(REQUESTS, min_size=2, max_size=6),
)
def test_jobs_beside_one_another_are_never_promised_the_same(
    shape: NodeShape, site: dict[str, Any], wanted: list[dict[str, Any]]
) -> None:
    held: tuple[Reservation, ...] = ()
    for number, request in enumerate(wanted):
        now = replace(shape, held=held)
        try:
            made = plan_on(now, site=site, key=f"{number}.srv", **request)
        except (RequestError, ConfigError):
            with pytest.raises((RequestError, ConfigError)):
                plan_on(shape, site=site, **request)
            continue
        except NodeBusy:
            assert held
            assert plan_on(shape, site=site, **request), "on the empty node it fits"
            continue
        check_promises(made, shape, site)
        held = (*held, reservation.of(made))
        check_ledger(held, shape, site)


def check_ledger(held: tuple[Reservation, ...], shape: NodeShape, site: dict[str, Any]) -> None:
    """What all jobs were promised is there, in all and in each NUMA node."""
    usable = set(shape.cpus) - set(numa.host_cpus(shape, site["host_os_core_count"]))
    named = [cpu for each in held for cpu in each.cpus]
    assert len(named) == len(set(named))
    assert sum(each.cores for each in held) <= len(usable)
    pool = sum(map(numa.pool_mib, shape.numa))
    assert sum(each.memory_mib for each in held) <= shape.memory_mib - GIB - pool
    shares = [share for each in held for share in each.shares]
    assert sum(share.pages for share in shares) <= numa.all_pages(shape, 2048)
    for node in shape.numa:
        own = [share for share in shares if share.node == node.id]
        assert sum(share.pages for share in own) <= sum(pages.total for pages in node.pages)
        assert sum(share.memory_mib for share in own) <= node.memory_mib - numa.pool_mib(node)


class TestChoice:
    def test_a_guest_gets_whole_cores_of_one_numa_node_and_sees_its_threads(self) -> None:
        (vm,) = plan_on(a_node(), vcpus=4).vms
        assert (vm.cpus, vm.numa_nodes, vm.threads, vm.emulator_cpus) == ((1, 9, 2, 10), (0,), 2, (0, 8))
        assert vm.iothread

    def test_the_fullest_node_that_has_room_is_taken(self) -> None:
        made = plan_on(a_node(), vcpus=6, vms_per_node=2)
        assert [vm.numa_nodes for vm in made.vms] == [(0,), (1,)]
        (vm,) = plan_on(a_node(), vcpus=8).vms
        assert vm.numa_nodes == (1,)

    def test_an_odd_guest_breaks_no_second_core(self) -> None:
        first, second = plan_on(a_node(), vcpus=3, vms_per_node=2).vms
        assert (first.cpus, second.cpus) == ((1, 9, 2), (3, 11, 10))
        assert first.threads == second.threads == 1

    def test_the_host_keeps_both_threads_of_a_core_and_its_half_core_goes_last(self) -> None:
        shape = a_node(nodes=1)
        assert [numa.host_cpus(shape, count) for count in (0, 1, 2, 3)] == [(), (0,), (0, 4), (0, 4, 1)]
        (vm,) = plan_on(shape, site={"host_os_core_count": 1}, vcpus=7).vms
        assert vm.cpus == (1, 5, 2, 6, 3, 7, 4)

    def test_a_guest_larger_than_a_node_sees_the_nodes_it_spans(self) -> None:
        (vm,) = plan_on(a_node(), site={"host_os_core_count": 0}, vcpus=12, memory_mib=6000).vms
        assert [(cell.node, len(cell.vcpus), cell.memory_mib) for cell in vm.cells] == [(0, 6, 3000), (1, 6, 3000)]
        assert (vm.sockets, vm.threads) == (2, 2)

    def test_memory_too_large_for_a_node_spans_too(self) -> None:
        (vm,) = plan_on(a_node(), vcpus=2, memory_mib=20 * GIB).vms
        assert [len(cell.vcpus) for cell in vm.cells] == [1, 1]

    def test_nodes_of_one_socket_are_preferred(self) -> None:
        busy = reservation.of(plan_on(a_node(nodes=4), key="8.srv", vcpus=6))
        (vm,) = plan_on(a_node(nodes=4, held=(busy,)), vcpus=10).vms
        assert vm.numa_nodes == (2, 3)

    def test_auto_floats_on_the_free_cpus_of_a_node(self) -> None:
        first, second = plan_on(a_node(threads=1), pinning="auto", vms_per_node=2).vms
        assert first.cpus == ()
        assert (first.floating, first.numa_nodes) == (((2, 3), (2, 3)), (0,))
        assert (second.floating, second.numa_nodes) == (((4, 5, 6, 7),) * 2, (1,))

    def test_nothing_is_pinned_that_the_user_does_not_want_pinned(self) -> None:
        (vm,) = plan_on(a_node(), pinning="false").vms
        assert (vm.pins, vm.numa_nodes, vm.emulator_cpus, vm.iothread) == ((), (), (), False)

    def test_a_users_mapping_brings_its_memory_with_it(self) -> None:
        shape = a_node(threads=1)
        assert plan_on(shape, pinning="5,6").vms[0].numa_nodes == (1,)
        (vm,) = plan_on(shape, pinning="3,6").vms
        assert [(cell.vcpus, cell.node) for cell in vm.cells] == [((0,), 0), ((1,), 1)]

    def test_iocm_gets_cores_of_its_own(self) -> None:
        made = plan_on(a_node(), pinning="auto", iocm=True, iocm_max_cores=3, vcpus=4)
        assert len(made.iocm_cpus) == 3
        with pytest.raises(RequestError, match="12 vCPUs and IOcm need 15 cores; node n1 offers 14"):
            plan_on(a_node(), iocm=True, iocm_max_cores=3, vcpus=12)

    def test_a_node_of_which_nothing_is_known_is_used_in_order(self) -> None:
        made = plan_on(a_shape(), vms_per_node=2)
        assert [(vm.cpus, vm.numa_nodes, vm.threads) for vm in made.vms] == [((2, 3), (), 1), ((4, 5), (), 1)]

    def test_a_job_with_its_own_cpuset_leaves_the_host_what_is_outside(self) -> None:
        shape = a_node(nodes=1, cpus=(0, 4, 1, 5), outside=(2, 3, 6, 7), own_cpuset=True)
        (vm,) = plan_on(shape, vcpus=4).vms
        assert (vm.cpus, vm.threads, vm.emulator_cpus) == ((0, 4, 1, 5), 2, (2, 6))


class TestBusy:
    def test_cores_that_another_job_holds_are_named(self) -> None:
        held = reservation.of(plan_on(a_node(), key="12.srv", vcpus=5, memory_mib=1024, pinning="false"))
        with pytest.raises(NodeBusy) as refusal:
            plan_on(a_node(held=(held,)), vcpus=10)
        assert refusal.value.brief == (
            "not now: job 12.srv holds 5 cores and 1186 MiB of node n1; 1 guest need 10 cores, 9 are free"
        )

    def test_memory_counts_where_each_job_has_its_own_cpuset_and_cores_do_not(self) -> None:
        held = reservation.of(plan_on(a_node(), key="12.srv", vcpus=14, memory_mib=20 * GIB, pinning="false"))
        shape = a_node(held=(held,), own_cpuset=True)
        assert plan_on(shape, vcpus=8)
        with pytest.raises(NodeBusy, match=r"need \d+ MiB, \d+ are free"):
            plan_on(shape, memory_mib=16 * GIB)

    def test_a_mapped_cpu_that_another_job_holds_is_not_free_now(self) -> None:
        held = reservation.of(plan_on(a_node(), key="12.srv", pinning="3,4"))
        with pytest.raises(NodeBusy, match="names the CPUs 4 of them"):
            plan_on(a_node(held=(held,)), pinning="4,5")

    def test_what_no_node_of_this_kind_can_do_is_never_called_busy(self) -> None:
        held = reservation.of(plan_on(a_node(), key="12.srv", vcpus=14))
        with pytest.raises(RequestError, match="offers 14"):
            plan_on(a_node(held=(held,)), vcpus=15)


PAGES = {"hugepages": True}


class TestHugePages:
    def test_a_guest_gets_them_of_its_own_node(self) -> None:
        made = plan_on(a_node(pages=1024), site=PAGES, memory_mib=2048)
        (vm,) = made.vms
        assert (vm.page_kib, vm.numa_nodes) == (2048, (0,))
        (share,) = reservation.of(made).shares
        assert (share.pages, share.memory_mib) == (1024, 140)

    def test_too_few_for_ever_and_too_few_now_are_different(self) -> None:
        with pytest.raises(RequestError, match=r"need 1536 huge pages of 2048 KiB .* node n1 has 1024 and 29696 MiB"):
            plan_on(a_node(pages=512), site=PAGES, memory_mib=3072)
        with pytest.raises(ConfigError, match="HUGEPAGES: node n1 has none"):
            plan_on(a_node(), site=PAGES)
        held = reservation.of(plan_on(a_node(pages=512), site=PAGES, key="12.srv", memory_mib=1024))
        with pytest.raises(NodeBusy, match=r"12\.srv holds 2 cores and 1162 MiB .* 512 are free"):
            plan_on(a_node(pages=512, held=(held,)), site=PAGES, memory_mib=2048)

    def test_what_is_left_beside_the_pages_has_to_be_enough_for_qemu_itself(self) -> None:
        node = a_node(nodes=1, pages=7680)
        with pytest.raises(RequestError, match=r"and \d+ MiB beside them; node n1 has 7680 and 0 MiB"):
            plan_on(node, site=PAGES, memory_mib=2048)
        first, second = a_node(pages=1024).numa
        full = replace(first, pages=(HugePages(size_kib=2048, total=8192, free=8192),))
        assert plan_on(a_node(numa=(full, second)), site=PAGES, memory_mib=2048).vms[0].numa_nodes == (1,)

    def test_memory_that_no_page_divides_is_spread_over_nodes_all_the_same(self) -> None:
        node, site = a_node(pages=4096), {"host_os_core_count": 2, **PAGES}
        made = plan_on(node, site=site, vcpus=12, memory_mib=4097)
        assert sum(cell.memory_mib for cell in made.vms[0].cells) == 4097
        assert len(made.vms[0].cells) == 2
        check_ledger((reservation.of(made),), node, site)

    def test_pages_that_something_else_uses_are_not_free(self) -> None:
        node = a_node(nodes=1, pages=1024)
        used = replace(node.numa[0], pages=(HugePages(size_kib=2048, total=1024, free=100),))
        with pytest.raises(NodeBusy, match=r"something else uses node n1; .* 100 are free"):
            plan_on(replace(node, numa=(used,)), site=PAGES, memory_mib=2048)

    def test_the_largest_that_fits_is_taken(self) -> None:
        node = a_node(nodes=1, mib=64 * GIB)
        sizes = (HugePages(size_kib=2048, total=8192, free=8192), HugePages(size_kib=1 << 20, total=4, free=4))
        shape = replace(node, numa=(replace(node.numa[0], pages=sizes),))
        sizes_of = [plan_on(shape, site=PAGES, memory_mib=m).vms[0].page_kib for m in (2048, 2050, 5120)]
        assert sizes_of == [1 << 20, 2048, 2048]

    def test_what_is_set_aside_is_no_memory_for_others(self) -> None:
        with pytest.raises(RequestError, match="node n1 offers 1024 MiB"):
            plan_on(a_node(pages=7680), memory_mib=2048)


class TestDocument:
    def test_a_guest_that_spans_nodes_is_told_of_them(self) -> None:
        made = plan_on(a_node(pages=2048), site=PAGES, vcpus=12, memory_mib=4096)
        text = domain(made, made.vms[0])
        for part in (
            "<vcpupin vcpu='11' cpuset='14'/>", "<emulatorpin cpuset='0,8'/>",
            "<iothreadpin iothread='1' cpuset='0,8'/>", "<memory mode='strict' nodeset='0,1'/>",
            "<memnode cellid='1' mode='strict' nodeset='1'/>", "<page size='2048' unit='KiB'/>",
            "<topology sockets='2' cores='3' threads='2'/>",
            "<cell id='1' cpus='6,7,8,9,10,11' memory='2048' unit='MiB'/>",
        ):
            assert part in text

    @pytest.mark.parametrize(("was", "becomes", "says"), [
        ("<vcpupin vcpu='{{ loop.index0 }}'", "<vcpupin vcpu='0'", "vcpupin differs"),
        ("<emulatorpin cpuset='{{ vm.emulator_cpus | join(',') }}'/>", "", "emulatorpin differs"),
        ("<iothreads>1<", "<iothreads>2<", "iothreads differs"),
        ("nodeset='{{ cell.node }}'", "nodeset='0'", "numatune differs"),
        ("<memory mode='strict'", "<memory mode='preferred'", "numatune differs"),
        ("memory='{{ cell.memory_mib }}'", "memory='1'", "cell differs"),
        ("<cputune>", "<cputune><vcpusched vcpus='0' scheduler='fifo' priority='1'/>", "other tuning differs"),
        ("threads='{{ vm.threads }}'", "threads='1'", "topology differs"),
        ("<page size='{{ vm.page_kib }}'", "<page size='4'", "page differs"),
    ])
    def test_a_sites_template_cannot_move_a_guest(self, tmp_path: Path, was: str, becomes: str, says: str) -> None:
        text = (TEMPLATES / "domain.xml").read_text()
        assert was in text
        (tmp_path / "domain.xml").write_text(text.replace(was, becomes))
        made = plan_on(a_node(pages=2048), site=PAGES, vcpus=12, memory_mib=4096)
        with pytest.raises(ConfigError, match=says):
            domain(made, made.vms[0], template_dir=str(tmp_path))

    def test_a_list_of_cpus_may_be_spelt_otherwise(self, tmp_path: Path) -> None:
        text = (TEMPLATES / "domain.xml").read_text()
        was = "cpuset='{{ cpus | join(',') }}'"
        (tmp_path / "domain.xml").write_text(text.replace(was, "cpuset='{{ cpus[0] }}-{{ cpus[-1] }}'"))
        made = plan_on(a_node(threads=1), pinning="auto")
        assert "cpuset='2-3'" in domain(made, made.vms[0], template_dir=str(tmp_path))


def put(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


class TestDiscovery:
    def test_the_kernels_files_are_read(self, tmp_path: Path) -> None:
        cpus = topology.node_shape(tmp_path).cpus
        put(tmp_path / f"cpu/cpu{cpus[0]}/topology/thread_siblings_list", f"{cpus[0]},9999")
        put(tmp_path / f"cpu/cpu{cpus[0]}/topology/physical_package_id", 1)
        put(tmp_path / "node/node1/cpulist", f"{cpus[0]}")
        put(tmp_path / "node/node1/meminfo", "Node 1 MemFree: 1 kB\nNode 1 MemTotal:       16384 kB")
        put(tmp_path / "node/node1/hugepages/hugepages-2048kB/nr_hugepages", 8)
        put(tmp_path / "node/node1/hugepages/hugepages-2048kB/free_hugepages", 3)
        put(tmp_path / "node/node1/hugepages/hugepages-1048576kB/nr_hugepages", 0)
        put(tmp_path / "node/node2/cpulist", "")
        shape = topology.node_shape(tmp_path)
        assert shape.cores[0] == (cpus[0],)
        assert shape.numa == (
            NumaNode(
                id=1, cpus=cpus[:1], memory_mib=16, socket=1, pages=(HugePages(size_kib=2048, total=8, free=3),)
            ),
            NumaNode(id=2, cpus=(), memory_mib=0),
        )

    def test_a_kernel_that_tells_nothing_leaves_nodes_unknown(self, tmp_path: Path) -> None:
        shape = topology.node_shape(tmp_path)
        assert (shape.numa, shape.cores) == ((), tuple((cpu,) for cpu in shape.cpus))

    @pytest.mark.parametrize("path", ["dev/cpuset/torque/7.srv/cpus", "sys/fs/cgroup/cpuset/torque/7.srv/cpuset.cpus"])
    def test_a_jobs_own_cpuset_is_all_it_may_use(self, tmp_path: Path, path: str) -> None:
        put(tmp_path / path, "4-5,99")
        own = topology.for_job(a_shape(), JobId("7.srv"), tmp_path)
        assert (own.cpus, own.own_cpuset, own.outside) == ((4, 5), True, (0, 1, 2, 3, 6, 7))
        assert topology.for_job(a_shape(), JobId("8.srv"), tmp_path) == a_shape()

    @pytest.mark.parametrize("cpus", ["", "98-99"])
    def test_an_empty_cpuset_is_none(self, tmp_path: Path, cpus: str) -> None:
        put(tmp_path / "dev/cpuset/torque/7.srv/cpus", cpus)
        assert not topology.for_job(a_shape(), JobId("7.srv"), tmp_path).own_cpuset


def test_a_cpu_that_is_not_free_is_not_taken_twice() -> None:
    (room,) = rooms.Rooms(a_node(nodes=1), range(8), memory_mib=0).nodes
    for _ in range(2):
        room.remove(3)
        assert (room.spare, 3 in room.free) == (7, False)
