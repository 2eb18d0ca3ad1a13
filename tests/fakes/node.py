# SPDX-License-Identifier: Apache-2.0
"""A node all of whose backends are fakes."""

import json
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.builders import a_job, a_shape, an_account
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.network import SURROUNDINGS
from vtorque.backends.filter.apart import FilterApart
from vtorque.backends.hypervisor import Domains
from vtorque.cli import rooted
from vtorque.deadline import Deadline
from vtorque.model import Account, Job
from vtorque.monitor import Bound, Monitor
from vtorque.netkeeper import NetKeeper
from vtorque.node import Node
from vtorque.options import SiteConfig
from vtorque.planner import Planner
from vtorque.planning import Planning
from vtorque.proc import Identity
from vtorque.rootside import RootSide
from vtorque.surroundings import Surroundings
from vtorque.userclerk import Clerk

TEMPLATES = Path(__file__).resolve().parents[2] / "templates-vm"
TEXTS = rooted.read_templates(TEMPLATES)

OURSELVES = Identity(uid=os.geteuid(), gid=os.getegid(), groups=())
"""The program, who is root where tests are."""


def a_clerk(account: Account) -> socket.socket:
    """Who works in the user's home, in a thread of ours."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            Clerk(account.home).serve(theirs)

    threading.Thread(target=serve, daemon=True).start()
    return ours


class Keeper(NetKeeper):
    """Who keeps a network that is told him."""

    def __init__(self, site: SiteConfig, around: Surroundings) -> None:
        super().__init__(lambda: site)
        self._around = around

    def _look(self, deadline: Deadline) -> tuple[Surroundings, list[str]]:
        return self._around, []


class Here:
    """A servant's object without the child, which is told and answers the same."""

    def __init__(self, served: object) -> None:
        self._served = served

    def ask(
        self, verb: str, *words: object, deadline: Deadline, handle: int | Sequence[int] | None = None
    ) -> Any:
        named: dict[str, Any] = {} if handle is None else {"handle": handle}
        said = getattr(self._served, verb)(*json.loads(json.dumps(words)), deadline=deadline, **named)
        return json.loads(json.dumps(said))

    def dismiss(self) -> None:
        """There is nobody to go."""


def bound_to(job: Job, account: Account | None = None) -> Bound:
    """What root goes by while it acts for the job; of an account as `an_account` unless it is told of one."""
    whose = account or an_account()
    return Bound(id=job.id, key=job.key, user=job.user, account=whose, group=whose.group.gid)


def a_monitor(
    site: SiteConfig, *, hypervisor: Domains | None = None, bound: Bound | None = None, **parts: Any
) -> Monitor:
    """Root on a node with this configuration, acting for the job that it is `bound` to, if for any."""
    usual: dict[str, Any] = {
        "templates": TEXTS, "qemu": (OURSELVES.uid, OURSELVES.gid), "node": "n1", "downloads": rooted._downloads,
    }
    return Monitor(site, OURSELVES, load=lambda: hypervisor or FakeHypervisor(), bound=bound, **{**usual, **parts})


def a_node(
    site: SiteConfig, *, around: Surroundings = SURROUNDINGS, bound: Bound | None = None, **parts: Any
) -> Node:
    """A node with this configuration and network; name only those of its parts that the test is about.

    Root acts for the job of the builders where it is not `bound` to another, and has the same hypervisor.
    """
    hypervisor = parts.get("hypervisor", FakeHypervisor())
    root = a_monitor(site, hypervisor=hypervisor, bound=bound or bound_to(a_job()))
    usual: dict[str, Any] = {
        "shape": a_shape(), "hypervisor": hypervisor, "root": RootSide(Here(root)), "clerk": a_clerk,
        "addresses": lambda guests, deadline: FakeAddresses(()), "transport": FakeTransport({}),
        "filter": FakeFilter(), "rules": FilterApart(Here(Keeper(site, around))).rules,
        "planning": Planning(site, Here(Planner(site, TEXTS)), templates=TEXTS), "announce": "",
    }
    return Node(site=site, **{**usual, **parts})
