# SPDX-License-Identifier: Apache-2.0
"""The shims in `scripts/`, in whatever state mom's own process is, and the site's own hooks behind them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.builders import a_request
from tests.contract.test_hooks import CONFIGURATION, HOOKS, USER, Site
from vtorque import request

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="mom is root"),
]

PREFIX = Path(__file__).resolve().parents[2]
PLACE = Path("/var/lib") / f"vtorque-shims-{os.getpid()}"
OTHER = request.encode(a_request())
MOM = {"PATH": "/bin:/usr/bin", "LANG": "C", "PBS_NODENUM": "0", "PBS_MSHOST": "n1"}
NOTHING: Mapping[str, str] = {}
ROOTS = tuple(hook for hook in HOOKS if hook != "epilogue.precancel")
# Appends what it is told to a file: no hook's output is seen by everybody.
SPY = """\
#!/usr/bin/python3 -I
import json, os, sys
umask = os.umask(0)
seen = dict(argv=sys.argv[1:], cwd=os.getcwd(), umask=umask, env=dict(os.environ), session=os.getsid(0) == {leader},
            files=[os.readlink("/proc/self/fd/%d" % number).split(":")[0] for number in range(3)])
open("{place}/spied", "a").write(json.dumps(seen) + "\\n")
"""


@pytest.fixture
def place() -> Iterator[Site]:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(mode=0o755)
    site = Site(PLACE)
    site.configure(CONFIGURATION.format(root=PLACE) + "MIN_UID: 1\n")
    (PLACE / "images").mkdir()
    yield site
    shutil.rmtree(PLACE)


def words(hook: str, *, guests: bool) -> list[str]:
    resources = f"nodes=1,other={OTHER}" if guests else "nodes=1"
    if hook.startswith("prologue"):
        return ["5.srv", USER.pw_name, "nogroup", "my job", resources, "batch", "", f"{PLACE}/5.srv.SC"]
    return ["5.srv", USER.pw_name, "nogroup", "my job", "99", resources, "cput=0", "batch", "", "0", "/x"]


def call(
    place: Site, hook: str, *, guests: bool, before: tuple[str, ...] = (), environ: Mapping[str, str] = NOTHING
) -> tuple[int, list[str]]:
    """A hook's status and what it says, called as mom would; `before` runs it."""
    node_file = place.root / "nodes"
    node_file.write_text("n1\n")
    (PLACE / "5.srv.SC").touch()
    done = subprocess.run(
        [*before, place.home.mom_priv / hook, *words(hook, guests=guests)],
        env={**MOM, "PBS_NODEFILE": str(node_file), **environ}, stdin=subprocess.DEVNULL, capture_output=True,
        cwd=place.home.mom_priv, start_new_session=True, check=False,
    )
    assert done.stdout == b""
    return done.returncode, done.stderr.decode().splitlines()


def acted(place: Site, hook: str) -> bool:
    """Whether ours came to its end: it found the job's image missing, or tore down and said so in the log."""
    log = place.root / "log/vtorque.log"
    return log.exists() and f'"message": "{hook}' in log.read_text()


