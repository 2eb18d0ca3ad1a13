# SPDX-License-Identifier: Apache-2.0
"""OpenPBS's dialect: what the hook hands over, what classic scripts are told, and what exit statuses mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from vtorque import run
from vtorque.backends.batch import front
from vtorque.backends.batch.openpbs import CLASSIC_REQUEST, Event, OpenPbs
from vtorque.cli import pbsverbs
from vtorque.errors import Blame, ConfigError, RequestError, StateError
from vtorque.model import Job, PelogKind

CLASSIC = ["12.srv", "ann", "grp"]
EPILOGUE = [*CLASSIC, "job", "99", "ncpus=2,place=scatter", "cput=1", "batch", "null", "0"]


def event(name: str = "execjob_begin", **changes: Any) -> Event:
    job = {
        "id": "12.srv", "user": "ann", "request": "vt1.abc", "hosts": "n1/0*4+n2/0*4", "vnodes": "", "node": "n1",
        "exit_status": "", "mother_superior": True, **changes,
    }
    told = {"event": name, "seconds": 55, "home": "/var/spool/pbs", "job": job}
    return OpenPbs().parse_event(json.dumps(told).encode())


def job(*arguments: Any, **changes: Any) -> Job:
    found = event(*arguments, **changes).job
    assert found is not None
    return found


def classic(kind: PelogKind, arguments: list[str], node_file: str = "n1\n", **environ: str) -> Job:
    return OpenPbs().parse_job(kind, arguments, environ, node_file)


class TestEvents:
    def test_the_mother_superior_knows_all_nodes_and_where_the_script_is(self) -> None:
        found = job()
        assert (found.nodes, found.node_index, found.request) == (("n1", "n2"), 0, "vt1.abc")
        assert found.spool_script == Path("/var/spool/pbs/mom_priv/jobs/12.srv.SC")
        assert event().mother_superior and event().seconds == 55

    @pytest.mark.parametrize("node", ["n2", "n2.example.org"])
    def test_a_sister_knows_which_one_she_is(self, node: str) -> None:
        found = job(mother_superior=False, node=node)
        assert (found.nodes, found.node_index, found.spool_script) == ((), 1, None)

    def test_the_element_of_an_array_keeps_its_brackets_in_its_scripts_name_and_loses_them_in_ours(self) -> None:
        found = job(id="12[3].srv")
        assert found.key == "12-3.srv" and str(found.spool_script).endswith("/12[3].srv.SC")

    @pytest.mark.parametrize(
        ("hosts", "vnodes", "nodes"),
        [
            ("a/0*4+b/0*4", "", ("a", "b")),
            ("a/0", "", ("a",)),
            ("a/0*2+a/1*2+b/0", "", ("a", "b")),
            ("b.x.org:15002/0*4+a.x.org:15002/0*4", "", ("b.x.org", "a.x.org")),
            ("", "(a:ncpus=2:mem=4gb)+(b:ncpus=2)", ("a", "b")),
            ("", "(a[0]:ncpus=2+a[1]:ncpus=2)+(b[0]:ncpus=4)", ("a", "b")),
        ],
    )
    def test_nodes_come_in_the_order_of_the_chunks_each_once(
        self, hosts: str, vnodes: str, nodes: tuple[str, ...]
    ) -> None:
        assert job(hosts=hosts, vnodes=vnodes).nodes == nodes

    def test_a_node_that_is_none_of_the_jobs_starts_nothing_but_may_end_everything(self) -> None:
        with pytest.raises(StateError, match="node n9 is not among the job's nodes: n1, n2"):
            event(mother_superior=False, node="n9")
        assert job("execjob_abort", mother_superior=False, node="n9", hosts="").id == "12.srv"

    @pytest.mark.parametrize(
        "changes",
        [{"user": "-root"}, {"user": "a b"}, {"hosts": "-oProxyCommand=x/0"}, {"hosts": "../x/0"}, {"hosts": "ä/0"}],
    )
    def test_what_is_no_name_is_refused(self, changes: dict[str, str]) -> None:
        with pytest.raises(StateError):
            event(**changes)

    @pytest.mark.parametrize("identity", ["", "x", "../7", "7.srv\n", "7[1.srv"])
    def test_what_is_no_job_id_is_refused(self, identity: str) -> None:
        with pytest.raises(RequestError, match="not a job id"):
            event(id=identity)

    @pytest.mark.parametrize(
        "text", [b"", b"[]", b"null", b"{}", b'{"event": "x", "seconds": "soon", "home": "/"}', b"\xff"]
    )
    def test_what_no_hook_says_is_refused(self, text: bytes) -> None:
        with pytest.raises(StateError, match="the hook said nothing that this version understands"):
            OpenPbs().parse_event(text)

    def test_a_periodic_event_has_no_job(self) -> None:
        found = OpenPbs().parse_event(b'{"event": "exechost_periodic", "seconds": 25, "home": "/var/spool/pbs"}')
        assert found.job is None and not found.mother_superior

    @pytest.mark.parametrize(
        ("status", "again"),
        [("0", False), ("255", False), ("271", False), ("-1", False), ("-2", False), ("-17", False), ("-19", False),
         ("-3", True), ("-11", True), ("-16", True), ("-18", True), ("-22", True), ("", True), ("soon", True)],
    )
    def test_only_what_runs_again_keeps_its_directory(self, status: str, again: bool) -> None:
        found = job("execjob_end", exit_status=status)
        assert found.will_be_retried == again and found.may_run_again == again

    def test_a_start_has_no_exit_status(self) -> None:
        assert job("execjob_begin", exit_status="0").exit_status is None


class TestClassicScripts:
    def test_three_arguments_are_a_job_whose_request_its_shim_has_found(self) -> None:
        found = classic(PelogKind.PROLOGUE, CLASSIC, "n1\nn1\n", **{CLASSIC_REQUEST: "#VTORQUE vt1.abc"})
        assert (found.id, found.user, found.request, found.nodes) == ("12.srv", "ann", "vt1.abc", ("n1",))

    @pytest.mark.parametrize("line", ["", "#VTORQUE ", "#VTORQUE vt1.", "#VTORQUE vt1.a b", "echo vt1.abc"])
    def test_what_is_no_request_is_none(self, line: str) -> None:
        assert classic(PelogKind.PROLOGUE, CLASSIC, **{CLASSIC_REQUEST: line}).request == ""

    def test_ten_arguments_are_an_epilogue(self) -> None:
        assert classic(PelogKind.EPILOGUE, EPILOGUE).exit_status == 0
        assert classic(PelogKind.EPILOGUE, [*EPILOGUE[:9], "-3"]).will_be_retried

    @pytest.mark.parametrize("arguments", [[], ["12.srv"], ["12.srv", "-x"], ["12.srv", "a/b"]])
    def test_what_is_no_scripts_call_is_refused(self, arguments: list[str]) -> None:
        with pytest.raises(StateError):
            classic(PelogKind.PROLOGUE, arguments)

    @pytest.mark.parametrize(
        ("config", "seconds"),
        [("", 30), ("$prologalarm 300\n", 300), ("#$prologalarm 5\n", 30), ("$prologalarm x", 30)],
    )
    def test_the_time_is_moms_own_to_the_last_second(self, config: str, seconds: int) -> None:
        assert OpenPbs().hook_seconds(config) == seconds

    @pytest.mark.parametrize(
        ("blame", "status"), [(None, 0), (Blame.USER, 0), (Blame.NODE, 3), (Blame.BUG, 3)]
    )
    def test_no_failure_ever_aborts_a_job(self, blame: Blame | None, status: int) -> None:
        assert OpenPbs().exit_status(PelogKind.PROLOGUE, blame) == status


def test_a_request_rides_in_a_resource_and_in_a_comment_of_the_script() -> None:
    assert front.OpenPbs().submit_options("vt1.abc") == ["-l", "site=vt1.abc"]
    assert front.OpenPbs().script_comment("vt1.abc") == b"#VTORQUE vt1.abc\n"


@pytest.mark.parametrize(("told", "seen"), [("5", "4"), ("1", "1"), ("many", "many")])
def test_a_job_counts_the_cores_of_its_guest_and_not_those_of_its_node(told: str, seen: str) -> None:
    environ = {"NCPUS": told, "PBS_JOBID": "12[3].srv", "PBS_ARRAY_INDEX": "3", "PBS_TASKNUM": "1", "HOME": "/x"}
    guests = run.Guests(peers=(), vcpus=4, environment={"PBS_NUM_PPN": "4"})
    sent = run.job_environment(environ, front.OpenPbs().job_environment(environ), (), guests)
    assert sent == {
        "NCPUS": seen, "PBS_JOBID": "12[3].srv", "PBS_ARRAY_INDEX": "3", "PBS_TASKNUM": "1", "PBS_NUM_PPN": "4",
    }


def test_an_event_at_which_nothing_is_to_be_done_is_a_mistake() -> None:
    nobody: Any = None
    with pytest.raises(ConfigError, match="nothing is to be done at exechost_startup"):
        pbsverbs.verb_for(event("exechost_startup"), nobody, nobody)
