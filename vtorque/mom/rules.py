# SPDX-License-Identifier: Apache-2.0
"""Torque's rules for hooks, as data and pure functions. Each names the line that makes it."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from os import stat_result
from pathlib import Path
from string import Template

from vtorque.mom.spool import JobRecord

# What run_pelog returns besides a hook's own status (prolog.c:1317-1340).
SUCCESS, NOT_ALLOWED, TIMED_OUT = 0, -1, -4

JOB_EXEC_FAIL1, JOB_EXEC_FAIL2, JOB_EXEC_RETRY, JOB_EXEC_OVERLIMIT_WT = -1, -2, -3, -11
SIGNAL_BASE = 256

_RESOURCE_BUFFER = 2048
_KILLED_EARLIER_SECONDS = 10

# pbs_environment, as Torque installs it.
MOM_ENVIRONMENT = {"PATH": "/bin:/usr/bin", "LANG": "C"}


class Verdict(Enum):
    """What becomes of a job after its prologue."""

    RUN = "run"
    ABORT = "abort"
    REQUEUE = "requeue"


class Output(Enum):
    """Where a hook's standard output and error go (prolog.c:909-1000)."""

    JOB = "the job's spool files"
    NOWHERE = "/dev/null"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRule:
    """How mom runs one kind of hook (prolog.c:676-1025).

    `of_user` is the user's own script. A hook that runs `in_main_loop` keeps
    its host's mom from everything else.
    """

    as_user: bool = False
    of_user: bool = False
    with_users_groups: bool = False
    umask: int = 0o022
    output: Output = Output.NOWHERE
    signals_blocked: bool = False
    in_main_loop: bool = False


HOOKS = {
    # Before anything else of the job, from its own place (start_exec.c:7267).
    "presetup": HookRule(in_main_loop=True),
    "prologue": HookRule(with_users_groups=True, umask=0o077, output=Output.JOB),
    "prologue.user": HookRule(as_user=True, umask=0o077, output=Output.JOB),
    "prologue.job": HookRule(as_user=True, of_user=True, umask=0o077, output=Output.JOB),
    "prologue.parallel": HookRule(in_main_loop=True),
    "prologue.user.parallel": HookRule(as_user=True, in_main_loop=True),
    "epilogue": HookRule(with_users_groups=True, output=Output.JOB),
    "epilogue.user": HookRule(as_user=True, output=Output.JOB),
    "epilogue.job": HookRule(as_user=True, of_user=True, output=Output.JOB),
    "epilogue.parallel": HookRule(output=Output.CLOSED, signals_blocked=True, in_main_loop=True),
    "epilogue.user.parallel": HookRule(
        as_user=True, output=Output.CLOSED, signals_blocked=True, in_main_loop=True
    ),
    # PE_EPILOGUSER: as the user, although it is no .user kind (mom_main.c:3558-3566).
    "epilogue.precancel": HookRule(as_user=True, signals_blocked=True, in_main_loop=True),
}


def allowed(kind: str, about: stat_result, *, user: int, reduced: bool = False) -> bool:
    """Whether mom runs a file as this kind of hook; links are followed (prolog.c:488-539).

    `reduced` is her `$reduce_prolog_checks`; `user` is the job's, to whom his own scripts have to belong.
    """
    mode = about.st_mode
    if not stat.S_ISREG(mode):
        return False
    if reduced:
        return bool(mode & 0o111)
    rule = HOOKS[kind]
    if about.st_uid != (user if rule.of_user else 0):
        return False
    if mode & 0o500 != 0o500 or mode & 0o022:
        return False
    return rule.of_user or not rule.as_user or mode & 0o005 == 0o005


def arguments(kind: str, job: JobRecord, *, script: Path, sister: bool = False) -> list[str]:
    """argv[1] and on of a hook, empty strings for what is not set (prolog.c:580-663)."""
    resources = resource_list(job.resources)
    start = [job.id, job.owner, job.group, job.name]
    if not kind.startswith("epilogue"):
        all_hosts = [",".join(dict.fromkeys(job.hosts))] if kind == "presetup" else []
        return [*start, resources, job.queue, job.account, str(script), *all_hosts]
    session = "0" if sister else str(job.session)
    status = "0" if sister or job.exit_status is None else str(job.exit_status)
    return [*start, session, resources, "cput=00:00:00", job.queue, job.account, status, str(script)]


