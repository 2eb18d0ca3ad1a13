# SPDX-License-Identifier: Apache-2.0
"""What the verbs work with on one node: its settings, its shape, and its five backends."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vtorque import slurmstarts
from vtorque.accounting import Journal
from vtorque.backends import batch
from vtorque.backends.address import AddressBook
from vtorque.backends.filter import Filter
from vtorque.backends.hypervisor import Hypervisor
from vtorque.backends.transport import Transport
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import InternalError
from vtorque.model import JobPlan, NodeShape
from vtorque.state import JobState

# Whoever ends a job has no use for what knows of rules and plans.
if TYPE_CHECKING:
    from vtorque.planning import Planning

_ELEMENT = re.compile(r"^([0-9]+)-([0-9]*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node, as the hooks of one job see it.

    `addresses` opens a book of its own for every caller, who says how many
    guests the job has here and how long he will ask; `rules` makes the
    filter's text for a plan's guests, by the interfaces of which some have known addresses; `announce` is the node's
    address on the guests' bridge; `qemu_ids` are the numeric user and
    group that guests run as; `journal` is where phases are noted; `planning` is there where guests are started.
    """

    site: SiteConfig
    shape: NodeShape
    hypervisor: Hypervisor
    addresses: Callable[[int, Deadline], AddressBook]
    transport: Transport
    filter: Filter
    rules: Callable[[JobPlan, Mapping[str, str], Deadline], str]
    announce: str
    qemu_ids: tuple[int, int]
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

    @property
    def jobs_directory(self) -> Path:
        """Where something changes when mom begins to know a job, or knows it no more."""
        if self.site.batch_system == "slurm":
            return slurmstarts.directory(Path(self.site.state_dir))
        return Path(self.site.torque_home) / "mom_priv" / "jobs"

    def knows(self, key: str) -> bool:
        """Whether mom still knows the job: she keeps its script and her record of it while she does."""
        if self.site.batch_system == "slurm":
            return slurmstarts.knows(Path(self.site.state_dir), key)
        jobs = self.jobs_directory
        # OpenPBS leaves the brackets of an array's element in its files' names (start_exec.c).
        names = (key, _ELEMENT.sub(r"\1[\2]", key))
        return any((jobs / f"{name}.{ending}").exists() for name in names for ending in ("SC", "JB"))

    def state(self, key: str) -> JobState:
        """The node's record of a job, which need not exist."""
        return JobState(Path(self.site.state_dir), key)
