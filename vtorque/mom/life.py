# SPDX-License-Identifier: Apache-2.0
"""One job's life, in a process of its own: hooks, script, hooks, outputs.

Single-threaded: everything that may last is looked after in one loop, because
Torque lets an epilogue run beside its own prologue.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vtorque import proc
from vtorque.errors import CommandError
from vtorque.mom import rules, terminal
from vtorque.mom.delivery import deliver
from vtorque.mom.hooks import Hook, HookRun, open_outputs
from vtorque.mom.places import Places, here
from vtorque.mom.rules import JOB_EXEC_FAIL1, JOB_EXEC_FAIL2, JOB_EXEC_OVERLIMIT_WT, JOB_EXEC_RETRY, Verdict
from vtorque.mom.sisters import Sisters
from vtorque.mom.spool import Home, JobRecord
from vtorque.mom.terminal import Terminal

_TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Torque's own pauses, in seconds; tests shorten them."""

    kill_delay: float = 2.0
    walltime_grace: float = 3.0


class Life:
    """From queued to completed."""

    def __init__(
        self, home: Home, job: JobRecord, *, timing: Timing | None = None, place: Places | None = None
    ) -> None:
        self._home = home
        self.job = job
        self._timing = timing or Timing()
        self._delete_at: float | None = None
        self._terminal: Terminal | None = None
        self.history: list[HookRun] = []
        self._sisters = Sisters(home, job, place=place or here(home.mom_priv), note=self.history.append)

    def delete(self, number: int = 0, frame: FrameType | None = None) -> None:
        """What qdel does; also a signal handler."""
        if self._delete_at is None:
            self._delete_at = time.monotonic()

    def run(self) -> JobRecord:
        """Live until the job is completed; its final record."""
        try:
            while self._attempt():
                pass
        finally:
            self._let_go()
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
            self._finish(self._script())
            return False
        self._end_hooks(JOB_EXEC_FAIL2 if verdict is Verdict.ABORT else JOB_EXEC_RETRY)
        if self._deleted:
            self._finish(0)
            return False
        if verdict is Verdict.ABORT:
            self._complete("the prologue aborted the job")
            return False
        self.job = self._home.save(self.job, state="Q", comment="the prologue asked for another start")
        return True

    def recover(self) -> JobRecord:
        """End the job of an engine that died."""
        self._sisters.have_joined = True
        self._finish(JOB_EXEC_FAIL2, comment="the engine was restarted while the job ran")
        return self.job

    @property
    def _deleted(self) -> bool:
        return self._delete_at is not None

    def _prepare(self) -> None:
        job = self.job
        node_file = self._home.node_file(job.id)
        node_file.write_text("".join(f"{host}\n" for host in job.hosts))
        node_file.chmod(0o644)
        if not job.interactive:
            for handle in set(open_outputs(self._home, job)):
                os.close(handle)
        self.job = self._home.save(
            job, state="R", exit_status=None,
            output_path=rules.output_path(job.output_path, job), error_path=rules.output_path(job.error_path, job),
        )

    def _attach(self) -> bool:
        try:
            self._terminal = terminal.attach(self.job)
        except (OSError, ValueError):
            return False
        return True

    def _let_go(self) -> None:
        while self._sisters.are_busy:
            self._pause()
        if self._terminal is not None:
            self._terminal.close()

    def _pause(self) -> None:
        """What every loop does while it waits: an interactive job's user is served meanwhile."""
        self._sisters.work()
        if self._terminal is None:
            time.sleep(_TICK_SECONDS)
        else:
            self._terminal.pump(_TICK_SECONDS)

    def _start(self) -> Verdict:
        """All of the start within one `$prologalarm` (mom_main.c:5713-5726)."""
        began = time.monotonic()
        budget = self._home.here.alarm_seconds()
        again = Verdict.ABORT if self.job.interactive else Verdict.REQUEUE
        if not self._sisters.join(self.job, pause=self._pause):
            return again
        for kind in ("prologue", "prologue.user"):
            hook = self._hook(kind)
            if kind == "prologue" and self._deleted_meanwhile(hook):
                return Verdict.RUN
            verdict = rules.verdict(self._until_done(hook), interactive=self.job.interactive)
            if verdict is not Verdict.RUN:
                return verdict
        return Verdict.RUN if time.monotonic() - began <= budget else again

    def _deleted_meanwhile(self, prologue: Hook) -> bool:
        """After qdel nobody tells the prologue: the epilogue runs beside it (requests.c:2261-2285)."""
        while prologue.poll() is None:
            if self._delete_at is not None and time.monotonic() >= self._delete_at + self._timing.kill_delay:
                self._home.script(self.job.id).unlink(missing_ok=True)
                self._end_hooks(0)
                self._until_done(prologue)
                return True
            self._pause()
        return False

    def _script(self) -> int:
        if self._terminal is not None:
            return self._session(self._terminal)
        out, err = open_outputs(self._home, self.job)
        try:
            child = self._shell([], stdin=proc.PIPE, stdout=out, stderr=err)
            assert child.stdin is not None
            # The shell reads the script's path, not the script (start_exec.c:2683-2736).
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(f"{self._home.script(self.job.id)} {self.job.arguments}".rstrip().encode() + b"\n")
            return self._until_ended(child, lambda text: os.write(err, text.encode()))
        except CommandError as error:
            os.write(err, f"PBS: {error}\n".encode())
            return JOB_EXEC_FAIL2
        finally:
            for handle in {out, err}:
                os.close(handle)

    def _session(self, line: Terminal) -> int:
        """An interactive job: its shell has the terminal, until it ends or the user is gone."""
        if not line.connected:
            return rules.job_exit_status(-signal.SIGHUP)
        command = ["-c", self.job.command] if self.job.command else []
        tty = line.slave
        try:
            child = self._shell(command, stdin=tty, stdout=tty, stderr=tty, before_exec=terminal.take_control)
            return self._until_ended(child, line.say)
        except CommandError as error:
            line.say(f"PBS: {error}\n")
            return JOB_EXEC_FAIL2
        finally:
            # qsub ends before the epilogue, as Torque's does.
            line.close()

    def _shell(
        self,
        more: list[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        before_exec: Callable[[], None] | None = None,
    ) -> proc.Child:
        job = self.job
        self._home.task(job.id).touch(mode=0o600)
        shell = job.shell or job.login_shell
        child = proc.spawn(
            [f"-{Path(shell).name}", *more], executable=Path(shell), stdin=stdin, stdout=stdout, stderr=stderr,
            env=rules.job_environment(
                job, node_file=self._home.node_file(job.id), term=self._terminal.term if self._terminal else ""
            ),
            cwd=Path(job.work_directory or job.home), umask=0o077, before_exec=before_exec,
            identity=proc.Identity(uid=job.uid, gid=job.gid, groups=job.groups),
        )
        self.job = self._home.save(job, session=child.pid)
        return child

    def _until_ended(self, child: proc.Child, say: Callable[[str], object]) -> int:
        """Its exit status; what is left of its session then is killed."""
        try:
            return self._watch(child, say)
        finally:
            proc.kill_session(child.pid)

    def _watch(self, child: proc.Child, say: Callable[[str], object]) -> int:
        began = time.monotonic()
        while child.poll() is None:
            if self._deleted:
                self._kill(child, self._timing.kill_delay)
                break
            if self._terminal is not None and not self._terminal.connected:
                # The kernel sends HUP to a session whose terminal is gone.
                self._terminal.hang_up()
                self._end_session(child, signal.SIGHUP, self._timing.kill_delay)
                break
            used = time.monotonic() - began
            if self.job.walltime and used > self.job.walltime:
                say(f"=>> PBS: job killed: walltime {used:.0f} exceeded limit {self.job.walltime}\n")
                self._kill(child, self._timing.walltime_grace)
                return JOB_EXEC_OVERLIMIT_WT
            self._pause()
        return rules.job_exit_status(child.wait())

    def _kill(self, child: proc.Child, patience: float) -> None:
        self._until_done(self._hook("epilogue.precancel"))
        self._end_session(child, signal.SIGTERM, patience)

    def _end_session(self, child: proc.Child, number: signal.Signals, patience: float) -> None:
        proc.kill_session(child.pid, number)
        end = time.monotonic() + patience
        while time.monotonic() < end and proc.session_members(child.pid):
            child.poll()
            self._pause()
        proc.kill_session(child.pid)
        child.wait()

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
        for kind in ("epilogue.user", "epilogue"):
            self._until_done(self._hook(kind))

    def _hook(self, kind: str) -> Hook:
        hook = Hook(self._home, kind, self.job, terminal=self._terminal.slave if self._terminal else None)
        hook.start()
        return hook

    def _until_done(self, hook: Hook) -> int:
        while (result := hook.poll()) is None:
            self._pause()
        self.history.append(hook.record())
        return result

    def _complete(self, comment: str) -> None:
        job = self.job.id
        for path in (self._home.script(job), self._home.task(job), self._home.node_file(job)):
            path.unlink(missing_ok=True)
        self.job = self._home.save(self.job, state="C", comment=comment)


def live(
    home: Home, job: JobRecord, *, place: Places, install: Callable[..., object], recover: bool = False
) -> JobRecord:
    """Live a job's life as a process: TERM deletes the job. `install` is signal.signal."""
    life = Life(home, job, place=place)
    install(signal.SIGTERM, life.delete)
    return life.recover() if recover else life.run()
