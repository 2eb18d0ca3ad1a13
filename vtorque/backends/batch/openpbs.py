# SPDX-License-Identifier: Apache-2.0
"""OpenPBS's dialect: what hooks and classic scripts are told of it.

Hooks are told everything, on every node. The classic prologue knows nothing of
the job's resources: its shim finds the request in the job's script, where vsub
has left a copy, and hands it over in the environment.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtorque.backends.batch import CLASSIC_COMMENT
from vtorque.errors import Blame, StateError
from vtorque.job import JOB_EXEC_RETRY, Job, PelogKind, job_id

# Anything but 0 and 1 is another start, until the server holds the job after the 20th (req_runjob.c:1276-1285).
REQUEUE = 3
# Of the numbers by which mom ends a start or a job (job.h, JOB_EXEC_*), those after which it is started again: -11 is
# qrerun, -16 a hook's rejection, -22 a hook that failed. Torque gives some of them to other things.
_STARTED_AGAIN = frozenset((-3, -5, -6, -11, -12, -14, -15, -16, -18, -20, -22))
_SIGNALLED = 256
# Torque's for a job that failed for good. With a signal's number a job may be run again there, but not here.
_OVER = -2

_ALARM = re.compile(r"^[ \t]*\$prologalarm[ \t]+([0-9]{1,6})[ \t]*$", re.MULTILINE | re.ASCII)
_DEFAULT_ALARM_SECONDS = 30
_REQUEST = re.compile(r"vt1\.[A-Za-z0-9_-]{1,4096}", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?", re.ASCII)
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", re.ASCII)
_STATUS = re.compile(r"-?[0-9]{1,4}", re.ASCII)
# prolog.c:347-376: job id, user and group first in both; ten arguments for an epilogue.
_ID, _OWNER, _EPILOGUE_STATUS = 0, 1, 9
_STARTS = ("execjob_begin", "execjob_prologue", "execjob_launch")

CLASSIC_REQUEST = "VTORQUE_REQUEST"
"""The variable in which the shim of a classic script hands the line of the job's script over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a hook hands over. `seconds` are what it may take; `home` is mom's directory.

    A periodic event has no job.
    """

    name: str
    seconds: float
    home: Path
    job: Job | None = None
    mother_superior: bool = False


class OpenPbs:
    """OpenPBS 20 and later."""

    failure_drains = False

    def parse_job(
        self, kind: PelogKind, arguments: Sequence[str], environ: Mapping[str, str], node_file: str
    ) -> Job:
        """The job from a classic script's arguments; StateError when they are not a script's."""
        if len(arguments) < _OWNER + 1:
            raise StateError(f"{kind} was called with {len(arguments)} arguments")
        status = arguments[_EPILOGUE_STATUS] if len(arguments) > _EPILOGUE_STATUS else ""
        request = environ.get(CLASSIC_REQUEST, "").removeprefix(CLASSIC_COMMENT)
        return Job(
            id=job_id(arguments[_ID]),
            user=_user(arguments[_OWNER]),
            node_index=0,
            nodes=_distinct(node_file.split()),
            request=request if _REQUEST.fullmatch(request) else "",
            exit_status=None if kind.starts else _exit_status(status),
        )

    def parse_event(self, text: bytes) -> Event:
        """What the hook wrote to its command; StateError when it is not that."""
        try:
            data = json.loads(text)
            name, seconds, home = str(data["event"]), float(data["seconds"]), Path(data["home"])
            found = _job(data["job"], home, starts=name in _STARTS) if "job" in data else None
            return Event(
                name=name, seconds=seconds, home=home, job=found,
                mother_superior=found is not None and data["job"]["mother_superior"] is True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"the hook said nothing that this version understands: {error!r}") from None

    def exit_status(self, kind: PelogKind, blame: Blame | None) -> int:
        """0, or 3 for a node's fault and a bug: 1 would end the job."""
        return REQUEUE if blame in (Blame.NODE, Blame.BUG) else 0

    def hook_seconds(self, mom_config: str) -> float:
        """`$prologalarm` in seconds, 30 by default; the script is killed exactly then (prolog.c)."""
        found = _ALARM.findall(mom_config)
        return int(found[-1]) if found else _DEFAULT_ALARM_SECONDS


def _job(data: Mapping[str, Any], home: Path, *, starts: bool) -> Job:
    identity = job_id(str(data["id"]))
    mother = data["mother_superior"] is True
    nodes = _nodes(str(data["hosts"]), str(data["vnodes"]))
    return Job(
        id=identity,
        user=_user(str(data["user"])),
        # Only a start has to know which of the job's nodes this is.
        node_index=_index(str(data["node"]), nodes) if starts and not mother else 0,
        nodes=nodes if mother else (),
        most_nodes=len(nodes),
        request=str(data["request"]),
        # Brackets stay in its name, unlike in Torque's (start_exec.c).
        spool_script=home / "mom_priv" / "jobs" / f"{identity}.SC" if mother else None,
        exit_status=None if starts else _exit_status(str(data["exit_status"])),
    )


def _exit_status(text: str) -> int:
    """The job's own, or that of a start that is made again. So is one that is not told: an abort's never is."""
    status = int(text) if _STATUS.fullmatch(text) else JOB_EXEC_RETRY
    if status in _STARTED_AGAIN:
        return JOB_EXEC_RETRY
    return status if 0 <= status < _SIGNALLED else _OVER


def _nodes(exec_host: str, exec_vnode: str) -> tuple[str, ...]:
    """The nodes of `a/0*4+b/0*4`, mother superior first; of `(a[0]:ncpus=2+a[1]:ncpus=2)+(b:ncpus=4)` without it."""
    chunks = (exec_host or exec_vnode.replace("(", "").replace(")", "")).split("+")
    return _distinct(re.split(r"[/:\[]", chunk, maxsplit=1)[0] for chunk in chunks if chunk)


def _distinct(names: Any) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(names))
    for name in found:
        if _NODE.fullmatch(name) is None:
            raise StateError(f"{name[:80]!r} among the job's nodes is not a host name")
    return found


def _index(node: str, nodes: tuple[str, ...]) -> int:
    """Which of the job's nodes this one is, by its whole name or else by its short one."""
    if node in nodes:
        return nodes.index(node)
    short = [name.partition(".")[0] for name in nodes]
    try:
        return short.index(node.partition(".")[0])
    except ValueError:
        raise StateError(f"node {node[:80]} is not among the job's nodes: {', '.join(nodes)}") from None


def _user(name: str) -> str:
    if _USER.fullmatch(name) is None:
        raise StateError(f"{name[:80]!r} is not a user name")
    return name
