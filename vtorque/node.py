# SPDX-License-Identifier: Apache-2.0
"""What the verbs work with on one node: its settings, its shape, and its five backends."""

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vtorque import slurmstarts, wakeups
from vtorque.accounting import Journal
from vtorque.backends import batch
from vtorque.backends.address import AddressBook
from vtorque.backends.filter import Filter
from vtorque.backends.hypervisor import Hypervisor
from vtorque.backends.transport import Transport
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import InternalError, VtorqueError
from vtorque.model import Account, JobPlan, NodeShape
from vtorque.rootside import RootSide
from vtorque.state import JobState

# Whoever ends a job has no use for what knows of rules and plans.
if TYPE_CHECKING:
    from vtorque.planning import Planning


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node, as the hooks of one job see it.

    `addresses` opens a book of its own for every caller, who says how many
    guests the job has here and how long he will ask; `rules` makes the
    filter's text for a plan's guests, by the interfaces of which some have known addresses; `announce` is the node's
    address on the guests' bridge; `root` does what only root can; `clerk` is who works in the home of the job's
    user, at the other end of a socket; `journal` is where phases are noted; `planning` is there where guests are
    started.
    """

    site: SiteConfig
    shape: NodeShape
    hypervisor: Hypervisor
    addresses: Callable[[int, Deadline], AddressBook]
    transport: Transport
    filter: Filter
    rules: Callable[[JobPlan, Mapping[str, str], Deadline], str]
    announce: str
    root: RootSide
    clerk: Callable[[Account], socket.socket]
    journal: Journal = field(default_factory=Journal)
    planning: "Planning | None" = None

    @property
    def plans(self) -> "Planning":
        """Who plans guests; InternalError where none are started."""
        if self.planning is None:
            raise InternalError("nobody plans here")
        return self.planning

    @property
    def failing_drains(self) -> bool:
        """Whether a hook that fails takes this node out of the cluster."""
        return batch.by_name(self.site.batch_system).failure_drains

    def watch(self) -> int | None:
        """What tells when mom begins to know a job, or knows it no more: a descriptor of inotify's, to be closed."""
        if self.site.batch_system == "slurm":
            return wakeups.Changes(slurmstarts.directory(Path(self.site.state_dir))).fileno()
        with contextlib.suppress(VtorqueError):
            return self.root.watch()
        return None

    def knows(self, key: str) -> bool:
        """Whether mom still knows the job."""
        if self.site.batch_system == "slurm":
            return slurmstarts.knows(Path(self.site.state_dir), key)
        return self.root.knows(key)

    def state(self, key: str) -> JobState:
        """The node's record of a job, which need not exist."""
        return JobState(Path(self.site.state_dir), key)
