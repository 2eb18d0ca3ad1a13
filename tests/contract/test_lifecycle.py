# SPDX-License-Identifier: Apache-2.0
"""The verbs in their order, over fakes: every failure at every call, and nothing is left."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.builders import KEY, a_job, a_request, a_shape, a_site
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses, FakeSession, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor, _Domain
from tests.fakes.node import OURSELVES, Here, a_monitor, a_node
from vtorque import accounts, become, diskserving, guestnames, images, lifecycle, request, service, teardown
from vtorque.backends.transport import KeyPair
from vtorque.cli import rooted
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, GenerationClosed, ImageError, VtorqueError
from vtorque.guard import Orders
from vtorque.kinds import DOMAIN
from vtorque.model import Account, Job, Resource, VmPlan
from vtorque.node import Node
from vtorque.proc import Identity
from vtorque.rootside import RootSide
from vtorque.state import JobState
from vtorque.userclerk import Clerk

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

USER = "games"


def a_clerk(account: Account) -> socket.socket:
    """Who works in the user's home as himself, in a child that nobody has to wait for."""
    identity = Identity(uid=account.uid, gid=account.group.gid, groups=tuple(group.gid for group in account.groups))
    pid, ours = become.fork_as(identity, lambda orders: Clerk(account.home).serve(orders))

    def reap() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)

    threading.Thread(target=reap, daemon=True).start()
    return ours


def hooked(node: Node, job: Job) -> Node:
    """The node as a hook has it that was called for the job: prepared, with a root that acts for no other."""
    rooted.prepare(node.site, OURSELVES)
    bound = rooted._bound(job.id, job.user, min_uid=node.site.min_uid)
    # Root's own hypervisor is not asked for anything: the node has one itself.
    return replace(node, root=RootSide(Here(a_monitor(node.site, bound=bound))), clerk=a_clerk)


class Scene:
    """A node of fakes on which everything else is real: files, ledger, overlays, seeds."""

    def __init__(self, root: Path, *, fail_at: int = 0, says: bytes = b"", **site: Any) -> None:
        self.root = root
        pool = root / "images"
        source = root / "source.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", source, "1M"], check=True)
        images.publish(pool, {"name": "a.qcow2", "distro": "debian", "arch": "x86_64", "description": ""}, {
            "a.qcow2": source,
        })
        script = root / "7.srv.SC"
        script.touch()
        self.request = a_request(image="a.qcow2", vcpus=1, memory_mib=64)
        self.job = a_job(user=USER, request=request.encode(self.request), spool_script=script)
        self.hypervisor = FakeHypervisor(fail_at=fail_at)
        self.filter = FakeFilter()
        said = says or f"ready {guestnames.guest_uuid(self.job.id, 0)}\n".encode()
        self.node = a_node(
            a_site(**{
                "state_dir": str(root / "run"), "disk_dir": str(root / "disks"), "vm_img_dir": str(pool),
                "torque_home": str(root), "log_dir": str(root / "log"), "image_cache_dir": str(root / "cache"),
                "ramdisk_dir": str(root / "ram"), "min_uid": 1, "requeue_limit": 1, "timeout": 5, **site,
            }),
            hypervisor=self.hypervisor, filter=self.filter, announce="10.0.0.254",
            addresses=lambda guests, deadline: FakeAddresses(("10.0.0.1",)),
            transport=FakeTransport({"10.0.0.1": lambda: FakeSession(said)}),
        )
        self.node = hooked(self.node, self.job)
        self.state = self.node.state(self.job.key)
        self.guards: list[Orders] = []

    def prologue(self, **changes: Any) -> None:
        lifecycle.prologue(self.job._replace(**changes), self.node, self.launch, deadline=Deadline(60))

    def launch(self, orders: Orders, place: int) -> None:
        """A guard that is never started: what she would be told."""
        self.guards.append(orders)

    def epilogue(self, status: int = 0) -> None:
        lifecycle.epilogue(self.job._replace(exit_status=status), self.node, deadline=Deadline(60))

    def markers(self) -> set[str]:
        return {path.name for path in self.state.path.glob("*")} & {"ready", "failed"}

    def left(self) -> list[str]:
        """Files and domains that belong to the job."""
        files = [
            str(path) for place in ("run", "disks") for path in (self.root / place).rglob("*") if not path.is_dir()
        ]
        return files + list(self.hypervisor._domains) + list(self.filter.loaded)


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path("/var/lib") / f"vtorque-test-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    accounts.account(USER, min_uid=1)
    yield path
    shutil.rmtree(path)


