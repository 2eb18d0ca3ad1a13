# SPDX-License-Identifier: Apache-2.0
"""A job on several nodes, over fakes: each node with a record, a hypervisor and a guard of its own, one home."""

import contextlib
import errno
import json
import multiprocessing
import os
import pwd
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import KEY, a_job, a_request, a_shape, a_site
from tests.contract.test_lifecycle import hooked
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses, FakeSession, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.node import a_node
from vtorque import guard, guardpost, guestnames, images, lifecycle, published, request, service, state
from vtorque.accounting import Journal
from vtorque.bringup import ABORTED
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, GenerationClosed, HypervisorError, VtorqueError
from vtorque.guard import Orders
from vtorque.model import Job, VmPlan, VmRequest

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

FORK = multiprocessing.get_context("fork")


class Sister:
    """One node of the job; the first is the mother superior."""

    def __init__(self, cluster: "Cluster", index: int) -> None:
        self.cluster = cluster
        self.name = f"n{index + 1}"
        self.root = cluster.root / self.name
        self.hypervisor = FakeHypervisor()
        self.filter = FakeFilter()
        self.job: Job = cluster.job._replace(node_index=index, nodes=cluster.nodes if index == 0 else (),
            spool_script=cluster.script if index == 0 else None,
        )
        self.guards: list[Any] = []
        self.node = a_node(
            a_site(
                state_dir=str(self.root / "run"), disk_dir=str(self.root / "disks"),
                vm_img_dir=str(cluster.root / "images"), torque_home=str(self.root), min_uid=1, requeue_limit=1,
                timeout=8, log_dir=str(self.root / "log"), image_cache_dir=str(self.root / "cache"),
                ramdisk_dir=str(self.root / "ram"),
            ),
            shape=a_shape(name=self.name), hypervisor=self.hypervisor,
            addresses=lambda guests, deadline: FakeAddresses(("10.0.0.1",)),
            transport=FakeTransport({"10.0.0.1": lambda: FakeSession(self.said())}), filter=self.filter,
        )
        (self.root / "mom_priv/jobs").mkdir(parents=True)
        self.node = hooked(self.node, self.job)
        self.record = self.node.state(self.job.key)

    def said(self) -> bytes:
        return f"ready {guestnames.guest_uuid(self.job.id, self.job.node_index)}\n".encode()

    def known(self, *, yes: bool) -> None:
        """Mom's own record of the job comes, or goes."""
        path = self.root / "mom_priv/jobs" / f"{self.job.key}.JB"
        path.touch() if yes else path.unlink(missing_ok=True)

    def launch(self, orders: Orders, place: int) -> None:
        """A guard in a process of her own, as the hook starts her."""
        child = FORK.Process(target=self._guard, args=(orders, place))
        child.start()
        self.guards.append(child)

    def _guard(self, orders: Orders, place: int) -> None:
        # The real one is started anew and inherits nothing else.
        os.closerange(3, place)
        os.closerange(place + 1, 1024)
        guard.watch(orders, self.node)

    def start(self) -> None:
        verb = lifecycle.prologue if self.job.node_index == 0 else lifecycle.prologue_parallel
        verb(self.job, self.node, self.launch, deadline=Deadline(40))

    def end(self) -> None:
        verb = lifecycle.epilogue if self.job.node_index == 0 else lifecycle.epilogue_parallel
        verb(self.job._replace(exit_status=0), self.node, deadline=Deadline(40))

    def guard_is_gone(self) -> bool:
        for child in self.guards:
            child.join(20)
        return all(child.exitcode == 0 for child in self.guards)

    def left(self) -> list[str]:
        return [
            str(path) for place in ("run", "disks") for path in (self.root / place).rglob("*")
            if not path.is_dir()
        ]


