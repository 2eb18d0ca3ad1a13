# SPDX-License-Identifier: Apache-2.0
"""OpenPBS's hooks: the real hook file under a stand-in for pbs_python, in the order of events of real moms.

The hook's command is a stand-in as well, which hands what it is told over to the test: there the verbs
run over fakes, each node with a hypervisor and guards of its own.
"""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_request, a_shape
from tests.contract import test_hooks as hooks
from tests.contract import test_sisters as sisters
from tests.contract.moms import gone
from tests.contract.test_hooks import Site
from tests.contract.test_sisters import Cluster, Sister
from vtorque import follow, guardpost, published, request, service, state
from vtorque.backends.batch.openpbs import OpenPbs
from vtorque.cli import pbshook, pbsverbs
from vtorque.deadline import Deadline
from vtorque.install.pbshook import EVENTS
from vtorque.model import job_id

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own verbs"),
]

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "contrib/openpbs/vtorque_hook.py"
PBS_PYTHON = ROOT / "tests/fakes/pbs_python.py"
REQUEST = "vt1." + "A" * 200
COMMAND = """\
import os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "line"))
    line.sendall(sys.stdin.buffer.read())
    line.shutdown(socket.SHUT_WR)
    while True:
        data = line.recv(65536)
        if not data:
            break
        sys.stdout.buffer.write(data)
"""
# A command that has ended before it was told anything would be another case.
HEAR = "import sys\nsys.stdin.read()\n"
SAY = HEAR + """print('{"verdict": "accept", "message": ""}')\n"""
Answer = Callable[[dict[str, Any]], bytes]

make, site = sisters.make, hooks.site


def accept(told: dict[str, Any]) -> bytes:
    return b'{"verdict": "accept", "message": ""}'


def requeue(told: dict[str, Any]) -> bytes:
    return b'{"verdict": "requeue", "message": "libvirt is away"}'


class Rig:
    """A mom's home, a place where vtorque is installed, and pbs_python."""

    def __init__(self, home: Path, prefix: Path, name: str = "n1", *, command: str = COMMAND) -> None:
        self.name = name
        self.home = home
        self.prefix = prefix
        (self.home / "mom_priv/hooks/tmp").mkdir(parents=True)
        (self.prefix / "scripts").mkdir(parents=True, exist_ok=True)
        (self.prefix / "scripts/pbs-hook").write_text(command)
        self.settings = self.home / "mom_priv/hooks/vtorque.HK"
        self.settings.write_text("type=site\nenabled=true\nalarm=60\n")
        (self.prefix / "hook.json").write_text(json.dumps({"prefix": str(self.prefix)}))
        self.told: list[dict[str, Any]] = []

    def job(self, **changes: Any) -> dict[str, Any]:
        return {
            "id": "12.srv", "user": "ann", "resources": {"ncpus": 2, "site": REQUEST}, "exec_host": "n1/0*2+n2/0*2",
            "exec_vnode": "(n1:ncpus=2)+(n2:ncpus=2)", "mother_superior": True, "exit_status": None, **changes,
        }

    def event(self, name: str, answer: Answer = accept, *, stderr: int | None = None, **job: Any) -> dict[str, Any]:
        """Run the hook on one event; `answer` makes the command's verdict of what it is told."""
        about = {"event": name, "node": self.name}
        if name != "exechost_periodic":
            about |= {"job": self.job(**job)}  # type: ignore[dict-item]
        with socket.socket(socket.AF_UNIX) as line:
            line.bind(str(self.prefix / "line"))
            line.listen()
            line.settimeout(0.05)
            hook = subprocess.Popen(
                [sys.executable, "-I", PBS_PYTHON, HOOK], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, cwd=self.home / "mom_priv/hooks/tmp", process_group=0,
                env={"PATH": "/bin:/usr/bin", "PBS_HOOK_CONFIG_FILE": str(self.prefix / "hook.json"), "IFS": "/"},
            )
            assert hook.stdin and hook.stdout
            with hook.stdin as pipe:
                pipe.write(json.dumps(about).encode())
            while hook.poll() is None:
                self._serve(line, answer)
            with hook.stdout as pipe:
                outcome: dict[str, Any] = json.loads(pipe.read())
        (self.prefix / "line").unlink()
        return outcome

    def _serve(self, line: socket.socket, answer: Answer) -> None:
        try:
            caller, _ = line.accept()
        except TimeoutError:
            return
        with caller:
            caller.settimeout(None)
            text = b"".join(iter(lambda: caller.recv(1 << 16), b""))
            self.told.append(json.loads(text))
            caller.sendall(answer(self.told[-1]))


