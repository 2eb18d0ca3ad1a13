# SPDX-License-Identifier: Apache-2.0
"""Many hooks at once on one node: no core and no megabyte is promised twice. And libvirt takes what is planned."""

import json
import multiprocessing
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_plan, a_request, a_site
from tests.unit.test_numa import a_node, domain, plan_on
from vtorque import admission, reservation
from vtorque.deadline import Deadline
from vtorque.errors import NodeBusy
from vtorque.model import JobId, JobPlan
from vtorque.shape import NodeShape
from vtorque.state import JobState

pytestmark = pytest.mark.runs

SHAPE = a_node(threads=2, mib=4096)
SITE = a_site(host_os_core_count=2, host_os_ram_mb=1024)
PROCESSES = 12
ROUNDS = 15
USABLE_MIB = SHAPE.memory_mib - SITE.host_os_ram_mb


def hooks(root: Path, number: int) -> None:
    """Jobs one after the other, each noting in a file of its own what it was promised and for how long."""
    dice = random.Random(number)
    for turn in range(ROUNDS):
        key = f"{number * 1000 + turn}.srv"
        request = a_request(
            vcpus=dice.randint(1, 5), memory_mib=dice.choice([512, 2000]),
            pinning=dice.choice(["true", "true", "auto", "false"]),
        )
        make = maker(key, request)
        record = JobState(root, key)
        record.create()
        try:
            made = admission.reserve(root, key, SHAPE, make, deadline=Deadline(30))
        except NodeBusy:
            record.remove()
            continue
        cpus = [cpu for vm in made.vms for cpu in vm.cpus]
        (root / "now" / key).write_text(json.dumps([cpus, reservation.of(made).cores]))
        overlap(root)
        (root / "now" / key).unlink()
        # One in three is killed between its end and the release: the record is gone, the promise is not.
        if dice.random() < 0.66:
            admission.release(root, key)
        record.remove()
        (root / "done" / key).touch()


def maker(key: str, request: Any) -> Callable[[NodeShape], JobPlan]:
    job = a_job(id=JobId(key))
    return lambda shape: a_plan(job=job, request=request, shape=shape, site=SITE)


def overlap(root: Path) -> None:
    """Whether what is used now, by all processes, is there at all; a file that goes meanwhile is no use."""
    found = []
    for path in (root / "now").iterdir():
        try:
            found.append(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):
            continue
    for first, (cpus, _) in enumerate(found):
        for others, _ in found[first + 1:]:
            if set(cpus) & set(others):
                (root / "wrong").touch()


def test_processes_that_race_are_never_promised_the_same(tmp_path: Path) -> None:
    for name in ("now", "done"):
        (tmp_path / name).mkdir()
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=hooks, args=(tmp_path, number)) for number in range(1, PROCESSES + 1)]
    for each in started:
        each.start()
    for each in started:
        each.join(60)
        assert each.exitcode == 0
    assert not (tmp_path / "wrong").exists()
    assert len(list((tmp_path / "done").iterdir())) >= PROCESSES
    record = JobState(tmp_path, "1.srv")
    record.create()
    largest = maker("1.srv", a_request(vcpus=14, memory_mib=USABLE_MIB - 512))
    assert admission.reserve(tmp_path, "1.srv", SHAPE, largest, deadline=Deadline(5)), "all of it is free again"


def grab(root: Path, number: int, gate: Any) -> None:
    key = f"{number}.srv"
    JobState(root, key).create()
    gate.wait()
    try:
        admission.reserve(
            root, key, SHAPE, maker(key, a_request(vcpus=3, memory_mib=64, pinning="false")), deadline=Deadline(30)
        )
    except NodeBusy:
        return
    (root / "won" / key).touch()


def test_as_many_win_as_there_is_room_for(tmp_path: Path) -> None:
    """14 cores are 4 times 3, and each of 12 asks at the same moment and keeps what it gets."""
    (tmp_path / "won").mkdir()
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(PROCESSES)
    started = [context.Process(target=grab, args=(tmp_path, number, gate)) for number in range(1, PROCESSES + 1)]
    for each in started:
        each.start()
    for each in started:
        each.join(60)
        assert each.exitcode == 0
    assert len(list((tmp_path / "won").iterdir())) == 4


@pytest.mark.parametrize("request_", [
    {"vcpus": 4}, {"vcpus": 12, "memory_mib": 4096}, {"vcpus": 4, "pinning": "auto"}, {"pinning": "false"},
    {"pinning": "3,6"}, {"vcpus": 1}, {"vcpus": 12, "memory_mib": 4096, "pinning": "auto"},
], ids=str)
@pytest.mark.parametrize("pages", [0, 1024])
def test_libvirt_takes_what_is_planned(tmp_path: Path, request_: dict[str, Any], pages: int) -> None:
    """libvirt's own schema and parser; its test driver needs no daemon and knows only machines of its own kind."""
    site = {"hugepages": bool(pages), "host_os_core_count": 2}
    decided = plan_on(a_node(pages=pages), site=site, **request_)
    text = domain(decided, decided.vms[0], **site).replace("<domain type='qemu'>", "<domain type='test'>")
    document = tmp_path / "domain.xml"
    document.write_text(text)
    done = subprocess.run(
        ["virsh", "-q", "-c", "test:///default", "define", "--validate", document], capture_output=True, text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_promise_lasts_as_long_as_its_record(tmp_path: Path) -> None:
    """A process that was killed after it was promised something leaves a record, and so keeps it."""
    JobState(tmp_path, "7.srv").create()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: admission.reserve(
        tmp_path, "7.srv", SHAPE, maker("7.srv", a_request(vcpus=14)), deadline=Deadline(5)
    ))
    child.start()
    child.join(30)
    JobState(tmp_path, "8.srv").create()
    with pytest.raises(NodeBusy):
        admission.reserve(
            tmp_path, "8.srv", replace(SHAPE), maker("8.srv", a_request(vcpus=1)), deadline=Deadline(5)
        )
