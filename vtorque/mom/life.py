# SPDX-License-Identifier: Apache-2.0
"""One job's life, in a process of its own: hooks, script, hooks, outputs.

Single-threaded: everything that may last is looked after in one loop, because
Torque lets an epilogue run beside its own prologue.
"""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from vtorque import wakeups
from vtorque.deadline import growing
from vtorque.mom import rules, terminal
from vtorque.mom.bell import Bell
from vtorque.mom.delivery import deliver
from vtorque.mom.hooks import Hook, HookRun, open_outputs
from vtorque.mom.places import Places, here
from vtorque.mom.rules import JOB_EXEC_FAIL1, JOB_EXEC_FAIL2, JOB_EXEC_RETRY, Verdict
from vtorque.mom.shell import Attendance, Shell, Wishes
from vtorque.mom.shell import Timing as Timing
from vtorque.mom.sisters import Sisters
from vtorque.mom.spool import Home, JobRecord
from vtorque.mom.terminal import Terminal

# A child that ends, a signal and an interactive job's user are told of; times that are up are not.
_LONGEST_PAUSE_SECONDS = 0.1
_STARTS = ("prologue", "prologue.user", "prologue.job")
_ENDS = ("epilogue.job", "epilogue.user", "epilogue")


class _TooLate(Exception):
    """The start took longer than `$prologalarm` in all."""


