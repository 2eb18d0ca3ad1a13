# SPDX-License-Identifier: Apache-2.0
"""The real hooks and the wrapper, killed or failed by the kernel at the N-th of every system call that has effects."""

import contextlib
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.measure import Command
from tests.bench.world import JOB, World, world
from tests.fakes.durable import DurableHypervisor
from tests.inventory import Watched
from tests.soak import traced
from tests.soak.report import Tally
from vtorque import accounts, run
from vtorque.run import NotStarted

EFFECTS = (
    "openat", "write", "pwrite64", "fsync", "rename", "unlink", "unlinkat", "mkdir", "rmdir", "fchmod", "fchown",
    "ftruncate", "execve", "sendto", "sendmsg", "sendfile", "kill", "clone3", "clone", "flock",
)
FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO", "error=EINTR", "error=EACCES")
# What a call cannot fail with tells nothing.
_NEVER = {"ENOSPC": {"execve", "kill", "flock", "sendto", "sendmsg", "unlink", "unlinkat", "rmdir"},
          "EINTR": {"rename", "unlink", "unlinkat", "mkdir", "rmdir", "execve", "kill", "clone", "clone3", "fchmod"}}
_RETRY = 3
_PROGRAM_KILLED = "the program ended with status -9"
_HOOKS = {"prologue": "epilogue", "prologue.parallel": "epilogue.parallel", "epilogue": "epilogue",
          "epilogue.parallel": "epilogue.parallel", "wrapper": "epilogue"}
_BEFORE = {"epilogue": "prologue", "epilogue.parallel": "prologue.parallel", "wrapper": "prologue"}
_MOST = 2000
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class _Ended:
    status: int
    said: str
    injected: bool


