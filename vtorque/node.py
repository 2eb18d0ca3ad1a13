# SPDX-License-Identifier: Apache-2.0
"""What the verbs work with on one node: its settings, its shape, and its four backends."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vtorque.backends.address import AddressBook
from vtorque.backends.hypervisor import Hypervisor
from vtorque.backends.transport import Transport
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.model import NodeShape
from vtorque.state import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node, as the hooks of one job see it.

    `addresses` opens a book of its own for every caller, who says how many
    guests the job has here and how long he will ask; `announce` is the node's
    address on the guests' bridge; `qemu_ids` are the numeric user and
    group that guests run as.
    """

    site: SiteConfig
    shape: NodeShape
    hypervisor: Hypervisor
    addresses: Callable[[int, Deadline], AddressBook]
    transport: Transport
    templates: Path
    announce: str
    qemu_ids: tuple[int, int]

    def knows(self, key: str) -> bool:
        """Whether mom still knows the job: she keeps its script and her record of it while she does."""
        jobs = Path(self.site.torque_home) / "mom_priv" / "jobs"
        return any((jobs / f"{key}.{ending}").exists() for ending in ("SC", "JB"))

    def state(self, key: str) -> JobState:
        """The node's record of a job, which need not exist."""
        return JobState(Path(self.site.state_dir), key)
