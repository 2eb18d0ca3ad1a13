# SPDX-License-Identifier: Apache-2.0
"""What the job's wrapper becomes on the node: the bridge between mom and the script in the guest."""

import json
import os
import pwd
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vtorque import config, files, run
from vtorque.backends.transport import Session
from vtorque.backends.transport.ssh import Ssh
from vtorque.cli import PREFIX
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import TransportError, VtorqueError
from vtorque.model import job_id, job_key
from vtorque.run import ExitStatus, NotStarted, RankZero

_JOB_FILE_LIMIT = 1 << 20
# What a batch system or a user sends to a job. KILL needs no passing on: it ends
# this process, and the guest's side sees the connection close.
_PASSED_ON = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "CONT")


def main(argv: Sequence[str]) -> int:
    """`argv` is the request id and the script's own arguments; the job's exit status."""
    try:
        return _run(argv[0], argv[1:])
    except NotStarted as error:
        _say(error.brief)
        return error.status
    except TransportError as error:
        _say(error.one_line())
        return ExitStatus.LOST
    except VtorqueError as error:
        _say(error.one_line())
        return ExitStatus.NO_GUEST
    except Exception as error:  # noqa: BLE001
        _say(f"internal error: {error!r}")
        return ExitStatus.BUG


def _run(request_id: str, arguments: Sequence[str]) -> int:
    directory = Path(pwd.getpwuid(os.getuid()).pw_dir, ".vtorque", request_id)
    site = config.load(config.find(PREFIX), trusted_owner=0)
    job = job_id(os.environ.get("PBS_JOBID", ""))
    guest = run.rank_zero(Path(site.state_dir) / "jobs" / job_key(job), job)
    wanted = json.loads(files.read(directory / "job.json", limit=_JOB_FILE_LIMIT))
    text = run.order(
        environment=run.job_environment(os.environ, wanted["exported"], guest),
        directory=os.getcwd(),  # noqa: PTH109
        shell=wanted["shell"],
        command=[str(directory / "script" / wanted["script"]), *arguments],
    )
    session = _connect(guest, directory, site)
    try:
        _pass_signals_on(session)
        _note(directory, "running")
        status = run.script(session, text, stdout=_writer(1), stderr=_writer(2))
        _note(directory, "ended")
    finally:
        session.close()
    return status


def _connect(guest: RankZero, directory: Path, site: SiteConfig) -> Session:
    key = files.read(directory / "key", limit=_JOB_FILE_LIMIT, owner=os.getuid()).decode()
    user = pwd.getpwuid(os.getuid()).pw_name
    deadline = Deadline(site.timeout)
    return Ssh().open(guest.address, user=user, key=key, host_key=guest.host_key, deadline=deadline)


def _pass_signals_on(session: Session) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        session.send(f"{signal.Signals(number).name.removeprefix('SIG')}\n".encode())

    for name in _PASSED_ON:
        signal.signal(getattr(signal, f"SIG{name}"), pass_on)


def _writer(handle: int) -> Any:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view):]

    return write


def _note(directory: Path, phase: str) -> None:
    line = json.dumps({"time": round(time.time(), 3), "phase": phase})
    with (directory / "phases").open("a") as file:
        file.write(line + "\n")


def _say(message: str) -> None:
    for line in message.splitlines():
        print(f"vtorque: {line}", file=sys.stderr, flush=True)