class _Scene:
    """A world in which hooks die, and what has to be there afterwards."""

    def __init__(self, here: World) -> None:
        self.here = here
        with (here.prefix / "etc/vtorque.yaml").open("a") as site:
            # A node that takes no more jobs, because it has failed so many, would end all that follows.
            site.write("NODE_FAILURE_LIMIT: 0\n")
        script = here.prefix / "scripts/hook"
        text = script.read_text()
        script.write_text(text.replace("tests.bench import standin", "tests.soak import traced as standin"))
        self.domains = DurableHypervisor(here.root / "domains")
        self.watched = Watched(
            places=(here.root / "run", here.root / "disks"), homes=(here.home,), domains=self.domains,
            words=(b"scripts/hook", b"qemu"),
        )
        self.clean = self._stands()

    def run(self, hook: str, inject: str = "", *, program: bool = False) -> _Ended:
        """Run a hook; `inject` is strace's word for what it meets, or its `program` alone."""
        command = self.here.wrapper() if hook == "wrapper" else self.here.hook(hook)
        trace, order = self.here.root / "trace", self.here.root / traced.ORDER
        # -D: who outlives the hook is still being traced, and must not keep us waiting.
        words = ["/usr/bin/strace", *(() if program else ("-D",)), "-f", "-qqq", "-o", str(trace),
                 "-e", f"trace={inject.split(':')[0]}", "-e", f"inject={inject}"] if inject else []
        trace.unlink(missing_ok=True)
        if program:
            order.write_text("\n".join(words))
        try:
            status, said = _run(command, [] if program else words)
        finally:
            order.unlink(missing_ok=True)
        injected = bool(inject) and trace.exists() and any(
            word in trace.read_text(errors="replace") for word in ("INJECTED", "SIGKILL"))
        return _Ended(status=status, said=said, injected=injected)

    def point(self, hook: str, inject: str, tally: Tally, *, program: bool) -> bool:
        """One fault; whether it was met."""
        self.here.job_directory()
        if before := _BEFORE.get(hook):
            assert self.run(before).status == 0
        try:
            ended = self.run(hook, inject, program=program)
        except subprocess.TimeoutExpired:
            ended = _Ended(status=_RETRY, said=f"it did not end within {_PATIENCE_SECONDS:g} s", injected=True)
        wrong = list(self._wrong(hook, ended))
        last = self.run(_HOOKS[hook])
        if last.status or last.said:
            wrong.append(f"then {_HOOKS[hook]} ended with {last.status}: {last.said}")
        left = self._left()
        tally.add(f"{'program of ' * program}{hook} {inject}", leaks=left, wrong=wrong, injected=ended.injected)
        if left:
            self._clear()
        return ended.injected

    def _wrong(self, hook: str, ended: _Ended) -> Iterator[str]:
        if "Traceback" in ended.said and "pelog.main(argv)" not in ended.said:
            # The stand-in could not be loaded: it is none of the program's.
            return
        if "Traceback" in ended.said:
            yield ended.said
        if hook != "prologue":
            return
        record = self.here.root / "run/jobs" / JOB
        ready = False
        with contextlib.suppress(NotStarted):
            ready = bool(run.proven(record, JOB, owner=accounts.program()[0]).peers)
        # What begins with a dot is half a domain: of a stand-in that was killed while it wrote.
        if ready and len(list((self.here.root / "domains").glob("[!.]*"))) != 1:
            yield "it is to run, and has no guest"
        killed = ended.status in (-9, 137)
        if ended.status == 0 and not ended.injected and not ready:
            yield "nothing happened to it, and it has no guests"
        if not killed and ended.status not in (0, _RETRY):
            yield f"it ended with {ended.status}: {ended.said}"
        # A program that was killed may have done all by then; another start begins anew. The shell may have said
        # before whom it lost.
        if ended.status == _RETRY and ((ready and _PROGRAM_KILLED not in ended.said) or "vtorque: " not in ended.said):
            yield f"it is tried again, and says {ended.said!r}"

    def _left(self) -> list[str]:
        """What a life has left, once guards have had the time to see that it is over."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            left = [name for name, look in self.watched.take().items() if self.clean.get(name) != look]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.2)

    def _stands(self) -> dict[str, str]:
        """What is there when lives have gone well."""
        for each in ("prologue", "epilogue", "prologue.parallel", "epilogue.parallel"):
            self.here.job_directory()
            ended = self.run(each)
            assert ended.status == 0, ended
        return {name: look for name, look in self.watched.take().items() if not name.startswith("process")}

    def _clear(self) -> None:
        for name in ("run", "disks"):
            shutil.rmtree(self.here.root / name, ignore_errors=True)
        for name in list(self.domains._domains):
            del self.domains._domains[name]
        self.clean = self._stands()


def _run(command: Command, words: list[str]) -> tuple[int, str]:
    argv = [*words, *map(str, command.argv)]
    # A file, not a pipe: who outlives the hook must not keep us waiting.
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            argv, check=False, stdout=subprocess.DEVNULL, stderr=said, stdin=subprocess.DEVNULL, env=dict(command.env),
            user=command.user, cwd="/", timeout=_PATIENCE_SECONDS,
        )
        said.seek(0)
        return done.returncode, said.read().decode(errors="replace")


def soak(tally: Tally, *, seed: int, every: int) -> None:
    """All points, until a run is not hit any more; or of one in `every` kinds so many, chosen by the seed."""
    chance = random.Random(seed)
    kinds = [(hook, call, fault, program) for hook in _HOOKS for call in EFFECTS for fault in FAULTS
             for program in (False, True)
             if call not in _NEVER.get(fault.partition("=")[2], ()) and not (program and hook == "wrapper")]
    with world() as here:
        scene = _Scene(here)
        for hook, call, fault, program in kinds if every == 1 else chance.sample(kinds, max(1, len(kinds) // every)):
            number = chance.randint(1, every)
            while number < _MOST and scene.point(
                hook, f"{call}:{fault}:when={number}", tally, program=program
            ):
                number += every
