# SPDX-License-Identifier: Apache-2.0
"""The rules of a job's guests as text, and when they come into force and go. What they do is in tests/contract."""

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_plan, a_request, a_site
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.network import SURROUNDINGS
from tests.fakes.node import a_node
from vtorque import (
    guestnames,
    guestnet,
    lifecycle,
    names,
    netfilter,
    netfilter6,
    state,
    surroundings,
    teardown,
    topology,
)
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, CommandError, ConfigError, GenerationClosed, StateError
from vtorque.kinds import DOMAIN, FILTER
from vtorque.model import JobId, Resource
from vtorque.optionforms import fits
from vtorque.state import JobState

PLAN = a_plan(request=a_request(vms_per_node=2))
NOWHERE = replace(SURROUNDINGS, networks=())


def soon() -> Deadline:
    return Deadline(60)


def text(decided: Any = PLAN, *, around: Any = SURROUNDINGS, addresses: Any = (), **site: Any) -> str:
    return netfilter.rules(decided, a_site(**site), around, addresses=dict(addresses))


def element(rules: str, name: str) -> set[str]:
    found = re.search(rf"^set {name} {{.*elements = {{ (.*?) }}", rules, re.MULTILINE)
    return set(found[1].split(", ")) if found else set()


class TestNames:
    def test_interfaces_have_names_that_the_kernel_takes_and_libvirt_leaves_alone(self) -> None:
        names = [vm.tap for job in "789" for vm in a_plan(
            job=a_job(id=JobId(f"{job}.srv")), request=a_request(vms_per_node=4, vcpus=1)
        ).vms]
        assert len(set(names)) == 12
        for name in names:
            assert re.fullmatch(r"[a-z0-9]{1,15}", name)
            assert not name.startswith(("vnet", "vif", "macvtap", "macvlan"))

    def test_every_start_and_every_node_gives_a_guest_the_same_name(self) -> None:
        sister = a_plan(job=a_job(nodes=(), node_index=1), request=a_request(vms_per_node=2))
        assert sister.vms == a_plan(job=a_job(nodes=(), node_index=1), request=a_request(vms_per_node=2)).vms
        assert {vm.tap for vm in sister.vms}.isdisjoint(vm.tap for vm in PLAN.vms)

    def test_a_table_tells_its_job(self) -> None:
        assert names.key(names.table("58-2.srv", a_site()), a_site()) == "58-2.srv"


