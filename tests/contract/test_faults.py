# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around the hooks: libvirt, the disk, the clock, the user's home, a reboot, one another."""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import crash, faults
from tests.crash import CASES, Stage, timeless
from tests.fakes.durable import DurableHypervisor
from tests.fakes.hypervisor import _Domain
from tests.fakes.node import OURSELVES
from tests.faults import BESIDE, Fault
from tests.inventory import differences
from vtorque import become, demand, lifecycle, run, servant, userclerk
from vtorque.cli import hooked, rooted
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, HypervisorError, VtorqueError
from vtorque.run import NotStarted

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]


@pytest.fixture
def stage() -> Iterator[Stage]:
    faults.adopt_orphans()
    with crash.place(Path(f"/var/lib/vtorque-faults-{os.getpid()}")) as root:
        yield a_stage(root)


def a_stage(root: Path, **site: Any) -> Stage:
    (root / "mom_priv/jobs").mkdir(parents=True)
    return Stage(root, CASES["prologue"], **site)


def known(stage: Stage, key: str = "7.srv") -> Path:
    """What makes mom know a job, as long as it is there."""
    path = stage.root / "mom_priv/jobs" / f"{key}.JB"
    path.touch()
    return path


def prologue(stage: Stage) -> None:
    stage.verb("prologue")(timeless())


def epilogue(stage: Stage) -> None:
    stage.verb("epilogue")(timeless())


class Lost(DurableHypervisor):
    """From call `since` on there is no daemon any more; one that `hangs` does not answer either."""

    def __init__(self, path: Path, *, since: int, hangs: bool) -> None:
        super().__init__(path)
        self.since = since
        self.hangs = hangs

    def _called(self, verb: str, deadline: Deadline) -> None:
        super()._called(verb, deadline)
        if len(self.calls) >= self.since:
            if self.hangs:
                raise DeadlineExceeded(f"libvirt did not answer in time: {verb}")
            raise HypervisorError(f"cannot {verb}: no daemon")


@pytest.mark.parametrize(("since", "hangs"), [(1, False), (1, True), (2, False), (3, False), (3, True)])
def test_when_libvirt_goes_the_start_counts_as_failed_and_the_epilogue_after_it_is_back_leaves_nothing(
    stage: Stage, since: int, hangs: bool
) -> None:
    gone = Lost(stage.root / "domains", since=since, hangs=hangs)
    back, stage.node = stage.node, replace(stage.node, hypervisor=gone)
    if since < 3:
        with pytest.raises(VtorqueError, match=r"no daemon|did not answer"):
            prologue(stage)
        # Whatever could not be given back meanwhile, starts that fail have an end.
        prologue(stage)
        assert "no daemon" in said(stage) or "did not answer" in said(stage)
    else:
        prologue(stage)
    with pytest.raises(VtorqueError):
        epilogue(stage)
    stage.node = back
    epilogue(stage)
    assert stage.left() == []


def said(stage: Stage) -> str:
    """What the job's wrapper says."""
    with pytest.raises(NotStarted) as refusal:
        run.proven(stage.state.path, stage.job.id)
    return refusal.value.brief


class Liar(DurableHypervisor):
    """Says that it did what it did not do: creates nothing, or destroys nothing, the first `times`."""

    def __init__(self, path: Path, verb: str, times: int) -> None:
        super().__init__(path)
        self.verb = verb
        self.times = times

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        if not self._lies("create"):
            super().create(domain_xml, deadline=deadline)

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        return not self._lies("destroy") and super().destroy(name, deadline=deadline)

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        return not self._lies("is_running") and super().is_running(name, deadline=deadline)

    def _lies(self, verb: str) -> bool:
        self.times -= verb == self.verb
        return verb == self.verb and self.times >= 0


@pytest.mark.parametrize("verb", ["create", "destroy", "is_running"])
def test_a_libvirt_that_lies_starts_no_job_without_guests_and_keeps_no_guest_without_a_job(
    stage: Stage, verb: str
) -> None:
    stage.node = replace(stage.node, hypervisor=Liar(stage.root / "domains", verb, 1))
    if verb == "destroy":
        prologue(stage)
    else:
        with pytest.raises(HypervisorError, match="stopped while it was booting"):
            prologue(stage)
        assert "did not end" in said(stage)
    epilogue(stage)
    assert stage.left() == []


