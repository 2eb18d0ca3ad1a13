# SPDX-License-Identifier: Apache-2.0
"""A node all of whose backends are fakes."""

import json
from pathlib import Path
from typing import Any

from tests.builders import a_shape
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.network import SURROUNDINGS
from vtorque.backends.filter.apart import FilterApart
from vtorque.deadline import Deadline
from vtorque.netkeeper import NetKeeper
from vtorque.node import Node
from vtorque.options import SiteConfig
from vtorque.planner import Planner
from vtorque.planning import Planning, read_templates
from vtorque.surroundings import Surroundings

TEMPLATES = Path(__file__).resolve().parents[2] / "templates-vm"
TEXTS = read_templates(TEMPLATES)


class Keeper(NetKeeper):
    """Who keeps a network that is told him."""

    def __init__(self, site: SiteConfig, around: Surroundings) -> None:
        super().__init__(site)
        self._around = around

    def _look(self, deadline: Deadline) -> tuple[Surroundings, list[str]]:
        return self._around, []


class Here:
    """A servant's object without the child, which is told and answers the same."""

    def __init__(self, served: object) -> None:
        self._served = served

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any:
        named: dict[str, Any] = {} if handle is None else {"handle": handle}
        said = getattr(self._served, verb)(*json.loads(json.dumps(words)), deadline=deadline, **named)
        return json.loads(json.dumps(said))

    def dismiss(self) -> None:
        """There is nobody to go."""


def a_node(site: SiteConfig, *, around: Surroundings = SURROUNDINGS, **parts: Any) -> Node:
    """A node with this configuration and network; name only those of its parts that the test is about."""
    usual: dict[str, Any] = {
        "shape": a_shape(), "hypervisor": FakeHypervisor(), "addresses": lambda guests, deadline: FakeAddresses(()),
        "transport": FakeTransport({}), "filter": FakeFilter(), "rules": FilterApart(Here(Keeper(site, around))).rules,
        "planning": Planning(site, Here(Planner(site, TEXTS)), templates=TEXTS), "announce": "", "qemu_ids": (0, 0),
    }
    return Node(site=site, **{**usual, **parts})