class Cluster:
    """Nodes that share a home."""

    def __init__(self, root: Path, user: pwd.struct_passwd, *, nodes: int = 2, **asked: Any) -> None:
        self.root = root
        source = root / "source.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", source, "1M"], check=True)
        about = {"name": "a.qcow2", "distro": "debian", "arch": "x86_64", "description": ""}
        images.publish(root / "images", about, {"a.qcow2": source})
        self.request: VmRequest = a_request(image="a.qcow2", vcpus=1, memory_mib=64, public_key=KEY, **asked)
        self.nodes = tuple(f"n{number + 1}" for number in range(nodes))
        self.script = root / "7.srv.SC"
        self.script.touch()
        self.job = a_job(user=user.pw_name, request=request.encode(self.request))
        self.directory = Path(user.pw_dir, ".vtorque", self.request.request_id)
        self.directory.mkdir(parents=True)
        for path in (Path(user.pw_dir), self.directory.parent, self.directory):
            os.chown(path, user.pw_uid, user.pw_gid)
        self.sisters = [Sister(self, index) for index in range(nodes)]

    def start(self) -> None:
        for sister in self.sisters[1:]:
            sister.start()
        self.sisters[0].start()

    def ready(self) -> dict[str, Any]:
        marker: dict[str, Any] = json.loads((self.sisters[0].record.path / state.READY).read_text())
        return marker

    def failed(self) -> str:
        return str(json.loads((self.sisters[0].record.path / state.FAILED).read_text())["reason"])


@pytest.fixture
def make() -> Iterator[Callable[..., Cluster]]:
    root = Path(f"/var/lib/vtorque-sisters-{os.getpid()}")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o755)
    name = f"vtsis{os.getpid()}"
    subprocess.run(["/usr/sbin/useradd", "-M", "-d", root / "home", name], check=True)
    made: list[Cluster] = []

    def cluster(**asked: Any) -> Cluster:
        made.append(Cluster(root, pwd.getpwnam(name), **asked))
        return made[-1]

    yield cluster
    for sister in (each for one in made for each in one.sisters):
        for child in sister.guards:
            child.kill()
            child.join()
    subprocess.run(["/usr/sbin/userdel", "-f", name], check=True, capture_output=True)
    shutil.rmtree(root)


def eventually(condition: Callable[[], bool]) -> None:
    for _ in Deadline(20).ticks(doing="see it happen"):
        if condition():
            return


def test_a_job_on_three_nodes_knows_all_its_guests_and_leaves_nothing(make: Callable[..., Cluster]) -> None:
    cluster = make(nodes=3)
    cluster.start()
    guests = cluster.ready()["guests"]
    assert [(each["rank"], each["node"], each["hostname"]) for each in guests] == [
        (0, "n1", "vn1-1"), (1, "n2", "vn2-1"), (2, "n3", "vn3-1"),
    ]
    assert [each["uuid"] for each in guests] == [str(guestnames.guest_uuid("7.srv", rank)) for rank in range(3)]
    assert cluster.ready()["environment"]["PBS_NP"] == "3"
    for sister in reversed(cluster.sisters):
        sister.end()
        assert sister.guard_is_gone() and sister.left() == []
    assert not cluster.directory.exists()


def test_a_sister_is_not_swept_while_mom_does_not_know_the_job_yet(make: Callable[..., Cluster]) -> None:
    cluster = make()
    sister = cluster.sisters[1]
    sister.start()
    assert list(lifecycle.forgotten(sister.node)) == [] and guardpost.is_taken(sister.root / "run", "7.srv")
    sister.end()
    assert sister.guard_is_gone()


def test_a_guard_tears_down_what_mom_forgets_without_an_epilogue(make: Callable[..., Cluster]) -> None:
    cluster = make()
    cluster.start()
    sister = cluster.sisters[1]
    sister.known(yes=True)
    time.sleep(0.5)
    assert sister.record.exists
    sister.known(yes=False)
    assert sister.guard_is_gone() and sister.left() == []
    cluster.sisters[0].end()


def test_when_the_mother_superior_gives_up_her_sisters_do_so_too(make: Callable[..., Cluster]) -> None:
    cluster = make()
    mother, sister = cluster.sisters
    sister.start()
    mother.hypervisor.fail_at = 1
    mother.start()
    assert "told to fail" in cluster.failed()
    assert sister.guard_is_gone() and sister.left() == []
    mother.end()
    assert mother.left() == []


