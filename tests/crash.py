# SPDX-License-Identifier: Apache-2.0
"""A node on which every hook dies, or fails, at every effect it has; and what has to be there afterwards.

A hook is root and the program, each a process of its own, and whoever they ask: all of them meet faults. Its
hypervisor and packet filter live on when a hook is killed. Everything is imported before, so that a point costs
less than a second.
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
from tests.contract.test_lifecycle import Scene, hooked
from tests.fakes.durable import DurableFilter, DurableHypervisor
from tests.fakes.guest import FakeSession, FakeTransport
from tests.fakes.node import OURSELVES
from tests.faults import KILL, Fault, Outcome
from tests.inventory import Watched
from vtorque import accounts, guard, guestnames, imageprobe, lifecycle, orders, run
from vtorque.cli import assembly, pelog, rooted
from vtorque.cli import hooked as program
from vtorque.cli.family import Family
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.guard import Orders
from vtorque.model import JobId, PelogKind
from vtorque.monitor import Bound
from vtorque.node import Node
from vtorque.options import SiteConfig
from vtorque.proc import Identity
from vtorque.run import NotStarted

_NONE = Fault(kind=KILL, number=0)
_KILLED = -9
_RETRY = 3
_PROGRAM_KILLED = "vtorque: the program ended with status -9\n"
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
    """A node on which processes die, and what outlives them. What runs in this process is `OURSELVES` anyway."""

    def __init__(self, root: Path, case: Case, *, identity: Identity = OURSELVES, **site: Any) -> None:
        super().__init__(root, says=case.says, **{"requeue_limit": 2, "node_failure_limit": 0, **site})
        self.case = case
        self.identity = identity
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
        """What a hook does, or one who works beside the hooks, in this process."""
        return lambda deadline: self._verb(hook, hooked(self.node, self.job), self.launch)(deadline)

    def _verb(self, hook: str, node: Node, launch: lifecycle.Launch, told: Orders | None = None) -> Verb:
        job = self.job._replace(exit_status=0) if hook.startswith("epilogue") else self.job
        sister = job._replace(nodes=(), spool_script=None)
        verbs: dict[str, Verb] = {
            "prologue": lambda deadline: lifecycle.prologue(job, node, launch, deadline=deadline),
            "prologue.parallel": lambda deadline: lifecycle.prologue_parallel(sister, node, launch, deadline=deadline),
            "epilogue": lambda deadline: lifecycle.epilogue(job, node, deadline=deadline),
            "epilogue.parallel": lambda deadline: lifecycle.epilogue_parallel(sister, node, deadline=deadline),
            "sweep": lambda deadline: lifecycle.sweep(node, deadline=deadline),
            "guard": lambda deadline: guard.watch(told or self.told(), node),
        }
        return verbs[hook]

    def call(
        self, hook: str, fault: Fault = _NONE, *, meanwhile: Verb | None = None,
        until: Callable[[], Deadline] = timeless,
    ) -> Outcome:
        """Run a hook as mom does, in processes of its own that meet the fault."""
        kind = PelogKind(hook) if hook in set(PelogKind) else PelogKind.EPILOGUE_PARALLEL
        call = pelog.Call(
            system="torque", name=kind, hook=self.root / hook, arguments=(self.job.id, self.job.user), environ={},
            directory=self.root, umask=0o22, begun=time.monotonic(),
        )
        # Whoever reads it is root: there is a key in it.
        told = self.told() if hook == "guard" else None

        def work() -> int:
            os.umask(0o077)
            logging.getLogger().handlers = [logging.NullHandler()]
            self._stand_in(hook, told, until)
            return pelog._hook(call)

        said = self.root / f"said.{self.job.key}"
        return faults.under(fault, work, said=said, meanwhile=lambda: meanwhile and meanwhile(until()))

    def _stand_in(self, hook: str, told: Orders | None, until: Callable[[], Deadline]) -> None:
        """Have root, which this process is, and the program, which it forks, live on this node."""

        def prepare(
            call: pelog.Call, site: SiteConfig, kin: Family, conf: str, stack: contextlib.ExitStack
        ) -> Verb:
            real = stack.enter_context(assembly.node(site, kin))
            node = replace(
                self.node, root=real.root, hypervisor=real.hypervisor, planning=real.planning, clerk=real.clerk
            )
            verb = self._verb(hook, node, program.launch(node), told)
            return lambda deadline: verb(until())

        def keep(bound: Bound, told: bytes, place: int, talks: bool) -> None:
            (self.root / "orders").write_bytes(told)

        vars(accounts)["program"] = lambda: (self.identity.uid, self.identity.gid)
        vars(rooted)["_domains"] = lambda site: self.hypervisor
        vars(assembly)["site"] = lambda prefix: self.node.site
        vars(pelog)["launch"] = keep
        vars(program)["_prepare"] = prepare
        # A process without effects, as dear as all the rest.
        vars(imageprobe)["probe"] = lambda *words, **named: self.base
        if hook == "sweep":
            # It is no job's.
            vars(rooted)["_bound"] = lambda *words, **named: None

    def prepare(self) -> None:
        """Run what comes before the hook, and keep what is there then."""
        self.clear()
        if self.case.before:
            assert self.call(self.case.before).status == 0
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
        # Rules are the network keeper's; here the program writes them itself.
        os.chown(self.root / "tables", self.identity.uid, self.identity.gid)


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
        here = Stage(root, CASES[hook], identity=Identity(*accounts.program(), groups=()), **site)
        # For what is imported late, and is not to be imported for every fault anew.
        with contextlib.suppress(VtorqueError):
            here.verb("prologue")(timeless())
        here.prepare()
        for each in (hook, here.case.after):
            assert here.call(each).status == 0 and not (here.state.path / "failed").exists()
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
        guests = run.proven(here.state.path, here.job.id, owner=here.identity.uid)
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
    # Before the program has begun nothing can be counted: mom is told why, and so is the user, by the wrapper.
    # Of a program that is killed mom is told no more than of a hook.
    began = outcome.said != _PROGRAM_KILLED and (here.state.exists or not outcome.said)
    if outcome.status == 0 and hook == "prologue" and not runs and began and not (here.state.path / "failed").exists():
        yield "it ended well, without guests and without a reason"
    says_why = outcome.said.startswith("vtorque: ") and outcome.said.count("\n") == 1
    if outcome.status != _KILLED and (outcome.status or outcome.said) and not says_why:
        yield f"it says {outcome.said!r}"
    if outcome.status not in (0, _KILLED) and hook.startswith("prologue") and (runs or outcome.status != _RETRY):
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
    for path in (source, *source.rglob("*")):
        about = path.lstat()
        os.chown(target / path.relative_to(source), about.st_uid, about.st_gid, follow_symlinks=False)