def test_a_guest_that_dies_leaves_its_epilogue_nothing_to_fail_at(stage: Stage) -> None:
    prologue(stage)
    stage.hypervisor._domains.clear()
    epilogue(stage)
    assert stage.left() == []


def test_a_home_that_hangs_delays_a_start_once_and_keeps_nobody(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = stage.root / "waits"
    real = demand.brief

    def brief(deadline: Deadline) -> Deadline:
        with waits.open("a") as file:
            file.write(f"{real(deadline).remaining}\n")
        return Deadline(0.05)

    monkeypatch.setattr(userclerk.Clerk, "serve", lambda clerk, orders: time.sleep(60))
    monkeypatch.setattr(demand, "brief", brief)
    for hook in ("prologue", "epilogue"):
        ended = stage.call(hook)
        assert (ended.status, ended.said) == (0, "")
    assert max(map(float, waits.read_text().split())) <= 5
    assert faults.orphans() == []
    assert stage.left() == []


@pytest.fixture
def full(stage: Stage) -> Iterator[Path]:
    """The node's state in a file system of its own that has no room left once `fill` was called."""
    path = stage.root / "run"
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "size=1M,mode=711", "tmpfs", path], check=True)
    # An earlier hook has been here.
    rooted.prepare(stage.node.site, OURSELVES)
    yield path
    subprocess.run(["/usr/bin/umount", path], check=True)


def fill(path: Path) -> Path:
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def test_with_a_full_state_disk_nothing_starts_and_the_reason_is_said_now_and_then(stage: Stage, full: Path) -> None:
    """Nothing can be counted there: mom would try it again at once, for ever."""
    known(stage)
    ballast = fill(full)
    paused: list[float] = []
    deadline = Deadline(3600, sleep=lambda seconds, *until: paused.append(seconds))
    with pytest.raises((VtorqueError, OSError), match="No space left"):
        stage.verb("prologue")(deadline)
    assert sum(paused) >= 15
    epilogue(stage)
    ballast.unlink()
    assert stage.left() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_epilogue_that_can_start_no_process_gives_everything_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without memory, or with too many processes, once root, the program and who they ask are there."""
    def fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def crowded(work: Callable[..., Any]) -> Callable[..., Any]:
        def begin(*words: Any) -> Any:
            vars(os)["fork"] = fork
            return work(*words)

        return begin

    prologue(stage)
    monkeypatch.setattr(servant, "serve", crowded(servant.serve))
    monkeypatch.setattr(hooked, "main", crowded(hooked.main))
    ended = stage.call("epilogue")
    assert (ended.status, ended.said) == (0, "")
    assert stage.left() == []


def test_an_epilogue_of_which_root_cannot_start_the_program_says_so_and_the_next_one_gives_everything_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork_as(*words: Any, **named: Any) -> tuple[int, Any]:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    prologue(stage)
    with monkeypatch.context() as crowded:
        crowded.setattr(become, "fork_as", fork_as)
        ended = stage.call("epilogue")
    assert ended.status == 0 and "Resource temporarily unavailable" in ended.said and stage.left()
    ended = stage.call("epilogue")
    assert (ended.status, ended.said, stage.left()) == (0, "", [])


def test_an_epilogue_needs_no_room_at_all(stage: Stage, full: Path) -> None:
    prologue(stage)
    ballast = fill(full)
    epilogue(stage)
    ballast.unlink()
    assert stage.left() == []


@pytest.mark.parametrize("hours", [-24 * 365 * 60, -24, -1, 1, 24, 24 * 365])
def test_a_clock_that_is_set_meanwhile_changes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    real, looks = time.time, [0]

    def stepped() -> float:
        looks[0] += 1
        return real() + (hours * 3600 if looks[0] > 1 else 0)

    monkeypatch.setattr(time, "time", stepped)
    known(stage)
    prologue(stage)
    assert lifecycle.sweep(stage.node, deadline=timeless()) == []
    assert len(run.proven(stage.state.path, stage.job.id).peers) == 1
    epilogue(stage)
    assert stage.left() == []


def reboot(stage: Stage) -> None:
    """It takes guests, rules, mom's record, and all that was in /run."""
    stage.clear(but="disks")


