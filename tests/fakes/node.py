# SPDX-License-Identifier: Apache-2.0
"""A node all of whose backends are fakes."""

from pathlib import Path
from typing import Any

from tests.builders import a_shape
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.network import SURROUNDINGS
from vtorque.node import Node
from vtorque.options import SiteConfig

TEMPLATES = Path(__file__).resolve().parents[2] / "templates-vm"


def a_node(site: SiteConfig, **parts: Any) -> Node:
    """A node with this configuration; name only those of its parts that the test is about."""
    usual: dict[str, Any] = {
        "shape": a_shape(), "hypervisor": FakeHypervisor(), "addresses": lambda guests, deadline: FakeAddresses(()),
        "transport": FakeTransport({}), "filter": FakeFilter(), "surroundings": lambda deadline: SURROUNDINGS,
        "templates": TEMPLATES, "announce": "", "qemu_ids": (0, 0),
    }
    return Node(site=site, **{**usual, **parts})
