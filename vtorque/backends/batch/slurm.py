# SPDX-License-Identifier: Apache-2.0
"""Slurm's dialect: what Prolog and Epilog are told, and its verdicts.

Nothing here comes as an argument: slurmd tells its scripts everything by
environment variables (prolog_epilog(1): "Prolog and Epilog Guide").
"""

import re
from collections.abc import Mapping, Sequence

from vtorque import hostlist, slurmconf
from vtorque.errors import Blame, StateError
from vtorque.job import Job, PelogKind, job_id

DRAIN = 1
"""Whatever is not 0: slurmd drains the node, and the job is requeued and held (slurm.conf(5): Prolog)."""

# Without PrologEpilogTimeout slurmd waits for ever; somebody would have to look at it then.
_UNLIMITED_SECONDS = 600

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?", re.ASCII)
_REQUEST = re.compile(r"vt1\.[A-Za-z0-9_-]{1,4096}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


class Slurm:
    """Slurm 21 and later, with `PrologFlags=Alloc,DeferBatch`."""

    failure_drains = True

    def parse_job(
        self, kind: PelogKind, arguments: Sequence[str], environ: Mapping[str, str], node_file: str
    ) -> Job:
        """The job from slurmd's environment; StateError when that is not a Prolog's or an Epilog's.

        Of an array each element has an id of its own, and no script is told
        which element it is. An Epilog's exit code is left alone: 0 after scancel
        and before a requeue.
        """
        user = environ.get("SLURM_JOB_USER", "")
        if _USER.fullmatch(user) is None:
            raise StateError(f"SLURM_JOB_USER: {user[:80]!r} is not a user name")
        request = environ.get("SLURM_JOB_COMMENT", "")
        nodes: tuple[str, ...] = ()
        index = 0
        try:
            nodes, index = _place(environ)
        except StateError:
            # What a node has of a job is given back whoever else had a part in it.
            if kind.starts:
                raise
        return Job(
            id=job_id(environ.get("SLURM_JOB_ID", "")),
            user=user,
            node_index=index,
            nodes=() if index else nodes,
            most_nodes=max(len(nodes), 1),
            request=request if _REQUEST.fullmatch(request) else "",
            restarts=restarts(environ),
        )

    def exit_status(self, kind: PelogKind, blame: Blame | None) -> int:
        """0, or non-zero for a node's fault and a bug: slurmd drains the node then.

        After a Prolog the job is requeued and held; after an Epilog something
        is left on the node that other jobs should not meet.
        """
        return DRAIN if blame in (Blame.NODE, Blame.BUG) else 0

    def hook_seconds(self, mom_config: str) -> float:
        """PrologEpilogTimeout in seconds, from the text of slurm.conf; 600 where slurmd would wait for ever."""
        found = slurmconf.seconds(slurmconf.parse(mom_config), "PrologEpilogTimeout")
        return float(found or _UNLIMITED_SECONDS)


def kind_of(context: str, environ: Mapping[str, str]) -> PelogKind:
    """Whose part a Prolog or an Epilog plays here: the first node runs the batch script, as a mother superior does."""
    starts = context == "slurm-prolog"
    try:
        first = _nodes(environ)[0] == environ.get("SLURMD_NODENAME")
    except StateError:
        # It is reported when the job itself is asked for.
        first = True
    if first:
        return PelogKind.PROLOGUE if starts else PelogKind.EPILOGUE
    return PelogKind.PROLOGUE_PARALLEL if starts else PelogKind.EPILOGUE_PARALLEL


def restarts(environ: Mapping[str, str]) -> int:
    """How often the job was requeued before this start, as a Prolog is told; an Epilog is told of the next start."""
    text = environ.get("SLURM_JOB_RESTART_COUNT", "")
    return int(text) if _NUMBER.fullmatch(text) else 0


def _place(environ: Mapping[str, str]) -> tuple[tuple[str, ...], int]:
    """The job's nodes, and which of them this is."""
    nodes, here = _nodes(environ), environ.get("SLURMD_NODENAME", "")
    if here not in nodes:
        raise StateError(f"SLURMD_NODENAME: {here[:80]!r} is not one of the job's {len(nodes)} nodes")
    return nodes, nodes.index(here)


def _nodes(environ: Mapping[str, str]) -> tuple[str, ...]:
    text = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST", "")
    try:
        return hostlist.expand(text)
    except ValueError as error:
        raise StateError(f"SLURM_NODELIST: {error}") from None
