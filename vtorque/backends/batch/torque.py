# SPDX-License-Identifier: Apache-2.0
"""Torque's dialect: its hooks' arguments, and its verdicts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtorque.errors import Blame, StateError
from vtorque.job import Job, PelogKind, job_id

REQUEUE = 3

_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?"
_NODE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"
_REQUEST = r"other=(vt1\.[A-Za-z0-9_-]{1,4096})"
_ALARM = r"^[ \t]*\$prologalarm[ \t]+([0-9]{1,6})[ \t]*$"
_DEFAULT_ALARM_SECONDS = 300
_KILLED_EARLIER_SECONDS = 10

# Places in argv after argv[0] (prolog.c:605-662).
_ID, _OWNER = 0, 1
_PROLOGUE_RESOURCES, _PROLOGUE_SCRIPT = 4, 7
_EPILOGUE_RESOURCES, _EPILOGUE_STATUS = 5, 9


class Torque:
    """Torque 4 to 6, and the local engine, which obeys the same contract."""

    failure_drains = False

    def parse_job(
        self, kind: PelogKind, arguments: Sequence[str], environ: Mapping[str, str], node_file: str
    ) -> Job:
        """The job from a hook's arguments; StateError when they are not a hook's.

        Only the first two are indispensable: an epilogue has to work with
        whatever a server sends.
        """
        if len(arguments) < _OWNER + 1:
            raise StateError(f"{kind} was called with {len(arguments)} arguments")
        owner = arguments[_OWNER]
        if re.fullmatch(_USER, owner, re.ASCII) is None:
            raise StateError(f"{kind}: {owner[:80]!r} is not a user name")
        nodes = _nodes(node_file)
        if kind is PelogKind.PROLOGUE and not nodes:
            raise StateError("the node file names no node")
        resources = _at(arguments, _PROLOGUE_RESOURCES if kind.starts else _EPILOGUE_RESOURCES)
        script = _at(arguments, _PROLOGUE_SCRIPT) if kind.starts else ""
        status = "" if kind.starts else _at(arguments, _EPILOGUE_STATUS)
        return Job(
            id=job_id(arguments[_ID]),
            user=owner,
            node_index=int(environ.get("PBS_NODENUM") or 0),
            nodes=nodes,
            request=_request(resources),
            spool_script=Path(script) if script.startswith("/") else None,
            exit_status=int(status) if re.fullmatch(r"-?[0-9]{1,4}", status) else None,
            # All that a sister learns of it is the number of the job's slots.
            most_nodes=int(environ.get("PBS_NP") or 0),
        )

    def exit_status(self, kind: PelogKind, blame: Blame | None) -> int:
        """0, or 3 for a node's fault and a bug: never 1, which aborts a job without any output.

        A user's fault succeeds: the ready marker is missing then, and the job's
        wrapper says why where the user looks (start_exec.c:3340-3372). An
        epilogue's status is only logged (catch_child.c:1104-1109).
        """
        return REQUEUE if blame in (Blame.NODE, Blame.BUG) else 0

    def hook_seconds(self, mom_config: str) -> float:
        """`$prologalarm` in seconds, less 10 when it is above 10 (prolog.c:1246-1251)."""
        found = re.findall(_ALARM, mom_config, re.MULTILINE | re.ASCII)
        alarm = int(found[-1]) if found else _DEFAULT_ALARM_SECONDS
        return alarm - _KILLED_EARLIER_SECONDS if alarm > _KILLED_EARLIER_SECONDS else alarm


def _at(arguments: Sequence[str], place: int) -> str:
    return arguments[place] if place < len(arguments) else ""


def _request(resources: str) -> str:
    """The request among `nodes=1:ppn=2,other=vt1.…,walltime=…`, or nothing; two are no request at all."""
    found = [match[1] for entry in resources.split(",") if (match := re.fullmatch(_REQUEST, entry, re.ASCII))]
    return found[0] if len(found) == 1 else ""


def _nodes(node_file: str) -> tuple[str, ...]:
    """Distinct node names, in the order of the node file."""
    names = tuple(dict.fromkeys(node_file.split()))
    for name in names:
        if re.fullmatch(_NODE, name, re.ASCII) is None:
            raise StateError(f"the node file holds {name[:80]!r}, which is not a host name")
    return names
