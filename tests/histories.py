# SPDX-License-Identifier: Apache-2.0
"""Random histories of a cluster: jobs start and end, hooks are killed or held up, nodes are cut off and rebooted.

Real are the order of the verbs, the ledger with its lock and generations, what
is promised to whom, teardown and sweep. Guests, homes and time are not. At every
birth it is checked that nothing lives twice and nothing is promised twice, and at
the end, that guards and one sweep find all that is left.
"""

import contextlib
import logging
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_request, a_shape, a_site, an_image
from tests.crash import timeless
from tests.fakes.guest import HOST_KEY
from tests.fakes.hypervisor import FakeHypervisor, _Domain
from tests.fakes.node import OURSELVES, a_node
from vtorque import admission, bringup, demand, discover, files, guard, guardpost, lifecycle, plan, request
from vtorque.backends.transport import KeyPair
from vtorque.boot import Started
from vtorque.cli import rooted
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.guard import Orders
from vtorque.kinds import DIRECTORY, DOMAIN, FILE
from vtorque.model import Guest, Job, JobId, JobPlan, Resource, VmPlan
from vtorque.node import Node
from vtorque.state import JobState

NODES = 64
STEPS = 25
_CORES = 4
_MOST_EFFECTS = 70
_EFFECTS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """A process is no more: whatever it would still do does not happen."""


@dataclass(kw_only=True)
class Found:
    """What a history broke on its way, and what outlived its jobs."""

    broken: list[str] = field(default_factory=list)
    outlived: list[str] = field(default_factory=list)
    faults: int = 0
    births: int = 0