@pytest.fixture
def rig() -> Iterator[Rig]:
    root = Path(f"/var/lib/vtorque-pbs-{os.getpid()}")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o755)
    yield Rig(root / "pbs", root / "vtorque")
    shutil.rmtree(root)


EVERY = ("execjob_begin", "execjob_prologue", "execjob_launch", "execjob_epilogue", "execjob_end", "execjob_abort")
STARTS = EVERY[:3]


class TestTheHookFile:
    def test_its_syntax_is_that_of_the_oldest_python_that_openpbs_is_built_with(self) -> None:
        oldest = (3, 6)
        assert ast.parse(HOOK.read_text(), feature_version=oldest).body
        with pytest.raises(SyntaxError):
            ast.parse("(a := 1)", feature_version=oldest)

    def test_it_needs_nothing_but_pbs_and_the_standard_library(self) -> None:
        tree = ast.parse(HOOK.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert names == {"json", "os", "pbs", "re", "signal", "subprocess"}
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]

    def test_its_example_configuration_names_the_place_that_it_has_without_one(self) -> None:
        assert json.loads(HOOK.with_suffix(".json").read_text()) == {"prefix": "/opt/vtorque"}

    @pytest.mark.parametrize("name", ["queuejob", *EVERY])
    @pytest.mark.parametrize("site", [None, "", "something of the site's own", "xvt1.A"])
    def test_a_job_without_a_request_passes_and_nothing_is_started(self, rig: Rig, name: str, site: str | None) -> None:
        outcome = rig.event(name, requeue, resources={"ncpus": 2, "site": site})
        assert outcome == {"accepted": True, "message": "", "rerun": False, "delete": False, "log": []}
        assert rig.told == []

    def test_an_event_that_it_does_not_know_passes(self, rig: Rig) -> None:
        assert rig.event("execjob_preterm", requeue)["accepted"] and rig.told == []

    def test_the_command_is_told_the_job_and_the_time_it_has(self, rig: Rig) -> None:
        assert rig.event("execjob_begin")["accepted"]
        assert rig.told == [{
            "event": "execjob_begin", "seconds": 55, "home": str(rig.home), "job": {
                "id": "12.srv", "user": "ann", "request": REQUEST, "hosts": "n1/0*2+n2/0*2",
                "vnodes": "(n1:ncpus=2)+(n2:ncpus=2)", "exit_status": "", "node": "n1", "mother_superior": True,
            },
        }]

    def test_the_time_without_a_setting_is_openpbs_own_default(self, rig: Rig) -> None:
        for text in ("type=site\n", ""):
            rig.settings.write_text(text)
            rig.event("execjob_begin")
        rig.settings.unlink()
        rig.event("execjob_begin")
        assert [each["seconds"] for each in rig.told] == [25, 25, 25]

    def test_the_exit_status_is_known_at_the_end_only(self, rig: Rig) -> None:
        for name in ("execjob_abort", "execjob_epilogue", "execjob_end"):
            rig.event(name, exit_status=271)
        assert [each["job"]["exit_status"] for each in rig.told] == ["", "271", "271"]

    def test_the_command_is_outside_moms_process_group_and_inherits_nothing_of_her_environment(self, rig: Rig) -> None:
        (rig.prefix / "scripts/pbs-hook").write_text(
            f"{HEAR}import json, os\n"
            "found = [os.getsid(0) == os.getpid(), sorted(os.environ), os.getcwd(),\n"
            "         sorted(map(int, os.listdir('/proc/self/fd')))]\n"
            "print(json.dumps({'verdict': 'accept', 'message': json.dumps(found)}))\n"
        )
        said = rig.event("execjob_begin")["log"][0].partition("execjob_begin: ")[2]
        leads, names, directory, handles = json.loads(said)
        assert leads and set(names) <= {"PATH", "LC_ALL"} and directory == "/"
        assert handles[:3] == [0, 1, 2] and len(handles) == 4

    def test_a_poisoned_environment_does_not_reach_the_command(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        (rig.prefix / "json.py").write_text(f"open('{rig.prefix}/sprung', 'w')\n")
        (rig.prefix / "scripts/pbs-hook").write_text(f"import json\n{SAY}")
        monkeypatch.chdir(rig.prefix)
        assert rig.event("execjob_begin")["accepted"]
        assert not (rig.prefix / "sprung").exists()

    def test_at_launch_the_commands_standard_error_is_the_jobs(self, rig: Rig) -> None:
        (rig.prefix / "scripts/pbs-hook").write_text(
            f"import sys\nsys.stderr.write('vtorque: see')\n{SAY}"
        )
        with (rig.prefix / "job.ER").open("wb") as errors:
            rig.event("execjob_launch", stderr=errors.fileno())
        assert (rig.prefix / "job.ER").read_text() == "vtorque: see"


class TestVerdicts:
    @pytest.mark.parametrize("name", STARTS)
    def test_a_nodes_fault_is_a_rejection_with_the_reason(self, rig: Rig, name: str) -> None:
        outcome = rig.event(name, requeue)
        assert outcome["accepted"] is False and outcome["message"] == "vtorque: libvirt is away"
        assert outcome["log"] == [f"12.srv;vtorque: {name}: libvirt is away"]

    def test_a_rejected_begin_is_another_start_by_itself(self, rig: Rig) -> None:
        assert rig.event("execjob_begin", requeue)["rerun"] is False

    @pytest.mark.parametrize("name", ["execjob_prologue", "execjob_launch"])
    def test_a_rejection_that_would_delete_the_job_asks_for_another_start(self, rig: Rig, name: str) -> None:
        outcome = rig.event(name, requeue)
        assert outcome["rerun"] is True and outcome["delete"] is False

    @pytest.mark.parametrize("name", ["execjob_epilogue", "execjob_end", "execjob_abort", "exechost_periodic"])
    def test_what_comes_after_a_job_is_never_rejected(self, rig: Rig, name: str) -> None:
        assert rig.event(name, requeue)["accepted"] is True
        assert len(rig.told) == 1

    @pytest.mark.parametrize(
        "answer", [lambda told: b"", lambda told: b"nonsense", lambda told: b"[]", lambda told: b"{}"],
        ids=["nothing", "nonsense", "a list", "nothing of use"],
    )
    @pytest.mark.parametrize("name", EVERY)
    def test_a_command_that_answers_nothing_of_use_costs_no_node_and_no_retry(
        self, rig: Rig, name: str, answer: Answer
    ) -> None:
        outcome = rig.event(name, answer)
        assert outcome["accepted"] is True and outcome["log"][-1].startswith("vtorque: the hook failed: ")

    def test_a_node_that_is_out_is_set_offline_by_the_periodic_event_and_by_no_other(self, rig: Rig) -> None:
        def out(told: dict[str, Any]) -> bytes:
            return b'{"verdict": "offline", "message": "node n1 takes no jobs"}'

        outcome = rig.event("exechost_periodic", out)
        assert outcome["accepted"] and outcome["log"] == ["vtorque: node n1 takes no jobs"]
        assert outcome["vnodes"] == {"n1": {"state": 1, "comment": "vtorque: node n1 takes no jobs"}}
        assert "vnodes" not in rig.event("exechost_periodic") | rig.event("execjob_end", out)

    def test_a_command_that_is_not_there_lets_the_job_find_out(self, rig: Rig) -> None:
        shutil.rmtree(rig.prefix / "scripts")
        assert rig.event("execjob_begin", stderr=subprocess.DEVNULL)["accepted"] is True

    def test_a_configuration_file_that_is_none_lets_the_job_find_out(self, rig: Rig) -> None:
        (rig.prefix / "hook.json").write_text("prefix: /opt")
        assert rig.event("execjob_begin")["accepted"] is True

    def test_a_command_that_hangs_is_killed_before_moms_alarm_with_all_its_children(self, rig: Rig) -> None:
        rig.settings.write_text("alarm=10\n")
        (rig.prefix / "scripts/pbs-hook").write_text(
            "import os, subprocess, time; child = subprocess.Popen(['/bin/sleep', '60'])\n"
            "open(os.path.dirname(__file__) + '/child', 'w').write(str(child.pid)); time.sleep(60)\n"
        )
        outcome = rig.event("execjob_begin")
        assert outcome["accepted"] is True and "TimeoutExpired" in outcome["log"][0]
        assert gone(int((rig.prefix / "scripts/child").read_text()))

    def test_what_the_command_leaves_running_survives_the_hook(self, rig: Rig) -> None:
        """Mom kills the hook's process group when it ends; guards are in sessions of their own."""
        (rig.prefix / "scripts/pbs-hook").write_text(
            "import os, subprocess; child = subprocess.Popen(['/bin/sleep', '60'], start_new_session=True)\n"
            "open(os.path.dirname(__file__) + '/child', 'w').write(str(child.pid))\n"
            f"{SAY}"
        )
        assert rig.event("execjob_begin")["accepted"] is True
        child = int((rig.prefix / "scripts/child").read_text())
        try:
            assert Path(f"/proc/{child}/stat").read_text().split()[2] != "Z"
        finally:
            os.kill(child, 9)


class TestSubmission:
    def test_a_request_that_vsub_has_made_is_queued(self, rig: Rig) -> None:
        assert rig.event("queuejob")["accepted"] is True and rig.told == []

    @pytest.mark.parametrize("site", ["vt1.", "vt1.a b", "vt1." + "A" * 997, "vt1.A\n", "vt1.ä", "vt1.A,B"])
    def test_what_is_no_request_by_its_form_is_refused_at_once(self, rig: Rig, site: str) -> None:
        outcome = rig.event("queuejob", resources={"site": site})
        assert outcome["accepted"] is False and outcome["message"].endswith("use vsub -vm")


class Moms:
    """The moms of a job's nodes: which events each sees, in which order, and what a rejection does."""

    def __init__(self, cluster: Cluster, job: str = "7.srv", *, events: Sequence[str] = EVENTS) -> None:
        self.cluster = cluster
        self.events = events
        self.job = job
        self.rigs = [Rig(each.root, each.root / "vtorque", each.name) for each in cluster.sisters]
        self.seen: list[tuple[str, str]] = []

    @property
    def mother(self) -> Sister:
        return self.cluster.sisters[0]

    def event(self, name: str, index: int, status: int | None = None) -> dict[str, Any]:
        """One event on one node, if the hook has asked for it."""
        if name not in self.events:
            return {"accepted": True}
        sister, rig = self.cluster.sisters[index], self.rigs[index]
        self.seen.append((sister.name, name))

        def verb(told: dict[str, Any]) -> bytes:
            event = OpenPbs().parse_event(json.dumps(told).encode())
            verb = pbsverbs.verb_for(event, sister.node, sister.launch)
            return json.dumps(pbshook.answer(*pbsverbs.verdict(verb, Deadline(40)))).encode()

        hosts = self.cluster.nodes
        return rig.event(
            name, verb, stderr=subprocess.DEVNULL, id=self.job, user=self.cluster.job.user, mother_superior=index == 0,
            resources={"site": self.cluster.job.request}, exit_status=status,
            exec_host="+".join(f"{host}/0*1" for host in hosts),
            exec_vnode="+".join(f"({host}:ncpus=1)" for host in hosts),
        )

    def start(self) -> bool:
        """From the mother superior's first event to the job's own process; whether it runs."""
        (self.rigs[0].home / f"mom_priv/jobs/{self.job}.SC").touch()
        last = range(1, len(self.rigs))
        if not self.event("execjob_begin", 0)["accepted"]:
            # The request is bounced, and nobody sees anything more of it.
            self._forget()
            return False
        for index in last:
            if not self.event("execjob_begin", index)["accepted"]:
                self._abort(others=[each for each in last if each != index], status=-3)
                return False
        for rig in self.rigs:
            (rig.home / f"mom_priv/jobs/{self.job}.JB").touch()
        launched = self.event("execjob_launch", 0)
        if not launched["accepted"]:
            assert launched["rerun"]
            self._abort(others=last, status=-16)
            return False
        return True

    def end(self, status: int = 0) -> None:
        """Sisters first."""
        for index in reversed(range(len(self.rigs))):
            self.event("execjob_epilogue", index, status)
        for index in range(len(self.rigs)):
            self.event("execjob_end", index, status)
        self._forget()

    def _abort(self, *, others: Any, status: int) -> None:
        self.event("execjob_abort", 0)
        for index in others:
            self.event("execjob_abort", index)
        self.event("execjob_epilogue", 0, status)
        self.event("execjob_end", 0, status)
        self._forget()

    def _forget(self) -> None:
        for rig in self.rigs:
            for path in (rig.home / "mom_priv/jobs").iterdir():
                path.unlink()

    def nothing_is_left(self) -> bool:
        """But how often a start has failed, which the next one has to know."""
        return all(
            each.guard_is_gone() and not [path for path in each.left() if Path(path).parent.name != "attempts"]
            for each in self.cluster.sisters
        )


def test_the_job_starts_when_the_guests_of_all_nodes_are_up(make: Callable[..., Cluster]) -> None:
    moms = Moms(make(nodes=3))
    assert moms.start()
    assert moms.seen == [(f"n{index}", "execjob_begin") for index in (1, 2, 3)] + [("n1", "execjob_launch")]
    guests = moms.cluster.ready()["guests"]
    assert [(each["rank"], each["node"]) for each in guests] == [(0, "n1"), (1, "n2"), (2, "n3")]
    assert moms.cluster.directory.exists()
    moms.end()
    assert moms.nothing_is_left() and not moms.cluster.directory.exists()


def test_a_begin_waits_for_no_guest_not_even_its_own(make: Callable[..., Cluster]) -> None:
    """Each blocks its mom, and the mother superior's runs before her sisters' (mom_comm.c:3188)."""
    moms = Moms(make())
    moms.mother.said = lambda: b""  # type: ignore[method-assign]
    assert moms.event("execjob_begin", 0)["accepted"]
    assert list(moms.mother.hypervisor._domains) and not (moms.mother.record.path / state.READY).exists()
    moms.event("execjob_end", 0, 0)
    assert moms.nothing_is_left()


@pytest.mark.parametrize("events", [EVENTS, (*EVENTS, "execjob_epilogue")])
def test_a_job_on_one_node_runs_and_leaves_nothing(make: Callable[..., Cluster], events: tuple[str, ...]) -> None:
    moms = Moms(make(nodes=1), events=events)
    assert moms.start() and len(moms.cluster.ready()["guests"]) == 1
    moms.end(3)
    assert moms.nothing_is_left() and not moms.cluster.directory.exists()


def test_a_begin_rejected_on_the_mother_superior_leaves_nothing_though_nothing_follows(
    make: Callable[..., Cluster]
) -> None:
    moms = Moms(make())
    moms.mother.node = replace(moms.mother.node, site=moms.mother.node.site.but(requeue_limit=2))
    moms.mother.hypervisor.fail_at = 1
    assert not moms.start() and moms.seen == [("n1", "execjob_begin")]
    assert moms.nothing_is_left() and moms.cluster.directory.exists()
    assert moms.start()
    moms.end()
    assert moms.nothing_is_left()


def test_a_begin_rejected_on_a_sister_gives_back_everybodys_guests_and_the_next_start_finds_its_job(
    make: Callable[..., Cluster]
) -> None:
    moms = Moms(make(nodes=3))
    failing = moms.cluster.sisters[2]
    failing.node = replace(failing.node, site=failing.node.site.but(requeue_limit=2))
    failing.hypervisor.fail_at = 1
    assert not moms.start()
    assert ("n3", "execjob_abort") not in moms.seen and ("n2", "execjob_abort") in moms.seen
    assert moms.nothing_is_left() and moms.cluster.directory.exists()
    assert moms.start()
    moms.end()
    assert moms.nothing_is_left() and not moms.cluster.directory.exists()


def test_a_users_fault_starts_the_job_whose_wrapper_says_why(make: Callable[..., Cluster]) -> None:
    cluster = make()
    moms = Moms(cluster)
    sister = cluster.sisters[1]
    sister.node = replace(sister.node, shape=a_shape(name="n2", cpus=(0,)))
    assert moms.start()
    assert "node n2: 1 guest of 1 vCPUs need 1 cores; node n2 offers 0" in cluster.failed()
    moms.end(65)
    assert moms.nothing_is_left() and not cluster.directory.exists()


def test_a_guest_that_does_not_come_up_is_another_start_until_it_has_happened_too_often(
    make: Callable[..., Cluster]
) -> None:
    cluster = make()
    moms = Moms(cluster)
    moms.mother.node = replace(moms.mother.node, site=moms.mother.node.site.but(requeue_limit=2))
    cluster.sisters[1].said = lambda: b"failed: cannot mount nfs:/home\n"  # type: ignore[method-assign]
    assert not moms.start() and moms.nothing_is_left() and cluster.directory.exists()
    assert moms.start()
    assert "node n2: guest vn2-1" in cluster.failed() and "cannot mount nfs:/home" in cluster.failed()
    moms.end(69)
    assert moms.nothing_is_left() and not cluster.directory.exists()


def test_a_failure_that_the_mother_superiors_own_guard_finds_does_not_lose_the_reason(
    make: Callable[..., Cluster]
) -> None:
    """Her guard would tear down the generation in which the reason is kept."""
    cluster = make(nodes=2)
    moms = Moms(cluster)
    cluster.sisters[1].said = lambda: b"failed: no\n"  # type: ignore[method-assign]
    assert moms.start() and moms.mother.guard_is_gone()
    assert "node n2" in cluster.failed()
    moms.end(69)
    assert moms.nothing_is_left()


def test_what_a_job_starts_on_its_nodes_waits_for_nothing(make: Callable[..., Cluster]) -> None:
    """pbsdsh and pbs_tmrsh are launches as well."""
    moms = Moms(make())
    assert moms.start()
    marker = (moms.mother.record.path / state.READY).read_bytes()
    for index in (0, 1):
        assert moms.event("execjob_launch", index)["accepted"]
    assert (moms.mother.record.path / state.READY).read_bytes() == marker and len(moms.rigs[1].told) == 1
    moms.end()
    assert moms.nothing_is_left()


def test_the_ends_events_may_come_twice_in_any_order_and_without_a_beginning(make: Callable[..., Cluster]) -> None:
    moms = Moms(make(), events=EVERY)
    for name in ("execjob_abort", "execjob_end", "execjob_epilogue", "execjob_end"):
        for index in (0, 1):
            assert moms.event(name, index, 0 if name != "execjob_abort" else None)["accepted"]
    assert moms.nothing_is_left()


def test_guests_that_a_user_publishes_himself_make_no_ready_job(make: Callable[..., Cluster]) -> None:
    cluster = make(nodes=1)
    moms = Moms(cluster)
    moms.start()
    mine = (cluster.directory / published.name(moms.mother.job)).read_text()
    moms.event("execjob_abort", 0)
    (cluster.directory / published.name(moms.mother.job)).write_text(mine)
    moms.event("execjob_launch", 0)
    assert not (moms.mother.record.path / state.READY).exists()


@pytest.mark.parametrize(
    ("status", "stays"),
    [(0, False), (7, False), (271, False), (-1, False), (-2, False), (-17, False), (-19, False),
     (-3, True), (-11, True), (-14, True), (-16, True), (-18, True), (-20, True), (-22, True), (None, True)],
)
def test_the_job_directory_stays_for_as_long_as_the_job_may_start_again(
    make: Callable[..., Cluster], status: int | None, stays: bool
) -> None:
    """-11 is qrerun, -16 and -22 are rejections, -17 and -19 deletions; a killed job is 256 and the signal."""
    moms = Moms(make(nodes=1))
    moms.event("execjob_end", 0, status)
    assert moms.cluster.directory.exists() == stays


def test_the_periodic_event_tears_down_what_mom_has_forgotten(make: Callable[..., Cluster]) -> None:
    moms = Moms(make(nodes=1))
    assert moms.start()
    for child in moms.mother.guards:
        child.kill()
    assert moms.event("exechost_periodic", 0)["accepted"] and moms.mother.record.exists
    moms._forget()
    assert moms.event("exechost_periodic", 0)["accepted"]
    assert moms.mother.left() == []


def test_a_node_that_is_out_starts_nothing_and_says_so_at_the_periodic_event(make: Callable[..., Cluster]) -> None:
    moms = Moms(make(nodes=1))
    node = moms.mother.node
    service.take_out(node.site, "its memory is bad")
    assert not moms.start()
    assert moms.mother.hypervisor.calls == []
    sweep = pbsverbs.verb_for(OpenPbs().parse_event(
        json.dumps({"event": "exechost_periodic", "seconds": 25, "home": "/"}).encode()), node, moms.mother.launch)
    said = pbshook.answer(*pbsverbs.verdict(sweep, Deadline(60), when_out="offline"))
    assert said["verdict"] == "offline" and "its memory is bad" in said["message"]
    assert service.bring_back(node.site)
    assert pbsverbs.verdict(sweep, Deadline(60), when_out="offline") == ("accept", None)
    assert moms.start()
    moms.end()


def test_mom_knows_an_element_of_an_array_by_its_name_with_brackets(make: Callable[..., Cluster]) -> None:
    node = make(nodes=1).sisters[0].node
    jobs = Path(node.site.torque_home) / "mom_priv/jobs"
    (jobs / "58[2].srv.JB").touch()
    assert node.knows("58-2.srv") and not node.knows("58-3.srv") and not node.knows("58.srv")


@pytest.fixture
def installed(site: Site) -> Site:
    """A real installation for OpenPBS, whose mom knows job 12.srv."""
    configure(site)
    (site.home.mom_priv / "jobs/12.srv.SC").write_text(f"#!/bin/sh\n#VTORQUE {request.encode(a_request())}\nexec x\n")
    (site.home.mom_priv.parent / "aux/12.srv").write_text("n1\nn1\n")
    return site


def configure(site: Site, more: str = "MIN_UID: 1\n") -> None:
    text = hooks.CONFIGURATION.format(root=site.root).replace("SYSTEM: local", "SYSTEM: openpbs")
    site.configure(text + more)


def marker(site: Site, name: str = state.FAILED) -> str:
    path = site.root / "run/jobs/12.srv" / name
    return str(json.loads(path.read_text())["reason"]) if path.exists() else ""


class TestTheCommand:
    """The real one, on a node without libvirt's help."""

    @pytest.fixture
    def rig(self, installed: Site) -> Rig:
        text = (installed.prefix / "scripts/pbs-hook").read_text()
        return Rig(installed.home.mom_priv.parent, installed.prefix, command=text)

    def run(self, rig: Rig, name: str) -> tuple[dict[str, Any], str]:
        with (rig.home / "said").open("w+") as said:
            outcome = rig.event(
                name, user=hooks.USER.pw_name, resources={"site": request.encode(a_request())}, stderr=said.fileno(),
                exec_host="n1/0*2", exit_status=0,
            )
            said.seek(0)
            return outcome, said.read()

    def test_a_users_fault_is_left_for_the_wrapper(self, rig: Rig, installed: Site) -> None:
        configure(installed, "MIN_UID: 70000\n")
        assert self.run(rig, "execjob_begin")[0]["accepted"] and marker(installed) == ""
        assert self.run(rig, "execjob_launch")[0]["accepted"]
        assert "guests are for uids from 70000 on" in marker(installed)
        assert self.run(rig, "execjob_end")[0]["accepted"]
        assert not list((installed.root / "run/jobs").iterdir())

    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.parametrize(
        ("more", "says"),
        [("TIMEOUT: soon\n", "TIMEOUT: must be"), ("TORQUE_HOME: /var/spool/pbs\n", "TORQUE_HOME")],
        ids=["mistake", "given twice"],
    )
    def test_a_broken_configuration_is_told_and_retries_nothing(
        self, rig: Rig, installed: Site, name: str, more: str, says: str
    ) -> None:
        configure(installed, more)
        outcome, said = self.run(rig, name)
        assert outcome["accepted"] is True and outcome["rerun"] is False
        assert said.startswith("vtorque: ") and says in said and "Traceback" not in said
        assert says in outcome["log"][0]

    def test_a_home_that_is_not_moms_is_told(self, rig: Rig, installed: Site) -> None:
        """By what is in her home she is seen to know a job: guards would tear it down."""
        configure(installed)
        path = installed.prefix / "etc/vtorque.yaml"
        path.write_text(path.read_text().replace(f"{installed.root}/torque", "/var/spool/pbs"))
        outcome, said = self.run(rig, "execjob_begin")
        assert outcome["accepted"] is True
        assert said == f"vtorque: TORQUE_HOME is /var/spool/pbs, and mom's home is {rig.home}\n"

    def test_a_program_that_others_can_change_starts_nothing(self, rig: Rig, installed: Site) -> None:
        (installed.prefix / "vtorque/cli/assembly.py").chmod(0o777)
        outcome, said = self.run(rig, "execjob_begin")
        assert outcome["accepted"] is True and "is writable by others" in said
        assert not (installed.root / "run").exists()

    def test_the_periodic_event_is_quiet(self, rig: Rig) -> None:
        outcome, said = self.run(rig, "exechost_periodic")
        assert (outcome["accepted"], outcome["log"], said) == (True, [], "")


class TestClassicScripts:
    """Sites without hooks: the shims of Torque, with OpenPBS's arguments and environment."""

    def call(self, site: Site, kind: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [site.home.mom_priv / kind, "12.srv", hooks.USER.pw_name, "nogroup", *more],
            cwd="/", env={"PATH": "/bin:/usr/bin", "LC_CTYPE": "C.UTF-8", "PBS_JOBDIR": "/tmp"}, capture_output=True,
            text=True, check=False,
        )

    def epilogue(self, site: Site) -> subprocess.CompletedProcess[str]:
        return self.call(site, "epilogue", "job", "99", "ncpus=2,place=scatter", "cput=1", "batch", "null", "0")

    def plenty_of_time(self, site: Site) -> None:
        (site.home.mom_priv / "config").write_text("$prologalarm 300\n")

    def test_the_request_is_found_in_the_jobs_script(self, installed: Site) -> None:
        self.plenty_of_time(installed)
        (installed.root / "images").mkdir()
        done = self.call(installed, "prologue")
        assert (done.returncode, done.stderr) == (0, "")
        assert marker(installed).startswith("image debian-12.qcow2 is not in the catalogue")
        assert self.epilogue(installed).returncode == 0
        assert not list((installed.root / "run/jobs").iterdir())

    def test_a_job_on_several_nodes_is_refused_with_the_way_out(self, installed: Site) -> None:
        self.plenty_of_time(installed)
        (installed.home.mom_priv.parent / "aux/12.srv").write_text("n1\nn2\n")
        assert self.call(installed, "prologue").returncode == 0
        assert "the job is on 2 nodes" in marker(installed) and "vtorque_hook.py" in marker(installed)

    def test_where_the_hooks_have_begun_nothing_is_done(self, installed: Site) -> None:
        self.plenty_of_time(installed)
        place = guardpost.take(installed.root / "run", "12.srv")
        assert place is not None
        done = self.call(installed, "prologue")
        os.close(place)
        assert (done.returncode, done.stderr) == (0, "") and not list((installed.root / "run/jobs").iterdir())

    def test_a_node_file_that_is_missing_is_told_on_the_jobs_stderr(self, installed: Site) -> None:
        (installed.home.mom_priv.parent / "aux/12.srv").unlink()
        done = self.call(installed, "prologue")
        assert done.returncode == 0 and "cannot read the node file" in done.stderr

    @pytest.mark.parametrize(
        "script", ["#!/bin/sh\necho\n", "#!/bin/sh\n\n#VTORQUE vt1.abc\n", "#VTORQUE vt1.abc\n", "", None],
        ids=["no request", "third line", "first line", "empty", "no script"],
    )
    def test_a_job_without_a_request_there_has_the_sites_own_scripts_only(
        self, installed: Site, script: str | None
    ) -> None:
        path = installed.home.mom_priv / "jobs/12.srv.SC"
        path.write_text(script) if script is not None else path.unlink()
        for kind in ("prologue", "epilogue"):
            installed.original(kind, "#!/bin/sh\necho \"$#: $*\"; env | grep -c VTORQUE; exit 4\n")
        done = self.call(installed, "prologue")
        assert (done.returncode, done.stdout, done.stderr) == (4, "3: 12.srv nobody nogroup\n0\n", "")
        assert self.epilogue(installed).stdout.startswith("10: 12.srv nobody nogroup job 99")
        assert not (installed.root / "run").exists()

    def test_the_sites_own_prologue_sees_what_mom_gave_and_comes_first(self, installed: Site) -> None:
        self.plenty_of_time(installed)
        installed.original("prologue", "#!/bin/sh\necho \"$*\"; env | sort | grep -v ^PWD=\nexit 5\n")
        done = self.call(installed, "prologue")
        assert done.returncode == 5 and marker(installed) == ""
        assert done.stdout == "12.srv nobody nogroup\nLC_CTYPE=C.UTF-8\nPATH=/bin:/usr/bin\nPBS_JOBDIR=/tmp\n"


def test_a_job_that_is_history_is_followed_to_its_own_exit_status(tmp_path: Path) -> None:
    """Without -x OpenPBS's qstat shows no finished job, and exits with 35 (PBSE_HISTJOBID, 15139 & 255)."""
    qstat = tmp_path / "qstat"
    qstat.write_text(
        "#!/bin/sh\n[ \"$1\" = -x ] || exit 35\n"
        "printf 'Job Id: 12.srv\\n    job_state = F\\n    Exit_status = 271\\n'\n"
    )
    qstat.chmod(0o755)
    ask = follow.qstat(str(qstat), {"PATH": "/bin"})
    shown: list[str] = []
    end = follow.until_done(
        job_id("12.srv"), tmp_path / "phases", ask=ask, show=lambda phase, seconds: shown.append(phase)
    )
    assert (end.exit_status, shown) == (128 + 15, ["done"])
    assert follow.is_over("12.srv", ask=ask)
