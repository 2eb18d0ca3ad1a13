# SPDX-License-Identifier: Apache-2.0
"""One job's life, in a process of its own: hooks, script, hooks, outputs.

Single-threaded: everything that may last is looked after in one loop, because
Torque lets an epilogue run beside its own prologue.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.mom import rules
from vtorque.mom.hooks import Hook, HookRun, open_outputs
from vtorque.mom.rules import JOB_EXEC_FAIL2, JOB_EXEC_OVERLIMIT_WT, JOB_EXEC_RETRY, Verdict
from vtorque.mom.spool import Home, JobRecord

_TICK_SECONDS = 0.02
_COPY_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Torque's own pauses, in seconds; tests shorten them."""

    kill_delay: float = 2.0
    walltime_grace: float = 3.0


class Life:
    """From queued to completed."""

    def __init__(self, home: Home, job: JobRecord, *, timing: Timing | None = None) -> None:
        self._home = home
        self.job = job
        self._timing = timing or Timing()
        self._delete_at: float | None = None
        self.history: list[HookRun] = []

    def delete(self, number: int = 0, frame: FrameType | None = None) -> None:
        """What qdel does; also a signal handler."""
        if self._delete_at is None:
            self._delete_at = time.monotonic()

    def run(self) -> JobRecord:
        """Live until the job is completed; its final record."""
        while True:
            self._prepare()
            verdict = self._start()
            if self._ended:
                self._finish(0)
                break
            if verdict is Verdict.RUN:
                self._finish(self._script())
                break
            self._end_hooks(JOB_EXEC_FAIL2 if verdict is Verdict.ABORT else JOB_EXEC_RETRY)
            if self._deleted:
                self._finish(0)
                break
            if verdict is Verdict.ABORT:
                self._complete("the prologue aborted the job")
                break
            self.job = self._home.save(self.job, state="Q", comment="the prologue asked for another start")
        return self.job

    def recover(self) -> JobRecord:
        """End the job of an engine that died."""
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
        for handle in set(open_outputs(self._home, job)):
            os.close(handle)
        self.job = self._home.save(job, state="R", exit_status=None)

    def _start(self) -> Verdict:
        """All of the start within one `$prologalarm` (mom_main.c:5713-5726)."""
        began = time.monotonic()
        budget = self._home.alarm_seconds(rules.DEFAULT_ALARM_SECONDS)
        sisters = list(dict.fromkeys(self.job.hosts))[1:]
        for number, sister in enumerate(sisters, 1):
            for kind in ("prologue.parallel", "prologue.user.parallel"):
                hook = self._hook(kind, node_number=number, sister=sister)
                if self._until_done(hook) != rules.SUCCESS:
                    return Verdict.REQUEUE
        for kind in ("prologue", "prologue.user"):
            hook = self._hook(kind)
            if kind == "prologue" and self._deleted_meanwhile(hook):
                return Verdict.RUN
            verdict = rules.verdict(self._until_done(hook))
            if verdict is not Verdict.RUN:
                return verdict
        return Verdict.RUN if time.monotonic() - began <= budget else Verdict.REQUEUE

    def _deleted_meanwhile(self, prologue: Hook) -> bool:
        """After qdel nobody tells the prologue: the epilogue runs beside it (requests.c:2261-2285)."""
        while prologue.poll() is None:
            if self._delete_at is not None and time.monotonic() >= self._delete_at + self._timing.kill_delay:
                self._home.script(self.job.id).unlink(missing_ok=True)
                self._end_hooks(0)
                self._until_done(prologue)
                return True
            time.sleep(_TICK_SECONDS)
        return False

    def _script(self) -> int:
        job = self.job
        out, err = open_outputs(self._home, job)
        self._home.task(job.id).touch(mode=0o600)
        shell = job.shell or job.login_shell
        child = proc.spawn(
            [f"-{Path(shell).name}"], executable=Path(shell), stdin=proc.PIPE, stdout=out, stderr=err,
            env=self._environment(), cwd=Path(job.work_directory or job.home), umask=0o077,
            identity=proc.Identity(uid=job.uid, gid=job.gid, groups=job.groups),
        )
        self.job = self._home.save(job, session=child.pid)
        assert child.stdin is not None
        # The shell reads the script's path, not the script (start_exec.c:2683-2736).
        child.stdin.write(f"{self._home.script(job.id)} {job.arguments}".rstrip().encode() + b"\n")
        child.stdin.close()
        status = self._until_ended(child, err)
        proc.kill_session(child.pid)
        for handle in {out, err}:
            os.close(handle)
        return status

    def _until_ended(self, child: proc.Child, err: int) -> int:
        began = time.monotonic()
        while child.poll() is None:
            if self._deleted:
                self._kill(child, self._timing.kill_delay)
                break
            used = time.monotonic() - began
            if self.job.walltime and used > self.job.walltime:
                limit = f"walltime {used:.0f} exceeded limit {self.job.walltime}"
                os.write(err, f"=>> PBS: job killed: {limit}\n".encode())
                self._kill(child, self._timing.walltime_grace)
                return JOB_EXEC_OVERLIMIT_WT
            time.sleep(_TICK_SECONDS)
        return rules.job_exit_status(child.wait())

    def _kill(self, child: proc.Child, patience: float) -> None:
        self._until_done(self._hook("epilogue.precancel"))
        proc.kill_session(child.pid, signal.SIGTERM)
        end = time.monotonic() + patience
        while time.monotonic() < end and proc.session_members(child.pid):
            child.poll()
            time.sleep(_TICK_SECONDS)
        proc.kill_session(child.pid)
        child.wait()

    def _finish(self, status: int, *, comment: str = "") -> None:
        if not self._ended:
            self._end_hooks(status)
        self._deliver()
        self._complete(comment or ("deleted" if self._deleted else ""))

    @property
    def _ended(self) -> bool:
        return self.job.state == "E"

    def _end_hooks(self, status: int) -> None:
        self.job = self._home.save(self.job, state="E", exit_status=status)
        sisters = list(dict.fromkeys(self.job.hosts))[1:]
        for number, sister in enumerate(sisters, 1):
            for kind in ("epilogue.user.parallel", "epilogue.parallel"):
                self._until_done(self._hook(kind, node_number=number, sister=sister))
        for kind in ("epilogue.user", "epilogue"):
            self._until_done(self._hook(kind))

    def _hook(self, kind: str, *, node_number: int = 0, sister: str = "") -> Hook:
        hook = Hook(self._home, kind, self.job, node_number=node_number, sister=sister)
        hook.start()
        return hook

    def _until_done(self, hook: Hook) -> int:
        while (result := hook.poll()) is None:
            time.sleep(_TICK_SECONDS)
        self.history.append(hook.record())
        return result

    def _environment(self) -> dict[str, str]:
        job = self.job
        _, ppn = rules.shape(job.resources.get("nodes", "1"))
        return {
            **rules.environment(
                job, node_number=0, mother_superior=job.hosts[0], node_file=self._home.node_file(job.id)
            ),
            "HOME": job.home, "USER": job.owner, "LOGNAME": job.owner, "SHELL": job.login_shell,
            "ENVIRONMENT": "BATCH", "PBS_ENVIRONMENT": "PBS_BATCH",
            "PBS_JOBID": job.id, "PBS_JOBNAME": job.name, "PBS_QUEUE": job.queue,
            "PBS_NUM_PPN": str(ppn), "PBS_VNODENUM": "0", "PBS_TASKNUM": "1",
            "PBS_WALLTIME": str(job.walltime), "PBS_VERSION": "vtorque-local",
            **job.variables,
        }

    def _deliver(self) -> None:
        """Copy the outputs to the user's files, as the user, or keep them where he can ask for them."""
        identity = proc.Identity(uid=self.job.uid, gid=self.job.gid, groups=self.job.groups)
        for ending, target in (("OU", self.job.output_path), ("ER", self.job.error_path)):
            spooled = self._home.output(self.job.id, ending)
            if not spooled.exists():
                continue
            try:
                copy = ["/bin/cp", "--", str(spooled), target]
                proc.run(copy, deadline=Deadline(_COPY_SECONDS), identity=identity)
                spooled.unlink()
            except VtorqueError:
                spooled.rename(self._home.undelivered() / spooled.name)

    def _complete(self, comment: str) -> None:
        job = self.job.id
        for path in (self._home.script(job), self._home.task(job), self._home.node_file(job)):
            path.unlink(missing_ok=True)
        self.job = self._home.save(self.job, state="C", comment=comment)


def live(home: Home, job: JobRecord, *, install: Callable[..., object], recover: bool = False) -> JobRecord:
    """Live a job's life as a process: TERM deletes the job. `install` is signal.signal."""
    life = Life(home, job)
    install(signal.SIGTERM, life.delete)
    return life.recover() if recover else life.run()
