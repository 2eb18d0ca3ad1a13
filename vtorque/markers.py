# SPDX-License-Identifier: Apache-2.0
"""What root leaves for a job's wrapper: the ready marker, or why there is none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vtorque import published
from vtorque.errors import VtorqueError
from vtorque.job import node_file_path
from vtorque.model import Job, Peer, VmRequest

SCHEMA = 1
"""Of both."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Asked(Protocol):
    """A job and what it asks for: a plan, or the demand that plans are made of."""

    @property
    def job(self) -> Job: ...

    @property
    def request(self) -> VmRequest: ...


def ready_marker(asked: Asked, peers: Sequence[Peer]) -> dict[str, object]:
    """What root leaves when all guests are proven: without it the wrapper runs nothing.

    A hook that was killed by a signal counts as a success in Torque
    (prolog.c:1317-1323), so this file is the only evidence there is.
    """
    request = asked.request
    node_file = node_file_path(asked.job.id)
    return {
        "schema": SCHEMA,
        "job": asked.job.id,
        "boot_id": boot_id(),
        "vcpus": request.vcpus,
        "guests": [published.as_json(peer) for peer in peers],
        "environment": {
            "PBS_NODEFILE": node_file,
            "PBS_VM_NODEFILE": node_file,
            "PBS_NP": str(request.vcpus * len(peers)),
            "PBS_NUM_PPN": str(request.vcpus * request.vms_per_node),
            "PBS_VMS_PN": str(request.vms_per_node),
            "DISTRO": "SLG",
        },
    }


def failure_marker(error: VtorqueError) -> dict[str, object]:
    """What root leaves in place of the ready marker: the reason, and whose fault it is."""
    return {"schema": SCHEMA, "reason": error.one_line(), "blame": error.blame.value}


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()
