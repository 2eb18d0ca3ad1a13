# SPDX-License-Identifier: Apache-2.0
"""What a batch system is to root's hooks: a dialect. No member does any I/O. What it is to users: see `front`."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol

from vtorque.errors import Blame, ConfigError
from vtorque.job import Job, PelogKind

_MEMBERS = {
    "torque": "vtorque.backends.batch.torque:Torque",
    "openpbs": "vtorque.backends.batch.openpbs:OpenPbs",
    "slurm": "vtorque.backends.batch.slurm:Slurm",
    # The local engine obeys Torque's contract to the letter, so it is the same dialect.
    "local": "vtorque.backends.batch.torque:Torque",
}

NAMES = tuple(_MEMBERS)

CLASSIC_COMMENT = "#VTORQUE "
"""What the line of a job's script begins with in which OpenPBS's classic scripts find the request."""


class BatchSystem(Protocol):
    """How one batch system speaks to its hooks, and what it makes of how they end.

    Where `failure_drains`, a hook that fails takes its node out of the cluster.
    """

    failure_drains: bool

    def parse_job(
        self, kind: PelogKind, arguments: Sequence[str], environ: Mapping[str, str], node_file: str
    ) -> Job:
        """The job from a hook's arguments (without argv[0]), environment and node file text."""
        ...

    def exit_status(self, kind: PelogKind, blame: Blame | None) -> int:
        """What a hook must exit with after success (None) or a failure of that blame."""
        ...

    def hook_seconds(self, mom_config: str) -> float:
        """Seconds after which mom kills a hook, from the text of mom's own config file."""
        ...


def require_known(name: str) -> None:
    """ConfigError unless there is a batch system of this name."""
    if name not in _MEMBERS:
        raise ConfigError(f"BATCH_SYSTEM: {name!r} is not one of {', '.join(NAMES)}")


def by_name(name: str) -> BatchSystem:
    """The dialect called `name` in the configuration; ConfigError when there is none."""
    require_known(name)
    module, _, member = _MEMBERS[name].partition(":")
    system: BatchSystem = getattr(import_module(module), member)()
    return system