class _Fate:
    """What becomes of the process that runs now: held up before an effect, for `meanwhile`, or killed there."""

    def __init__(self) -> None:
        self.left = 0
        self.meanwhile: Callable[[], object] | None = None
        self._dead = False

    @contextlib.contextmanager
    def of(self, number: int, meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
        """Meet it at effect `number` of what is done inside, 0 for never."""
        self.left, self.meanwhile = number, meanwhile
        try:
            with contextlib.suppress(Killed, VtorqueError, OSError):
                yield
        finally:
            self.left, self.meanwhile, self._dead = 0, None, False

    def before(self, real: Callable[..., Any], *, opens: bool) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            if self._dead:
                raise Killed
            if self.left and (not opens or words[1] & os.O_CREAT):
                self.left -= 1
                if not self.left:
                    self._strike()
            return real(*words, **named)

        return call

    def _strike(self) -> None:
        if self.meanwhile is None:
            self._dead = True
            raise Killed
        meanwhile, self.meanwhile = self.meanwhile, None
        with contextlib.suppress(VtorqueError, OSError), pytest.MonkeyPatch.context() as patch:
            # It is another process, which waits for no lock between threads of this one.
            patch.setattr(files, "_UMASK", threading.Lock())
            meanwhile()


class _Side:
    """The user's side of a job in memory, the same on all nodes; nobody reaches it who is cut off."""

    def __init__(self, files: dict[str, str], *, usable: bool) -> None:
        self._files = files
        self.usable = usable

    def append(self, name: str, text: str, *, deadline: Deadline) -> bool:
        return self.usable

    def replace(self, name: str, text: str, *, deadline: Deadline) -> bool:
        if self.usable:
            self._files[name] = text
        return self.usable

    def read(self, name: str, *, limit: int, deadline: Deadline) -> str | None:
        return self._files.get(name) if self.usable else None

    def forget(self, name: str, *, deadline: Deadline) -> bool:
        if self.usable:
            self._files.pop(name, None)
        return self.usable

    def remove(self, job: str, *, elements: int, if_cancelled: bool, deadline: Deadline) -> bool:
        return self.usable


class _SimNode:
    """A node of the cluster: its own files, guests, guards and mom."""

    def __init__(self, cluster: "_Cluster", index: int) -> None:
        self.cluster = cluster
        self.name = f"n{index}"
        self.root = cluster.root / self.name
        self.jobs = self.root / "mom_priv/jobs"
        self.jobs.mkdir(parents=True)
        self.hypervisor = FakeHypervisor()
        self.cpus: dict[str, VmPlan] = {}
        self.guards: list[tuple[Orders, int]] = []
        self.cut_off = False
        self.node = a_node(
            a_site(state_dir=str(self.root / "run"), disk_dir=str(self.root / "disks"), torque_home=str(self.root),
                   log_dir=str(self.root / "log"), image_cache_dir=str(self.root / "cache"),
                   ramdisk_dir=str(self.root / "ram"), min_uid=1, host_os_core_count=0, host_os_ram_mb=0,
                   requeue_limit=3),
            shape=a_shape(name=self.name, cpus=tuple(range(_CORES))), hypervisor=self.hypervisor,
        )

    def hooked(self) -> Node:
        """The node as a hook or a sweep has it that begins now: root has prepared it."""
        rooted.prepare(self.node.site, OURSELVES)
        return self.node

    def launch(self, told: Orders, place: int) -> None:
        self.guards.append((told, os.dup(place)))

    def born(self, vm: VmPlan, key: str) -> None:
        """A guest begins to live, which is when it would be seen that it must not."""
        found = self.cluster.found
        found.births += 1
        alive = [self.cpus[name] for name in self.hypervisor._domains]
        if vm.name in self.hypervisor._domains:
            found.broken.append(f"{vm.name} lives twice on {self.name}")
        found.broken += [
            f"{vm.name} and {other.name} on {self.name} have cores {set(vm.cpus) & set(other.cpus)}"
            for other in alive if set(vm.cpus) & set(other.cpus)
        ]
        macs = {sim.cpus[name].mac: name for sim in self.cluster.nodes for name in sim.hypervisor._domains}
        if vm.mac in macs and macs[vm.mac] != vm.name:
            found.broken.append(f"{vm.name} and {macs[vm.mac]} have the same MAC")
        self.cpus[vm.name] = vm
        self.hypervisor._domains[vm.name] = _Domain(uuid=str(vm.uuid), job=key)

    def guard_looks(self) -> None:
        """What a guard does when it is time: go, or end what mom has forgotten."""
        for told, place in list(self.guards):
            record = self.node.state(told.demand.job.key)
            if record.generation == told.generation and not record.closed:
                if self.node.knows(record.key):
                    continue
                guard._tear_down(told, record, self.node)
            guardpost.leave(Path(self.node.site.state_dir), record.key)
            self.guard_dies((told, place))

    def guard_dies(self, one: tuple[Orders, int]) -> None:
        self.guards.remove(one)
        os.close(one[1])

    def reboot(self) -> None:
        for one in list(self.guards):
            self.guard_dies(one)
        self.hypervisor._domains.clear()
        shutil.rmtree(self.root / "run", ignore_errors=True)
        for path in self.jobs.iterdir():
            path.unlink()

    def left(self) -> list[str]:
        own = {self.root / "disks/node"}
        places = [path for name in ("run/jobs", "run/seeds", "run/admission", "run/guards", "disks")
                  for path in (self.root / name).rglob("*") if path not in own]
        return [f"{self.name}: {name}" for name in (*map(str, places), *self.hypervisor._domains)]


class _Cluster:
    """All nodes, and the one process that runs at a time."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root = root
        self.chance = chance
        self.found = Found()
        self.fate = _Fate()
        self.homes: dict[str, dict[str, str]] = {}
        self.nodes = [_SimNode(self, index) for index in range(NODES)]
        self.running: dict[int, list[_SimNode]] = {}
        self.waiting: list[int] = []
        self.number = 0
        # Few of the nodes have most of the jobs: there they meet.
        self.busy = chance.sample(self.nodes, 4)

    def step(self) -> None:
        """One thing happens."""
        chance = self.chance
        deed = chance.choices(
            (self.submit, self.start_again, self.end, self.reboot, self.cut, self.kill_guard, self.look),
            weights=(8, 4, 6, 1, 1, 1, 3),
        )[0]
        deed()

    def submit(self) -> None:
        self.number += 1
        self.start(self.number)

    def start_again(self) -> None:
        if self.waiting:
            self.start(self.waiting.pop(self.chance.randrange(len(self.waiting))))

    def start(self, number: int) -> None:
        nodes = self.chance.sample(self.busy, self.chance.randint(1, 3))
        if self.chance.random() < 0.3:
            nodes = self.chance.sample(self.nodes, len(nodes))
        self.running[number] = nodes
        for index, sim in reversed(list(enumerate(nodes))):
            job = self.job(number, index)
            (sim.jobs / f"{job.key}.JB").touch()
            verb = lifecycle.prologue if index == 0 else lifecycle.prologue_parallel
            self.perhaps(lambda job=job, sim=sim, verb=verb: verb(  # type: ignore[misc]
                job, sim.hooked(), sim.launch, deadline=timeless()), job, sim)
        if not (nodes[0].node.state(job.key).path / "ready").exists() and self.chance.random() < 0.7:
            self.end(number)
            self.waiting.append(number)

    def end(self, number: int = 0) -> None:
        if not self.running:
            return
        number = number or self.chance.choice(list(self.running))
        for index, sim in enumerate(self.running.pop(number)):
            job = self.job(number, index)._replace(exit_status=0)
            (sim.jobs / f"{job.key}.JB").unlink(missing_ok=True)
            verb = lifecycle.epilogue if index == 0 else lifecycle.epilogue_parallel
            # Never, once, twice.
            for _ in range(self.chance.choice((0, 1, 1, 1, 1, 2))):
                self.perhaps(lambda job=job, sim=sim, verb=verb: verb(  # type: ignore[misc]
                    job, sim.hooked(), deadline=timeless()), job, sim)

    def perhaps(self, work: Callable[[], object], job: Job, sim: _SimNode) -> None:
        """Do it, killed on the way or held up while another hook runs, or as it should be."""
        chance = self.chance
        what = chance.choices(("whole", "killed", "held up"), weights=(6, 2, 2))[0]
        number = chance.randint(1, _MOST_EFFECTS) if what != "whole" else 0
        self.found.faults += number > 0
        other: list[Callable[[], object]] = [
            lambda: lifecycle.epilogue_parallel(job._replace(exit_status=0), sim.hooked(), deadline=timeless()),
            lambda: lifecycle.sweep(sim.hooked(), deadline=timeless()), sim.guard_looks,
        ]
        with self.fate.of(number, chance.choice(other) if what == "held up" else None):
            work()

    def reboot(self) -> None:
        self.found.faults += 1
        self.chance.choice(self.busy).reboot()

    def cut(self) -> None:
        self.found.faults += 1
        sim = self.chance.choice(self.busy)
        sim.cut_off = not sim.cut_off

    def kill_guard(self) -> None:
        guards = [(sim, one) for sim in self.nodes for one in sim.guards]
        if guards:
            self.found.faults += 1
            sim, one = self.chance.choice(guards)
            sim.guard_dies(one)

    def look(self) -> None:
        sim = self.chance.choice(self.busy)
        with self.fate.of(0):
            sim.guard_looks()
        with self.fate.of(0):
            lifecycle.sweep(sim.hooked(), deadline=timeless())

    def settle(self) -> None:
        """All jobs are over, whoever was told; a sweep's interval passes."""
        for sim in self.nodes:
            sim.cut_off = False
            for path in sim.jobs.iterdir():
                path.unlink()
            sim.guard_looks()
            lifecycle.sweep(sim.hooked(), deadline=timeless())
            self.found.outlived += sim.left()

    def job(self, number: int, index: int) -> Job:
        nodes = tuple(sim.name for sim in self.running[number]) if number in self.running else ("n0",)
        return a_job(
            id=JobId(f"{number}.srv"), user="games", node_index=index, nodes=nodes if index == 0 else (),
            request=request.encode(a_request(image="a.qcow2", vcpus=1, memory_mib=64, request_id=f"{number:016x}")),
        )

    @contextlib.contextmanager
    def side(self, wanted: demand.Demand, node: Node) -> Iterator[_Side]:
        yield _Side(self.homes.setdefault(wanted.job.key, {}), usable=not self._here(wanted.job).cut_off)

    def _here(self, job: Job) -> _SimNode:
        return self.running.get(int(job.id.partition(".")[0]), self.nodes)[job.node_index]

    def begin(
        self, wanted: demand.Demand, node: Node, record: JobState, *, deadline: Deadline
    ) -> tuple[JobPlan, tuple[Started, ...]]:
        """In place of `bringup.start`: what boot takes, in its order; only the overlay and the guest are made."""
        sim = next(each for each in self.nodes if each.node is node)
        with record.act(deadline=deadline):
            decided = admission.reserve(
                Path(node.site.state_dir), record.key, node.shape, lambda shape: plan.make(
                    job=wanted.job, account=wanted.account, request=wanted.request, image=an_image(), site=node.site,
                    shape=shape,
                ), deadline=deadline,
            )
        place = decided.vms[0].overlay.parent
        with record.taking(Resource(kind=DIRECTORY, name=str(place)), deadline=deadline):
            place.mkdir(parents=True, exist_ok=True)
        for vm in decided.vms:
            with record.taking(Resource(kind=FILE, name=str(vm.overlay)), deadline=deadline):
                vm.overlay.touch(exist_ok=False)
            with record.taking(Resource(kind=DOMAIN, name=vm.name), deadline=deadline):
                sim.born(vm, record.key)
        key = KeyPair(private="", public=HOST_KEY)
        return decided, tuple(Started(vm=vm, host_key=HOST_KEY, probe=key) for vm in decided.vms)


def _prove(started: tuple[Started, ...], **named: Any) -> tuple[Guest, ...]:
    return tuple(Guest(vm=each.vm, address="10.0.0.1", host_key=each.host_key) for each in started)


def run(root: Path, *, seed: int) -> Found:
    """One history, the same for the same seed."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o755)
    logging.getLogger("vtorque").setLevel(logging.CRITICAL + 1)
    cluster = _Cluster(root, random.Random(seed))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demand, "user_side", cluster.side)
            patch.setattr(bringup, "start", cluster.begin)
            patch.setattr(discover, "guests", _prove)
            patch.setattr(guard, "Deadline", timeless)
            for name in _EFFECTS:
                patch.setattr(os, name, cluster.fate.before(getattr(os, name), opens=name == "open"))
            for _ in range(STEPS):
                cluster.step()
            cluster.settle()
    finally:
        for sim in cluster.nodes:
            for one in list(sim.guards):
                sim.guard_dies(one)
        logging.getLogger("vtorque").setLevel(logging.NOTSET)
        shutil.rmtree(root)
    return cluster.found