def test_a_start_that_succeeds_leaves_the_marker_and_one_epilogue_leaves_nothing(root: Path) -> None:
    scene = Scene(root)
    scene.prologue()
    assert scene.markers() == {"ready"}
    assert scene.hypervisor.calls[:2] == ["create", "is_running"]
    scene.epilogue()
    assert scene.left() == []
    scene.epilogue()
    assert scene.left() == []


class Book(FakeAddresses):
    """An address for each guest, by its rank."""

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        return (f"10.0.1.{vm.rank}",)


def test_one_prologue_starts_and_proves_64_guests(root: Path) -> None:
    number = 64
    scene = Scene(root)

    def answer(rank: int) -> FakeSession:
        return FakeSession(f"ready {guestnames.guest_uuid(scene.job.id, rank)}\n".encode())

    scene.request = scene.request._replace(vms_per_node=number)
    scene.job = scene.job._replace(request=request.encode(scene.request))
    scene.node = replace(
        scene.node, shape=a_shape(cpus=tuple(range(number + 8)), memory_mib=65536),
        addresses=lambda guests, deadline: Book(()),
        transport=FakeTransport({f"10.0.1.{rank}": partial(answer, rank) for rank in range(number)}),
    )
    scene.prologue()
    ready = json.loads((scene.state.path / "ready").read_text())
    assert [each["uuid"] for each in ready["guests"]] == [
        str(guestnames.guest_uuid(scene.job.id, rank)) for rank in range(number)
    ]
    assert scene.hypervisor.calls.count("create") == number
    scene.epilogue()
    assert scene.left() == []


