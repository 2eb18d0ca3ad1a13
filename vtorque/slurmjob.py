# SPDX-License-Identifier: Apache-2.0
"""What Slurm says of a job, in the words of `qstat -f`, so that following a job is the same everywhere."""

import re
from collections.abc import Callable, Mapping

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError

_SECONDS = 60.0
_UNKNOWN = b"Invalid job id"
_UNKNOWN_JOB = 153
_JOB = re.compile(r" JobState=([A-Z_]+) Reason=(\S*).* ExitCode=([0-9]+):([0-9]+)", re.ASCII)
_WAITING = {"PENDING": "Q", "REQUEUED": "Q", "REQUEUE_HOLD": "H", "REQUEUE_FED": "Q", "SPECIAL_EXIT": "H"}
_ALIVE = {"CONFIGURING": "R", "RUNNING": "R", "COMPLETING": "E", "SUSPENDED": "S", "STOPPED": "R", "SIGNALING": "R",
          "STAGE_OUT": "E", "RESIZING": "R"}
_HELD = ("JobHeldUser", "JobHeldAdmin")
# Torque reports 256 plus the signal for a job whose shell a signal killed.
_SIGNAL_BASE = 256


def ask(scontrol: str, env: Mapping[str, str]) -> Callable[[str], tuple[int, bytes]]:
    """Questions for the controller: a job's id in; qstat's exit status and what it would print out.

    A job that has been over for MinJobAge is not known any more. Raises
    CommandError when the controller does not answer.
    """
    def answer(job: str) -> tuple[int, bytes]:
        done = proc.run(
            [scontrol, "show", "job", "--oneliner", job], deadline=Deadline(_SECONDS), env=env, statuses=(0, 1)
        )
        if done.status == 0:
            return 0, as_qstat(done.stdout.decode(errors="replace")).encode()
        if _UNKNOWN in done.stderr:
            return _UNKNOWN_JOB, b""
        raise CommandError(f"scontrol cannot say how job {job} is", details=done.stderr.decode(errors="replace"))

    return answer


def as_qstat(printed: str) -> str:
    """A line for each job, or each part of an array, as `qstat -f` would print it."""
    return "".join(map(_said, _JOB.findall(printed)))


def _said(job: tuple[str, str, str, str]) -> str:
    state, reason, status, signal = job
    letter = "H" if reason in _HELD and state == "PENDING" else _WAITING.get(state) or _ALIVE.get(state, "C")
    number = _SIGNAL_BASE + int(signal) if int(signal) else int(status)
    lines = [f"job_state = {letter}"]
    if letter == "C":
        # A job that ran out of time, or was cancelled while it waited, has no status of its own.
        lines.append(f"exit_status = {number or int(state != 'COMPLETED')}")
        if state not in ("COMPLETED", "FAILED"):
            lines.append(f"comment = the job ended as {state}")
    return "\n".join(lines) + "\n"