@pytest.mark.parametrize("hook", ROOTS)
def test_whatever_is_in_moms_environment_ours_does_its_work(place: Site, hook: str) -> None:
    trap = place.root / "trap"
    trap.mkdir()
    sprung = place.root / "sprung"
    for name in ("sitecustomize", "usercustomize", "json", "yaml", "vtorque", "os"):
        (trap / f"{name}.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    (trap / "profile").write_text(f": >{sprung}\n")
    for name in ("readlink", "python3", "echo"):
        (trap / name).write_text(f"#!/bin/sh\n: >{sprung}\n")
        (trap / name).chmod(0o755)
    poison = {
        "PYTHONPATH": str(trap), "PYTHONHOME": str(trap), "PYTHONSTARTUP": str(trap / "json.py"), "TMPDIR": str(trap),
        "IFS": "/tn", "ENV": str(trap / "profile"), "BASH_ENV": str(trap / "profile"), "CDPATH": str(trap),
        "PATH": f"{trap}:/bin:/usr/bin", "LD_LIBRARY_PATH": str(trap), "PYTHONINSPECT": "1", "POSIXLY_CORRECT": "1",
        "LC_ALL": "xx_XX.nonsense", "PS4": f"$(: >{sprung})", "SHELLOPTS": "xtrace", "HOME": str(trap),
    }
    assert call(place, hook, guests=True, environ=poison) == (0, [])
    assert acted(place, hook)
    assert not sprung.exists()


@pytest.mark.parametrize("hook", ROOTS)
@pytest.mark.parametrize("state", [
    "exec 0<&- 1>&- 2>&-", "exec 0<&-", "exec 1>&- 2>&-", "ulimit -n 32; ulimit -c 0; ulimit -s 2048",
    "unset PATH LANG", "umask 777", "exec 8</dev/null 9</dev/null", "trap '' TERM CHLD HUP PIPE",
])
def test_whatever_state_moms_process_is_in_ours_does_its_work(place: Site, hook: str, state: str) -> None:
    assert call(place, hook, guests=True, before=("/bin/sh", "-c", f'{state}; exec "$@"', "sh")) == (0, [])
    assert acted(place, hook)


@pytest.mark.parametrize("hook", ROOTS)
def test_a_tree_that_cannot_be_loaded_is_no_verdict_on_the_job(place: Site, hook: str, tmp_path: Path) -> None:
    shutil.copytree(PREFIX / "scripts", tmp_path / "scripts")
    (tmp_path / "vtorque").mkdir()
    (tmp_path / "vtorque/__init__.py").touch()
    path = place.home.mom_priv / hook
    path.unlink()
    path.symlink_to(tmp_path / "scripts" / hook)
    status, lines = call(place, hook, guests=True)
    # 1 would have Torque throw the job away.
    assert status == 3
    assert len(lines) == 1 and lines[0].startswith(f"vtorque: cannot load {tmp_path}: ")


@pytest.mark.parametrize("hook", ROOTS)
def test_a_shim_that_does_not_find_the_tree_says_so_and_is_no_verdict_on_the_job(place: Site, hook: str) -> None:
    killed = place.root / "readlink"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    hidden = f'mount --bind {killed} /usr/bin/readlink; exec "$@"'
    before = ("/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc", hidden, "sh")
    status, lines = call(place, hook, guests=True, before=before)
    path = place.home.mom_priv / hook
    assert (status, lines[-1]) == (3, f"vtorque: readlink cannot tell where {path} leads to")


@pytest.mark.parametrize("hook", ROOTS)
def test_a_chain_of_links_is_followed_to_the_tree_and_the_sites_own_hook_is_beside_the_first(
    place: Site, hook: str
) -> None:
    (place.root / "links").mkdir()
    (place.root / "links" / "second").symlink_to(f"../vtorque/scripts/{hook}")
    (place.root / "links" / "first").symlink_to("second")
    path = place.home.mom_priv / hook
    path.unlink()
    path.symlink_to(place.root / "links" / "first")
    place.original(hook, SPY.format(place=place.root, leader="os.getpid()"))
    for guests in (False, True):
        assert call(place, hook, guests=guests) == (0, [])
    assert acted(place, hook)
    assert len((place.root / "spied").read_text().splitlines()) == 2


@pytest.mark.parametrize("hook", HOOKS)
def test_for_a_job_without_guests_one_process_becomes_the_sites_own_hook_and_no_home_is_touched(
    place: Site, hook: str
) -> None:
    trace = place.root / "trace"
    place.original(hook, "#!/bin/sh\nexit 7\n")
    before = ("/usr/bin/strace", "-f", "-qqq", "-o", str(trace), "-e", "trace=process,%file,%network")
    assert call(place, hook, guests=False, before=before, environ={"HOME": str(place.user_home)}) == (7, [])
    lines = trace.read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == 1
    assert not [line for line in lines if any(name in line for name in ("fork(", "clone(", "clone3(", "socket("))]
    started = [line.partition('execve("')[2].partition('"')[0] for line in lines if "execve(" in line]
    assert started == [str(place.home.mom_priv / hook), str(place.home.mom_priv / f"{hook}.orig")]
    assert not [line for line in lines if str(place.user_home) in line or "python" in line]
    assert not (place.root / "run").exists() and not (place.root / "log").exists()


@pytest.mark.parametrize("hook", ROOTS)
def test_the_sites_own_hook_is_told_the_same_with_guests_and_without(place: Site, hook: str) -> None:
    place.original(hook, SPY.format(place=place.root, leader="os.getppid()"))
    more = {"LD_LIBRARY_PATH": "/opt/licensed/lib", "PYTHONPATH": "/site", "MOAB_X": "a b\nc"}
    for guests in (False, True):
        assert call(place, hook, guests=guests, environ=more) == (0, [])
    without, with_ = map(json.loads, (place.root / "spied").read_text().splitlines())
    assert with_.pop("argv") == words(hook, guests=True) and without.pop("argv") == words(hook, guests=False)
    # In the session that mom can end; without guests it is the leader itself.
    assert (without.pop("session"), with_.pop("session")) == (False, True)
    assert all(without["env"][name] == value for name, value in more.items())
    assert with_ == without


@pytest.mark.parametrize("guests", [False, True], ids=["without guests", "with guests"])
@pytest.mark.parametrize("hook", ROOTS)
class TestOriginalThatFails:
    def test_one_that_is_not_executable_is_a_line_and_what_torque_itself_makes_of_it(
        self, place: Site, hook: str, guests: bool
    ) -> None:
        place.original(hook, "#!/bin/sh\nexit 1\n", mode=0o644)
        path = place.home.mom_priv / f"{hook}.orig"
        status, said = call(place, hook, guests=guests)
        assert status == 3
        assert said == [f"vtorque: {path} is not executable (chmod 755 {path})"]

    def test_one_that_dangles_is_none_as_for_torque(self, place: Site, hook: str, guests: bool) -> None:
        (place.home.mom_priv / f"{hook}.orig").symlink_to("/nonexistent")
        assert call(place, hook, guests=guests) == (0, [])

    def test_its_status_is_the_hooks(self, place: Site, hook: str, guests: bool) -> None:
        place.original(hook, "#!/bin/sh\nexit 4\n")
        assert call(place, hook, guests=guests) == (4, [])

    def test_one_that_dies_by_a_signal_ends_the_hook_as_without_us(self, place: Site, hook: str, guests: bool) -> None:
        place.original(hook, "#!/bin/sh\nkill -SEGV $$\n")
        status, said = call(place, hook, guests=guests)
        # mom takes a hook killed by a signal for success (prolog.c:1317-1323).
        assert status == (0 if guests else -11)
        assert said == ([f"vtorque: {place.home.mom_priv / hook}.orig was killed by signal 11"] if guests else [])


@pytest.mark.parametrize("hook", ["prologue", "epilogue"])
def test_one_that_hangs_is_killed_before_mom_kills_all_of_us(place: Site, hook: str) -> None:
    (place.home.mom_priv / "config").write_text("$prologalarm 17\n")
    place.original(hook, f"#!/bin/sh\necho $$ >{place.root}/pid\nsleep 1000\n")
    status, said = call(place, hook, guests=True)
    assert status == 3
    assert said == [f"vtorque: {place.home.mom_priv / hook}.orig did not end in time"]
    assert not Path("/proc", (place.root / "pid").read_text().strip()).exists()
