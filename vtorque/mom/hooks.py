# SPDX-License-Identifier: Apache-2.0
"""Run one hook the way mom does."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vtorque import proc
from vtorque.errors import CommandError
from vtorque.mom import rules
from vtorque.mom.places import Place, Start
from vtorque.mom.rules import HookRule, Output
from vtorque.mom.spool import Home, JobRecord

_BLOCKED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
_NO_INTERPRETER = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRun:
    """A hook in a job's history."""

    kind: str
    arguments: tuple[str, ...]
    result: int
    started: float
    ended: float


class Hook:
    """One run of one hook: started by `start`, looked after by `poll`."""

    def __init__(
        self,
        home: Home,
        kind: str,
        job: JobRecord,
        *,
        place: Place | None = None,
        node_number: int = 0,
        sister: str = "",
        terminal: int | None = None,
    ) -> None:
        self._home = home
        self._job = job
        self._rule = rules.HOOKS[kind]
        self._sister = sister
        self._node_number = node_number
        self._terminal = terminal
        self.kind = kind
        self._place = place or home.here
        self.child: proc.Child | None = None
        self._arguments: list[str] = []
        self._result: int | None = None
        self._found = False
        self._turn: int | None = None
        self._started = time.monotonic()
        self._limit = rules.hook_seconds(self._place.alarm_seconds())

    def start(self) -> None:
        """Start it, unless there is none or mom would not run it; one in a main loop as soon as that is free."""
        if self._rule.in_main_loop:
            self._turn = self._place.turn(self._sister or self._job.hosts[0])
            if self._turn is None:
                return
        self._begin()

    def poll(self) -> int | None:
        """The hook's result, or nothing while it runs; at its alarm its whole session is killed."""
        if self._rule.in_main_loop and self._turn is None and self._result is None:
            self.start()
        if self._result is None and self.child is not None:
            status = self.child.poll()
            if status is not None:
                self._result = rules.result(status)
            elif time.monotonic() - self._started >= self._limit:
                proc.kill_session(self.child.pid)
                self.child.wait()
                self._result = rules.TIMED_OUT
        if self._result is not None and self._turn is not None:
            os.close(self._turn)
            self._turn = None
        return self._result

    @property
    def was_there(self) -> bool:
        """Whether there was a file for it, be it one that mom would not run."""
        return self._found

    def _begin(self) -> None:
        self._started = time.monotonic()
        self._arguments = rules.arguments(
            self.kind, self._job, script=self._place.inside / "jobs" / self._home.script(self._job.id).name,
            sister=bool(self._sister),
        )
        path = self._path(self._place.mom_priv)
        try:
            about = path.stat() if path else None
        except FileNotFoundError:
            about = None
        except OSError as error:
            # The errno is the result, as it is: EPERM aborts a job (start_exec.c:3340-3372).
            self._found, self._result = True, error.errno
            return
        if about is None:
            # A dangling link is no hook either, and no hook is a success (prolog.c:413-464).
            self._result = rules.SUCCESS
            return
        self._found = True
        reduced = self._place.setting("reduce_prolog_checks") == "true"
        if not rules.allowed(self.kind, about, user=self._job.uid, reduced=reduced):
            self._result = rules.NOT_ALLOWED
            return
        try:
            self.child = self._spawn()
        except CommandError:
            self._result = _NO_INTERPRETER

    def _path(self, mom_priv: Path) -> Path | None:
        """Where the hook is, or would be."""
        if self.kind == "presetup":
            said = self._place.setting("presetup_prologue")
        elif self._rule.of_user:
            said = self._job.resources.get(self.kind.removesuffix(".job"), "")
        else:
            return mom_priv / self.kind
        return Path(self._job.directory, said) if said else None

    def record(self) -> HookRun:
        """What the history keeps of it."""
        assert self._result is not None
        return HookRun(
            kind=self.kind, arguments=tuple(self._arguments), result=self._result,
            started=self._started, ended=time.monotonic(),
        )

    def _spawn(self) -> proc.Child:
        inside = self._place.inside
        start = self._place.start(Start(
            argv=[str(self._path(inside)), *self._arguments],
            cwd=Path(self._job.home) if self._rule.as_user else inside,
            identity=_identity(self._rule, self._job),
        ))
        outputs = self._outputs()
        try:
            return proc.spawn(
                start.argv, cwd=start.cwd, identity=start.identity,
                stdin=proc.DEVNULL, stdout=outputs[0], stderr=outputs[1],
                env=rules.environment(
                    self._job,
                    node_number=self._node_number,
                    mother_superior=self._job.hosts[0],
                    node_file=None if self._sister or self.kind == "presetup" else self._home.node_file(self._job.id),
                ),
                umask=self._rule.umask,
                before_exec=_before_exec(self._rule),
            )
        finally:
            for handle in set(outputs) - {proc.DEVNULL}:
                os.close(handle)

    def _outputs(self) -> tuple[int, int]:
        if self._rule.output is not Output.JOB:
            return proc.DEVNULL, proc.DEVNULL
        if not self._job.interactive:
            return open_outputs(self._home, self._job)
        # The user sees the prologue at work; he is gone when the epilogue is.
        if self._terminal is None or not self.kind.startswith("prologue"):
            return proc.DEVNULL, proc.DEVNULL
        handle = os.dup(self._terminal)
        return handle, handle


def open_outputs(home: Home, job: JobRecord) -> tuple[int, int]:
    """The job's spool files for appending, one and the same when they are joined."""
    if job.join == "oe":
        out = _open(home.output(job.id, "OU"), job)
        return out, out
    if job.join == "eo":
        err = _open(home.output(job.id, "ER"), job)
        return err, err
    return _open(home.output(job.id, "OU"), job), _open(home.output(job.id, "ER"), job)


def _open(path: Path, job: JobRecord) -> int:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchown(handle, job.uid, job.gid)
    return handle


def _identity(rule: HookRule, job: JobRecord) -> proc.Identity:
    if rule.as_user:
        return proc.Identity(uid=job.uid, gid=job.gid, groups=job.groups)
    return proc.Identity(uid=0, gid=0, groups=job.groups if rule.with_users_groups else (0,))


def _before_exec(rule: HookRule) -> Callable[[], None]:
    def prepare() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if rule.signals_blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        if rule.output is Output.CLOSED:
            os.close(1)
            os.close(2)

    return prepare
