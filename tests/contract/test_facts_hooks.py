# SPDX-License-Identifier: Apache-2.0
"""The real scripts/* when Torque does what it does, and when it is called as it never should be."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import a_job, a_plan, a_request, an_account
from tests.contract.test_hooks import CONFIGURATION, HOOKS, USER, Site, wrapper
from vtorque import orders, request
from vtorque.demand import Demand
from vtorque.guard import Orders

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="mom is root"),
]

PLACE = Path("/var/lib") / f"vtorque-facts-{os.getpid()}"
OTHER = request.encode(a_request())
MOM = {"PATH": "/bin:/usr/bin", "LANG": "C", "PBS_NODENUM": "0", "PBS_MSHOST": "n1"}
SLURM = {"SLURMD_NODENAME": "n1", "SLURM_NODELIST": "n1", "SLURM_JOB_ID": "7", "SLURM_JOB_USER": USER.pw_name}
# Writes what is open and what is blocked: a shell has others open while it starts a command, and none when it
# becomes one.
SPY = """\
#!/bin/sh
exec >{root}/spied
readlink /proc/$$/fd/0 /proc/$$/fd/2
grep SigBlk /proc/self/status
exec ls /proc/self/fd
"""


@pytest.fixture
def place() -> Iterator[Site]:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(mode=0o755)
    site = Site(PLACE)
    site.configure(CONFIGURATION.format(root=PLACE) + "MIN_UID: 1\n")
    (PLACE / "images").mkdir()
    (PLACE / "5.srv.SC").touch()
    yield site
    shutil.rmtree(PLACE)


def call(place: Site, hook: str, *words: str | bytes, **environ: str) -> tuple[int, list[str]]:
    """A hook's status and what it says, called as mom would."""
    path = place.home.mom_priv / hook
    done = subprocess.run(
        [path, *words], env=MOM | environ, stdin=subprocess.DEVNULL, capture_output=True, cwd=path.parent,
        start_new_session=True, check=False,
    )
    assert done.stdout == b""
    return done.returncode, done.stderr.decode().splitlines()


def a_node_file(place: Site, data: bytes = b"n1\n") -> str:
    path = place.root / "nodes"
    path.write_bytes(data)
    return str(path)


PROLOGUE = ["5.srv", USER.pw_name, "nogroup", "job", f"nodes=1,other={OTHER}", "batch", "", f"{PLACE}/5.srv.SC"]
EPILOGUE = ["5.srv", USER.pw_name, "nogroup", "job", "99", f"nodes=1,other={OTHER}", "cput=0", "batch", "", "0", "/x"]


@pytest.mark.parametrize("how", ["killed", "dangling", "missing"])
def test_a_job_whose_prologue_torque_takes_for_a_success_runs_nothing(place: Site, how: str) -> None:
    path = place.home.mom_priv / "prologue"
    path.unlink()
    if how == "killed":
        path.write_text("#!/bin/sh\nkill -KILL $$\n")
        path.chmod(0o755)
    elif how == "dangling":
        path.symlink_to("/nonexistent/prologue")
    assert place.run(wrapper(place), OTHER).exit_status == 69
    assert place.output("e") == "vtorque: no guest was started for this job: its prologue did not end\n"
    assert place.output("o") == ""


def test_a_job_whose_directory_is_gone_says_what_to_do(place: Site) -> None:
    """Such as one that was rerun when it had ended, for which its epilogue had left nothing."""
    (place.home.mom_priv / "prologue").unlink()
    record = place.root / "run/jobs/5.srv"
    record.mkdir(parents=True)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    marker = {"schema": 1, "job": "5.srv", "boot_id": boot_id, "vcpus": 1, "guests": [], "environment": {}}
    (record / "ready").write_text(json.dumps(marker))
    assert place.run(wrapper(place), OTHER).exit_status == 65
    gone = Path(USER.pw_dir, ".vtorque/0123456789abcdef/job.json")
    assert place.output("e") == f"vtorque: {gone} is gone (submit the job again)\n"


def test_a_sisters_epilogue_puts_its_closed_descriptors_and_blocked_signals_in_order(place: Site) -> None:
    place.original("epilogue.parallel", SPY.format(root=place.root))
    place.run(wrapper(place), "vt1.garbage", hosts=("n1", "n2"))
    stdin, stderr, blocked, *descriptors = (place.root / "spied").read_text().splitlines()
    # The last is that of the directory that is read.
    assert (stdin, stderr, descriptors) == ("/dev/null", "/dev/null", ["0", "1", "2", "3"])
    assert int(blocked.split()[1], 16) == 0
    assert "Traceback" not in (place.root / "log/vtorque.log").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_of_a_job_without_guests_is_silent_with_any_number_of_arguments(place: Site, hook: str) -> None:
    for count in (0, 1, 3, 7, 8, 10, 11, 40):
        assert call(place, hook, *["x"] * count) == (0, [])


