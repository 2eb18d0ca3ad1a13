# SPDX-License-Identifier: Apache-2.0
"""The engine's files, laid out as Torque's: jobs, scripts, outputs, the sequence number."""

import fcntl
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vtorque import files, units
from vtorque.job import JobId, job_key
from vtorque.mom.places import Place

_RECORD_LIMIT = 4 << 20
_MODES = {
    "": 0o755,
    "mom_priv": 0o751,
    "mom_priv/jobs": 0o751,
    "spool": 0o1777,
    "undelivered": 0o1777,
    "aux": 0o755,
    "server_priv": 0o750,
    "server_priv/jobs": 0o750,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job, as the server keeps it. States are Torque's: Q, H, R, E, C.

    An element of an array has its number in `array_index`; of its array
    `slot_limit` elements may run at once, 0 for all. An interactive job's qsub
    listens at `terminal`; its shell runs `command`, if there is one. It has its
    hosts, one for every slot and the mother superior first, when it is started.
    """

    id: str
    owner: str
    group: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    login_shell: str
    name: str
    directory: str
    resources: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    queue: str = "batch"
    account: str = ""
    shell: str = ""
    arguments: str = ""
    work_directory: str = ""
    output_path: str = ""
    error_path: str = ""
    join: str = "n"
    state: str = "Q"
    exit_status: int | None = None
    session: int = 0
    comment: str = ""
    array_index: int | None = None
    slot_limit: int = 0
    interactive: bool = False
    terminal: str = ""
    command: str = ""

    @property
    def sequence(self) -> str:
        """The number in output file names: `58`, of an array's element `58-2`."""
        return job_key(JobId(self.id)).partition(".")[0]

    @property
    def order(self) -> tuple[int, int]:
        """What sorts jobs as they were submitted."""
        return int(self.sequence.partition("-")[0]), self.array_index or 0

    @property
    def array(self) -> str:
        """The id of the whole array, `58[].server`, or nothing."""
        head, dot, server = self.id.partition(".")
        return f"{head.partition('[')[0]}[]{dot}{server}" if self.array_index is not None else ""

    @property
    def names(self) -> frozenset[str]:
        """What the job may be called by: its id or its array's, with and without the server."""
        return frozenset(name for each in (self.id, self.array) for name in (each, each.partition(".")[0]) if name)

    @property
    def walltime(self) -> int:
        """Its limit in seconds, 0 for none."""
        return units.seconds(self.resources["walltime"]) if "walltime" in self.resources else 0


class Home:
    """`$TORQUE_HOME` of the engine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mom_priv = path / "mom_priv"
        self.here = Place(self.mom_priv)
        self.socket = path / "server.sock"
        self.pid_file = path / "server_priv" / "pbs_mom.pid"

    def prepare(self) -> None:
        """Make the directories, with Torque's modes."""
        for name, mode in _MODES.items():
            directory = self.path / name
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(mode)

    def next_id(self, server: str, *, array: bool = False) -> JobId:
        """A job id, or an array's, whose number was never given before."""
        with (self.path / "server_priv" / "sequence").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = int(file.read() or 0) + 1
            file.seek(0)
            file.truncate()
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        return JobId(f"{number}[].{server}" if array else f"{number}.{server}")

    def queued_script(self, job: str) -> Path:
        """The script of a job that was not started yet."""
        return self.path / "server_priv" / "jobs" / f"{job_key(JobId(job))}.SC"

    def script(self, job: str) -> Path:
        """The script of a job whose mother superior is here."""
        return self.here.script(job)

    def task(self, job: str) -> Path:
        """Her own record of it."""
        return self.here.task(job)

    def node_file(self, job: str) -> Path:
        """One line for every slot."""
        return self.path / "aux" / job

    def output(self, job: str, ending: str) -> Path:
        """The spool file of a job's output, ending OU, or of its errors, ER."""
        return self.path / "spool" / f"{job_key(JobId(job))}.{ending}"

    def undelivered(self) -> Path:
        """Where outputs stay that could not be copied to the user."""
        return self.path / "undelivered"

    def save(self, job: JobRecord, **changes: object) -> JobRecord:
        """Keep the record, with changes; the record as it is now."""
        new = replace(job, **changes)  # type: ignore[arg-type]
        data = json.dumps(asdict(new)).encode()
        files.replace(self._record(new.id), data, mode=0o600)
        return new

    def load(self, job: str) -> JobRecord | None:
        """The record of a job, unless there is none."""
        try:
            data = json.loads(files.read(self._record(job), limit=_RECORD_LIMIT))
        except FileNotFoundError:
            return None
        return JobRecord(**{**data, "hosts": tuple(data["hosts"]), "groups": tuple(data["groups"])})

    def jobs(self, *, without: Collection[str] = ()) -> list[JobRecord]:
        """All jobs but some, given by id, in the order of submission."""
        paths = (self.path / "server_priv" / "jobs").glob("*.json")
        names = [name for path in paths if (name := path.name.removesuffix(".json")) not in without]
        found = [self.load(name) for name in names]
        return sorted((job for job in found if job), key=lambda job: job.order)

    def _record(self, job: str) -> Path:
        return self.path / "server_priv" / "jobs" / f"{job}.json"
