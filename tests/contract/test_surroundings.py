# SPDX-License-Identifier: Apache-2.0
"""What a node finds of its own network: the addresses that guests' rules are made of."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from tests.builders import a_site
from vtorque import surroundings
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline

pytestmark = pytest.mark.runs

SITE = a_site(bridge="lo", vm_nfs_home="localhost:/home", vm_nfs_ws="10.9.8.7:/ws", vm_nfs_opt="nobody.invalid:/opt")


def look(site: SiteConfig, seconds: float) -> tuple[set[IPv4Address], list[str]]:
    found, troubles = surroundings.look(site, Deadline(seconds))
    assert IPv4Network("127.0.0.0/8") in found.networks
    assert IPv4Address("127.0.0.1") in found.own
    services = {address for address, port in found.services if port == 2049 and isinstance(address, IPv4Address)}
    return services, troubles


def test_servers_are_found_by_name_and_by_number_and_who_is_not_there_is_told() -> None:
    services, troubles = look(SITE, 60)
    assert services == {IPv4Address("127.0.0.1"), IPv4Address("10.9.8.7")}
    assert troubles == ["cannot resolve nobody.invalid for the network filter: there is no such host"]


def test_a_name_service_that_does_not_answer_in_time_leaves_the_numbers() -> None:
    services, troubles = look(SITE, 0)
    assert services == {IPv4Address("10.9.8.7")}
    assert ["for the network filter: out of time" in each for each in troubles] == [True, True]
