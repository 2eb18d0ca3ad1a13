# SPDX-License-Identifier: Apache-2.0
"""OpenPBS's dialect: how a job carries its request, and what its classic prologue and epilogue are told.

Those know nothing of the job's resources, so guests need the execjob hooks;
without a request nothing is started, and the job's wrapper refuses to run.
"""

import re
from collections.abc import Mapping, Sequence

from vtorque.backends.batch import last_job_id
from vtorque.errors import Blame, StateError
from vtorque.model import Job, JobId, PelogKind, job_id

# Anything but 0 and 1 is another start, until the server holds the job after the 20th (req_runjob.c:1276-1285).
REQUEUE = 3

_ALARM = re.compile(r"^[ \t]*\$prologalarm[ \t]+([0-9]{1,6})[ \t]*$", re.MULTILINE | re.ASCII)
_DEFAULT_ALARM_SECONDS = 30
# prolog.c:347-376: job id, user and group first in both; ten arguments for an epilogue.
_ID, _OWNER, _EPILOGUE_STATUS = 0, 1, 9


class OpenPbs:
    """OpenPBS 20 and later."""

    def parse_job(
        self, kind: PelogKind, arguments: Sequence[str], environ: Mapping[str, str], node_file: str
    ) -> Job:
        """The job from a classic script's arguments; StateError when they are not a script's."""
        if len(arguments) < _OWNER + 1:
            raise StateError(f"{kind} was called with {len(arguments)} arguments")
        status = arguments[_EPILOGUE_STATUS] if len(arguments) > _EPILOGUE_STATUS else ""
        return Job(
            id=job_id(arguments[_ID]),
            user=arguments[_OWNER],
            node_index=0,
            nodes=tuple(dict.fromkeys(node_file.split())),
            request="",
            exit_status=int(status) if re.fullmatch(r"-?[0-9]{1,4}", status) else None,
        )

    def exit_status(self, kind: PelogKind, blame: Blame | None) -> int:
        """0, or 3 for a node's fault and a bug: 1 would end the job."""
        return REQUEUE if blame in (Blame.NODE, Blame.BUG) else 0

    def hook_seconds(self, mom_config: str) -> float:
        """`$prologalarm` in seconds, 30 by default; the script is killed exactly then (prolog.c)."""
        found = _ALARM.findall(mom_config)
        return int(found[-1]) if found else _DEFAULT_ALARM_SECONDS

    def submit_options(self, request: str) -> list[str]:
        """`site` is the free text resource that a stock server takes."""
        return ["-l", f"site={request}"]

    def job_id_from(self, stdout: bytes) -> JobId:
        """The last word that qsub printed."""
        return last_job_id(stdout)
