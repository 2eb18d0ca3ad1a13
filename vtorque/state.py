# SPDX-License-Identifier: Apache-2.0
"""What this node holds for a job: the ledger, the lock, and what the job's wrapper may read.

One directory a job below `<STATE_DIR>/jobs`, root's own and on tmpfs on
purpose: a reboot takes the guests and the record of them together.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vtorque import files
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, StateError
from vtorque.model import Job, Resource

SCHEMA = 1
"""Of the ledger, the plan and the count of failed starts; where there is none it is 1, which was the first."""

READY = "ready"
FAILED = "failed"

_LEDGER = "ledger"
_LOCK = "lock"
_CLOSED = "closed"
_PLAN = "plan.json"
_LIMIT = 1 << 20
# To a version that knows of no schemas: something is given back that was never taken.
_FIRST_LINE = json.dumps(["back", "schema", str(SCHEMA)]).encode() + b"\n"
_VERBS = ("take", "did", "back")


class JobState:
    """One generation of a job on this node: from the start of its prologue to the end of its epilogue.

    Every act takes the lock shared; closing the generation takes it alone. So
    an epilogue that runs beside a prologue first lets a running act finish,
    and after it no further act begins.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.key = key
        self.path = root / "jobs" / key

    def create(self) -> None:
        """Begin a generation; StateError when an earlier one was not torn down."""
        files.directory(self.path.parent, mode=0o711)
        try:
            self.path.mkdir()
        except FileExistsError:
            raise StateError(f"an earlier start of job {self.key} is still on this node") from None
        # The wrapper has to reach the marker by its name.
        self.path.chmod(0o711)
        files.write_new(self.path / _LOCK, b"", mode=0o600)
        files.write_new(self.path / _LEDGER, _FIRST_LINE, mode=0o600)

    @property
    def exists(self) -> bool:
        """Whether anything of the job is recorded here."""
        return self.path.is_dir()

    @property
    def closed(self) -> bool:
        """Whether no act may begin any more: the generation is being ended, or gone."""
        return not self.exists or (self.path / _CLOSED).exists()

    @property
    def generation(self) -> str:
        """What tells this generation from those before and after it; empty when there is none."""
        with contextlib.suppress(FileNotFoundError):
            # Nobody writes to it, and inode numbers alone come back.
            about = (self.path / _LOCK).stat()
            return f"{about.st_ino} {about.st_mtime_ns}"
        return ""

    @contextlib.contextmanager
    def act(self, *, deadline: Deadline) -> Iterator[None]:
        """Do something for the job while its generation is open; GenerationClosed when it is not."""
        with self._locked(fcntl.LOCK_SH, deadline):
            if (self.path / _CLOSED).exists():
                raise GenerationClosed(f"job {self.key} was deleted while its guests were being started")
            if (schema := self._read()[1]) > SCHEMA:
                raise StateError(f"job {self.key} was begun by a newer version of vtorque", hint=_schemas(schema))
            yield

    @contextlib.contextmanager
    def taking(self, resource: Resource, *, deadline: Deadline) -> Iterator[None]:
        """Take something: it is in the ledger before it exists, and marked when it does."""
        with self.act(deadline=deadline):
            self._note("take", resource)
            yield
            self._note("did", resource)

    @contextlib.contextmanager
    def closing(self, *, deadline: Deadline) -> Iterator[None]:
        """End the generation and hold it: no act runs meanwhile, and none will ever begin again.

        Raises GenerationClosed when somebody else has removed it.
        """
        with self._locked(fcntl.LOCK_EX, deadline):
            files.replace(self.path / _CLOSED, b"", mode=0o600)
            yield

    def held(self) -> list[Resource]:
        """What was taken and not given back, newest first."""
        return [Resource(kind=kind, name=name) for kind, name in reversed(self._read()[0])]

    def certain(self, resource: Resource) -> bool:
        """Whether taking this was seen to succeed, rather than cut short."""
        return self._read()[0].get((resource.kind, resource.name), False)

    def given_back(self, resource: Resource) -> None:
        """Forget a resource that is known to be gone."""
        self._note("back", resource)

    def save_plan(self, plan: Mapping[str, object]) -> None:
        """Keep the plan for whoever looks at it."""
        text = json.dumps({"schema": SCHEMA, **plan}, default=str, indent=1)
        files.write_new(self.path / _PLAN, text.encode(), mode=0o600)

    def publish(self, name: str, data: dict[str, object], *, group: int) -> None:
        """Put a file where the job's user (numeric `group`) may read but not write it."""
        text = json.dumps(data, sort_keys=True, indent=1)
        files.replace(self.path / name, text.encode() + b"\n", mode=0o640, group=group)

    def remove(self) -> None:
        """Forget the job; StateError while something is still held."""
        if held := self.held():
            raise StateError(f"job {self.key} still holds {held[0].kind} {held[0].name}")
        _, schema, strange = self._read()
        if strange:
            text = f"job {self.key} may hold more: {strange} lines of its ledger are a newer version's"
            raise StateError(text, hint=f"{_schemas(schema)}; look, then rm -r {self.path}")
        # The lock goes first: whoever waits for it then finds the generation gone.
        (self.path / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            for path in list(self.path.iterdir()):
                path.unlink(missing_ok=True)
            self.path.rmdir()

    @contextlib.contextmanager
    def _locked(self, how: int, deadline: Deadline) -> Iterator[None]:
        try:
            # A descriptor of its own for every act: a lock belongs to the descriptor, and
            # one guest's thread must not give up another's.
            handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise GenerationClosed(f"job {self.key} was torn down meanwhile") from None
        try:
            for _ in deadline.ticks(doing=f"waiting for the lock of job {self.key}"):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, how | fcntl.LOCK_NB)
                    break
            if os.fstat(handle).st_nlink == 0:
                raise GenerationClosed(f"job {self.key} was torn down meanwhile")
            yield
        finally:
            os.close(handle)

    def _note(self, verb: str, resource: Resource) -> None:
        line = json.dumps([verb, resource.kind, resource.name]) + "\n"
        handle = os.open(self.path / _LEDGER, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _read(self) -> tuple[dict[tuple[str, str], bool], int, int]:
        """What is held, oldest first, and whether it was seen to be done; the schema, and how many lines are strange.

        A teardown does what it can with a newer version's ledger.
        """
        held: dict[tuple[str, str], bool] = {}
        schema, strange = 1, 0
        try:
            text = files.read(self.path / _LEDGER, limit=_LIMIT)
        except FileNotFoundError:
            return held, schema, strange
        # A last line without its newline was cut short: what it announces never began.
        for line in text.split(b"\n")[:-1]:
            try:
                verb, kind, name = json.loads(line)
                if verb not in _VERBS:
                    raise ValueError(verb)
            except (ValueError, TypeError):
                if schema <= SCHEMA:
                    raise StateError(f"the ledger of job {self.key} is damaged: {line[:80]!r}") from None
                strange += 1
                continue
            if (verb, kind) == ("back", "schema"):
                schema = int(name)
            elif verb == "back":
                held.pop((kind, name), None)
            else:
                held[kind, name] = verb == "did"
        return held, schema, strange


def jobs(root: Path) -> list[str]:
    """Keys of all jobs recorded on this node."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(entry.name for entry in (root / "jobs").iterdir() if entry.is_dir())
    return []


def guard(root: Path, key: str) -> int | None:
    """Take the place of the job's guard on this node: a descriptor to be kept open, and handed on.

    Nothing when it is taken: the job is looked after, whatever mom knows of it.
    """
    path = root / "guards" / key
    files.directory(path.parent, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def is_guarded(root: Path, key: str) -> bool:
    """Whether the job has a guard on this node."""
    handle = guard(root, key)
    if handle is None:
        return True
    (root / "guards" / key).unlink(missing_ok=True)
    os.close(handle)
    return False


def attempt(root: Path, job: Job) -> int:
    """Count one more failed start of the job on this node, and say how many that makes."""
    path = root / "attempts" / job.key
    files.directory(path.parent, mode=0o700)
    count = 1
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        # The first version wrote a bare number.
        before = json.loads(files.read(path, limit=_LIMIT))
        count = (before if isinstance(before, int) else int(before["count"])) + 1
    files.replace(path, json.dumps({"schema": SCHEMA, "count": count}).encode(), mode=0o600)
    return count


def forget_attempts(root: Path, key: str) -> None:
    """Start counting anew: the job started, or will not be tried again."""
    with contextlib.suppress(FileNotFoundError):
        (root / "attempts" / key).unlink()


def _schemas(found: int) -> str:
    return f"it wrote schema {found}, this one knows {SCHEMA}"
