# SPDX-License-Identifier: Apache-2.0
"""What counts as an address of a guest, what the arp command prints, and options that need each other."""

import contextlib
import random
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_plan, a_request, a_site
from tests.fakes.node import Here, a_monitor
from vtorque import config, surroundings, topology
from vtorque.backends.address import tables, usable
from vtorque.backends.address.arp import ArpTable, entries
from vtorque.backends.address.derived import Derived
from vtorque.backends.address.mapping import MappingScript
from vtorque.cli import assembly
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError
from vtorque.rootside import RootSide

MAC = "52:54:00:12:34:56"
OTHER = "52:54:00:00:00:01"
# As net-tools 2.10 prints it.
TABLE = f"""\
? (10.99.0.16) at {MAC} [ether] on br0
? (10.99.0.17) at <incomplete> on br0
? (10.99.0.18) at {OTHER.upper()} [ether] PERM on br0
? (10.99.0.19) at {MAC} [ether] on br01
? (10.99.0.20) at * PERM PUB on br0
gateway (10.99.0.21) at {MAC.upper()} [ether] on br0
"""


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.0.0.5", "10.0.0.5"), ("fd00::5", "fd00::5"), ("FD00:0:0:0::5", "fd00::5"), ("2001:db8::a", "2001:db8::a")],
)
def test_an_address_of_either_kind_is_written_in_one_way(text: str, address: str) -> None:
    assert usable(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "host", "10.0.0", "10.0.0.256", "010.0.0.5", "10.0.0.5/24", "10.0.0.5 ", "٣.0.0.1", "fe80::1", "fd00::1%br0",
     "169.254.1.1", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::", MAC, "5"],
)
def test_what_no_guest_can_be_reached_at_is_none(text: str) -> None:
    assert usable(text) == ""


class TestArp:
    def test_complete_lines_about_the_bridge_are_taken(self) -> None:
        assert entries(TABLE, "br0") == (("10.99.0.16", MAC), ("10.99.0.18", OTHER), ("10.99.0.21", MAC))

    def test_a_line_that_comes_twice_counts_once(self) -> None:
        assert entries(TABLE + TABLE, "br01") == (("10.99.0.19", MAC),)

    @pytest.mark.parametrize(
        "text",
        ["", "\n\n", "arp: in 4 entries no match found.", f"? (10.99.0.16) at {MAC} [ether] on br0 tail",
         f"? (10.99.0.999) at {MAC} [ether] on br0", f"? (127.0.0.1) at {MAC} [ether] on br0",
         f"? (10.99.0.16) at {MAC}:00 [ether] on br0", f"? (10.99.0.16) at {MAC[:-3]} [ether] on br0", "\0" * 100],
    )
    def test_what_is_no_entry_is_passed_over(self, text: str) -> None:
        assert entries(text, "br0") == ()

    def test_damaged_output_never_gives_anything_but_addresses(self) -> None:
        source = random.Random(3)
        for _ in range(3000):
            changed = list(TABLE)
            changed[source.randrange(len(changed))] = chr(source.randrange(1, 0x250))
            assert all(usable(address) == address for address, _ in entries("".join(changed), "br0"))


class TestOptions:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "vtorque.yaml"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("CUSTOM_IP_MAPPING: true", "1: CUSTOM_IP_MAPPING: needs IP_TO_MAC_SCRIPT"),
            ('\nCUSTOM_IP_MAPPING: true\nIP_TO_MAC_SCRIPT: ""', "2: CUSTOM_IP_MAPPING: needs IP_TO_MAC_SCRIPT"),
            ("IP_TO_MAC_SCRIPT: /s", "1: IP_TO_MAC_SCRIPT: needs CUSTOM_IP_MAPPING: true"),
            ("IP_TO_MAC_SCRIPT: /s\nCUSTOM_IP_MAPPING: false",
             "1: IP_TO_MAC_SCRIPT: needs CUSTOM_IP_MAPPING: true"),
            ("CUSTOM_IP_MAPPING: true\nIP_TO_MAC_SCRIPT: s",
             "2: IP_TO_MAC_SCRIPT: must be an absolute path without .., not 's'"),
            ("CUSTOM_IP_MAPPING: maybe\nIP_TO_MAC_SCRIPT: /s",
             "1: CUSTOM_IP_MAPPING: must be true or false, not 'maybe'"),
            ("ADDRESS_SOURCE: ndp", "1: ADDRESS_SOURCE: must be neighbour or arp, not 'ndp'"),
        ],
    )
    def test_half_of_a_mapping_is_refused_once_and_with_its_line(self, file: Path, text: str, says: str) -> None:
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            config.load(file, trusted_owner=None)
        assert caught.value.brief == f"{file}:{says}"

    def test_a_whole_one_is_taken(self, file: Path) -> None:
        file.write_text("CUSTOM_IP_MAPPING: true\nIP_TO_MAC_SCRIPT: /etc/vtorque/ip-mapping.sh\nARP_BIN: /x/arp\n")
        site, notes, _ = config.load_whole(file, trusted_owner=None)
        assert (site.custom_ip_mapping, site.ip_to_mac_script) == (True, "/etc/vtorque/ip-mapping.sh")
        assert notes == ()


class TestDerived:
    def test_each_network_of_64_bits_gives_a_guest_one_address(self) -> None:
        book = Derived((IPv6Network("fd00:1::/64"), IPv6Network("fd00:2::/56")))
        first, second = (book.candidates(vm.mac) for vm in a_plan(request=a_request(vms_per_node=2)).vms)
        assert len(first) == len(second) == 1 and first != second
        assert IPv6Address(first[0]) in IPv6Network("fd00:1::/64") and usable(first[0]) == first[0]

    @pytest.mark.parametrize(("site", "kind"), [
        ({"custom_ip_mapping": True, "address_source": "arp"}, MappingScript), ({"address_source": "arp"}, ArpTable),
    ])
    def test_a_sites_own_script_goes_before_any_table(self, site: dict[str, Any], kind: type[Any]) -> None:
        ours = a_site(bridge="lo", **site)
        root = RootSide(Here(a_monitor(ours)))
        with contextlib.closing(assembly._addresses(ours, Here(None), root, 1, Deadline(1))) as book:
            assert isinstance(book, kind)

    @pytest.mark.parametrize(("ipv4", "is_derived"), [("", True), ("10.0.0.1", False)])
    def test_they_are_looked_for_there_where_the_bridge_has_ipv6_only(
        self, monkeypatch: pytest.MonkeyPatch, ipv4: str, is_derived: bool
    ) -> None:
        monkeypatch.setattr(surroundings, "ipv6_on", lambda interface: (IPv6Interface("fd00:1::1/64"),))
        monkeypatch.setattr(topology, "address_on", lambda interface: ipv4)
        with contextlib.closing(tables.of("lo")) as book:
            assert isinstance(book, Derived) is is_derived