class Crowd(FakeHypervisor):
    """It starts no guest before so many are asked for at the same time; what came of it is in `most`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._together = threading.Barrier(number)
        self._now = self.most = 0

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._together.wait(60)
        with self._lock:
            self._now -= 1
        super().create(domain_xml, deadline=deadline)


@pytest.mark.parametrize("number", [1, 3])
def test_as_many_guests_are_started_at_once_as_the_site_allows(root: Path, number: int) -> None:
    scene = Scene(root, parallel_guests=number)
    scene.request = scene.request._replace(vms_per_node=6)
    scene.job = scene.job._replace(request=request.encode(scene.request))
    crowd = Crowd(number)
    scene.node = replace(scene.node, shape=a_shape(cpus=tuple(range(14)), memory_mib=65536), hypervisor=crowd)
    scene.prologue()
    assert crowd.most == number and crowd.calls.count("create") == 6
    scene.epilogue()
    assert scene.left() == []


@pytest.mark.parametrize("call", range(1, 4))
def test_a_hypervisor_that_fails_at_any_call_is_reported_and_leaves_nothing(root: Path, call: int) -> None:
    scene = Scene(root, fail_at=call)
    scene.prologue()
    if call == 3:
        assert scene.markers() == {"ready"}, "the third call is the epilogue's own"
        with pytest.raises(VtorqueError):
            scene.epilogue()
    else:
        assert scene.markers() == {"failed"}
        assert "told to fail" in (scene.state.path / "failed").read_text()
        assert not scene.hypervisor._domains
    scene.epilogue()
    assert scene.left() == []


def test_a_node_fault_is_raised_until_it_happened_too_often(root: Path) -> None:
    scene = Scene(root, says=b"failed: cannot mount\n", requeue_limit=2)
    with pytest.raises(VtorqueError, match="cannot mount"):
        scene.prologue()
    assert scene.markers() == set()
    scene.epilogue(status=-3)
    scene.prologue()
    assert scene.markers() == {"failed"}
    scene.epilogue()
    assert scene.left() == []


def test_a_job_that_is_deleted_meanwhile_gets_no_marker_of_any_kind(root: Path) -> None:
    """Whatever goes wrong after an epilogue was here, nobody would take away what it left."""
    for says in (b"", b"failed: cannot mount\n"):
        scene = Scene(root, says=says)
        (root / "7.srv.SC").unlink()
        scene.prologue()
        assert scene.left() == []
        shutil.rmtree(root / "images")


@pytest.mark.parametrize(
    "changes", [{"request": "vt1.garbage"}, {"user": "nosuchuser"}, {"request": ""},
                {"request": request.encode(a_request(image="a.img", distro="osv"))}]
)
def test_a_users_fault_is_left_for_the_wrapper(root: Path, changes: dict[str, Any]) -> None:
    scene = Scene(root)
    scene.prologue(**changes)
    assert scene.markers() == {"failed"}
    assert '"blame": "user"' in (scene.state.path / "failed").read_text()
    assert scene.hypervisor.calls == []
    scene.epilogue()
    assert scene.left() == []


def test_a_start_over_an_earlier_one_begins_anew(root: Path) -> None:
    scene = Scene(root)
    scene.prologue()
    scene.prologue()
    assert scene.markers() == {"ready"}
    assert len(scene.hypervisor._domains) == 1
    scene.epilogue()
    assert scene.left() == []


def test_jobs_that_mom_forgot_are_swept_and_those_she_knows_are_not(root: Path) -> None:
    scene = Scene(root)
    scene.prologue()
    other: Job = scene.job._replace(id=type(scene.job.id)("8.srv"))
    (root / "mom_priv/jobs").mkdir(parents=True)
    (root / "mom_priv/jobs/8.srv.JB").touch()
    said = f"ready {guestnames.guest_uuid(other.id, 0)}\n".encode()
    transport = FakeTransport({"10.0.0.1": lambda: FakeSession(said)})
    node = replace(hooked(scene.node, other), transport=transport)
    lifecycle.prologue(other, node, scene.launch, deadline=Deadline(60))
    assert set(scene.hypervisor._domains) == {"8.srv_1of1"}
    (root / "mom_priv/jobs/8.srv.JB").unlink()
    assert lifecycle.sweep(scene.node, deadline=Deadline(60)) == ["8.srv"]
    assert scene.left() == []


def test_a_user_who_kills_what_serves_his_files_takes_no_node_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its start and QEMU's, which then cannot start either."""
    monkeypatch.setattr(diskserving, "start", lambda *words, **named: b"")
    scene = Scene(root, fail_at=1, node_failure_limit=1)
    scene.prologue(request=request.encode(scene.request._replace(disk="/home/x.img")))
    standing = service.look(scene.node.site)
    assert ([each.by_itself for each in standing.row], standing.out) == ([False], "")


def test_a_job_that_is_back_while_another_is_swept_is_not(root: Path) -> None:
    scene = Scene(root)
    (root / "mom_priv/jobs").mkdir(parents=True)
    for key in ("6.srv", "7.srv"):
        record = scene.node.state(key)
        record.create()
        with record.taking(Resource(kind=DOMAIN, name=f"{key}_1of1"), deadline=Deadline(5)):
            scene.hypervisor._domains[f"{key}_1of1"] = _Domain(uuid=key, job=key)

    class Slow(FakeHypervisor):
        def destroy(self, name: str, *, deadline: Deadline) -> bool:
            if name.startswith("6") and not scene.markers():
                for known in ("6.srv", "7.srv"):
                    (root / "mom_priv/jobs" / f"{known}.JB").touch()
                scene.prologue()
            return scene.hypervisor.destroy(name, deadline=deadline)

    slow = Slow()
    slow._domains = scene.hypervisor._domains
    assert lifecycle.sweep(replace(scene.node, hypervisor=slow), deadline=Deadline(60)) == ["6.srv"]
    assert scene.markers() == {"ready"} and list(scene.hypervisor._domains) == ["7.srv_1of1"]


