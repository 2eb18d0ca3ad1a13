# SPDX-License-Identifier: Apache-2.0
"""Torque's dialect: hostile arguments, verdicts, limits."""

from typing import Any

import pytest

from vtorque.backends import batch
from vtorque.backends.batch import front
from vtorque.backends.batch.torque import Torque
from vtorque.errors import Blame, CommandError, ConfigError, RequestError, StateError
from vtorque.model import PelogKind

PROLOGUE = ["7.srv", "ann", "grp", "my job", "nodes=1:ppn=2,other=vt1.abc,walltime=1", "batch", "", "/x/7.srv.SC"]
EPILOGUE = ["7.srv", "ann", "grp", "-rf", "99", "other=vt1.abc", "cput=1", "batch", "", "271", "/x/7.srv.SC"]


def parse(kind: PelogKind, arguments: list[str], node_file: str = "n1\nn1\n", **environ: str) -> Any:
    return Torque().parse_job(kind, arguments, environ, node_file)


def test_a_prologue_and_an_epilogue_tell_the_same_job() -> None:
    before, after = parse(PelogKind.PROLOGUE, PROLOGUE), parse(PelogKind.EPILOGUE, EPILOGUE)
    for job in (before, after):
        assert (job.id, job.user, job.request, job.nodes, job.node_index) == ("7.srv", "ann", "vt1.abc", ("n1",), 0)
    assert str(before.spool_script) == "/x/7.srv.SC" and before.exit_status is None
    assert after.spool_script is None and after.exit_status == 271


@pytest.mark.parametrize("length", range(2, 12))
def test_missing_arguments_are_no_reason_not_to_clean_up(length: int) -> None:
    assert parse(PelogKind.EPILOGUE, EPILOGUE[:length]).id == "7.srv"


def test_only_a_retry_keeps_what_the_next_start_needs() -> None:
    retried = [*EPILOGUE[:9], "-3", EPILOGUE[10]]
    assert parse(PelogKind.EPILOGUE, retried).will_be_retried
    assert not parse(PelogKind.EPILOGUE, EPILOGUE).will_be_retried


@pytest.mark.parametrize("user", ["", "-root", "a b", "../x", "a/b", "x" * 80, "ann\n", "änn"])
def test_what_is_no_user_name_is_refused(user: str) -> None:
    with pytest.raises(StateError, match="not a user name"):
        parse(PelogKind.PROLOGUE, ["7.srv", user, *PROLOGUE[2:]])


@pytest.mark.parametrize("job", ["", "x", "../7", "7.srv/..", "7 .srv", "7.srv\n", "-7", "7[1.srv", "7." + "x" * 300])
def test_what_is_no_job_id_is_refused(job: str) -> None:
    with pytest.raises(RequestError, match="not a job id"):
        parse(PelogKind.PROLOGUE, [job, *PROLOGUE[1:]])


@pytest.mark.parametrize(
    "resources",
    ["", "other=x", "other=vt1.", "other=vt2.abc", "xother=vt1.abc", "other=vt1.a b", "other=vt1.a,other=vt1.b"],
)
def test_what_is_no_request_is_none(resources: str) -> None:
    assert parse(PelogKind.PROLOGUE, [*PROLOGUE[:4], resources, *PROLOGUE[5:]]).request == ""


def test_nodes_are_in_the_order_of_the_node_file() -> None:
    assert parse(PelogKind.PROLOGUE, PROLOGUE, "n2\nn2\nn10\nn1\nn2\n").nodes == ("n2", "n10", "n1")
    with pytest.raises(StateError, match="not a host name"):
        parse(PelogKind.PROLOGUE, PROLOGUE, "n1\n-oProxyCommand=x\n")


def test_a_sister_knows_how_many_nodes_there_can_be_at_most() -> None:
    told = parse(PelogKind.PROLOGUE_PARALLEL, PROLOGUE, "", PBS_NODENUM="1", PBS_NP="12")
    assert (told.nodes, told.node_index, told.most_nodes) == ((), 1, 12)
    assert parse(PelogKind.PROLOGUE_PARALLEL, PROLOGUE, "", PBS_NODENUM="1").most_nodes == 0


@pytest.mark.parametrize(
    ("blame", "status"), [(None, 0), (Blame.USER, 0), (Blame.NODE, 3), (Blame.BUG, 3)]
)
def test_no_failure_ever_aborts_a_job(blame: Blame | None, status: int) -> None:
    for kind in PelogKind:
        assert Torque().exit_status(kind, blame) == status


@pytest.mark.parametrize(
    ("config", "seconds"),
    [("", 290), ("$prologalarm 600\n", 590), ("$loglevel 7\n$prologalarm  20\n", 10), ("$prologalarm 10", 10),
     ("#$prologalarm 5\n", 290), ("$prologalarm ten\n", 290), ("$prologalarm 100\n$prologalarm 200\n", 190)],
)
def test_the_time_is_moms_own(config: str, seconds: int) -> None:
    assert Torque().hook_seconds(config) == seconds


def test_the_job_id_is_the_last_word_of_qsub() -> None:
    assert front.Torque().job_id_from(b"note: something\n12[].srv.example.org\n") == "12[].srv.example.org"
    with pytest.raises(CommandError, match="printed no job id"):
        front.Torque().job_id_from(b"\n")


def test_a_batch_system_that_is_none_of_ours_is_named() -> None:
    with pytest.raises(ConfigError, match=r"BATCH_SYSTEM: 'lsf' is not one of .*torque"):
        batch.by_name("lsf")
