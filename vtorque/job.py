# SPDX-License-Identifier: Apache-2.0
"""A job as it comes: what the batch system says of it, who its user is, and what he asks for.

Apart from `model`, which a submission has no need of.
"""

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from vtorque.identity import Account as Account
from vtorque.identity import Group as Group
from vtorque.identity import JobId as JobId
from vtorque.identity import job_id as job_id
from vtorque.identity import job_key as job_key

JOB_EXEC_RETRY = -3
_SIGNALLED = 256
# Mom gave up (-1, -2) or the job went over a limit (-10 to -12): the server does not start it again.
_FINAL = frozenset((-1, -2, -10, -11, -12))

class PelogKind(StrEnum):
    """The hooks of a mom, by the name of their file in mom_priv."""

    PROLOGUE = "prologue"
    PROLOGUE_PARALLEL = "prologue.parallel"
    EPILOGUE = "epilogue"
    EPILOGUE_PARALLEL = "epilogue.parallel"
    PRECANCEL = "epilogue.precancel"

    @property
    def starts(self) -> bool:
        """Whether this hook brings a job up rather than down."""
        return self in (PelogKind.PROLOGUE, PelogKind.PROLOGUE_PARALLEL)


def node_file_path(job: JobId) -> str:
    """Where the job finds its node file in the guest: the path that Torque's own has on a node."""
    return f"/var/spool/torque/aux/{job}"


def phases_name(key: str, elements: int) -> str:
    """The file in its directory where a job's phases are noted: each element of an array has one of its own."""
    return "phases" if elements == 1 else f"phases.{key}"


class Job(NamedTuple):
    """What the batch system says of a job on this node. `nodes` is empty on a sister: only the
    mother superior is told all of them. `most_nodes` is the most that there can be, 0 when nobody tells.
    `restarts` is how often it was begun before, 0 when nobody tells.

    `exit_status` is known to epilogues: the job's own, 256 plus a signal, or
    one of mom's negative codes.
    """

    id: JobId
    user: str
    node_index: int
    nodes: tuple[str, ...]
    request: str
    spool_script: Path | None = None
    exit_status: int | None = None
    most_nodes: int = 0
    restarts: int = 0

    @property
    def will_be_retried(self) -> bool:
        """Whether this epilogue ends a start that is made again: JOB_EXEC_RETRY (pbs_job.h:1274-1287)."""
        return self.exit_status == JOB_EXEC_RETRY

    @property
    def may_run_again(self) -> bool:
        """Whether the server may yet start it anew: nothing tells a `qrerun` from a `qdel`, both kill the job's shell.

        Negative are mom's own codes, of which some end a job for good.
        """
        status = self.exit_status
        return status is not None and (status >= _SIGNALLED or (status < 0 and status not in _FINAL))

    @property
    def key(self) -> str:
        """The id in the form that names files and domains."""
        return job_key(self.id)


class VmRequest(NamedTuple):
    """What a user asked for, complete: every default is filled in at submission.

    `request_id` names the job's directory below `~/.vtorque`; `public_key` is
    the OpenSSH text of the job's own ed25519 key. `pinning` is true, false,
    auto, or the host CPUs of each vCPU, guest by guest: `0,2;1,3`. A
    `disk_size_mib` of 0 is the image's own. `disk` is made with `disk_new_mib`
    when it is not there, and has to be there when that is 0. `vm_prologue` and `vm_epilogue` say
    that the job directory holds such a script. `metadata` is JSON, checked.
    `elements` counts those of a job array.
    """

    request_id: str
    image: str
    distro: str
    arch: str
    vcpus: int
    memory_mib: int
    vms_per_node: int
    public_key: str
    pinning: str = "true"
    fs_type: str = "sharedfs"
    disk: str = ""
    disk_new_mib: int = 0
    disk_size_mib: int = 0
    metadata: str = ""
    vm_prologue: bool = False
    vm_epilogue: bool = False
    vrdma: bool = False
    unclot: bool = False
    unclot_shmem_mib: int = 0
    iocm: bool = False
    iocm_min_cores: int = 0
    iocm_max_cores: int = 0
    elements: int = 1


class Image(NamedTuple):
    """A catalogue entry. With a kernel the guest is started directly, without a boot loader.

    With a `url` there is nothing at `path` until a node has fetched it for itself.
    In one that is not `trusted` a user may become root; one that is not `verified`
    was to be looked into for that, and was not, or somebody was found who can.
    """

    name: str
    distro: str
    arch: str
    path: Path
    sha256: str
    description: str = ""
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    url: str = ""
    trusted: bool = True
    verified: bool = True