def test_who_waited_to_end_a_start_does_not_end_the_next_one(root: Path) -> None:
    """A second epilogue, or a sweep: it waits for the lock, which goes with the start it is of."""
    hypervisor = FakeHypervisor()
    node = a_node(a_site(state_dir=str(root), disk_dir=str(root / "disks")), hypervisor=hypervisor)
    first = JobState(root, "7.srv")

    def begin(record: JobState) -> None:
        record.create()
        with record.taking(Resource(kind=DOMAIN, name="g"), deadline=Deadline(5)):
            hypervisor._domains["g"] = _Domain(uuid="1", job="7.srv")

    class Waiting(JobState):
        @contextlib.contextmanager
        def closing(self, *, deadline: Deadline) -> Iterator[None]:
            teardown.release(JobState(root, "7.srv"), node, deadline=deadline)
            begin(JobState(root, "7.srv"))
            raise GenerationClosed("job 7.srv was torn down meanwhile")
            yield

    begin(first)
    teardown.release(Waiting(root, "7.srv"), node, deadline=Deadline(30))
    assert "g" in hypervisor._domains and not JobState(root, "7.srv").closed
    assert first.closed and first.replaced


def test_the_seed_is_private_and_the_marker_is_for_the_users_group(root: Path) -> None:
    scene = Scene(root)
    scene.prologue()
    (seed,) = (root / "run/seeds").glob("*.iso")
    assert seed.stat().st_mode & 0o777 == 0o600
    marker = scene.state.path / "ready"
    account = accounts.account(USER, min_uid=1)
    assert (marker.stat().st_uid, marker.stat().st_gid, marker.stat().st_mode & 0o777) == (0, account.group.gid, 0o640)
    assert KEY not in marker.read_text()
    scene.epilogue()


def test_an_image_that_was_not_verified_is_refused_where_the_site_asks_for_it(root: Path) -> None:
    scene = Scene(root, vm_images_verified=True)
    image = images.find(root / "images", "a.qcow2")
    scene.prologue()
    assert scene.markers() == {"failed"}
    assert "a.qcow2 is not verified" in (scene.state.path / "failed").read_text()
    scene.epilogue()
    images.seal(root / "images", image.sha256, sealed=True)
    scene.prologue()
    assert scene.markers() == {"ready"}


def test_an_image_that_is_replaced_while_a_start_is_under_way_starts_no_guest(root: Path) -> None:
    scene = Scene(root, requeue_limit=3)
    path = images.find(root / "images", "a.qcow2").path
    other = path.with_name("b")
    other.write_bytes(path.read_bytes())

    class Meanwhile(FakeTransport):
        """The keys of a guest are made when its image has been inspected."""

        def make_key(self) -> KeyPair:
            if other.exists():
                other.replace(path)
            return super().make_key()

    scene.node = replace(scene.node, transport=Meanwhile({}))
    with pytest.raises(ImageError, match="has changed since it was inspected"):
        scene.prologue()
    assert scene.hypervisor.domains(deadline=Deadline(1)) == {}


def test_what_nobody_foresaw_is_a_failure_that_leaves_nothing_and_is_in_the_log(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeHypervisor):
        def create(self, domain_xml: str, *, deadline: Deadline) -> None:
            raise TypeError("a bug of ours")

    scene = Scene(root)
    scene.node = replace(scene.node, hypervisor=Broken())
    scene.prologue()
    assert scene.markers() == {"failed"}
    assert "a bug of ours" in (scene.state.path / "failed").read_text()
    assert any(record.message == "unforeseen" and record.exc_info for record in caplog.records)
    scene.epilogue()
    assert scene.left() == []


def test_a_sweep_goes_on_though_it_cannot_look_at_everything(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Unreadable(FakeFilter):
        def tables(self, *, deadline: Deadline) -> list[str]:
            raise CommandError("nft refuses: told to fail")

    scene = Scene(root)
    scene.prologue()
    (root / "run/attempts").mkdir(exist_ok=True)
    (root / "run/attempts/x").symlink_to("missing")
    scene.node = replace(scene.node, filter=Unreadable())
    assert lifecycle.sweep(scene.node, deadline=Deadline(60)) == [scene.job.key]
    assert scene.hypervisor.domains(deadline=Deadline(60)) == {} and not scene.state.exists
    assert "the network rules of jobs could not be looked at" in caplog.text
    assert f"posts and counts below {root}/run could not be looked at" in caplog.text
