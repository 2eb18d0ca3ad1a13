# SPDX-License-Identifier: Apache-2.0
"""Job ids, and what is built from them."""

import pytest

from vtorque.errors import RequestError
from vtorque.model import JOB_EXEC_RETRY, Job, PelogKind, job_id, job_key


@pytest.mark.parametrize("text", ["1234.server.example.org", "0.s", "58[2].srv", "58[].srv", "77", "58[2]"])
def test_what_torque_calls_a_job_is_a_job_id(text: str) -> None:
    assert job_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "srv", ".srv", "1.", "1./etc", "1.a/b", "../1.srv", "1.srv\n", "1 .srv", "1.-srv",
        "58[x].srv", "58[2.srv", "٣.srv", "1.sérv", "1" * 13, f"1.{'a' * 202}",
    ],
)
def test_nothing_else_is(text: str) -> None:
    with pytest.raises(RequestError, match="not a job id"):
        job_id(text)


def test_the_key_of_an_array_job_is_a_file_name() -> None:
    assert job_key(job_id("58[2].srv")) == "58-2.srv"
    assert job_key(job_id("58.srv")) == "58.srv"


def a_job(exit_status: int | None) -> Job:
    return Job(
        id=job_id("58[2].srv"), user="alice", node_index=0, nodes=("n1",), request="", exit_status=exit_status
    )


def test_a_job_is_retried_only_when_mom_says_so() -> None:
    assert a_job(JOB_EXEC_RETRY).will_be_retried
    assert not any(a_job(status).will_be_retried for status in (None, 0, 3, -1, -2, 271))
    assert a_job(None).key == "58-2.srv"


def test_hooks_are_known_by_the_names_of_their_files_and_prologues_start() -> None:
    assert {kind.value: kind.starts for kind in PelogKind} == {
        "prologue": True, "prologue.parallel": True,
        "epilogue": False, "epilogue.parallel": False, "epilogue.precancel": False,
    }
