# SPDX-License-Identifier: Apache-2.0
"""What a batch system is to its users: how a job carries its request, and what its script looks for.

Root's hooks have no use for any of it. No member does any I/O.
"""

from collections.abc import Mapping
from typing import Protocol

from vtorque.backends.batch import CLASSIC_COMMENT, require_known
from vtorque.errors import CommandError, RequestError
from vtorque.job import JobId, job_id

CORES = ("NCPUS", "OMP_NUM_THREADS")
"""Variables in which a batch system counts cores; the host's, of which a guest has fewer."""

# What scripts that were written for a PBS look for, beside Slurm's own variables.
_PBS = {
    "PBS_JOBID": "SLURM_JOB_ID",
    "PBS_JOBNAME": "SLURM_JOB_NAME",
    "PBS_QUEUE": "SLURM_JOB_PARTITION",
    "PBS_ACCOUNT": "SLURM_JOB_ACCOUNT",
    "PBS_NUM_NODES": "SLURM_JOB_NUM_NODES",
    "PBS_NODENUM": "SLURM_NODEID",
    "PBS_ARRAYID": "SLURM_ARRAY_TASK_ID",
    "PBS_ARRAY_INDEX": "SLURM_ARRAY_TASK_ID",
    "PBS_ARRAY_ID": "SLURM_ARRAY_JOB_ID",
    "PBS_O_WORKDIR": "SLURM_SUBMIT_DIR",
    "PBS_O_HOST": "SLURM_SUBMIT_HOST",
    "PBS_O_QUEUE": "SLURM_JOB_PARTITION",
    "PBS_O_HOME": "HOME",
    "PBS_O_LANG": "LANG",
    "PBS_O_LOGNAME": "USER",
    "PBS_O_PATH": "PATH",
    "PBS_O_SHELL": "SHELL",
}
# An MPI that sees SLURM_JOBID starts its ranks with srun, on nodes; there is no srun in a guest.
_LAUNCHERS = {
    "OMPI_MCA_plm": "rsh",
    "OMPI_MCA_ras": "^slurm",
    "HYDRA_LAUNCHER": "ssh",
    "HYDRA_RMK": "user",
    "I_MPI_HYDRA_BOOTSTRAP": "ssh",
    "I_MPI_HYDRA_RMK": "user",
}


class Front(Protocol):
    """How one batch system wants to be spoken to by those who submit."""

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


class Torque:
    """Torque 4 to 6, and the local engine."""

    def submit_options(self, request: str) -> list[str]:
        """`other` is the free text resource that a stock server takes and hands to every hook."""
        return ["-l", f"other={request}"]

    def script_comment(self, request: str) -> bytes:
        """A request rides in the resources alone."""
        return b""

    def job_id_from(self, stdout: bytes) -> JobId:
        """The last word that qsub printed."""
        words = stdout.decode(errors="backslashreplace").split()
        try:
            return job_id(words[-1])
        except (IndexError, RequestError):
            raise CommandError("qsub printed no job id", details=repr(stdout[:500])) from None

    def job_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What the moms of both PBS set for a job themselves."""
        return {name: value for name, value in environ.items() if name.startswith("PBS_") or name == "ENVIRONMENT"}


class OpenPbs(Torque):
    """OpenPBS 20 and later."""

    def submit_options(self, request: str) -> list[str]:
        """`site` is the free text resource that a stock server takes."""
        return ["-l", f"site={request}"]

    def script_comment(self, request: str) -> bytes:
        """The second line of a job's script: where the shims of classic scripts look for the request."""
        return f"{CLASSIC_COMMENT}{request}\n".encode()

    def job_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Mom's own variables, those that say how many cores a node's part of the job has with them (start_exec.c)."""
        return super().job_environment(environ) | {name: environ[name] for name in CORES if name in environ}


class Slurm(Torque):
    """Slurm 21 and later."""

    def submit_options(self, request: str) -> list[str]:
        """The comment is a job's only free text that its Prolog is told."""
        return [f"--comment={request}"]

    def job_id_from(self, stdout: bytes) -> JobId:
        """The id that sbatch prints last, with or without --parsable and its `;cluster`."""
        return super().job_id_from(stdout.partition(b";")[0])

    def job_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Slurm's own variables, and those of a PBS that say the same."""
        own = {name: value for name, value in environ.items() if name.startswith("SLURM_")}
        same = {name: environ[source] for name, source in _PBS.items() if source in environ}
        batch = environ.get("ENVIRONMENT") == "BATCH"
        return {
            **{name: environ.get(name, value) for name, value in _LAUNCHERS.items()},
            **own, **same,
            "ENVIRONMENT": "BATCH" if batch else "INTERACTIVE",
            "PBS_ENVIRONMENT": "PBS_BATCH" if batch else "PBS_INTERACTIVE",
        }


def by_name(name: str) -> Front:
    """The batch system called `name` in the configuration; ConfigError when there is none."""
    require_known(name)
    fronts: dict[str, Front] = {"openpbs": OpenPbs(), "slurm": Slurm()}
    return fronts.get(name) or Torque()