class TestRules:
    def test_the_same_job_gives_the_same_text_that_takes_the_place_of_an_earlier_one(self) -> None:
        assert text() == text()
        assert text().startswith(
            "add table bridge vtorque-7.srv\ndelete table bridge vtorque-7.srv\ntable bridge vtorque-7.srv {\n"
        )

    def test_every_guest_goes_through_rules_of_its_own_both_ways(self) -> None:
        rules = text()
        for vm in PLAN.vms:
            assert f"{vm.tap} : goto from-{vm.tap}" in rules and f"{vm.tap} : goto to-{vm.tap}" in rules
            assert f"chain from-{vm.tap} {{\nether saddr != {vm.mac} drop\n" in rules

    def test_until_it_is_pinned_a_guest_may_be_anywhere_in_the_subnet_but_where_servers_are(self) -> None:
        rules = text()
        assert element(rules, f"address-{PLAN.vms[0].tap}") == {"10.0.0.0/24"}
        assert element(rules, "taken") == {"10.0.0.254", "192.168.1.4", "10.0.0.250", "10.0.0.253"}

    def test_an_address_that_is_known_beforehand_is_the_only_one_from_the_start(self) -> None:
        first, second = PLAN.vms
        rules = text(addresses={first.tap: "10.0.0.9"})
        assert element(rules, f"address-{first.tap}") == {"10.0.0.9"}
        assert element(rules, f"address-{second.tap}") == {"10.0.0.0/24"}

    def test_pinning_leaves_one_address_in_one_transaction(self) -> None:
        vm = PLAN.vms[0]
        assert guestnet.pinned("vtorque-7.srv", vm, "10.0.0.9") == (
            f"flush set bridge vtorque-7.srv address-{vm.tap}\n"
            f"add element bridge vtorque-7.srv address-{vm.tap} {{ 10.0.0.9 }}\n"
        )

    def test_ipv6_is_there_for_those_only_that_it_is_assigned_to(self) -> None:
        first, second = PLAN.vms
        assert "ip6" not in text()
        rules = text(addresses={first.tap: "fd00::2", second.tap: "10.0.0.9"})
        assert element(rules, f"address-{first.tap}") == set()
        assert f"ether type ip6 goto from6-{first.tap}" in rules and f"from6-{second.tap}" not in rules

    def test_in_the_bridges_own_networks_of_ipv6_addresses_follow_from_the_mac(self) -> None:
        vm = PLAN.vms[0]
        usual = IPv6Network("fd00:1::/64")
        networks = (*SURROUNDINGS.networks, usual, IPv6Network("fd00:2::/56"))
        mine = netfilter6.derived(vm.mac, usual)
        assert mine == IPv6Address("fd00:1::" + str(netfilter6.derived(vm.mac, IPv6Network("fe80::/64")))[6:])
        rules = text(around=replace(SURROUNDINGS, networks=networks))
        assert f"ip6 saddr != {{ {mine} }} drop" in rules
        taken = replace(SURROUNDINGS, networks=networks, own=(*SURROUNDINGS.own, mine))
        assert f"from6-{vm.tap}" not in text(around=taken)

    def test_a_mac_gives_the_address_of_the_standards_own_example(self) -> None:
        """RFC 2464, 4: 34-56-78-9A-BC-DE."""
        made = netfilter6.derived("34:56:78:9a:bc:de", IPv6Network("fe80::/64"))
        assert made == IPv6Address("fe80::3656:78ff:fe9a:bcde")

    def test_pinning_an_address_of_ipv6_closes_ipv4(self) -> None:
        place = f"bridge vtorque-7.srv address-{PLAN.vms[0].tap}"
        assert guestnet.pinned("vtorque-7.srv", PLAN.vms[0], "fd00::2") == f"flush set {place}\n"

    def test_a_mapped_address_that_is_a_servers_is_refused_by_name(self) -> None:
        vm = PLAN.vms[0]
        says = r"guest vn1-1 has the address 10\.0\.0\.253, which is the node's, a gateway's or a server's"
        with pytest.raises(AddressError, match=says) as caught:
            text(addresses={vm.tap: "10.0.0.253"})
        assert caught.value.hint == "see IP_TO_MAC_SCRIPT"

    @pytest.mark.parametrize(("nodes", "index", "most", "expected"), [
        (("n1",), 0, 0, 2), (("n1", "n2", "n3"), 0, 9, 6), ((), 1, 3, 6), ((), 5, 3, 12), ((), 1, 0, 512),
    ])
    def test_peers_are_the_guests_of_all_nodes_that_there_can_be(
        self, nodes: tuple[str, ...], index: int, most: int, expected: int
    ) -> None:
        job = a_job(nodes=nodes, node_index=index, most_nodes=most)
        decided = a_plan(job=job, request=a_request(vms_per_node=2))
        peers = element(text(decided), "peers")
        assert len(peers) == expected
        assert {vm.mac for vm in decided.vms} <= peers
        assert guestnames.guest_mac(a_site().mac_prefix, "7.srv", 0) in peers

    def test_a_peer_is_one_where_guests_may_be_and_nowhere_else(self) -> None:
        first, second = PLAN.vms
        both = replace(SURROUNDINGS, networks=(*SURROUNDINGS.networks, IPv6Network("fd00:1::/64")))
        for addresses in ({}, {first.tap: "10.0.0.9"}):
            rules = text(around=both, addresses=addresses)
            for end in ("daddr", "saddr"):
                assert f"ether {end} @peers ip {end} @guests ip {end} != @taken accept\n" in rules
                assert f"ether {end} @peers ip6 {end} @guests6 ip6 {end} != @taken6 accept\n" in rules
            assert (element(rules, "guests"), element(rules, "guests6")) == ({"10.0.0.0/24"}, {"fd00:1::/64"})
        # Where the site's own mapping puts them, which it does not tell of other nodes' guests.
        rules = text(addresses={first.tap: "10.9.0.1", second.tap: "10.0.0.9"})
        assert element(rules, "guests") == {"0.0.0.0/0"}

    def test_a_sisters_guests_are_peers_of_the_mother_superiors(self) -> None:
        sister = a_plan(job=a_job(nodes=(), node_index=1, most_nodes=2), request=a_request(vms_per_node=2))
        mother = a_plan(job=a_job(nodes=("n1", "n2")), request=a_request(vms_per_node=2))
        assert element(text(sister), "peers") == element(text(mother), "peers")

    def test_what_the_site_names_becomes_rules_before_any_other(self) -> None:
        rules = text(guest_net_allow="10.0.0.7:27000-27009 10.9.8.7/16", guest_net_deny="192.168.0.0/16:80")
        assert "ip daddr 10.0.0.7/32 meta l4proto { tcp, udp } th dport 27000-27009 accept\n" in rules
        assert "ip saddr 10.0.0.7/32 meta l4proto { tcp, udp } th sport 27000-27009 accept\n" in rules
        assert "ip daddr 10.9.0.0/16 accept\n" in rules
        deny = "ip daddr 192.168.0.0/16 meta l4proto { tcp, udp } th dport 80 drop\n"
        assert rules.index("10.9.0.0/16 accept") < rules.index("@services accept") < rules.index(deny)

    def test_what_the_site_names_of_ipv6_becomes_rules_for_ipv6(self) -> None:
        around = replace(SURROUNDINGS, networks=(*SURROUNDINGS.networks, IPv6Network("fd00:1::/64")))
        rules = text(around=around, guest_net_allow="[2001:db8::/32]:443 [fd00::7]", guest_net_deny="[fd00::8]:80-90")
        assert "ip6 daddr 2001:db8::/32 meta l4proto { tcp, udp } th dport 443 accept\n" in rules
        assert "ip6 saddr fd00::7/128 accept\n" in rules
        assert "ip6 daddr fd00::8/128 meta l4proto { tcp, udp } th dport 80-90 drop\n" in rules
        assert "ip daddr 2001" not in rules

    def test_names_are_asked_for_in_the_subnet_unless_the_site_says_where(self) -> None:
        assert "th dport 53" in text() and "th sport 53" in text()
        told = text(name_server="10.0.0.9")
        assert "th dport 53" not in told and "th sport 53" not in told


