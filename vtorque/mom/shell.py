# SPDX-License-Identifier: Apache-2.0
"""The job itself: its shell, and everything that ends it."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vtorque import proc
from vtorque.errors import CommandError
from vtorque.mom import rules, terminal
from vtorque.mom.hooks import open_outputs
from vtorque.mom.rules import JOB_EXEC_FAIL2, JOB_EXEC_OVERLIMIT_WT
from vtorque.mom.spool import Home, JobRecord
from vtorque.mom.terminal import Terminal

# A pause that was longer was none of ours.
_LONGEST_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Torque's own pauses, in seconds; tests shorten them."""

    kill_delay: float = 2.0
    walltime_grace: float = 3.0


@dataclass(slots=True, kw_only=True)
class Wishes:
    """What the job was told while it lives: by qdel when, by qrerun whether; and whether TERM has been sent for it."""

    delete_at: float | None = None
    rerun: bool = False
    warned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """What its life does for the shell: whenever it waits, before TERM is sent, and when it has a session."""

    pause: Callable[[], None]
    precancel: Callable[[], None]
    started: Callable[[int], None]


class Shell:
    """One run of a job's shell; of an interactive job it has the terminal `line`."""

    def __init__(
        self, home: Home, job: JobRecord, *, line: Terminal | None, wishes: Wishes, timing: Timing, by: Attendance
    ) -> None:
        self._home = home
        self._job = job
        self._line = line
        self._wishes = wishes
        self._timing = timing
        self._by = by

    def run(self) -> int:
        """Until it ends, or is ended; the job's exit status."""
        return self._batch() if self._line is None else self._interactive(self._line)

    def _batch(self) -> int:
        out, err = open_outputs(self._home, self._job)
        try:
            child = self._start([], stdin=proc.PIPE, stdout=out, stderr=err)
            assert child.stdin is not None
            # The shell reads the script's path, not the script (start_exec.c:2683-2736).
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(os.fsencode(f"{self._home.script(self._job.id)} {self._job.arguments}".rstrip() + "\n"))
            return self._until_ended(child, lambda text: os.write(err, text.encode()))
        except CommandError as error:
            os.write(err, f"PBS: {error}\n".encode())
            return JOB_EXEC_FAIL2
        finally:
            for handle in {out, err}:
                os.close(handle)

    def _interactive(self, line: Terminal) -> int:
        """Until it ends or the user is gone."""
        if not line.connected:
            return rules.job_exit_status(-signal.SIGHUP)
        command = ["-c", self._job.command] if self._job.command else []
        tty = line.slave
        try:
            child = self._start(command, stdin=tty, stdout=tty, stderr=tty, before_exec=terminal.take_control)
            return self._until_ended(child, line.say)
        except CommandError as error:
            line.say(f"PBS: {error}\n")
            return JOB_EXEC_FAIL2
        finally:
            # qsub ends before the epilogue, as Torque's does.
            line.close()

    def _start(
        self,
        more: list[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        before_exec: Callable[[], None] | None = None,
    ) -> proc.Child:
        job = self._job
        self._home.task(job.id).touch(mode=0o600)
        shell = job.shell or job.login_shell
        child = proc.spawn(
            [f"-{Path(shell).name}", *more], executable=Path(shell), stdin=stdin, stdout=stdout, stderr=stderr,
            env=rules.job_environment(
                job, node_file=self._home.node_file(job.id), term=self._line.term if self._line else ""
            ),
            cwd=Path(job.work_directory or job.home), umask=0o077, before_exec=before_exec,
            identity=proc.Identity(uid=job.uid, gid=job.gid, groups=job.groups),
        )
        self._by.started(child.pid)
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
            if self._wishes.delete_at is not None:
                self._delete(child, self._wishes.delete_at + self._timing.kill_delay)
                break
            if self._wishes.rerun:
                self._end(child, signal.SIGTERM, self._timing.kill_delay)
                break
            if self._line is not None and not self._line.connected:
                self._end(child, signal.SIGHUP, self._timing.kill_delay)
                break
            used = time.monotonic() - began
            if self._job.walltime and used > self._job.walltime:
                say(f"=>> PBS: job killed: walltime {used:.0f} exceeded limit {self._job.walltime}\n")
                self._by.precancel()
                self._end(child, signal.SIGTERM, self._timing.walltime_grace)
                return JOB_EXEC_OVERLIMIT_WT
            self._by.pause()
        return rules.job_exit_status(child.wait())

    def _delete(self, child: proc.Child, end: float) -> None:
        """TERM, and KILL after a while; a job that was deleted while it was being started has missed the first."""
        if not self._wishes.warned:
            self._wishes.warned = True
            self._by.precancel()
            self._end(child, signal.SIGTERM, self._timing.kill_delay)
        while child.poll() is None and time.monotonic() < end:
            self._by.pause()
        proc.kill_session(child.pid)
        child.wait()

    def _end(self, child: proc.Child, number: signal.Signals, patience: float) -> None:
        # Once, and only who is there now: a trap's commands are not to die of what the trap is for.
        # The leader first: a shell that sees its command die ends with a status before its own signal comes.
        told = sorted(proc.session_members(child.pid), key=lambda pid: pid != child.pid)
        if number == signal.SIGHUP and self._line is not None:
            # The kernel tells the leader of a session whose terminal is gone, and nobody else
            # (tty_signal_session_leader).
            self._line.hang_up()
            told = [pid for pid in told if pid != child.pid]
        for pid in told:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        # While the whole machine stands still nobody can do what a trap is for, and that is no time that he has had.
        while patience > 0 and proc.session_members(child.pid):
            child.poll()
            before = time.monotonic()
            self._by.pause()
            patience -= min(time.monotonic() - before, _LONGEST_PAUSE_SECONDS)
        proc.kill_session(child.pid)
        child.wait()
