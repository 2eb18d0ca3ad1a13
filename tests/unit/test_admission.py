# SPDX-License-Identifier: Apache-2.0
"""The node's promises: kept until nothing of a job is left, and made of what others left."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_plan, a_request, a_shape, a_site
from tests.fakes.node import a_node
from vtorque import admission, teardown
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, NodeBusy, RequestError, StateError
from vtorque.model import JobId, JobPlan, Resource
from vtorque.shape import NodeShape
from vtorque.state import JobState


def maker(key: str, **request: Any) -> Callable[[NodeShape], JobPlan]:
    job, wanted = a_job(id=JobId(key)), a_request(**request)
    return lambda shape: a_plan(job=job, request=wanted, shape=shape)


def ask(root: Path, key: str, **request: Any) -> JobPlan:
    if not JobState(root, key).exists:
        JobState(root, key).create()
    return admission.reserve(root, key, a_shape(), maker(key, **request), deadline=Deadline(5))


def entries(root: Path) -> set[str]:
    return {path.name for path in (root / "admission").iterdir()}


def test_a_second_job_gets_what_the_first_left(tmp_path: Path) -> None:
    first, second = ask(tmp_path, "7.srv", vcpus=3), ask(tmp_path, "58-2.srv", vcpus=4)
    assert (first.vms[0].cpus, second.vms[0].cpus) == ((1, 2, 3), (4, 5, 6, 7))


def test_not_now_and_never_are_different_and_promise_nothing(tmp_path: Path) -> None:
    ask(tmp_path, "7.srv", vcpus=4)
    with pytest.raises(NodeBusy, match=r"^not now: job 7\.srv holds 4 cores and 1178 MiB of node n1; .* 3 are free$"):
        ask(tmp_path, "8.srv", vcpus=4)
    with pytest.raises(RequestError, match="offers 7"):
        ask(tmp_path, "8.srv", vcpus=8)
    assert entries(tmp_path) == {"7.srv.json"}


def test_memory_is_counted_too(tmp_path: Path) -> None:
    ask(tmp_path, "7.srv", vcpus=1, memory_mib=8192, pinning="false")
    with pytest.raises(NodeBusy, match="1 guest need 8336 MiB, 6000 are free"):
        ask(tmp_path, "8.srv", vcpus=1, memory_mib=8192, pinning="auto")


def test_asking_again_is_no_second_promise(tmp_path: Path) -> None:
    assert ask(tmp_path, "7.srv", vcpus=6) == ask(tmp_path, "7.srv", vcpus=6)
    assert entries(tmp_path) == {"7.srv.json"}


def test_what_is_released_is_free_again(tmp_path: Path) -> None:
    ask(tmp_path, "7.srv", vcpus=7)
    for _ in range(2):
        admission.release(tmp_path, "7.srv")
    assert ask(tmp_path, "8.srv", vcpus=7)


def test_a_job_of_which_nothing_is_recorded_holds_nothing(tmp_path: Path) -> None:
    ask(tmp_path, "7.srv", vcpus=7)
    (tmp_path / "admission/.7.srv.json.99").write_text("half")
    JobState(tmp_path, "7.srv").remove()
    assert ask(tmp_path, "8.srv", vcpus=7)
    assert entries(tmp_path) == {"8.srv.json"}


def test_teardown_releases_when_nothing_is_left_and_not_before(tmp_path: Path) -> None:
    ask(tmp_path, "7.srv", vcpus=7)
    record = JobState(tmp_path, "7.srv")
    with record.taking(Resource(kind="nonsense", name="x"), deadline=Deadline(5)):
        pass
    node = a_node(a_site(state_dir=str(tmp_path)))
    tear_down = partial(teardown.release, record, node, deadline=Deadline(5))
    with pytest.raises(StateError, match="could not give back nonsense"):
        tear_down()
    with pytest.raises(NodeBusy):
        ask(tmp_path, "8.srv", vcpus=7)
    record.given_back(Resource(kind="nonsense", name="x"))
    tear_down()
    assert ask(tmp_path, "8.srv", vcpus=7)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "key": "7.srv", "shares": [{}]}'])
def test_a_damaged_promise_is_not_taken_for_none(tmp_path: Path, text: str) -> None:
    ask(tmp_path, "7.srv")
    (tmp_path / "admission/7.srv.json").write_text(text)
    with pytest.raises(StateError, match=r"7\.srv\.json (is damaged|was written by another version)"):
        ask(tmp_path, "8.srv")


def test_nobody_waits_beyond_the_deadline(tmp_path: Path) -> None:
    JobState(tmp_path, "8.srv").create()

    def slow(shape: NodeShape) -> JobPlan:
        with pytest.raises(DeadlineExceeded, match="other jobs that start"):
            admission.reserve(tmp_path, "8.srv", shape, maker("8.srv"), deadline=Deadline(0.02))
        return maker("7.srv")(shape)

    JobState(tmp_path, "7.srv").create()
    admission.reserve(tmp_path, "7.srv", a_shape(), slow, deadline=Deadline(5))
    assert entries(tmp_path) == {"7.srv.json"}


def test_what_others_left_beside_the_promises_is_left_alone_but_half_a_promise_is_not(tmp_path: Path) -> None:
    ask(tmp_path, "7.srv")
    for name in ("README", ".8.srv.json.99"):
        (tmp_path / "admission" / name).touch()
    ask(tmp_path, "9.srv")
    assert entries(tmp_path) == {"7.srv.json", "9.srv.json", "README"}
