# SPDX-License-Identifier: Apache-2.0
"""What the program talks about: frozen values, each later stage a later type."""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from vtorque.job import JOB_EXEC_RETRY as JOB_EXEC_RETRY
from vtorque.job import Account as Account
from vtorque.job import Group as Group
from vtorque.job import Image as Image
from vtorque.job import Job as Job
from vtorque.job import JobId as JobId
from vtorque.job import PelogKind as PelogKind
from vtorque.job import VmRequest as VmRequest
from vtorque.job import job_id as job_id
from vtorque.job import job_key as job_key
from vtorque.kinds import Resource as Resource
from vtorque.kinds import Templates as Templates
from vtorque.shape import NodeShape as NodeShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A share as the guest mounts it.

    `source` is an export, or the tag under which the host serves `directory`.
    """

    source: str
    target: Path
    fstype: str
    options: str
    directory: Path | None = None
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestCell:
    """A NUMA node as a guest that spans several sees it, and the host's node that backs it."""

    vcpus: tuple[int, ...]
    memory_mib: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPlan:
    """One guest, decided.

    `tap` is the node's own end of its network. `cpus` holds the host CPU of each vCPU when each has one of its own, and
    `floating` those between which each may float; both are empty when
    nothing is pinned. `numa_nodes` is where its memory comes from, empty for
    anywhere. `page_kib` is the size of its huge pages, 0 for none. `threads` are
    those of a core that the guest sees. `share_sockets` are where the host's
    servers of its shares listen, if they are processes of their own, and
    `disk_socket` that of the user's own disk, if the guest has it. At `channel`
    QEMU passes on what the guest says of itself.
    """

    rank: int
    slot: int
    node_index: int
    node: str
    name: str
    uuid: UUID
    mac: str
    tap: str
    hostname: str
    vcpus: int
    memory_mib: int
    cpus: tuple[int, ...]
    overlay: Path
    seed: Path
    console: Path
    floating: tuple[tuple[int, ...], ...] = ()
    numa_nodes: tuple[int, ...] = ()
    cells: tuple[GuestCell, ...] = ()
    emulator_cpus: tuple[int, ...] = ()
    iothread: bool = False
    page_kib: int = 0
    sockets: int = 1
    threads: int = 1
    share_sockets: tuple[Path, ...] = ()
    disk_socket: Path | None = None
    channel: Path | None = None

    @property
    def pins(self) -> tuple[tuple[int, ...], ...]:
        """The host CPUs that each vCPU may run on; nothing when it is not pinned."""
        return self.floating or tuple((cpu,) for cpu in self.cpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """Everything decided about a job's guests on this node, before anything is done.

    `iocm_cpus` are host CPUs that are left to IOcm.
    """

    job: Job
    account: Account
    request: VmRequest
    image: Image
    mounts: tuple[Mount, ...]
    vms: tuple[VmPlan, ...]
    iocm_cpus: tuple[int, ...] = ()

    @property
    def runs_as(self) -> tuple[int, int] | None:
        """User and group that QEMU has to be, when it serves the shares itself; nothing for the site's own."""
        if any(mount.fstype == "9p" for mount in self.mounts):
            return self.account.uid, self.account.group.gid
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A running guest whose address has been proven by its SSH host key."""

    vm: VmPlan
    address: str
    host_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What the other guests of a job, its wrapper and its user have to know of a guest.

    `cpus` are the host CPUs of its vCPUs, `4,6`, empty when it is not pinned.
    """

    rank: int
    node: str
    hostname: str
    uuid: str
    address: str
    host_key: str
    cpus: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that a plan is made of, beside the site's configuration."""

    job: Job
    account: Account
    request: VmRequest
    image: Image
    shape: NodeShape


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestKeys:
    """A guest's own SSH host key, and root's key that may only ask whether it is ready."""

    host_private: str
    host_public: str
    probe_public: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The texts of one guest are wanted: the slot of the plan's, its keys, and the site's own scripts, name by name.

    `announce` is the node's address on the guests' bridge, or empty.
    """

    slot: int
    keys: GuestKeys
    announce: str
    scripts: tuple[tuple[str, str], ...]