def test_a_sister_whose_guests_do_not_come_is_named(make: Callable[..., Cluster]) -> None:
    cluster = make()
    mother, sister = cluster.sisters
    sister.said = lambda: b"failed: cannot mount nfs:/home\n"  # type: ignore[method-assign]
    cluster.start()
    assert "node n2: guest vn2-1" in cluster.failed() and "cannot mount nfs:/home" in cluster.failed()
    mother.end()
    assert mother.left() == [] and sister.guard_is_gone() and sister.left() == []


def test_a_sister_that_says_nothing_is_named(make: Callable[..., Cluster]) -> None:
    cluster = make()
    cluster.sisters[0].start()
    assert "no guests from node n2 in time" in cluster.failed()
    cluster.sisters[0].end()


def test_a_users_fault_on_a_sister_does_not_fail_her_hook(make: Callable[..., Cluster]) -> None:
    """It would take the node out of the cluster."""
    cluster = make()
    mother, sister = cluster.sisters
    sister.node = replace(sister.node, shape=a_shape(name="n2", cpus=(0,)))
    cluster.start()
    assert "node n2: 1 guest of 1 vCPUs need 1 cores; node n2 offers 0" in cluster.failed()
    mother.end()
    assert sister.left() == []


def test_a_nodes_fault_on_a_sister_fails_her_hook_until_it_has_happened_too_often(
    make: Callable[..., Cluster]
) -> None:
    cluster = make()
    sister = cluster.sisters[1]
    sister.node = replace(sister.node, site=sister.node.site.but(requeue_limit=2))
    sister.hypervisor.fail_at = 1
    with pytest.raises(VtorqueError, match="told to fail"):
        sister.start()
    sister.hypervisor.fail_at = len(sister.hypervisor.calls) + 1
    sister.start()
    assert sister.left() == []
    assert "told to fail" in (cluster.directory / published.name(cluster.sisters[1].job)).read_text()


def test_a_sister_that_is_busy_does_not_fail_her_hook(make: Callable[..., Cluster]) -> None:
    """Her node would be taken out of the cluster; the mother superior is told, and asks for another start."""
    cluster = make()
    mother, sister = cluster.sisters
    sister.node = replace(sister.node, shape=a_shape(name="n2", cpus=(0, 1)))
    other = sister.job._replace(id=type(sister.job.id)("8.srv"))
    lifecycle.prologue_parallel(other, hooked(sister.node, other), lambda orders, place: None, deadline=Deadline(40))
    cluster.start()
    assert "node n2: not now: job 8.srv" in cluster.failed()
    mother.end()
    for job in (other, sister.job):
        lifecycle.epilogue_parallel(job, sister.node, deadline=Deadline(40))
    assert sister.left() == [] and mother.left() == []


def test_a_second_start_is_not_fooled_by_what_the_first_published(make: Callable[..., Cluster]) -> None:
    cluster = make()
    mother, sister = cluster.sisters
    cluster.start()
    first = cluster.ready()["guests"][1]
    lifecycle.epilogue(mother.job._replace(exit_status=-3), mother.node, deadline=Deadline(40))
    sister.known(yes=False)
    cluster.start()
    assert cluster.ready()["guests"][1]["uuid"] == first["uuid"]
    assert len(sister.hypervisor._domains) == 1
    for each in reversed(cluster.sisters):
        each.end()
        assert each.guard_is_gone() and each.left() == []


@pytest.mark.parametrize(
    "text", ["", "{}", "nonsense", '{"schema":1,"guests":[]}', "x" * (published.LIMIT + 1)],
    ids=["empty", "no schema", "no JSON", "no guests", "too long"],
)
def test_what_a_user_publishes_himself_is_no_guest(make: Callable[..., Cluster], text: str) -> None:
    cluster = make()
    (cluster.directory / published.name(cluster.sisters[1].job)).write_text(text)
    mother = cluster.sisters[0]
    mother.start()
    assert cluster.failed()
    assert service.look(mother.node.site).row == (), "it says nothing of a node"
    mother.end()