def resource_list(resources: Mapping[str, str]) -> str:
    """`name=value,…`; what does not fit into the buffer is dropped without a word (prolog.c:214-221)."""
    text = ""
    for name, value in resources.items():
        entry = f"{',' if text else ''}{name}={value}"
        if len(text) + len(entry) < _RESOURCE_BUFFER:
            text += entry
    return text


def environment(
    job: JobRecord, *, node_number: int, mother_superior: str, node_file: Path | None
) -> dict[str, str]:
    """A hook's whole environment: nothing of the user's, no HOME, no PBS_JOBID (prolog.c:676-866)."""
    nodes, ppn = shape(job.resources.get("nodes", "1"))
    settings = {
        **MOM_ENVIRONMENT,
        "PBS_RESOURCE_NODES": job.resources.get("nodes", "1"),
        "PBS_NUM_NODES": str(nodes),
        "PBS_NUM_PPN": str(ppn),
        "PBS_NP": str(len(job.hosts)),
        "PBS_NODENUM": str(node_number),
        "PBS_MSHOST": mother_superior,
        "PBS_O_WORKDIR": job.directory,
    }
    # Sisters have none: only the mother superior writes one (prolog.c:781-796).
    return settings | ({"PBS_NODEFILE": str(node_file)} if node_file else {})


def job_environment(job: JobRecord, *, node_file: Path, term: str = "") -> dict[str, str]:
    """The job's own environment; `term` is the type of an interactive job's terminal."""
    _, ppn = shape(job.resources.get("nodes", "1"))
    kind = {"PBS_ENVIRONMENT": "PBS_INTERACTIVE"} if job.interactive else {
        "PBS_ENVIRONMENT": "PBS_BATCH", "ENVIRONMENT": "BATCH",
    }
    # Only the job has it, no hook does (start_exec.c:264-320).
    array = {} if job.array_index is None else {"PBS_ARRAYID": str(job.array_index)}
    return {
        **environment(job, node_number=0, mother_superior=job.hosts[0], node_file=node_file),
        "HOME": job.home, "USER": job.owner, "LOGNAME": job.owner, "SHELL": job.login_shell,
        "PBS_JOBID": job.id, "PBS_JOBNAME": job.name, "PBS_QUEUE": job.queue,
        "PBS_NUM_PPN": str(ppn), "PBS_VNODENUM": "0", "PBS_TASKNUM": "1",
        "PBS_WALLTIME": str(job.walltime), "PBS_VERSION": "vtorque-local",
        **job.variables,
        **kind,
        **array,
        **({"TERM": term} if term else {}),
    }


def output_path(path: str, job: JobRecord) -> str:
    """An output's path as the job runs: qsub keeps `$PBS_JOBID` and the like literally until then."""
    known = {"PBS_JOBID": job.id, "PBS_JOBNAME": job.name, "HOME": job.home}
    array = {} if job.array_index is None else {"PBS_ARRAYID": str(job.array_index)}
    return Template(path).safe_substitute(known | array)


def shape(nodes: str) -> tuple[int, int]:
    """PBS_NUM_NODES and PBS_NUM_PPN of `-l nodes=`: strtol of its start, 0 for a name (prolog.c:707-739)."""
    head, _, rest = nodes.partition("+")[0].partition(":")
    ppn = next((part.removeprefix("ppn=") for part in rest.split(":") if part.startswith("ppn=")), "1")
    named = not head.isdecimal()
    return (0 if named else int(head), int(ppn) if ppn.isdecimal() and not named else 1)


def result(wait_status: int) -> int:
    """A hook's result from its return code: death by a signal counts as success (prolog.c:1317-1323)."""
    return wait_status if wait_status >= 0 else SUCCESS


def verdict(result: int, *, interactive: bool = False) -> Verdict:
    """0 goes on, 1 aborts the job, anything else starts it anew (start_exec.c:3340-3372).

    An interactive job is never started anew.
    """
    if result == SUCCESS:
        return Verdict.RUN
    return Verdict.ABORT if result == 1 or interactive else Verdict.REQUEUE


def hook_seconds(alarm: int) -> int:
    """How long a hook may run: 10 s less than `$prologalarm` when that is more (prolog.c:1246-1251)."""
    return alarm - _KILLED_EARLIER_SECONDS if alarm > _KILLED_EARLIER_SECONDS else alarm


def job_exit_status(return_code: int) -> int:
    """The job's exit status from its shell's: 256 plus the signal that killed the shell."""
    return return_code if return_code >= 0 else SIGNAL_BASE - return_code