@pytest.mark.parametrize("count", [5, 6, 7, 8, 9, 30])
def test_a_prologue_reads_its_job_from_as_many_arguments_as_there_are(place: Site, count: int) -> None:
    words = (PROLOGUE + ["more"] * 30)[:count]
    status, said = call(place, "prologue", *words, PBS_NODEFILE=a_node_file(place))
    assert (status, said) == (0, [])
    assert "not in the catalogue" in (place.root / "run/jobs/5.srv/failed").read_text()


@pytest.mark.parametrize("count", [6, 9, 10, 11, 12, 30])
def test_an_epilogue_tears_down_with_as_many_arguments_as_there_are(place: Site, count: int) -> None:
    call(place, "prologue", *PROLOGUE, PBS_NODEFILE=a_node_file(place))
    assert (place.root / "run/jobs/5.srv").exists()
    assert call(place, "epilogue", *(EPILOGUE + ["more"] * 30)[:count]) == (0, [])
    assert not (place.root / "run/jobs/5.srv").exists()


HOSTILE: dict[str, tuple[int, str | bytes]] = {
    "no id": (0, ""), "a path": (0, "../../etc"), "a newline": (0, "5.srv\n6.srv"), "a long id": (0, "5" * 9999),
    "no user": (1, ""), "an option for a user": (1, "-rf"), "a command for a user": (1, "x;reboot"),
    "bytes for a user": (1, b"\xff\xfe"), "bytes for an id": (0, b"5.\xff"),
}


@pytest.mark.parametrize("hook", ["prologue", "prologue.parallel", "epilogue", "epilogue.parallel"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_argument_is_one_line_and_no_failure_that_mom_acts_on(place: Site, hook: str, case: str) -> None:
    where, value = HOSTILE[case]
    words: list[str | bytes] = list(PROLOGUE if hook.startswith("prologue") else EPILOGUE)
    words[where] = value
    status, said = call(place, hook, *words, PBS_NODEFILE=a_node_file(place))
    assert status == 0
    assert len(said) == 1 and said[0].startswith("vtorque: ") and "not a" in said[0]
    assert not (place.root / "run/jobs").exists() or not list((place.root / "run/jobs").iterdir())


@pytest.mark.parametrize("value", ["", b"\xff\xfe", "-rf /", "x" * 9999, "a\nb", "`reboot`"],
                         ids=["empty", "bytes", "option", "long", "newline", "command"])
def test_a_jobs_name_may_be_anything(place: Site, value: str | bytes) -> None:
    node_file = a_node_file(place)
    words: list[str | bytes] = [*PROLOGUE[:3], value, *PROLOGUE[4:]]
    assert call(place, "prologue", *words, PBS_NODEFILE=node_file) == (0, [])
    assert call(place, "epilogue", *[*EPILOGUE[:3], value, *EPILOGUE[4:]], PBS_NODEFILE=node_file) == (0, [])
    assert not list((place.root / "run/jobs").iterdir())


NODE_FILES: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "cannot read the node file /nonexistent"),
    "empty": (b"", "the node file names no node"),
    "blank": (b"\n \n", "the node file names no node"),
    "an option": (b"n1\n-oProxyCommand=x\n", "the node file holds '-oProxyCommand=x', which is not a host name"),
    "bytes": (b"n1\n\xff\n", "cannot read the node file"),
    "a path": (b"../n1\n", "the node file holds '../n1', which is not a host name"),
}


@pytest.mark.parametrize("case", NODE_FILES)
def test_a_prologue_without_a_proper_node_file_says_so_and_starts_nothing(place: Site, case: str) -> None:
    data, says = NODE_FILES[case]
    path = "/nonexistent" if data is None else a_node_file(place, data)
    status, said = call(place, "prologue", *PROLOGUE, PBS_NODEFILE=path)
    assert (status, len(said)) == (0, 1)
    assert says in said[0]
    assert not list((place.root / "run/jobs").iterdir())


@pytest.mark.parametrize("case", NODE_FILES)
def test_an_epilogue_needs_no_node_file(place: Site, case: str) -> None:
    call(place, "prologue", *PROLOGUE, PBS_NODEFILE=a_node_file(place))
    data, _ = NODE_FILES[case]
    path = "/nonexistent" if data is None else a_node_file(place, data)
    assert call(place, "epilogue", *EPILOGUE, PBS_NODEFILE=path) == (0, [])
    assert not (place.root / "run/jobs/5.srv").exists()