@pytest.mark.parametrize("system", ["torque", "slurm"])
def test_nonsense_that_a_user_publishes_drains_no_node(make: Callable[..., Cluster], system: str) -> None:
    cluster = make()
    mother = cluster.sisters[0]
    mother.node = replace(mother.node, site=mother.node.site.but(batch_system=system, requeue_limit=1))
    (cluster.directory / published.name(cluster.sisters[1].job)).write_text("nonsense")
    mother.start()
    assert cluster.failed() == "what node 1 published is not its guests"
    assert json.loads((mother.record.path / state.FAILED).read_text())["blame"] == "user"
    mother.end()


def test_a_guest_that_stops_is_reported_to_the_wrapper(make: Callable[..., Cluster]) -> None:
    class Stopping(FakeHypervisor):
        def is_running(self, name: str, *, deadline: Deadline) -> bool:
            return not ready.exists() and super().is_running(name, deadline=deadline)

    cluster = make()
    mother, sister = cluster.sisters
    ready = mother.record.path / state.READY
    sister.node = replace(sister.node, hypervisor=Stopping())
    cluster.start()
    eventually(lambda: (cluster.directory / published.lost_name(1)).exists())
    said = (cluster.directory / published.lost_name(1)).read_text()
    assert said == "lost guest vn2-1 of rank 1 on node n2: it has stopped"
    for each in (sister, mother):
        each.end()


def test_a_hypervisor_that_is_restarted_has_lost_no_guest(make: Callable[..., Cluster]) -> None:
    class Restarted(FakeHypervisor):
        def is_running(self, name: str, *, deadline: Deadline) -> bool:
            if ready.exists() and not refused.exists():
                refused.touch()
                raise HypervisorError("no answer")
            looked_again.write_text("x" * refused.exists())
            return True

    cluster = make()
    mother, sister = cluster.sisters
    ready, refused, looked_again = mother.record.path / state.READY, sister.root / "refused", sister.root / "again"
    sister.node = replace(sister.node, hypervisor=Restarted())
    cluster.start()
    eventually(lambda: bool(looked_again.read_text()))
    assert not (cluster.directory / published.lost_name(1)).exists()
    for each in (sister, mother):
        each.end()
        assert each.guard_is_gone()


def test_a_guest_that_stops_because_of_the_epilogue_is_not_lost(make: Callable[..., Cluster]) -> None:
    class Epilogue(FakeHypervisor):
        def is_running(self, name: str, *, deadline: Deadline) -> bool:
            if not ready.exists():
                return True
            with contextlib.suppress(GenerationClosed), sister.record.closing(deadline=deadline):
                pass
            return False

    cluster = make()
    mother, sister = cluster.sisters
    ready = mother.record.path / state.READY
    sister.node = replace(sister.node, hypervisor=Epilogue())
    cluster.start()
    assert sister.guard_is_gone()
    assert not (cluster.directory / published.lost_name(1)).exists()
    for each in (sister, mother):
        each.end()


def test_a_guest_that_falls_silent_is_reported_by_the_mother_superiors_guard(make: Callable[..., Cluster]) -> None:
    """Her node may be gone, with all who could tell of it."""
    cluster = make()
    mother, sister = cluster.sisters
    mother.node = replace(mother.node, site=mother.node.site.but(guest_timeout=2))
    assert isinstance(mother.node.transport, FakeTransport)
    mother.node.transport.silent.add("10.0.0.1")
    cluster.start()
    eventually(lambda: (cluster.directory / published.lost_name(1)).exists())
    said = (cluster.directory / published.lost_name(1)).read_text()
    assert said == "lost guest vn2-1 of rank 1 on node n2: no answer for 2 s"
    for each in (sister, mother):
        each.end()
        assert each.guard_is_gone()


def restarting(cluster: Cluster) -> None:
    """A site at which a start that failed is made again."""
    for each in cluster.sisters:
        each.node = replace(each.node, site=each.node.site.but(requeue_limit=3))


class Slow(FakeAddresses):
    """Of a guest that is heard of after a while, or never."""

    def __init__(self, seconds: float = 1e9) -> None:
        super().__init__(())
        self._due = time.monotonic() + seconds

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        return ("10.0.0.1",) if time.monotonic() > self._due else ()

    def wait(self, seconds: float, *also: object) -> None:
        time.sleep(min(seconds, 0.05))


