# SPDX-License-Identifier: Apache-2.0
"""Slurm's dialect, its configuration, and what a node remembers of its jobs."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_site
from tests.fakes.node import a_node
from vtorque import doctor_slurm, slurmconf, slurmstarts, wakeups
from vtorque.backends.batch import front, slurm
from vtorque.backends.batch.slurm import Slurm
from vtorque.doctor_checks import Level
from vtorque.errors import Blame, CommandError, RequestError, StateError
from vtorque.model import JobId, PelogKind
from vtorque.wakeups import Changes

PROLOG = {
    "SLURMD_NODENAME": "n10", "SLURM_JOB_ID": "7", "SLURM_JOB_USER": "ann", "SLURM_JOB_COMMENT": "vt1.abc",
    "SLURM_NODELIST": "b1,n[9-10]", "SLURM_JOB_RESTART_COUNT": "0", "SLURM_SCRIPT_CONTEXT": "prolog_slurmd",
}
CONF = "SlurmdSpoolDir={}/spool-%n\nPrologFlags=Alloc,DeferBatch,Contain\nPrologEpilogTimeout=60\n"


def parse(*, kind: PelogKind = PelogKind.PROLOGUE, **environ: str) -> Any:
    return Slurm().parse_job(kind, (), {**PROLOG, **environ}, "")


def test_the_first_node_knows_all_others_and_they_know_their_place() -> None:
    first, last = parse(SLURMD_NODENAME="b1"), parse()
    assert (first.id, first.user, first.request) == ("7", "ann", "vt1.abc")
    assert (first.node_index, first.nodes) == (0, ("b1", "n9", "n10"))
    assert (last.node_index, last.nodes) == (2, ())


@pytest.mark.parametrize(
    ("context", "node", "kind"),
    [("slurm-prolog", "b1", PelogKind.PROLOGUE), ("slurm-prolog", "n9", PelogKind.PROLOGUE_PARALLEL),
     ("slurm-epilog", "b1", PelogKind.EPILOGUE), ("slurm-epilog", "n9", PelogKind.EPILOGUE_PARALLEL)],
)
def test_the_node_of_the_batch_script_is_the_mother_superior(context: str, node: str, kind: PelogKind) -> None:
    assert slurm.kind_of(context, {**PROLOG, "SLURMD_NODENAME": node}) is kind


@pytest.mark.parametrize(
    "changes",
    [{"SLURMD_NODENAME": "n8"}, {"SLURMD_NODENAME": ""}, {"SLURM_NODELIST": ""}, {"SLURM_NODELIST": "n[1-"},
     {"SLURM_JOB_USER": ""}, {"SLURM_JOB_USER": "-root"}, {"SLURM_JOB_USER": "a b"}],
)
def test_what_no_slurmd_says_is_refused(changes: dict[str, str]) -> None:
    assert slurm.kind_of("slurm-prolog", {**PROLOG, **changes}).starts
    with pytest.raises(StateError):
        Slurm().parse_job(PelogKind.PROLOGUE, (), {**PROLOG, **changes}, "")


@pytest.mark.parametrize("changes", [{"SLURMD_NODENAME": "n8"}, {"SLURM_NODELIST": ""}, {"SLURM_NODELIST": "n[1-"}])
def test_an_epilog_needs_no_nodes(changes: dict[str, str]) -> None:
    job = Slurm().parse_job(PelogKind.EPILOGUE, (), {**PROLOG, **changes}, "")
    assert (job.nodes, job.node_index, job.most_nodes) == ((), 0, 1)


@pytest.mark.parametrize("job", ["", "x", "../7", "7_1", "7\n"])
def test_what_is_no_job_id_is_refused(job: str) -> None:
    with pytest.raises(RequestError, match="not a job id"):
        parse(SLURM_JOB_ID=job)


@pytest.mark.parametrize("comment", ["", "vt1.", "vt2.abc", "vt1.a b", "vt1.abc\n", "xvt1.abc", "vt1." + "a" * 5000])
def test_what_is_no_request_is_none(comment: str) -> None:
    assert parse(SLURM_JOB_COMMENT=comment).request == ""


@pytest.mark.parametrize("code", ["0:0", "3:0", "0:9", ""])
def test_an_exit_code_does_not_tell_whether_a_job_runs_again(code: str) -> None:
    job = parse(kind=PelogKind.EPILOGUE, SLURM_JOB_EXIT_CODE2=code)
    assert not job.will_be_retried and not job.may_run_again


@pytest.mark.parametrize(("blame", "status"), [(None, 0), (Blame.USER, 0), (Blame.NODE, 1), (Blame.BUG, 1)])
def test_only_what_is_not_a_users_fault_drains_a_node(blame: Blame | None, status: int) -> None:
    for kind in PelogKind:
        assert Slurm().exit_status(kind, blame) == status


@pytest.mark.parametrize(
    ("conf", "seconds"),
    [("", 600), ("PrologEpilogTimeout=90\n", 90), ("prologepilogtimeout = 90 # s\n", 90),
     ("PrologEpilogTimeout=90\nPrologEpilogTimeout=70\n", 70), ("#PrologEpilogTimeout=90\n", 600),
     ("PrologEpilogTimeout=65534\n", 600), ("PrologEpilogTimeout=soon\n", 600)],
)
def test_the_time_is_slurmds_own_but_not_without_end(conf: str, seconds: int) -> None:
    assert Slurm().hook_seconds(conf) == seconds


@pytest.mark.parametrize("printed", [b"12\n", b"12;cluster\n", b"Submitted batch job 12\n"])
def test_the_job_id_is_what_sbatch_says(printed: bytes) -> None:
    assert front.Slurm().job_id_from(printed) == "12"
    with pytest.raises(CommandError):
        front.Slurm().job_id_from(b"")


def test_a_script_finds_the_variables_of_both_batch_systems() -> None:
    environ = {
        "SLURM_JOB_ID": "9", "SLURM_JOB_NAME": "a", "SLURM_SUBMIT_DIR": "/d", "SLURM_ARRAY_TASK_ID": "4",
        "SLURM_ARRAY_JOB_ID": "8", "HOME": "/h", "USER": "ann", "ENVIRONMENT": "BATCH", "OTHER": "x",
        "HYDRA_LAUNCHER": "fork",
    }
    found = front.Slurm().job_environment(environ)
    expected = {
        "SLURM_JOB_ID": "9", "PBS_JOBID": "9", "PBS_JOBNAME": "a", "PBS_O_WORKDIR": "/d", "PBS_ARRAYID": "4",
        "PBS_ARRAY_ID": "8", "PBS_O_HOME": "/h", "PBS_O_LOGNAME": "ann", "PBS_ENVIRONMENT": "PBS_BATCH",
        "ENVIRONMENT": "BATCH", "OMPI_MCA_plm": "rsh",
    }
    assert expected.items() <= found.items()
    assert found["HYDRA_LAUNCHER"] == "fork", "the user's own choice"
    assert not {"OTHER", "HOME", "PBS_QUEUE"} & set(found)
    assert front.Slurm().job_environment({"SLURM_JOB_ID": "9"})["PBS_ENVIRONMENT"] == "PBS_INTERACTIVE"


def test_a_configuration_is_read_with_what_it_includes(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("# no\nPrologFlags=alloc, \\\nContain\nInclude more.conf\nNodeName=a Port=1\n")
    (tmp_path / "more.conf").write_text("Prolog = /a/b # ours\n")
    settings = slurmconf.parse(slurmconf.read(tmp_path / "slurm.conf"))
    assert settings == {"prologflags": "alloc, Contain", "prolog": "/a/b"}
    assert slurmconf.flags(settings, "PrologFlags") == {"alloc", "contain"}


def test_a_configuration_that_includes_itself_is_read_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("Include slurm.conf\nProlog=/a\n")
    assert slurmconf.parse(slurmconf.read(tmp_path / "slurm.conf"))["prolog"] == "/a"


def test_only_a_restart_is_a_restart(tmp_path: Path) -> None:
    job = a_job()
    slurmstarts.begin(tmp_path, job, environ={**PROLOG, "SLURM_JOB_RESTART_COUNT": "1"}, conf="")
    slurmstarts.succeeded(tmp_path, job)
    for told, again in (("1", False), ("2", True)):
        assert slurmstarts.runs_again(tmp_path, job, environ={"SLURM_JOB_RESTART_COUNT": told}) is again
    slurmstarts.forget(tmp_path, job)
    assert slurmstarts.runs_again(tmp_path, job, environ={"SLURM_JOB_RESTART_COUNT": "1"}), "nothing says it is over"
    assert not slurmstarts.runs_again(tmp_path, job, environ={"SLURM_JOB_RESTART_COUNT": "0"})


def test_a_prolog_that_failed_is_run_again_whatever_its_epilog_is_told(tmp_path: Path) -> None:
    slurmstarts.begin(tmp_path, a_job(), environ=PROLOG, conf="")
    assert slurmstarts.runs_again(tmp_path, a_job(), environ={"SLURM_JOB_RESTART_COUNT": "0"})


def test_a_job_is_known_from_its_prolog_to_its_epilog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    job = a_job()
    assert not slurmstarts.knows(tmp_path, job.key)
    slurmstarts.begin(tmp_path, job, environ=PROLOG, conf=CONF.format(tmp_path))
    assert slurmstarts.knows(tmp_path, job.key), "its Prolog runs"
    now[0] += 60 + 121
    assert not slurmstarts.knows(tmp_path, job.key), "it has no step any more, and its Epilog did not come"
    spool = tmp_path / "spool-n10"
    spool.mkdir()
    (spool / f"n10_{job.key}0.4294967292").touch()
    assert not slurmstarts.knows(tmp_path, job.key), "another job's"
    (spool / f"n10_{job.key}.4294967292").touch()
    assert slurmstarts.knows(tmp_path, job.key)
    slurmstarts.forget(tmp_path, job)
    assert not slurmstarts.knows(tmp_path, job.key)


def test_where_not_every_job_has_steps_only_its_epilog_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    slurmstarts.begin(tmp_path, a_job(), environ=PROLOG, conf="PrologFlags=Alloc,DeferBatch\n")
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert slurmstarts.knows(tmp_path, a_job().key)


def test_another_versions_note_says_that_there_is_a_job(tmp_path: Path) -> None:
    slurmstarts.begin(tmp_path, a_job(), environ=PROLOG, conf="")
    (note,) = (tmp_path / "slurm").iterdir()
    note.write_text('{"schema": 9}')
    assert slurmstarts.knows(tmp_path, a_job().key)


class Doctor:
    """A slurm.conf, and scripts of ours that it may name."""

    def __init__(self, root: Path, conf: str) -> None:
        self.scripts = root / "scripts"
        (self.scripts / "slurm").mkdir(parents=True)
        for name in ("prolog", "epilog"):
            (self.scripts / "slurm" / name).write_text("#!/bin/sh\n")
            (self.scripts / "slurm" / name).chmod(0o755)
        path = root / "slurm.conf"
        path.write_text(conf.format(scripts=self.scripts / "slurm"))
        self.site = a_site(timeout=100, undo_reserve=30).but(batch_system="slurm", slurm_conf=str(path))

    def texts(self) -> list[tuple[Level, str]]:
        found = [*doctor_slurm.hooks(self.site, self.scripts), *doctor_slurm.hook_time(self.site)]
        return [(each.level, each.text) for each in found]


GOOD = """\
Prolog={scripts}/prolog
Epilog={scripts}/epi*
PrologFlags=Contain,DeferBatch
PrologEpilogTimeout=145
BatchStartTimeout=145
"""


@pytest.mark.skipif(os.getuid() != 0, reason="scripts have to be root's")
def test_a_configuration_that_is_as_it_should_be_is_well(tmp_path: Path) -> None:
    assert {level for level, _ in Doctor(tmp_path, GOOD).texts()} == {Level.OK}


@pytest.mark.skipif(os.getuid() != 0, reason="scripts have to be root's")
@pytest.mark.parametrize(
    ("old", "new", "level", "says"),
    [
        ("Prolog={scripts}/prolog\n", "", Level.ERROR, "Prolog is not set"),
        ("{scripts}/epi*", "/bin/true", Level.ERROR, "Epilog=/bin/true does not lead to"),
        ("PrologFlags=Contain,DeferBatch\n", "", Level.ERROR, "has no Alloc"),
        ("Contain,DeferBatch", "Alloc,Contain", Level.WARNING, "has no DeferBatch"),
        ("Contain,DeferBatch", "Alloc,DeferBatch", Level.WARNING, "has no Contain"),
        ("PrologEpilogTimeout=145\n", "", Level.WARNING, "PrologEpilogTimeout is not set"),
        ("PrologEpilogTimeout=145", "PrologEpilogTimeout=144", Level.WARNING, "after 144 s"),
        ("BatchStartTimeout=145\n", "", Level.WARNING, "BatchStartTimeout is 10 s"),
    ],
)
def test_a_configuration_that_is_not_is_told_what_is_wrong(
    tmp_path: Path, old: str, new: str, level: Level, says: str
) -> None:
    wrong = [text for each, text in Doctor(tmp_path, GOOD.replace(old, new)).texts() if each is level]
    assert len(wrong) == 1 and says in wrong[0]


def test_a_prolog_whose_note_is_gone_leaves_none(tmp_path: Path) -> None:
    slurmstarts.succeeded(tmp_path, a_job())
    assert not slurmstarts.knows(tmp_path, a_job().key)
    assert not slurmstarts.directory(tmp_path).exists()


def test_what_slurm_knows_is_looked_for_where_its_hooks_note_it(tmp_path: Path) -> None:
    node = a_node(a_site(batch_system="slurm", state_dir=str(tmp_path)))
    (tmp_path / "slurm").mkdir()
    assert not node.knows("7")
    with contextlib.closing(Changes(onto=node.watch())) as changes:
        assert wakeups.wait(0, changes) == []
        slurmstarts.begin(tmp_path, a_job(id=JobId("7")), environ=PROLOG, conf=CONF.format(tmp_path))
        assert wakeups.wait(0, changes) == [changes] and node.knows("7")


def test_what_mom_knows_is_looked_for_by_root(tmp_path: Path) -> None:
    jobs = tmp_path / "mom_priv/jobs"
    jobs.mkdir(parents=True)
    node = a_node(a_site(torque_home=str(tmp_path), state_dir=str(tmp_path)))
    with contextlib.closing(Changes(onto=node.watch())) as changes:
        assert wakeups.wait(0, changes) == []
        (jobs / "7.srv.SC").touch()
        assert wakeups.wait(0, changes) == [changes]
    assert node.knows("7.srv") and not node.knows("8.srv")
