# SPDX-License-Identifier: Apache-2.0
"""Where a hook that fails drains its node: whose fault may fail it, over fakes."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_lifecycle import Scene, hooked
from vtorque import bringup, demand, service, undo
from vtorque.deadline import Deadline
from vtorque.errors import Blame, HypervisorError, ImageError, NodeBusy, VtorqueError
from vtorque.model import JobId
from vtorque.published import NodeFailed

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]


@pytest.fixture
def root() -> Iterator[Path]:
    # Not below pytest's own directory: root trusts no path with a component that others may write.
    path = Path("/var/lib") / f"vtorque-slurm-faults-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def scene(root: Path) -> Scene:
    return Scene(root, batch_system="slurm", requeue_limit=3)


def fail(scene: Scene, error: VtorqueError) -> str:
    """What the job's user is told of a start that fails so."""
    with undo.undoing(scene.job, scene.node, scene.state, Deadline(5, sleep=lambda seconds: None)):
        raise error
    reason: str = json.loads((scene.state.path / "failed").read_text())["reason"]
    return reason


def test_a_nodes_own_fault_fails_its_hook(scene: Scene) -> None:
    with pytest.raises(HypervisorError):
        fail(scene, HypervisorError("no libvirt"))


@pytest.mark.parametrize("error", [
    NodeFailed("node n2: no disk", Blame.NODE), NodeBusy("4 cores are taken"), ImageError("image a.qcow2 is damaged"),
])
def test_what_is_no_fault_of_this_node_is_told_the_user(scene: Scene, error: VtorqueError) -> None:
    assert fail(scene, error) == error.brief


def test_what_users_have_in_their_guests_drains_no_node(root: Path) -> None:
    """Each job would drain another node: it is told its user, and counted for when it happens to others, too."""
    scene = Scene(root, batch_system="slurm", requeue_limit=3, node_failure_limit=2, says=b"failed: whatever")
    for number in (11, 12, 13):
        scene.job = scene.job._replace(id=JobId(f"{number}.srv"))
        scene.node = hooked(scene.node, scene.job)
        scene.prologue()
        marker = scene.node.state(scene.job.key).path / "failed"
        assert "whatever" in marker.read_text()
        scene.epilogue()
    standing = service.look(scene.node.site)
    assert (standing.out, [each.by_itself for each in standing.row]) == ("", [False, False])


def test_a_busy_node_is_waited_for_until_its_guests_could_not_boot_any_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [0.0], []

    def busy(*args: object, **kwargs: object) -> None:
        looks.append(now[0])
        raise NodeBusy("4 cores are taken")

    def sleep(seconds: float, *until: object) -> None:
        assert until, "it is woken when another job gives back what it holds"
        now[0] += seconds

    monkeypatch.setattr(bringup, "_start", busy)
    deadline = Deadline(60 + scene.node.site.timeout, clock=lambda: now[0], sleep=sleep)
    wanted = demand.demand(scene.job, scene.node)
    with pytest.raises(NodeBusy):
        bringup.start(wanted, scene.node, scene.state, deadline=deadline)
    assert looks[0] == 0.0 and looks[-1] == pytest.approx(60.0)
