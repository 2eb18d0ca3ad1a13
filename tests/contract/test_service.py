# SPDX-License-Identifier: Apache-2.0
"""A node that fails one job after the other, through the verbs themselves: out, telling so, and back."""

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import a_site
from tests.contract import test_lifecycle, test_sisters
from tests.contract.test_lifecycle import Scene, hooked
from tests.contract.test_sisters import Cluster
from tests.fakes.hypervisor import FakeHypervisor
from vtorque import config, guestnames, images, lifecycle, published, request, service, state
from vtorque.cli import vmgr, vmgr_node
from vtorque.deadline import Deadline
from vtorque.errors import HypervisorError, NodeOut, VtorqueError
from vtorque.model import JobId

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

root, make = test_lifecycle.root, test_sisters.make


class Broken(FakeHypervisor):
    """No guest is ever started."""

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        self._called("create", deadline)
        raise HypervisorError("libvirt is away")


class Waiting:
    """Time that passes at once, and how much of it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds


def begin(scene: Scene, number: int, **changes: object) -> float:
    """Start another job; how many seconds its failure would have kept the batch system waiting."""
    waiting = Waiting()
    job = scene.job._replace(id=JobId(f"{number}.srv"), **changes)  # type: ignore[arg-type]
    lifecycle.prologue(job, hooked(scene.node, job), scene.launch, deadline=Deadline(60, sleep=waiting))
    return waiting.seconds


@pytest.fixture
def broken(root: Path) -> Iterator[Scene]:
    scene = Scene(root, node_failure_limit=3)
    scene.node = replace(scene.node, hypervisor=Broken())
    yield scene
    service.bring_back(scene.node.site)


def test_the_job_after_the_third_failure_is_sent_elsewhere_without_a_guest_and_without_a_count(broken: Scene) -> None:
    for number in (1, 2, 3):
        begin(broken, number)
    tried = list(broken.node.hypervisor.calls)  # type: ignore[attr-defined]
    assert tried.count("create") == 3
    waiting = Waiting()
    for _ in range(5):
        # However often: it would end with the last of REQUEUE_LIMIT starts, which is the first here.
        with pytest.raises(NodeOut, match=r"node n1 takes no jobs .* 3\.srv: .*libvirt is away"):
            lifecycle.prologue(broken.job, broken.node, broken.launch, deadline=Deadline(60, sleep=waiting))
        waiting.seconds = 0
    assert broken.node.hypervisor.calls == tried  # type: ignore[attr-defined]
    assert broken.markers() == set() and not (broken.root / "run/attempts" / broken.job.key).exists()


def test_torque_is_held_back_and_slurm_drains_at_once(broken: Scene) -> None:
    """Torque starts a requeued job again at once, 56 times in 15 s; where a failure drains, one is enough."""
    service.take_out(broken.node.site, "bad memory")
    for system, seconds in (("torque", 15), ("slurm", 0)):
        broken.node = replace(broken.node, site=broken.node.site.but(batch_system=system))
        waiting = Waiting()
        with pytest.raises(NodeOut):
            lifecycle.prologue(broken.job, broken.node, broken.launch, deadline=Deadline(60, sleep=waiting))
        assert waiting.seconds == seconds


def test_an_epilogue_and_a_sweep_do_not_mind(broken: Scene) -> None:
    service.take_out(broken.node.site, "bad memory")
    broken.epilogue()
    assert lifecycle.sweep(broken.node, deadline=Deadline(60)) == []


def test_a_start_that_succeeds_begins_the_count_anew(root: Path) -> None:
    scene = Scene(root, node_failure_limit=3)
    sound = scene.node
    for number in (1, 2):
        scene.node = replace(sound, hypervisor=Broken())
        begin(scene, number)
    assert len(service.look(sound.site).row) == 2
    scene.node = sound
    scene.prologue()
    assert service.look(sound.site) == service.Standing()
    scene.epilogue()
    assert scene.left() == []


@pytest.mark.parametrize("says", [b"refused: no such program\n", b"failed: cannot mount\n"])
def test_what_one_users_guests_say_does_not_take_the_node_out(root: Path, says: bytes) -> None:
    scene = Scene(root, says=says, node_failure_limit=3)
    for number in range(1, 6):
        begin(scene, number)
    assert not service.look(scene.node.site).out
    assert len(service.look(scene.node.site).row) == (3 if says.startswith(b"failed") else 0)
    service.bring_back(scene.node.site)


def test_a_sister_that_is_out_tells_the_mother_superior_and_fails(make: Callable[..., Cluster]) -> None:
    cluster = make(nodes=2)
    sister = cluster.sisters[1]
    service.take_out(sister.node.site, "bad memory")
    with pytest.raises(NodeOut):
        sister.start()
    assert sister.hypervisor.calls == []
    cluster.sisters[0].start()
    assert "node n2: node n2 takes no jobs with guests since" in cluster.failed()
    assert not service.look(cluster.sisters[0].node.site).row, "it is not her own fault"
    cluster.sisters[0].end()


def test_a_guard_counts_guests_that_do_not_come_and_those_that_do(make: Callable[..., Cluster]) -> None:
    cluster = make(nodes=2)
    sister = cluster.sisters[1]
    sister.node = replace(sister.node, site=sister.node.site.but(node_failure_limit=3))
    says = [b"failed: cannot mount\n", f"ready {guestnames.guest_uuid(sister.job.id, 1)}\n".encode()]
    counted = []
    for said in says:
        sister.said = lambda said=said: said  # type: ignore[method-assign, misc]
        sister.start()
        test_sisters.eventually((cluster.directory / published.name(sister.job)).exists)
        sister.end()
        assert sister.guard_is_gone()
        counted.append(len(service.look(sister.node.site).row))
    assert counted == [1, 0]


def test_an_administrator_takes_a_node_out_and_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = a_site(disk_dir=str(tmp_path / "disks"), state_dir=str(tmp_path / "run"), log_dir=str(tmp_path),
                  batch_system="slurm")
    monkeypatch.setattr(config, "load", lambda path, trusted_owner: site)
    monkeypatch.setattr(config, "find", lambda prefix: tmp_path)
    assert vmgr.main(["node", "status"]) == 0
    assert vmgr.main(["node", "out", "new", "memory"]) == 0
    assert vmgr.main(["node", "status"]) == 3
    assert vmgr.main(["node", "return"]) == vmgr.main(["node", "return"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "in" and said[1].endswith("Z: new memory")
    assert said[2:] == [
        "the node takes jobs with guests again", f"tell the batch system, too: {vmgr_node._TELL['slurm']}",
        "the node was not out",
    ]
    audit = (tmp_path / "audit.log").read_text().splitlines()
    assert [('"take out"' in line, '"new memory"' in line) for line in audit][:2] == [(True, True), (False, False)]


def test_what_cannot_be_noted_fails_no_job_that_would_not_fail(broken: Scene) -> None:
    site = broken.node.site.but(disk_dir="/proc/no/disks")
    broken.node = replace(broken.node, site=site.but(state_dir=str(broken.root / "run")))
    note = broken.root / "run/node" / service.NOTE
    note.mkdir()
    try:
        begin(broken, 1)
    except VtorqueError as error:
        pytest.fail(str(error))
    assert not service.look(broken.node.site).row
    note.rmdir()


def test_an_image_that_comes_slowly_takes_no_node_out(root: Path) -> None:
    """One job fetches it for longer than a prologue has, and others wait for it."""
    (root / "ram/images").mkdir(mode=0o711, parents=True)
    scene = Scene(root, ramdisk_dir=str(root / "ram"), node_failure_limit=2)
    image = images.find(root / "images", "a.qcow2")
    wanted = request.encode(scene.request._replace(fs_type="ramdisk"))
    with (root / "ram/images" / f"{image.sha256}.qcow2.lock").open("w") as fetching:
        fcntl.flock(fetching, fcntl.LOCK_EX)
        for number in (11, 12):
            job = scene.job._replace(id=JobId(f"{number}.srv"), request=wanted)
            node = hooked(scene.node, job)
            lifecycle.prologue(job, node, scene.launch, deadline=Deadline(node.site.undo_reserve + 0.5))
            marker = scene.node.state(job.key).path / state.FAILED
            assert "a.qcow2 is not on this node in time" in marker.read_text()
    assert not service.look(scene.node.site).out
