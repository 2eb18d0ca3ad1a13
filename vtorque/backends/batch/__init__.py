# SPDX-License-Identifier: Apache-2.0
"""What a batch system is to us: a dialect. No member does any I/O."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol

from vtorque.errors import Blame, CommandError, ConfigError, RequestError
from vtorque.job import Job, JobId, PelogKind, job_id

_MEMBERS = {
    "torque": "vtorque.backends.batch.torque:Torque",
    "openpbs": "vtorque.backends.batch.openpbs:OpenPbs",
    "slurm": "vtorque.backends.batch.slurm:Slurm",
    # The local engine obeys Torque's contract to the letter, so it is the same dialect.
    "local": "vtorque.backends.batch.torque:Torque",
}

NAMES = tuple(_MEMBERS)


class BatchSystem(Protocol):
    """How one batch system speaks to its hooks, and how it wants to be spoken to.

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

    def submit_options(self, request: str) -> list[str]:
        """The qsub options that carry an encoded request."""
        ...

    def script_comment(self, request: str) -> bytes:
        """What the job's script has to carry of it besides, as lines below its first."""
        ...

    def job_id_from(self, stdout: bytes) -> JobId:
        """The job id in what the submit command printed; CommandError when there is none."""
        ...

    def job_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables of the batch system that a job's script expects, from those of the job's own process."""
        ...


CORES = ("NCPUS", "OMP_NUM_THREADS")
"""Variables in which a batch system counts cores; the host's, of which a guest has fewer."""


def pbs_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the moms of both PBS set for a job themselves."""
    return {name: value for name, value in environ.items() if name.startswith("PBS_") or name == "ENVIRONMENT"}


def last_job_id(stdout: bytes) -> JobId:
    """The job id that a submit command printed last; CommandError when there is none."""
    words = stdout.decode(errors="backslashreplace").split()
    try:
        return job_id(words[-1])
    except (IndexError, RequestError):
        raise CommandError("qsub printed no job id", details=repr(stdout[:500])) from None


def by_name(name: str) -> BatchSystem:
    """The dialect called `name` in the configuration; ConfigError when there is none."""
    if name not in _MEMBERS:
        raise ConfigError(f"BATCH_SYSTEM: {name!r} is not one of {', '.join(NAMES)}")
    module, _, member = _MEMBERS[name].partition(":")
    system: BatchSystem = getattr(import_module(module), member)()
    return system