class TestServers:
    def test_they_are_those_of_the_configuration_each_once(self) -> None:
        site = a_site(
            vm_nfs_home="nfs1:/home", vm_nfs_ws="nfs1:/ws", vm_nfs_opt="nfs2:/opt", vm_nfs_opt_options="ro,port=20049",
            name_server="10.0.0.9 10.0.0.10", ntp_server_2="time.site.org",
        )
        assert surroundings.servers(site) == [
            ("nfs1", 2049), ("nfs2", 20049), ("10.0.0.9", 53), ("10.0.0.10", 53), ("time.site.org", 123),
        ]

    def test_an_nfs_server_may_be_at_an_address_of_ipv6(self) -> None:
        site = a_site(vm_nfs_home="[fd00::5]:/home", vm_nfs_ws="", vm_nfs_opt="", name_server="fd00::9")
        assert surroundings.servers(site) == [("fd00::5", 2049), ("fd00::9", 53)]

    def test_without_nfs_there_are_no_nfs_servers(self) -> None:
        assert surroundings.servers(a_site(share="virtiofs")) == []

    @pytest.mark.parametrize(("value", "is_good"), [
        ("10.0.0.7", True), ("10.0.0.0/8:1-65535 10.1.2.3:80", True), ("0.0.0.0/0", True),
        ("10.0.0.7:0", False), ("10.0.0.7:65536", False), ("10.0.0.0/33", False), ("10.0.0", False),
        ("nfs1", False), ("10.0.0.7; flush ruleset", False), ("10.0.0.7:80,81", False), ("fd00::/8", False),
        ("[fd00::/8]", True), ("[2001:db8::/32]:443 10.0.0.7", True), ("[::1]:80-90", True),
        ("[1:2:3:4:5:6:7:8]", True),
        ("[fd00::/129]", False), ("[1:2:3]", False), ("[1::2::3]", False), ("[:::]", False), ("[fe80::1%br0]", False),
        ("[10.0.0.1]", False), ("[1:2:3:4:5:6:7:8:9]", False), ("[fd00::]443", False), ("fd00::1:443", False),
    ])
    def test_only_networks_and_ports_can_be_named(self, value: str, is_good: bool) -> None:
        assert fits("endpoints", value) is is_good

    def test_addresses_of_ipv6_are_read_from_the_kernels_table(self, tmp_path: Path) -> None:
        table = tmp_path / "if_inet6"
        table.write_text(
            "fd000001000000000000000000000001 04 40 00 80      br0\n"
            "fe80000000000000505400fffe000001 04 40 20 80      br0\n"
            "20010db8000000000000000000000002 02 30 00 80     eth0\n"
        )
        assert surroundings.ipv6_on("br0", table=table) == (IPv6Interface("fd00:1::1/64"),)
        assert len(surroundings.ipv6_on(table=table)) == 2
        assert surroundings.ipv6_on(table=tmp_path / "absent") == ()

    def test_gateways_are_read_from_the_kernels_table(self, tmp_path: Path) -> None:
        table = tmp_path / "route"
        table.write_text(
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
            "br0 00000000 FA00000A 0003 0 0 0 00000000 0 0 0\n"
            "br0 0000000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"
        )
        assert surroundings.gateways(table) == (IPv4Address("10.0.0.250"),)
        assert surroundings.gateways(tmp_path / "absent") == ()