def test_a_prologue_without_a_node_file_variable_starts_nothing(place: Site) -> None:
    status, said = call(place, "prologue", *PROLOGUE)
    assert (status, said) == (0, ["vtorque: the node file names no node"])


@pytest.mark.parametrize("words", [[], ["5.srv"]])
def test_a_hook_that_is_told_nothing_of_its_job_says_so(place: Site, words: list[str]) -> None:
    hook = place.prefix / "scripts" / "hook"
    for kind in HOOKS[:4]:
        done = subprocess.run(
            ["/usr/bin/python3", "-I", hook, kind, place.home.mom_priv / kind, *words], env=MOM, capture_output=True,
            check=False, text=True,
        )
        assert done.returncode == 0
        assert done.stderr == f"vtorque: {kind} was called with {len(words)} arguments\n"


@pytest.mark.parametrize("other", ["", OTHER])
def test_precancel_notes_as_the_user_that_the_job_is_to_end(place: Site, other: str) -> None:
    own = place.user_home / ".vtorque"
    own.mkdir()
    os.chown(own, USER.pw_uid, USER.pw_gid)
    place.original("epilogue.precancel", f"#!/bin/sh\nid -u >{place.root}/spied\n")
    (place.root / "spied").touch()
    (place.root / "spied").chmod(0o666)
    place.run("#!/bin/sh\nsleep 1000\n", other, resources={"nodes": "1", "walltime": "1", "other": other or "x"})
    assert [path.name for path in own.iterdir()] == (["5.srv.cancelled"] if other else [])
    assert all(path.stat().st_uid == USER.pw_uid for path in own.iterdir())
    assert (place.root / "spied").read_text() == f"{USER.pw_uid}\n"


def test_precancel_does_nothing_where_it_cannot(place: Site) -> None:
    path = place.home.mom_priv / "epilogue.precancel"
    for home in (place.user_home, place.root / "file"):
        (place.root / "file").mkdir(exist_ok=True)
        (place.root / "file" / ".vtorque").touch()
        done = subprocess.run([path, *EPILOGUE], cwd=home, env=MOM, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def ordered(told: Orders) -> bytes:
    """What a hook writes to a guard: for whose job root acts, and what the program tells itself."""
    job = told.demand.job
    return f"{job.id} {job.user} 0\n".encode() + orders.encode(told)


def test_a_guard_takes_her_orders_from_a_pipe_and_goes_when_there_is_nothing_to_guard(place: Site) -> None:
    account = an_account(name=USER.pw_name, uid=USER.pw_uid, home=Path("/"))
    job = a_job(user=USER.pw_name)
    wanted = Demand(job=job, account=account, request=a_request())
    planned = a_plan(job=job, account=account)
    told = Orders(demand=wanted, plan=planned, generation="", started=(), start_seconds=60.0)
    hook = ["/usr/bin/python3", "-I", str(place.prefix / "scripts" / "hook"), "guard"]
    done = subprocess.run(hook, input=ordered(told), env=MOM, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert subprocess.run(hook, input=b"{}", env=MOM, capture_output=True, check=False).returncode == 1


def test_a_guard_who_cannot_go_on_says_so_in_roots_log(place: Site) -> None:
    job = a_job(user=USER.pw_name)
    account = an_account(name=USER.pw_name, uid=USER.pw_uid, home=Path("/"))
    told = Orders(
        demand=Demand(job=job, account=account, request=a_request()), plan=a_plan(job=job, account=account),
        generation="", started=(), start_seconds=60.0,
    )
    (place.root / "run/guards" / job.key).mkdir(parents=True)
    hook = ["/usr/bin/python3", "-I", str(place.prefix / "scripts" / "hook"), "guard"]
    done = subprocess.run(hook, input=ordered(told), env=MOM, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert "unforeseen" in (place.root / "log/vtorque.log").read_text()


@pytest.mark.parametrize(("kind", "says"), [
    ("slurm-epilog", ["vtorque: this hook is for slurm (BATCH_SYSTEM is local)"]), ("epilogue.precancel", []),
])
def test_a_hook_of_another_system_and_one_that_is_the_users_do_nothing(
    place: Site, kind: str, says: list[str]
) -> None:
    paths = (str(place.prefix / "scripts/hook"), kind, str(place.home.mom_priv / kind))
    done = subprocess.run(
        ["/usr/bin/python3", "-I", *paths, *EPILOGUE], env=MOM | SLURM, capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stderr.splitlines()) == (0, says)