def plant(stage: Stage) -> list[Path]:
    """What is not ours, or not to be touched, beside what is."""
    disks = stage.root / "disks"
    paths = [
        disks / "lost+found/7.srv_1of1.qcow2", disks / "7.srv/notes", disks / "77.srv/7.srv_1of1.qcow2",
        disks / "golden.qcow2", disks / "9.srv/9.srv_1of1.qcow2", disks / "8.srv/8.srv.qcow2",
        stage.root / "run/seeds/site.iso",
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not yours")
    return paths


def test_after_a_reboot_the_sweep_takes_what_jobs_have_left_on_disk_and_nothing_else(stage: Stage) -> None:
    known(stage, "9.srv")
    prologue(stage)
    reboot(stage)
    foreign = plant(stage)
    assert list(lifecycle.forgotten(stage.node)) == ["7.srv"]
    for swept in (["7.srv"], []):
        assert lifecycle.sweep(stage.node, deadline=timeless()) == swept
    assert sorted(stage.left()) == sorted(map(str, foreign))
    assert all(path.read_text() == "not yours" for path in foreign)


@pytest.mark.parametrize("hook", ["prologue", "prologue.parallel"])
def test_a_job_that_is_back_after_a_reboot_is_not_kept_by_what_it_has_left(stage: Stage, hook: str) -> None:
    known(stage)
    prologue(stage)
    reboot(stage)
    known(stage)
    stage.verb(hook)(timeless())
    assert len(stage.hypervisor._domains) == 1
    epilogue(stage)
    assert stage.left() == []


def test_failed_starts_are_not_counted_for_ever(stage: Stage) -> None:
    attempts = stage.root / "run/attempts"
    for name, days in (("6.srv", 8), (".6.srv.123", 8), ("7.srv", 6)):
        (attempts / name).touch()
        os.utime(attempts / name, (time.time() - days * 86400,) * 2)
    lifecycle.sweep(stage.node, deadline=timeless())
    assert [path.name for path in attempts.iterdir()] == ["7.srv"]


def test_an_epilogue_beside_a_prologue_at_any_of_its_effects_leaves_nothing(stage: Stage) -> None:
    """The job was deleted: its script is gone, and nobody else will come."""
    script = stage.job.spool_script
    assert script is not None

    def deleted(deadline: Deadline) -> None:
        script.unlink()
        stage.verb("epilogue")(deadline)

    effects = stage.call("prologue").effects
    epilogue(stage)
    for number in range(1, effects + 1, 6):
        script.touch()
        outcome = stage.call("prologue", Fault(kind=BESIDE, number=number), meanwhile=deleted, until=crash.brisk)
        assert (outcome.status, outcome.said, faults.orphans()) == (0, "", []), number
        if script.exists():
            # What one run has more of than the next is how often it had to wait.
            epilogue(stage)
            continue
        assert not (stage.state.path / "ready").exists()
        # Between the look at the script and the reason for its wrapper the epilogue may have been here.
        assert not stage.hypervisor.domains(deadline=timeless()), f"beside effect {number}"
        lifecycle.sweep(stage.node, deadline=timeless())
        assert stage.left() == [], f"beside effect {number}"


def test_planted_things_of_others_are_untouched_by_a_whole_life(stage: Stage) -> None:
    stage.filter.loaded["vtorque-77.srv"] = []
    known(stage, "77.srv")
    stage.hypervisor._domains["7.srv_1of10"] = _Domain(uuid="foreign", job="77.srv")
    for place in ("run/seeds", "disks/77.srv"):
        (stage.root / place).mkdir(parents=True)
        (stage.root / place / "77.srv_1of1.x").write_text("theirs")
    prologue(stage)
    epilogue(stage)
    before = stage.watched.take()
    prologue(stage)
    assert any(line.startswith("left: domain 7.srv_1of1") for line in differences(before, stage.watched.take()))
    epilogue(stage)
    assert differences(before, stage.watched.take()) == []
    assert (stage.root / "disks/77.srv/77.srv_1of1.x").read_text() == "theirs"