class Scene:
    """A node of fakes with a record of the job."""

    def __init__(self, root: Path, *, around: Any = SURROUNDINGS, fails: bool = False, **site: Any) -> None:
        self.filter = FakeFilter(fails=fails)
        self.node = a_node(
            a_site(state_dir=str(root), **site), filter=self.filter, around=around,
            addresses=lambda guests, deadline: FakeAddresses(("10.0.0.77",)),
        )
        self.record = self.node.state("7.srv")
        self.record.create()

    @classmethod
    def known(cls, root: Path, **site: Any) -> "Scene":
        """The same, where mom knows the job."""
        jobs = root / "mom_priv" / "jobs"
        jobs.mkdir(parents=True)
        (jobs / "7.srv.JB").touch()
        return cls(root, torque_home=str(root), **site)

    def table(self, key: str = "7.srv") -> str:
        return names.table(key, self.node.site)

    def fence(self) -> None:
        guestnet.fence(PLAN, node=self.node, state=self.record, deadline=soon())


class TestForce:
    def test_a_jobs_table_is_in_the_ledger_before_it_is_in_force(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, fails=True)
        with pytest.raises(CommandError):
            scene.fence()
        assert scene.record.held() == [Resource(kind=FILTER, name=scene.table())]
        scene.filter.fails = False
        scene.fence()
        assert scene.filter.loaded == {scene.table(): [text(state_dir=str(tmp_path))]}

    def test_a_site_without_a_filter_needs_none(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, fails=True, network_filter=False)
        scene.fence()
        guestnet.pin(PLAN.vms[0], "fd00::2", node=scene.node, state=scene.record, deadline=soon())
        assert scene.record.held() == []

    def test_addresses_that_the_site_maps_are_pinned_at_once_and_need_no_subnet(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, around=NOWHERE, custom_ip_mapping=True)
        scene.fence()
        ((rules,),) = scene.filter.loaded.values()
        for vm in PLAN.vms:
            assert element(rules, f"address-{vm.tap}") == {"10.0.0.77"}

    def test_a_bridge_without_an_address_is_refused(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, around=NOWHERE)
        with pytest.raises(ConfigError, match="bridge br0 has no address"):
            scene.fence()
        assert scene.record.held() == []

    def test_nothing_is_pinned_for_a_job_that_is_being_torn_down(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.fence()
        with scene.record.closing(deadline=soon()):
            pass
        with pytest.raises(GenerationClosed):
            guestnet.pin(PLAN.vms[0], "10.0.0.9", node=scene.node, state=scene.record, deadline=soon())
        assert len(scene.filter.loaded[scene.table()]) == 1

    def test_a_table_whose_job_is_torn_down_meanwhile_stays_gone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Seen(list[str]):
            def __contains__(self, table: object) -> bool:
                with scene.record.closing(deadline=soon()):
                    return False

        scene = Scene.known(tmp_path)
        scene.fence()
        scene.filter.loaded.clear()
        guestnet.mend(scene.node, seen=Seen(), thorough=False, deadline=soon())
        assert (scene.filter.loaded, caplog.text) == ({}, "")

    def test_a_sweep_removes_the_tables_of_jobs_that_nobody_knows_and_no_others(self, tmp_path: Path) -> None:
        jobs = tmp_path / "mom_priv" / "jobs"
        jobs.mkdir(parents=True)
        for known in ("7.srv", "9.srv"):
            (jobs / f"{known}.JB").touch()
        scene = Scene(tmp_path, torque_home=str(tmp_path))
        scene.fence()
        scene.filter.loaded.update({scene.table("8.srv"): [], scene.table("9.srv"): []})
        assert lifecycle.sweep(scene.node, deadline=soon()) == ["8.srv"]
        assert scene.filter.loaded.keys() == {scene.table(), scene.table("9.srv")}
        assert not scene.node.state("9.srv").exists, "its own epilogue, which may be at it, finds it by name"

    def test_a_table_that_somebody_flushed_comes_back_as_it_was(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene = Scene.known(tmp_path)
        scene.fence()
        guestnet.pin(PLAN.vms[0], "10.0.0.9", node=scene.node, state=scene.record, deadline=soon())
        before = "".join(scene.filter.loaded[scene.table()])
        scene.filter.loaded.clear()
        assert lifecycle.sweep(scene.node, deadline=soon()) == []
        assert scene.filter.loaded == {scene.table(): [before]} and "10.0.0.9" in before
        assert f"table {scene.table()} was gone, and has been loaded again" in caplog.text
        caplog.clear()
        lifecycle.sweep(scene.node, deadline=soon(), thorough=True)
        assert caplog.text == "", "what is as it should be is left alone"

    def test_a_table_that_somebody_changed_comes_back_when_it_is_looked_at_thoroughly(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene = Scene.known(tmp_path)
        scene.fence()
        scene.filter.loaded[scene.table()] = ["something else"]
        lifecycle.sweep(scene.node, deadline=soon())
        assert scene.filter.loaded[scene.table()] == ["something else"]
        lifecycle.sweep(scene.node, deadline=soon(), thorough=True)
        assert scene.filter.loaded[scene.table()] == [text(state_dir=str(tmp_path))]
        assert "was not as it was loaded, and has been loaded again" in caplog.text

    @pytest.mark.parametrize("why", ["closed", "off", "never loaded", "no text"])
    def test_no_table_comes_back_for_a_job_that_has_none_to_have(self, tmp_path: Path, why: str) -> None:
        scene = Scene.known(tmp_path, network_filter=why != "off")
        if why != "never loaded":
            scene.fence()
        scene.filter.loaded.clear()
        if why == "no text":
            (scene.record.path / "rules").unlink()
        if why == "closed":
            with scene.record.closing(deadline=soon()):
                pass
        lifecycle.sweep(scene.node, deadline=soon(), thorough=True)
        assert scene.filter.loaded == {}

    def test_one_table_that_cannot_come_back_does_not_keep_the_sweep_from_its_work(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene = Scene.known(tmp_path)
        scene.fence()
        scene.node.state("8.srv").create()
        scene.filter.loaded.clear()
        scene.filter.fails = True
        assert lifecycle.sweep(scene.node, deadline=soon()) == ["8.srv"]
        assert f"table {scene.table()} could not be looked at" in caplog.text

    def test_tables_of_another_installation_are_nobodys_here(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, torque_home=str(tmp_path))
        others = {names.table("8.srv", a_site(state_dir=place)): [""] for place in ("/run/vtorque", "/run/other")}
        scene.filter.loaded.update(others)
        assert lifecycle.sweep(scene.node, deadline=soon()) == ["7.srv"], "which no mom knows"
        assert scene.filter.loaded == others


class TestTeardown:
    def test_rules_go_last_and_for_good(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.fence()
        with scene.record.taking(Resource(kind=DOMAIN, name="7.srv_1of1"), deadline=soon()):
            pass
        there: list[list[str]] = []

        class Watching(FakeHypervisor):
            def destroy(self, name: str, *, deadline: Deadline) -> bool:
                there.append(scene.filter.tables(deadline=deadline))
                return super().destroy(name, deadline=deadline)

        teardown.release(scene.record, replace(scene.node, hypervisor=Watching()), deadline=soon())
        assert there == [[scene.table()]]
        assert scene.filter.loaded == {} and not scene.record.exists

    def test_a_guest_that_is_born_late_meets_its_rules(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.fence()
        with (
            pytest.raises(KeyboardInterrupt),
            scene.record.taking(Resource(kind=DOMAIN, name="7.srv_1of1"), deadline=soon()),
        ):
            raise KeyboardInterrupt
        there: list[list[str]] = []

        class Watching(FakeHypervisor):
            def destroy(self, name: str, *, deadline: Deadline) -> bool:
                there.append(scene.filter.tables(deadline=deadline))
                return super().destroy(name, deadline=deadline)

        teardown.release(scene.record, replace(scene.node, hypervisor=Watching()), deadline=soon())
        assert there == [[scene.table()], [scene.table()]]
        assert scene.filter.loaded == {}

    def test_a_guest_that_cannot_be_destroyed_keeps_its_rules(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.fence()
        with scene.record.taking(Resource(kind=DOMAIN, name="7.srv_1of1"), deadline=soon()):
            pass
        stubborn = FakeHypervisor(fail_at=1)
        with pytest.raises(StateError, match=r"domain 7\.srv_1of1"):
            teardown.release(scene.record, replace(scene.node, hypervisor=stubborn), deadline=soon())
        assert list(scene.filter.loaded) == [scene.table()]
        teardown.release(scene.record, replace(scene.node, hypervisor=stubborn), deadline=soon())
        assert scene.filter.loaded == {} and not scene.record.exists

    def test_a_table_that_cannot_be_removed_stays_held(self, tmp_path: Path) -> None:
        class Stubborn(FakeFilter):
            def remove(self, table: str, *, deadline: Deadline) -> None:
                raise CommandError("nft refuses: told to fail")

        scene = Scene(tmp_path)
        scene.fence()
        with pytest.raises(StateError, match=f"filter {scene.table()}: nft refuses"):
            teardown.release(scene.record, replace(scene.node, filter=Stubborn()), deadline=soon())
        assert JobState(tmp_path, "7.srv").held() == [Resource(kind=FILTER, name=scene.table())]
        assert state.jobs(tmp_path) == ["7.srv"]

    def test_a_table_without_a_ledger_is_found_by_its_name(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.filter.loaded = {scene.table("7.srv"): [], scene.table("77.srv"): []}
        teardown.release_unrecorded("7.srv", scene.node, deadline=soon())
        assert list(scene.filter.loaded) == [scene.table("77.srv")]


def test_a_subnet_of_the_bridge_is_what_its_address_says() -> None:
    assert all(isinstance(each, IPv4Network) for each in surroundings.networks_on("lo"))
    assert IPv4Network("127.0.0.0/8") in surroundings.networks_on("lo")
    assert surroundings.networks_on("no-such-bridge") == ()
    assert (topology.address_on("lo"), topology.address_on("no-such-bridge")) == ("127.0.0.1", "")
    assert IPv4Address("127.0.0.1") in surroundings.own_addresses()


@pytest.mark.parametrize(("name_server", "asks_the_node"), [("", True), ("fd00::53", False)])
def test_the_node_answers_names_over_ipv6_where_the_site_has_no_server_for_them(
    name_server: str, asks_the_node: bool
) -> None:
    rules = "".join(netfilter6.common(a_site(name_server=name_server)))
    assert ("ip6 daddr @local6 meta l4proto { tcp, udp } th dport 53 accept" in rules) is asks_the_node