class Life:
    """From queued to completed."""

    def __init__(
        self, home: Home, job: JobRecord, *, timing: Timing | None = None, place: Places | None = None
    ) -> None:
        self._home = home
        self.job = job
        self._timing = timing or Timing()
        self._wishes = Wishes()
        self._start_ends = 0.0
        self._terminal: Terminal | None = None
        self._left: list[Hook] = []
        self._news = Bell()
        self._pauses = growing(longest=_LONGEST_PAUSE_SECONDS)
        self.history: list[HookRun] = []
        self._sisters = Sisters(home, job, place=place or here(home.mom_priv), note=self.history.append)

    def delete(self, number: int = 0, frame: FrameType | None = None) -> None:
        """What qdel does; also a signal handler."""
        if self._wishes.delete_at is None:
            self._wishes.delete_at = time.monotonic()
        self._news.ring()

    def rerun(self, number: int = 0, frame: FrameType | None = None) -> None:
        """What qrerun does; also a signal handler."""
        self._wishes.rerun = True
        self._news.ring()

    def hear(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Look at once what has happened; a signal handler."""
        self._news.ring()

    def run(self) -> JobRecord:
        """Live until the job is completed; its final record."""
        try:
            while self._attempt():
                pass
        finally:
            self._let_go()
            self._news.close()
        return self.job

    def _attempt(self) -> bool:
        """Start the job, and end it; whether it is to be started anew."""
        self._prepare()
        if self.job.interactive and not self._attach():
            self._finish(JOB_EXEC_FAIL1, comment="qsub does not wait for the job any more")
            return False
        verdict = self._start()
        if verdict is not Verdict.RUN:
            self._sisters.abort(self.job)
        if self._ended:
            self._finish(0)
            return False
        if verdict is Verdict.RUN:
            return self._live()
        self._end_hooks(JOB_EXEC_FAIL2 if verdict is Verdict.ABORT else JOB_EXEC_RETRY)
        if self._deleted:
            self._finish(0)
            return False
        if verdict is Verdict.ABORT:
            self._complete("the prologue aborted the job")
            return False
        return self._requeue("the prologue asked for another start")

    def _live(self) -> bool:
        """The job itself, and its end; whether it is to be started anew."""
        status = Shell(
            self._home, self.job, line=self._terminal, wishes=self._wishes, timing=self._timing,
            by=Attendance(pause=self._pause, precancel=self._precancel, started=self._has_session),
        ).run()
        if not self._wishes.rerun or self._deleted:
            self._finish(status)
            return False
        self._wishes.rerun = False
        self._end_hooks(status)
        return self._requeue("qrerun asked for another start")

    def recover(self) -> JobRecord:
        """End the job of an engine that died."""
        self._sisters.have_joined = True
        self._finish(JOB_EXEC_FAIL2, comment="the engine was restarted while the job ran")
        return self.job

    @property
    def _deleted(self) -> bool:
        return self._wishes.delete_at is not None

    def _prepare(self) -> None:
        job = self.job
        node_file = self._home.node_file(job.id)
        node_file.write_text("".join(f"{host}\n" for host in job.hosts))
        node_file.chmod(0o644)
        if not job.interactive:
            for handle in set(open_outputs(self._home, job)):
                os.close(handle)
        self.job = self._home.save(
            job, state="R", exit_status=None, session=0,
            output_path=rules.output_path(job.output_path, job), error_path=rules.output_path(job.error_path, job),
        )

    def _attach(self) -> bool:
        try:
            self._terminal = terminal.attach(self.job)
        except (OSError, ValueError):
            return False
        return True

    def _has_session(self, session: int) -> None:
        self.job = self._home.save(self.job, session=session)

    def _let_go(self) -> None:
        while self._left or self._sisters.are_busy:
            self._pause()
        if self._terminal is not None:
            self._terminal.close()

    def _pause(self) -> None:
        """What every loop does while it waits: an interactive job's user is served meanwhile."""
        self._sisters.work()
        for hook in [hook for hook in self._left if hook.poll() is not None]:
            self._left.remove(hook)
            self._note(hook)
        if self._terminal is None:
            wakeups.wait(next(self._pauses), self._news)
        else:
            self._terminal.pump(next(self._pauses), self._news)

    def _start(self) -> Verdict:
        """All of the start within one `$prologalarm` (mom_main.c:5713-5726)."""
        self._start_ends = time.monotonic() + self._home.here.alarm_seconds()
        again = Verdict.ABORT if self.job.interactive else Verdict.REQUEUE
        try:
            self._until_done(self._hook("presetup"), pause=self._start_pause)
            if not self._sisters.join(self.job, pause=self._start_pause):
                return again
            for kind in _STARTS:
                if kind == _STARTS[0] and self._ended:
                    break
                result = self._until_done(self._hook(kind), pause=self._start_pause)
                verdict = rules.verdict(result, interactive=self.job.interactive)
                if verdict is not Verdict.RUN:
                    return verdict
        except _TooLate:
            # Nobody stops what still runs: the epilogues and the next start begin beside it.
            return again
        return Verdict.RUN

    def _start_pause(self) -> None:
        """A start goes on whatever the job is told, and ends when its time is over."""
        self._pause()
        if self._deleted and not self._wishes.warned:
            self._wishes.warned = True
            self._precancel()
        if self._wishes.delete_at is not None and not self._ended:
            # Nobody tells the prologue: the epilogue runs beside it (requests.c:2261-2285).
            if time.monotonic() >= self._wishes.delete_at + self._timing.kill_delay:
                self._home.script(self.job.id).unlink(missing_ok=True)
                self._end_hooks(0)
        elif not self._ended and time.monotonic() > self._start_ends:
            raise _TooLate

    def _precancel(self) -> None:
        self._until_done(self._hook("epilogue.precancel"))

    def _finish(self, status: int, *, comment: str = "") -> None:
        if not self._ended:
            self._end_hooks(status)
        deliver(self._home, self.job)
        self._complete(comment or ("deleted" if self._deleted else ""))

    @property
    def _ended(self) -> bool:
        return self.job.state == "E"

    def _end_hooks(self, status: int) -> None:
        self.job = self._home.save(self.job, state="E", exit_status=status)
        self._sisters.end(self.job, pause=self._pause)
        for kind in _ENDS:
            self._until_done(self._hook(kind))

    def _hook(self, kind: str) -> Hook:
        hook = Hook(self._home, kind, self.job, terminal=self._terminal.slave if self._terminal else None)
        hook.start()
        self._pauses = growing(longest=_LONGEST_PAUSE_SECONDS)
        return hook

    def _until_done(self, hook: Hook, *, pause: Callable[[], None] | None = None) -> int:
        try:
            while (result := hook.poll()) is None:
                (pause or self._pause)()
        except _TooLate:
            if hook.child is not None:
                self._left.append(hook)
            raise
        self._note(hook)
        return result

    def _note(self, hook: Hook) -> None:
        if hook.was_there:
            self.history.append(hook.record())

    def _requeue(self, comment: str) -> bool:
        self._home.task(self.job.id).unlink(missing_ok=True)
        self.job = self._home.save(self.job, state="Q", comment=comment)
        return True

    def _complete(self, comment: str) -> None:
        job = self.job.id
        for path in (self._home.script(job), self._home.task(job), self._home.node_file(job)):
            path.unlink(missing_ok=True)
        self.job = self._home.save(self.job, state="C", comment=comment)


_ORDERS = (signal.SIGTERM, signal.SIGUSR1)


def hold_orders() -> None:
    """What a life is told before it can hear waits until it can: its interpreter has yet to load it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)


def live(
    home: Home, job: JobRecord, *, place: Places, install: Callable[..., object], recover: bool = False
) -> JobRecord:
    """Live a job's life as a process: TERM deletes the job, USR1 starts it anew. `install` is signal.signal."""
    life = Life(home, job, place=place)
    install(signal.SIGTERM, life.delete)
    install(signal.SIGUSR1, life.rerun)
    install(signal.SIGCHLD, life.hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
    return life.recover() if recover else life.run()
