# SPDX-License-Identifier: Apache-2.0
"""What this node holds for a job: the ledger, the lock, and what the job's wrapper may read.

One directory a job below `<STATE_DIR>/jobs`, the program's own and on tmpfs on
purpose: a reboot takes the guests and the record of them together.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vtorque import audit, files
from vtorque.deadline import Deadline
from vtorque.errors import GenerationClosed, StateError
from vtorque.model import Job, Resource

log = logging.getLogger(__name__)

SCHEMA = 1
"""Of the ledger, the plan and the count of failed starts; where there is none it is 1, which was the first."""

READY = "ready"
FAILED = "failed"
CONNECTION = "connection"
"""The socket at which a job's wrapper gets the connection to its guest."""

_LEDGER = "ledger"
_LOCK = "lock"
_CLOSED = "closed"
_PLAN = "plan.json"
_LIMIT = 1 << 20
_OWNER = "owner"
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
        # Given back, and not in the ledger: what could not be written is known here at least.
        self._gone: set[Resource] = set()
        self._understood = ""
        # The generation that this is about, once it is known: the job may be back, and another's.
        self.bound = ""
        self.audit = audit.Trail(key)

    def create(self, *, user: str = "", uid: int | None = None) -> None:
        """Begin a generation, whose is for the audit log; StateError when an earlier one was not torn down."""
        files.directory(self.path.parent, mode=0o711)
        try:
            # The wrapper has to reach the marker by its name.
            files.new_directory(self.path, mode=0o711)
        except FileExistsError:
            raise StateError(f"an earlier start of job {self.key} is still on this node") from None
        self._gone.clear()
        files.write_new(self.path / _LOCK, b"", mode=0o600)
        self.bound = self.generation
        # To a version that does not know these: things are given back that were never taken.
        self.audit.belongs(f"{'' if uid is None else uid} {user}")
        first = (["back", "schema", str(SCHEMA)], ["back", _OWNER, self.audit.whose])
        files.write_new(self.path / _LEDGER, "".join(f"{json.dumps(line)}\n" for line in first).encode(), mode=0o600)
        self.audit.note("begin")

    @property
    def exists(self) -> bool:
        """Whether anything of the job is recorded here."""
        return self.path.is_dir()

    @property
    def closed(self) -> bool:
        """Whether no act may begin any more: the generation is being ended, or gone."""
        return not self.exists or self.bound not in ("", self.generation) or (self.path / _CLOSED).exists()

    @property
    def generation(self) -> str:
        """What tells this generation from those before and after it; empty when there is none."""
        with contextlib.suppress(FileNotFoundError):
            return _mark((self.path / _LOCK).stat())
        return ""

    @property
    def replaced(self) -> bool:
        """Whether another start of the job has begun since the one that this is about."""
        return self.bound != "" and self.generation not in ("", self.bound)

    @contextlib.contextmanager
    def act(self, *, deadline: Deadline) -> Iterator[None]:
        """Do something for the job while its generation is open; GenerationClosed when it is not."""
        with self._locked(fcntl.LOCK_SH, deadline):
            if (self.path / _CLOSED).exists():
                raise GenerationClosed(f"job {self.key} was deleted while its guests were being started")
            # Once for each generation: nobody gives a ledger another schema after its first line.
            if self._understood != self.generation:
                if (schema := self._read()[1]) > SCHEMA:
                    raise StateError(f"job {self.key} was begun by a newer version of vtorque", hint=_schemas(schema))
                self._understood = self.generation
            yield

    @contextlib.contextmanager
    def taking(self, resource: Resource, *, deadline: Deadline) -> Iterator[None]:
        """Take something: it is in the ledger before it exists, and marked when it does."""
        with self.act(deadline=deadline):
            self._note("take", resource)
            try:
                yield
            except Exception as error:
                self.audit.note("take", resource, failure=error)
                raise
            self._note("did", resource)
            self.audit.note("take", resource)

    @contextlib.contextmanager
    def closing(self, *, deadline: Deadline) -> Iterator[None]:
        """End the generation and hold it: no act runs meanwhile, and none will ever begin again.

        Raises GenerationClosed when somebody else has removed it.
        """
        with self._locked(fcntl.LOCK_EX, deadline):
            try:
                files.replace(self.path / _CLOSED, b"", mode=0o600)
            except OSError:
                # Without its lock nobody acts either, and to remove it takes no room on a full disk.
                (self.path / _LOCK).unlink(missing_ok=True)
            yield

    def held(self) -> list[Resource]:
        """What was taken and not given back, newest first."""
        held = [Resource(kind=kind, name=name) for kind, name in reversed(self._read()[0])]
        return [each for each in held if each not in self._gone]

    def certain(self, resource: Resource) -> bool:
        """Whether taking this was seen to succeed, rather than cut short."""
        return self._read()[0].get((resource.kind, resource.name), False)

    def given_back(self, resource: Resource) -> None:
        """Forget a resource that is known to be gone. A disk that takes no note of it keeps nothing else here."""
        try:
            self._note("back", resource)
        except OSError as error:
            log.warning("cannot note that %s %s is given back: %s", resource.kind, resource.name, error)
            self._gone.add(resource)
        self.audit.note("give back", resource)

    def save_plan(self, plan: Mapping[str, object]) -> None:
        """Keep the plan for whoever looks at it."""
        text = json.dumps({"schema": SCHEMA, **plan}, default=str, indent=1)
        files.write_new(self.path / _PLAN, text.encode(), mode=0o600)

    def plan(self) -> dict[str, Any] | None:
        """The plan that is kept, if there is one that can be read."""
        with contextlib.suppress(FileNotFoundError, StateError, ValueError):
            found = json.loads(files.read(self.path / _PLAN, limit=_LIMIT))
            return found if isinstance(found, dict) else None
        return None

    def publish(self, name: str, data: dict[str, object], *, share: Callable[[Path], None]) -> None:
        """Put a file where the job's user may read but not write it, once it was `share`d with him."""
        text = json.dumps(data, sort_keys=True, indent=1)
        files.replace(self.path / name, text.encode() + b"\n", mode=0o640, ready=share)
        self.audit.note("publish", Resource(kind="marker", name=name))

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
        self.audit.note("end")

    @contextlib.contextmanager
    def _locked(self, how: int, deadline: Deadline) -> Iterator[None]:
        try:
            # A descriptor of its own for every act: a lock belongs to the descriptor, and
            # one guest's thread must not give up another's.
            handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise GenerationClosed(f"job {self.key} was torn down meanwhile") from None
        try:
            files.lock(handle, how=how, doing=f"waiting for the lock of job {self.key}", deadline=deadline)
            about = os.fstat(handle)
            if about.st_nlink == 0 or self.bound not in ("", _mark(about)):
                raise GenerationClosed(f"job {self.key} was torn down meanwhile")
            yield
        finally:
            os.close(handle)

    def _note(self, verb: str, resource: Resource) -> None:
        line = json.dumps([verb, resource.kind, resource.name]).encode() + b"\n"
        handle = os.open(self.path / _LEDGER, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / _LEDGER))
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
                verb, kind, name = json.loads(_last_note(line))
                if verb not in _VERBS:
                    raise ValueError(verb)
            except (ValueError, TypeError):
                if schema <= SCHEMA:
                    raise StateError(f"the ledger of job {self.key} is damaged: {line[:80]!r}") from None
                strange += 1
                continue
            if (verb, kind) == ("back", "schema"):
                schema = int(name)
            elif (verb, kind) == ("back", _OWNER):
                self.audit.belongs(name)
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
    files.forget(root / "attempts" / key)


def _mark(lock: os.stat_result) -> str:
    """Nobody writes to it, and inode numbers alone come back."""
    return f"{lock.st_ino} {lock.st_mtime_ns}"


def _last_note(line: bytes) -> bytes:
    """What a line ends with: before it may be one that a full disk cut short, of something that then was not done."""
    # Within a string of JSON no quotation mark follows a bracket without a backslash.
    begin = line.rfind(b'["')
    return line[begin:] if begin > 0 and line.startswith(b"[") else line


def _schemas(found: int) -> str:
    return f"it wrote schema {found}, this one knows {SCHEMA}"