def test_the_guard_of_a_start_that_failed_says_nothing_to_the_next_one(make: Callable[..., Cluster]) -> None:
    """No epilogue runs on a sister when the mother superior's prologue has failed, and mom tries again at once."""
    cluster = make()
    restarting(cluster)
    mother, sister = cluster.sisters
    well = sister.node
    sister.node = replace(well, addresses=lambda guests, deadline: Slow())
    sister.start()
    mother.hypervisor.fail_at = 1
    with pytest.raises(VtorqueError, match="told to fail"):
        mother.start()
    mother.hypervisor.fail_at = 0
    sister.node = replace(well, addresses=lambda guests, deadline: Slow(1.5))
    sister.start()
    mother.start()
    assert len(cluster.ready()["guests"]) == 2
    for each in (sister, mother):
        each.end()


def test_a_prologue_that_was_overtaken_leaves_the_next_start_alone(make: Callable[..., Cluster]) -> None:
    """It waits for its sister; the job is bailed out and started again beside it, as Torque does."""
    cluster = make()
    restarting(cluster)
    mother, sister = cluster.sisters
    # Another process of the same node: it has the files, the hypervisor and the filter in common.
    overtaken = replace(mother.node, journal=Journal())
    troubles: list[BaseException] = []

    def first() -> None:
        try:
            lifecycle.prologue(mother.job, overtaken, mother.launch, deadline=Deadline(40))
        except VtorqueError as error:
            troubles.append(error)

    waiting = threading.Thread(target=first)
    waiting.start()
    phases = cluster.directory / "phases"
    eventually(lambda: phases.exists() and "started" in phases.read_text())
    lifecycle.epilogue(mother.job._replace(exit_status=-3), mother.node, deadline=Deadline(40))
    cluster.start()
    generation = mother.record.generation
    waiting.join(40)
    assert (waiting.is_alive(), troubles) == (False, [])
    assert mother.record.generation == generation and len(cluster.ready()["guests"]) == 2
    assert not (cluster.directory / ABORTED).exists() and sister.record.exists
    for each in (sister, mother):
        each.end()
        assert each.guard_is_gone() and each.left() == []


def test_what_the_last_start_said_is_nothing_to_the_next_one(make: Callable[..., Cluster]) -> None:
    cluster = make()
    restarting(cluster)
    mother, sister = cluster.sisters
    cluster.start()
    (cluster.directory / published.lost_name(0)).write_text("lost guest vn1-1 of rank 0")
    for each, verb in ((sister, lifecycle.epilogue_parallel), (mother, lifecycle.epilogue)):
        verb(each.job._replace(exit_status=-3), each.node, deadline=Deadline(40))
    cluster.start()
    assert cluster.ready()["guests"] and not list(cluster.directory.glob(published.LOST))
    for each in (sister, mother):
        each.end()


def test_a_guard_whose_disk_is_full_says_so_and_goes(make: Callable[..., Cluster]) -> None:
    class Full(FakeFilter):
        def load(self, rules: str, *, deadline: Deadline) -> None:
            if rules.startswith("flush set"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().load(rules, deadline=deadline)

    cluster = make()
    sister = cluster.sisters[1]
    sister.node = replace(sister.node, filter=Full())
    sister.start()
    assert sister.guard_is_gone() and not sister.record.exists
    assert "No space left" in (cluster.directory / published.name(sister.job)).read_text()
    sister.end()


def test_a_libvirt_that_hangs_costs_a_running_job_no_guard(make: Callable[..., Cluster]) -> None:
    cluster = make()
    mother, sister = cluster.sisters
    ready, asked = mother.record.path / state.READY, sister.root / "asked"

    class Hung(FakeHypervisor):
        def is_running(self, name: str, *, deadline: Deadline) -> bool:
            if ready.exists():
                asked.touch()
                raise DeadlineExceeded(f"libvirt did not answer in time: look at guest {name}")
            return True

    sister.node = replace(sister.node, hypervisor=Hung())
    sister.known(yes=True)
    cluster.start()
    eventually(asked.exists)
    assert guardpost.is_taken(sister.root / "run", "7.srv")
    for each in (sister, mother):
        each.end()
        assert each.guard_is_gone()
