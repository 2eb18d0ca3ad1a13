# SPDX-License-Identifier: Apache-2.0
"""Which job it is, and whose: all that root's monitor has to know of one."""

import re
from pathlib import Path
from typing import NamedTuple, NewType

from vtorque.errors import RequestError

JobId = NewType("JobId", str)

# `1234.server`, `58[2].server`, or the bare number when the server's
# display_job_server_suffix is off (Torque: req_quejob.c:470-512).
_JOB_ID = re.compile(r"[0-9]{1,12}(?:\[[0-9]{0,9}\])?(?:\.[A-Za-z0-9][A-Za-z0-9._-]{0,200})?", re.ASCII)


class Group(NamedTuple):
    """A group of the job's user, by name and number."""

    name: str
    gid: int


class Account(NamedTuple):
    """The job's user as the node's name service knows him."""

    name: str
    uid: int
    group: Group
    groups: tuple[Group, ...]
    home: Path
    shell: str


class Bound(NamedTuple):
    """The one job that root acts for; its user, where he may have guests, and the group that may read of it."""

    id: str
    key: str
    user: str
    account: Account | None = None
    group: int = 0


def job_id(text: str) -> JobId:
    """A job id that is safe to build names from, or RequestError."""
    if _JOB_ID.fullmatch(text) is None:
        raise RequestError(f"not a job id: {text[:80]!r}")
    return JobId(text)


def job_key(job: JobId) -> str:
    """The job id as a file or domain name: `58[2].srv` becomes `58-2.srv`, as in mom's own spool."""
    return job.replace("[", "-").replace("]", "")
