# SPDX-License-Identifier: Apache-2.0
"""A node on which every hook dies, or fails, at every effect it has; and what has to be there afterwards.

Its hypervisor and packet filter live on when a hook is killed. Everything is
imported before, so that a point costs milliseconds.
"""

import contextlib
import copy
import logging
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests import faults
from tests.contract.test_lifecycle import Scene
from tests.fakes.durable import DurableFilter, DurableHypervisor
from tests.fakes.guest import FakeSession, FakeTransport
from tests.faults import KILL, Fault, Outcome
from tests.inventory import Watched
from vtorque import guard, guestnames, imageprobe, lifecycle, orders, run, state
from vtorque.cli import pelog
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.guard import Orders
from vtorque.model import JobId, PelogKind
from vtorque.run import NotStarted

_NONE = Fault(kind=KILL, number=0)
_KILLED = -9
_RETRY = 3
_PATIENCE_SECONDS = 60.0
_BRIEFLY_SECONDS = 0.02
_BEFORE = "before"
_PLACES = ("run", "disks", "domains", "tables")
Verb = Callable[[Deadline], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A hook, what ran before it, and who comes after it when it died or failed."""

    before: str
    after: str
    says: bytes = b""


CASES = {
    "prologue": Case(before="", after="epilogue"),
    "prologue.parallel": Case(before="", after="epilogue.parallel"),
    "epilogue": Case(before="prologue", after="epilogue"),
    "epilogue.parallel": Case(before="prologue.parallel", after="sweep"),
    "sweep": Case(before="prologue", after="sweep"),
    "guard": Case(before="prologue.parallel", after="epilogue.parallel", says=b"failed: cannot mount\n"),
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one fault led to: nothing of the first two is right. `effects` is 0 when the hook was killed."""

    leaks: tuple[str, ...]
    wrong: tuple[str, ...]
    effects: int


def timeless(seconds: float = 60) -> Deadline:
    """A deadline whose pauses cost no time."""
    now = [0.0]

    def sleep(for_seconds: float, *until: object) -> None:
        now[0] += for_seconds

    return Deadline(seconds, clock=lambda: now[0], sleep=sleep)


def brisk() -> Deadline:
    """A deadline for those who really wait for one another, but not long for anything else."""
    return Deadline(_PATIENCE_SECONDS, sleep=lambda seconds, *until: time.sleep(min(seconds, _BRIEFLY_SECONDS)))


class Stage(Scene):
    """A node on which processes die, and what outlives them."""

    def __init__(self, root: Path, case: Case, **site: Any) -> None:
        super().__init__(root, says=case.says, **{"requeue_limit": 2, "node_failure_limit": 0, **site})
        self.case = case
        self.base = imageprobe.probe(root / "images/a.qcow2", deadline=Deadline(_PATIENCE_SECONDS), trusted=True)
        self.hypervisor = DurableHypervisor(root / "domains")
        self.filter = DurableFilter(root / "tables")
        self.node = replace(self.node, hypervisor=self.hypervisor, filter=self.filter)
        self.watched = Watched(places=(root / "run", root / "disks"), domains=self.hypervisor, tables=self.filter)

    def of(self, number: int) -> "Stage":
        """The same node for another job, which mom knows."""
        other = copy.copy(self)
        script = self.root / f"{number}.srv.SC"
        script.touch()
        other.job = self.job._replace(id=JobId(f"{number}.srv"), spool_script=script)
        said = f"ready {guestnames.guest_uuid(other.job.id, 0)}\n".encode()
        other.node = replace(self.node, transport=FakeTransport({"10.0.0.1": lambda: FakeSession(said)}))
        other.state = other.node.state(other.job.key)
        (self.root / "mom_priv/jobs").mkdir(parents=True, exist_ok=True)
        (self.root / "mom_priv/jobs" / f"{other.job.key}.JB").touch()
        return other

    def launch(self, told: Orders, place: int) -> None:
        (self.root / "orders").write_bytes(orders.encode(told))

    def told(self) -> Orders:
        """What the last guard that was wanted is told."""
        told: Orders = orders.decode(Orders, (self.root / "orders").read_bytes())
        return replace(told, generation=self.state.generation)

    def verb(self, hook: str) -> Verb:
        """What a hook does, or one who works beside the hooks."""
        sister = self.job._replace(nodes=(), spool_script=None)
        verbs: dict[str, Verb] = {
            "prologue": lambda deadline: lifecycle.prologue(self.job, self.node, self.launch, deadline=deadline),
            "prologue.parallel": lambda deadline: lifecycle.prologue_parallel(
                sister, self.node, self.launch, deadline=deadline),
            "epilogue": lambda deadline: lifecycle.epilogue(
                self.job._replace(exit_status=0), self.node, deadline=deadline),
            "epilogue.parallel": lambda deadline: lifecycle.epilogue_parallel(
                sister._replace(exit_status=0), self.node, deadline=deadline),
            "sweep": lambda deadline: lifecycle.sweep(self.node, deadline=deadline),
            "guard": lambda deadline: guard.watch(self.told(), self.node),
        }
        return verbs[hook]

    def call(
        self, hook: str, fault: Fault = _NONE, *, meanwhile: Verb | None = None,
        until: Callable[[], Deadline] = timeless,
    ) -> Outcome:
        """Run a hook as mom does, in a process of its own that meets the fault."""
        kind = PelogKind(hook) if hook in set(PelogKind) else PelogKind.EPILOGUE_PARALLEL
        call = pelog.Call(
            system="torque", kind=kind, hook=self.root / hook, arguments=(), environ={}, directory=self.root, umask=0o22
        )

        def work() -> int:
            os.umask(0o077)
            logging.getLogger().handlers = [logging.NullHandler()]
            vars(pelog)["_prepare"] = lambda *words: self.verb(hook)
            # A process without effects, as dear as all the rest.
            vars(imageprobe)["probe"] = lambda *words, **named: self.base
            return pelog._own_part(call, until())

        said = self.root / f"said.{self.job.key}"
        return faults.under(fault, work, said=said, meanwhile=lambda: meanwhile and meanwhile(until()))

    def prepare(self) -> None:
        """Run what comes before the hook, and keep what is there then; all modules that are loaded on the way."""
        self.clear()
        if self.case.before:
            self.verb(self.case.before)(timeless())
        for name in _PLACES:
            if (self.root / name).exists():
                _copy(self.root / name, self.root / _BEFORE / name)

    def again(self) -> None:
        """As it was before the hook."""
        self.clear()
        with contextlib.suppress(FileNotFoundError):
            _copy(self.root / _BEFORE, self.root)

    def clear(self, *, but: str = "") -> None:
        """Nothing is there any more of what hooks leave, `but` a place of that name."""
        for name in _PLACES:
            if name != but:
                shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("domains", "tables"):
            (self.root / name).mkdir()


@contextlib.contextmanager
def place(root: Path) -> Iterator[Path]:
    """A directory of root's alone, for as long as it is wanted; in memory, where fsync costs nothing."""
    root.mkdir(mode=0o755)
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", root], check=True)
        root.rmdir()


@contextlib.contextmanager
def stage(root: Path, hook: str, **site: Any) -> Iterator[Callable[[Fault], Found]]:
    """Faults for a hook, to be tried below `root` one after the other."""
    with place(root):
        here = Stage(root, CASES[hook], **site)
        # For what is imported late, and is not to be imported for every fault anew.
        with contextlib.suppress(VtorqueError):
            here.verb("prologue")(timeless())
        here.prepare()
        for each in (hook, here.case.after):
            assert here.call(each).status == 0
        # The only directory that not every life leaves behind.
        state.attempt(root / "run", here.job)
        state.forget_attempts(root / "run", here.job.key)
        clean = here.watched.take()
        assert not [name for name in clean if name.startswith(("file", "domain", "table"))], clean
        yield lambda fault: _try(here, hook, fault, clean)


def _try(here: Stage, hook: str, fault: Fault, clean: dict[str, str]) -> Found:
    here.again()
    outcome = here.call(hook, fault)
    wrong = [*_wrong(hook, outcome, here)]
    last = here.call(here.case.after)
    if (last.status, last.said) != (0, ""):
        wrong.append(f"then {here.case.after} ended with {last.status}: {last.said}")
    left = [f"{name}: {look}" for name, look in here.watched.take().items() if clean.get(name) != look]
    return Found(leaks=(*left, *faults.orphans()), wrong=tuple(wrong), effects=outcome.effects)


def _wrong(hook: str, outcome: Outcome, here: Stage) -> Iterator[str]:
    """A start either has its guests, or its wrapper says why not, or it is tried again and mom is told why."""
    runs = False
    try:
        guests = run.proven(here.state.path, here.job.id)
    except NotStarted as error:
        if not error.brief or "\n" in error.brief:
            yield f"the wrapper says {error.brief!r}"
    else:
        runs = True
        domains, tables = here.hypervisor.domains(deadline=timeless()), here.filter.tables(deadline=timeless())
        if hook.startswith("prologue") and (len(guests.peers), len(domains), len(tables)) != (1, 1, 1):
            yield f"it is to run in {guests.peers}, there are {domains} and {tables}"
    if "Traceback" in outcome.said:
        yield outcome.said
    if outcome.status == 0 and hook == "prologue" and not runs and not (here.state.path / "failed").exists():
        yield "it ended well, without guests and without a reason"
    if outcome.status not in (0, _KILLED):
        if not outcome.said.startswith("vtorque: ") or outcome.said.count("\n") != 1:
            yield f"it says {outcome.said!r}"
        if hook.startswith("prologue") and (runs or outcome.status != _RETRY):
            yield f"it ended with {outcome.status}, and is {'' if runs else 'not '}to run"


def _copy(source: Path, target: Path) -> None:
    """A tree with its sockets, at which nobody listens."""

    def one(path: str, to: str) -> None:
        about = os.lstat(path)
        if stat.S_ISSOCK(about.st_mode):
            os.mknod(to, about.st_mode)
        else:
            shutil.copy2(path, to, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, copy_function=one)
