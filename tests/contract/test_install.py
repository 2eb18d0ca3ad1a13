# SPDX-License-Identifier: Apache-2.0
"""`vmgr install` and `uninstall` on a scratch tree: in, out, and as it was; also when killed after every effect."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vtorque import chain, doctor_checks, install
from vtorque.errors import ConfigError, StateError
from vtorque.install import Setup, manifest, modes
from vtorque.mom import rules

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="it installs what is root's"),
]

ROOT = Path(__file__).resolve().parents[2]
HOOKS = ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel", "epilogue.precancel")
RECORD = "var/lib/vtorque/install.json"
PREFIX = Path("/opt/vtorque")
KILLED = 99
FEWEST_EFFECTS, MOST_EFFECTS = 40, 400
LONG_AGO = 1_000_000_000_123_456_789

# The node's tree and its record where they would be, and everything else as it is here.
DOCTOR = f"""\
mount --bind "$0/opt" /opt
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/vtorque
[ ! -e "$0/{RECORD}" ] || cp "$0/{RECORD}" /var/lib/vtorque/
exec /opt/vtorque/scripts/vmgr doctor --json
"""

Digest = dict[str, tuple[object, ...]]


class Node:
    """The file tree of a node, with a vtorque in it."""

    def __init__(self, root: Path, system: str) -> None:
        self.root = root
        self.system = system
        for name in ("vtorque", "scripts", "templates", "templates-vm", "contrib", "doc/man"):
            shutil.copytree(ROOT / name, root / "opt/vtorque" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (root / "opt", *(root / "opt").rglob("*")):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        for name in ("etc/profile.d", "etc/vtorque", "etc/logrotate.d", "var/lib", "usr/local/share"):
            self.path(name).mkdir(parents=True)
        self.mom_priv = root / "var/spool/torque/mom_priv"
        (self.mom_priv / "jobs").mkdir(parents=True)
        self.configure(f"BATCH_SYSTEM: {system}\nLIBVIRT_URI: test:///default\n")

    def path(self, name: str) -> Path:
        return self.root / name

    def configure(self, text: str) -> None:
        self.path("etc/vtorque/vtorque.yaml").write_text(text)

    def put(self, name: str, text: str, *, mode: int = 0o755, owner: int = 0) -> Path:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.chown(path, owner, owner)
        path.chmod(mode)
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
        return path

    def original(self, kind: str, text: str = "#!/bin/sh\nexit 0\n", **changes: int) -> Path:
        return self.put(f"var/spool/torque/mom_priv/{kind}", text, **changes)

    def vmgr(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-I", str(self.path("opt/vtorque/scripts/vmgr"))]
        return subprocess.run(
            [*program, *words], capture_output=True, text=True, check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environ},
        )

    def install(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.vmgr("install", "--system", self.system, "--root", str(self.root), *words)

    def uninstall(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.vmgr("uninstall", "--root", str(self.root), *words)

    def doctor(self) -> dict[str, list[dict[str, str]]]:
        """What vmgr doctor finds on such a node, by the names of its checks."""
        own = f"BATCH_SYSTEM: {self.system}\nLIBVIRT_URI: test:///default\nTORQUE_HOME: {self.mom_priv.parent}\n"
        conf = f"{own}SLURM_CONF: {self.root}/etc/slurm/slurm.conf\n"
        path = self.put("opt/vtorque/etc/vtorque.yaml", conf, mode=0o644)
        done = subprocess.run(
            ["/usr/bin/unshare", "--mount", "--propagation", "private", "--net", "/bin/sh", "-euc", DOCTOR, self.root],
            capture_output=True, text=True, check=False,
        )
        path.unlink()
        assert done.stdout, done.stderr
        found: dict[str, list[dict[str, str]]] = {}
        for each in json.loads(done.stdout):
            found.setdefault(each["name"], []).append(each)
        return found

    def digest(self) -> Digest:
        """All that there is of every file and link; of a directory not when it was last changed."""
        found: Digest = {}
        for path in sorted(self.root.rglob("*")):
            about = path.lstat()
            what = (stat.filemode(about.st_mode), about.st_uid, about.st_gid)
            if path.is_symlink():
                found[str(path)] = (*what, about.st_mtime_ns, str(path.readlink()))
            elif path.is_dir():
                found[str(path)] = what
            else:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path)] = (*what, about.st_mtime_ns, about.st_nlink, content)
        return {name: about for name, about in found.items() if "__pycache__" not in name}


def a_node(root: Path, system: str) -> Node:
    """One with hooks of the site's own, of all sorts."""
    node = Node(root, system)
    node.original("config", "$prologalarm 300\n", mode=0o644)
    node.original("prologue", "#!/bin/sh\necho ours\n", mode=0o500)
    node.original("epilogue", mode=0o4755)
    node.original("prologue.user")
    node.original("prologue.gpu")
    (node.mom_priv / "prologue.parallel").symlink_to("/usr/local/sbin/on-sisters")
    (node.mom_priv / "epilogue.parallel").symlink_to("epilogue")
    os.utime(node.mom_priv / "prologue.parallel", ns=(LONG_AGO, LONG_AGO), follow_symlinks=False)
    node.put("etc/logrotate.d/vtorque", "# a site's own\n", mode=0o640, owner=2)
    node.put("etc/slurm/slurm.conf", "ClusterName=x\nProlog=/usr/local/sbin/prolog\nPrologFlags=X11\n", mode=0o644)
    return node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return a_node(tmp_path / "node", "torque")


@pytest.fixture(params=["torque", "openpbs", "openpbs --classic", "slurm", "torque --front-end"])
def any_node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Node, tuple[str, ...]]]:
    system, *words = request.param.split()
    yield a_node(tmp_path / "node", system), tuple(words)


def test_what_the_doctor_says_of_missing_hooks_is_this_command_and_it_mends_them(node: Node) -> None:
    before = node.doctor()["hooks"]
    assert {each["hint"] for each in before} == {"vmgr install --system torque"}
    assert sum("which Torque takes for success" in each["text"] for each in before) == 1
    assert node.install().returncode == 0
    (after,) = node.doctor()["hooks"]
    assert after["level"] == "ok"
    assert (node.mom_priv / "prologue.orig").read_text() == "#!/bin/sh\necho ours\n", "the site's own still runs"


@pytest.mark.parametrize("system", ["slurm", "openpbs"])
def test_what_the_doctor_says_of_other_systems_hooks_is_this_command_too(tmp_path: Path, system: str) -> None:
    hints = [each["hint"] for each in a_node(tmp_path / "node", system).doctor()["hooks"]]
    assert hints[0].startswith(f"vmgr install --system {system}")
    assert not any("Prolog=" in hint for hint in hints), "the site's own would no longer run"


def test_the_doctor_wants_no_hooks_on_a_front_end(node: Node) -> None:
    assert "hooks" in node.doctor()
    assert node.install("--front-end").returncode == 0
    found = node.doctor()
    assert found.keys() == {"role", "submit", "commands", "compiled", "images", "clock"}
    node.path(RECORD).write_text("damaged")
    found = node.doctor()
    assert found["install"][0]["level"] == "warning" and "hooks" in found, "nobody knows whether it is one"


def test_out_again_everything_is_as_it_was(any_node: tuple[Node, tuple[str, ...]]) -> None:
    node, words = any_node
    before = node.digest()
    done = node.install(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert node.digest() != before
    done = node.uninstall()
    assert (done.returncode, done.stderr) == (0, "")
    assert node.digest() == before


def test_a_dry_run_shows_what_is_then_done_and_does_nothing(any_node: tuple[Node, tuple[str, ...]]) -> None:
    node, words = any_node
    before = node.digest()
    shown = node.install("--dry-run", *words).stdout.splitlines()
    assert node.digest() == before
    assert node.install(*words).stdout.splitlines()[:-1] == shown[:-1]
    installed = node.digest()
    shown = node.uninstall("--dry-run").stdout.splitlines()
    assert node.digest() == installed
    assert node.uninstall().stdout.splitlines()[:-1] == shown[:-1]


def test_the_second_time_there_is_nothing_to_do(any_node: tuple[Node, tuple[str, ...]]) -> None:
    node, words = any_node
    node.install(*words)
    once = node.digest()
    for done in (node.install(*words), node.vmgr("install", "--root", str(node.root))):
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing to do")
        assert node.digest() == once
    node.uninstall()
    assert node.uninstall().stdout == "nothing to do: vtorque is not installed\n"


TORQUE, FRONT_END, SLURM = ("--system", "torque"), ("--system", "torque", "--front-end"), ("--system", "slurm")
CLASSIC, HOOK = ("--system", "openpbs", "--classic"), ("--system", "openpbs")


@pytest.mark.parametrize("first, then, was, wanted", [
    (TORQUE, FRONT_END, "a node of torque", "a front end of torque"),
    (TORQUE, ("--front-end",), "a node of torque", "a front end of torque"),
    (FRONT_END, TORQUE, "a front end of torque", "a node of torque"),
    (TORQUE, SLURM, "a node of torque", "a node of slurm"),
    (CLASSIC, HOOK, "a node of openpbs, --classic", "a node of openpbs"),
    (HOOK, ("--classic",), "a node of openpbs", "a node of openpbs, --classic"),
])
def test_what_is_installed_becomes_nothing_else_before_it_is_uninstalled(
    node: Node, first: tuple[str, ...], then: tuple[str, ...], was: str, wanted: str
) -> None:
    before = node.digest()
    root = ("--root", str(node.root))
    assert node.vmgr("install", *root, *first).returncode == 0
    installed = node.digest()
    for force in ((), ("--force",), ("--dry-run",)):
        done = node.vmgr("install", *root, *then, *force)
        says = f"vmgr: vtorque is installed here for {was}, not for {wanted} (vmgr uninstall first)\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", says)
        assert node.digest() == installed
    node.uninstall()
    assert node.digest() == before


def test_hooks_are_links_to_ours_and_the_sites_own_are_beside_them(node: Node) -> None:
    said = node.install().stdout
    for kind in HOOKS:
        assert str((node.mom_priv / kind).readlink()) == f"/opt/vtorque/scripts/{kind}"
    assert (node.mom_priv / "prologue.orig").read_text() == "#!/bin/sh\necho ours\n"
    assert str((node.mom_priv / "prologue.parallel.orig").readlink()) == "/usr/local/sbin/on-sisters"
    assert not (node.mom_priv / "epilogue.precancel.orig").exists()
    assert stat.S_IMODE(node.path(RECORD).stat().st_mode) == 0o600
    for kind, means in (("user", "runs as the job's user"), ("gpu", "jobs of qsub -T gpu run it in place of prologue")):
        assert f"mom_priv/prologue.{kind} stays as it is: " in said and means in said
        assert not (node.mom_priv / f"prologue.{kind}").is_symlink()


def test_what_is_written_names_where_this_site_has_things(tmp_path: Path) -> None:
    node = a_node(tmp_path / "node", "torque")
    node.path("opt/vtorque").rename(node.path("opt/vt2"))
    node.path("opt/vtorque").mkdir()
    node.configure("STATE_DIR: /run/vt\nLOG_DIR: /var/log/vt\nACCOUNTING_DIR: /var/acct\n")
    program = node.path("opt/vt2/scripts/vmgr")
    words = [sys.executable, "-I", str(program), "install", "--system", "torque", "--root", str(node.root)]
    assert subprocess.run(words, check=True, capture_output=True).returncode == 0
    assert "\nVTORQUE_DIR=/opt/vt2\n" in node.path("etc/profile.d/99-mikelangelo-hpc_stack.sh").read_text()
    assert "\nd /run/vt 0711 root root -\n" in node.path("etc/tmpfiles.d/vtorque.conf").read_text()
    rotation = node.path("etc/logrotate.d/vtorque").read_text()
    assert "\n/var/log/vt/*.log {\n" in rotation and "\n/var/acct/[0-9]" in rotation
    assert "/opt/vt2/scripts/vmgr sweep" in node.path("etc/cron.d/vtorque").read_text()


def test_an_image_that_lacks_the_account_is_told_what_makes_it(node: Node) -> None:
    says = f"note     {node.root} has no user vtorque, and unless a directory service will, no job gets guests: " \
        f"useradd --system --root {node.root} --user-group --no-create-home --home-dir /nonexistent " \
        "--shell /usr/sbin/nologin vtorque\n"
    assert says in node.install().stdout
    passwd = node.put("etc/passwd", "root:x:0:0::/root:/bin/sh\nvtorque2:x:5:5::/:/bin/sh\n", mode=0o644)
    assert says in node.install().stdout
    with passwd.open("a") as file:
        file.write("vtorque:x:990:990::/nonexistent:/usr/sbin/nologin\n")
    assert "no user vtorque" not in node.install().stdout
    assert "the user vtorque stays" not in node.uninstall().stdout, "nobody has made it"


def test_a_front_end_needs_no_account(node: Node) -> None:
    assert "user vtorque" not in node.install("--front-end").stdout


def test_with_systemd_a_timer_sweeps_and_without_cron_does(node: Node) -> None:
    node.install()
    assert node.path("etc/cron.d/vtorque").is_file() and not node.path("etc/systemd").exists()
    node.uninstall()
    node.put("usr/lib/systemd/systemd", "")
    node.install()
    units = node.path("etc/systemd/system")
    assert str((units / "timers.target.wants/vtorque-sweep.timer").readlink()) == f"/{units.relative_to(node.root)}/" \
        "vtorque-sweep.timer"
    assert "ExecStart=/opt/vtorque/scripts/vmgr sweep" in (units / "vtorque-sweep.service").read_text()
    assert not node.path("etc/cron.d/vtorque").exists()


def test_slurm_gets_links_and_the_lines_for_slurm_conf_which_stays_as_it_is(tmp_path: Path) -> None:
    node = a_node(tmp_path / "node", "slurm")
    conf = node.path("etc/slurm/slurm.conf").read_text()
    said = node.install().stdout
    assert node.path("etc/slurm/slurm.conf").read_text() == conf
    ours = node.path("etc/slurm/vtorque")
    assert str((ours / "prolog").readlink()) == "/opt/vtorque/scripts/slurm/prolog"
    assert str((ours / "prolog.orig").readlink()) == "/usr/local/sbin/prolog"
    assert str(node.path("etc/slurm/epilog.d/vtorque").readlink()) == "/opt/vtorque/scripts/slurm/epilog"
    for line in ("Prolog=/etc/slurm/vtorque/prolog", "Epilog=/etc/slurm/epilog.d/*",
                 "PrologFlags=Alloc,DeferBatch,Contain,X11", "PrologEpilogTimeout=165", "BatchStartTimeout=165"):
        assert f"put {line} into slurm.conf on all nodes" in said
    assert not node.mom_priv.joinpath("prologue").is_symlink()


@pytest.mark.parametrize("name", ["Prolog", "Epilog"])
def test_nothing_that_slurm_conf_names_is_removed(tmp_path: Path, name: str) -> None:
    node = a_node(tmp_path / "node", "slurm")
    node.put("etc/slurm/slurm.conf", f"ClusterName=x\n{name}=/usr/local/sbin/prolog\n")
    node.install()
    ours = f"{name}=/etc/slurm/vtorque/{name.lower()}"
    node.put("etc/slurm/slurm.conf", f"ClusterName=x\n{ours}\n")
    done = node.uninstall()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"vmgr: slurm.conf has {ours}, which would be gone, and slurmd would drain this node (first have your own line"
    )
    assert node.path(f"etc/slurm/vtorque/{name.lower()}").is_symlink()
    node.put("etc/slurm/slurm.conf", f"ClusterName=x\n{name}=/usr/local/sbin/prolog\n")
    assert node.uninstall().returncode == 0
    assert not node.path("etc/slurm/vtorque").exists()


def test_slurms_own_directory_of_prologs_is_used_when_its_pattern_finds_ours(tmp_path: Path) -> None:
    node = a_node(tmp_path / "node", "slurm")
    node.put("etc/slurm/slurm.conf", "Prolog=/etc/slurm/pro/*.sh\nEpilog=/etc/slurm/epi/[0-9]*\n")
    said = node.install().stdout
    assert node.path("etc/slurm/pro/50-vtorque.sh").is_symlink()
    assert node.path("etc/slurm/epi/50-vtorque").is_symlink()
    assert "put Prolog=" not in said


@pytest.mark.parametrize("first", ["the lines", "the installation"])
def test_the_lines_of_our_own_sample_may_be_in_slurm_conf_before_or_after_an_installation(
    tmp_path: Path, first: str
) -> None:
    node = a_node(tmp_path / "node", "slurm")
    node.put("etc/slurm/slurm.conf", "ClusterName=x\n")
    before = node.digest()
    if first == "the installation":
        node.install()
    sample = node.path("opt/vtorque/contrib/slurm/slurm.conf").read_text()
    node.put("etc/slurm/slurm.conf", f"ClusterName=x\n{sample}")
    said = node.install().stdout
    assert "put " not in said
    for name in ("prolog", "epilog"):
        assert str(node.path(f"etc/slurm/{name}.d/vtorque").readlink()) == f"/opt/vtorque/scripts/slurm/{name}"
    assert not list(node.path("etc/slurm").rglob("*.orig")) and not node.path("etc/slurm/vtorque").exists()
    assert node.install().stdout.splitlines()[-1] == "nothing to do"
    node.put("etc/slurm/slurm.conf", "ClusterName=x\n")
    node.uninstall()
    assert node.digest() == before


@pytest.mark.parametrize("by", ["/opt/vtorque/scripts/slurm/prolog", "/usr/local/sbin/prolog"])
def test_a_prolog_that_leads_to_ours_already_never_becomes_the_one_that_ours_runs(tmp_path: Path, by: str) -> None:
    node = a_node(tmp_path / "node", "slurm")
    node.put("etc/slurm/slurm.conf", f"Prolog={by}\n")
    if not node.path(by.lstrip("/")).exists():
        node.path("usr/local/sbin").mkdir()
        node.path(by.lstrip("/")).symlink_to("/opt/vtorque/scripts/slurm/prolog")
    said = node.install().stdout
    assert not node.path("etc/slurm/vtorque").exists() and "put Prolog=" not in said
    assert node.path("etc/slurm/epilog.d/vtorque").is_symlink()


def test_openpbs_is_told_in_qmgrs_own_words_where_there_is_no_server(tmp_path: Path) -> None:
    node = a_node(tmp_path / "node", "openpbs")
    said = node.install().stdout
    # With execjob_epilogue no mom would run her site's own epilogue any more.
    assert "event = 'queuejob,execjob_begin,execjob_launch,execjob_end,execjob_abort,exechost_periodic'" in said
    for words in ("create hook vtorque enabled = false", "set hook vtorque alarm = 180",
                  "set hook vtorque enabled = true",
                  "import hook vtorque application/x-python default /opt/vtorque/contrib/openpbs/vtorque_hook.py",
                  "import hook vtorque application/x-config default /etc/vtorque/openpbs-hook.json"):
        assert f'note     once, on the server: qmgr -c "{words}"' in said
    assert json.loads(node.path("etc/vtorque/openpbs-hook.json").read_text()) == {"prefix": "/opt/vtorque"}
    assert not (node.mom_priv / "prologue").is_symlink()


def test_openpbs_without_the_hook_gets_nothing_that_is_the_hooks(tmp_path: Path) -> None:
    node = a_node(tmp_path / "node", "openpbs")
    said = node.install("--classic").stdout
    assert str((node.mom_priv / "prologue").readlink()) == "/opt/vtorque/scripts/prologue"
    assert "qmgr" not in said and not node.path("etc/vtorque/openpbs-hook.json").exists()


def test_links_made_by_hand_are_taken_over_and_never_become_originals(node: Node) -> None:
    for kind in HOOKS:
        (node.mom_priv / kind).unlink(missing_ok=True)
    (node.mom_priv / "prologue").symlink_to("/opt/vtorque/scripts/prologue")
    node.original("prologue.orig", "site's\n")
    chain = node.path("etc/vtorque/epilogue")
    chain.symlink_to("../../opt/vtorque/scripts/epilogue")
    (node.mom_priv / "epilogue").symlink_to("/etc/vtorque/epilogue")
    node.install()
    assert {path.name for path in node.mom_priv.glob("*.orig")} == {"prologue.orig"}
    node.uninstall()
    assert (node.mom_priv / "prologue").read_text() == "site's\n"
    assert not (node.mom_priv / "epilogue").is_symlink()


def test_another_versions_links_are_led_to_this_one(node: Node) -> None:
    before = node.digest()
    node.install()
    shutil.copytree(node.path("opt/vtorque"), node.path("opt/vt2"), symlinks=True)
    words = [sys.executable, "-I", str(node.path("opt/vt2/scripts/vmgr")), "install", "--root", str(node.root)]
    subprocess.run(words, check=True, capture_output=True)
    assert str((node.mom_priv / "prologue").readlink()) == "/opt/vt2/scripts/prologue"
    assert (node.mom_priv / "prologue.orig").read_text() == "#!/bin/sh\necho ours\n"
    shutil.rmtree(node.path("opt/vt2"))
    node.uninstall()
    assert node.digest() == before


class Killed:
    """Ends this process, with nothing tidied up, when so many things have been changed in the file system."""

    EFFECTS = ("fsync", "rename", "link", "symlink", "mkdir", "rmdir", "unlink", "chmod", "fchmod", "fchown", "write")

    def __init__(self, number: int) -> None:
        self.left = number

    def attach(self) -> None:
        for name in self.EFFECTS:
            setattr(os, name, self.counting(getattr(os, name)))

    def counting(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def act(*words: Any, **more: Any) -> Any:
            answer = effect(*words, **more)
            self.left -= 1
            if self.left == 0:
                os._exit(KILLED)
            return answer

        return act


def within(number: int, work: Callable[[], object]) -> bool:
    """Do something in a process that is killed after so many effects; whether it came to its end before."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Killed(number).attach()
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, KILLED)
    return status == 0


def install_in(node: Node) -> None:
    setup = Setup(system=node.system, prefix=PREFIX, site=install.site_of(PREFIX, node.root))
    install.perform(install.to_install(setup, node.root, force=False, qmgr=None))


def uninstall_from(node: Node) -> None:
    plan = install.to_uninstall(node.root, force=False, qmgr=None)
    if plan is None:
        manifest.forget(node.root)
    else:
        install.perform(plan)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory that costs no disk's time: these effects are counted, and made durable, by the thousand."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def hooks_are_there(node: Node) -> bool:
    """Torque takes a hook that is missing for one that succeeded."""
    return all(os.path.lexists(node.mom_priv / kind) for kind in ("prologue", "epilogue", "prologue.parallel"))


@pytest.mark.parametrize("system", ["torque", "slurm"])
@pytest.mark.parametrize("then", ["finished", "undone"])
def test_killed_after_every_effect_it_is_finished_or_undone_by_the_next_call(
    memory: Path, system: str, then: str
) -> None:
    node = a_node(memory / "node", system)
    for path in node.path("opt/vtorque/vtorque").rglob("*.py"):
        # Each is looked at some thousand times.
        if path.name != "pelog.py":
            path.unlink()
    node.path("opt/vtorque/scripts/hook").chmod(0o700)
    node.original("epilogue", mode=0o4600)
    before = node.digest()
    install_in(node)
    installed = without_times(node.digest())
    uninstall_from(node)
    for number in range(1, MOST_EFFECTS):
        is_done = within(number, lambda: install_in(node))
        assert hooks_are_there(node), f"killed after effect {number}"
        if is_done:
            assert number > FEWEST_EFFECTS, "it was not killed at all"
            return
        if then == "finished":
            install_in(node)
            assert without_times(node.digest()) == installed, f"killed after effect {number}"
        uninstall_from(node)
        assert node.digest() == before, f"killed after effect {number}"
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("system", ["torque", "slurm"])
@pytest.mark.parametrize("then", ["finished", "installed again"])
def test_killed_while_it_is_undone_the_next_call_undoes_it_or_installs_it_again(
    memory: Path, system: str, then: str
) -> None:
    node = a_node(memory / "node", system)
    for path in node.path("opt/vtorque/vtorque").rglob("*.py"):
        # Each is looked at some thousand times.
        if path.name != "pelog.py":
            path.unlink()
    node.path("opt/vtorque/scripts/hook").chmod(0o700)
    node.original("epilogue", mode=0o4600)
    before = node.digest()
    for number in range(1, MOST_EFFECTS):
        install_in(node)
        installed = without_times(node.digest())
        is_done = within(number, lambda: uninstall_from(node))
        assert hooks_are_there(node), f"killed after effect {number}"
        if is_done:
            assert number > FEWEST_EFFECTS, "it was not killed at all"
            assert node.digest() == before
            return
        if then == "installed again":
            install_in(node)
            assert without_times(node.digest()) == installed, f"killed after effect {number}"
        uninstall_from(node)
        assert node.digest() == before, f"killed after effect {number}"
    pytest.fail("it never came to its end")


def without_times(digest: Digest) -> Digest:
    """What was made by us is as new as the call that made it; the record is compared by what it makes possible."""
    return {name: about[:3] + about[4:] if len(about) > 3 else about
            for name, about in digest.items() if not name.endswith(RECORD)}


def loosen(node: Node, name: str, mode: int) -> None:
    node.path(name).chmod(mode)


def both_there(node: Node) -> None:
    node.original("prologue.orig")


def only_the_kept(node: Node) -> None:
    (node.mom_priv / "prologue").rename(node.mom_priv / "prologue.orig")


def a_directory(node: Node) -> None:
    (node.mom_priv / "epilogue.precancel").mkdir()


def no_mom(node: Node) -> None:
    (node.mom_priv / "config").unlink()
    (node.mom_priv / "jobs").rmdir()


def a_link_to_others(node: Node) -> None:
    node.put("usr/local/sbin/on-sisters", "#!/bin/sh\n", owner=2)


REFUSALS: dict[str, tuple[Callable[[Node], object], str]] = {
    "no mom_priv": (lambda node: shutil.rmtree(node.mom_priv), "mom_priv (set TORQUE_HOME)"),
    "a mom_priv that is none": (no_mom, "is not a mom's directory: no config, no jobs (set TORQUE_HOME)"),
    "a mom_priv of others": (lambda node: loosen(node, "var/spool/torque/mom_priv", 0o777), "is writable by others"),
    "a home of others": (lambda node: loosen(node, "var/spool/torque", 0o775), "is writable by others (chmod go-w"),
    "an /etc of others": (lambda node: loosen(node, "etc/profile.d", 0o777), "is writable by others"),
    "a tree of others": (lambda node: loosen(node, "opt/vtorque/scripts", 0o777), "is writable by others"),
    "modules of others": (lambda node: os.chown(node.path("opt/vtorque/vtorque/cli"), 2, 2), "cli belongs to uid 2"),
    "a hook of others": (lambda node: node.original("epilogue", owner=2),
                         "mom_priv/epilogue belongs to uid 2: mom does not run it, and ours would (look at what"),
    "a hook for others to write": (lambda node: node.original("epilogue", mode=0o757),
                                   "mom_priv/epilogue is writable by others: mom does not run it, and ours would"),
    "a hook of others by a link": (a_link_to_others, "/usr/local/sbin/on-sisters belongs to uid 2: mom does not run"),
    "a hook of a user that leads to ours": (
        lambda node: (node.mom_priv / "prologue.gpu.sh").symlink_to("prologue"),
        "prologue.gpu.sh is a link to prologue, which is going to be ours (make it a file: cp --remove-destination",
    ),
    "two hooks": (both_there, "prologue is not ours, and /var/spool/torque/mom_priv/prologue.orig is there already"),
    "a hook that did not run": (only_the_kept, "it would begin to run (move it away, or --force)"),
    "a directory": (a_directory, "epilogue.precancel is a directory (move it away)"),
    "a broken configuration": (lambda node: node.configure("TIMOUT: 5\n"), "did you mean TIMEOUT?"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_do_harm_is_refused_in_one_line_before_anything_is_done(node: Node, case: str) -> None:
    harm, says = REFUSALS[case]
    harm(node)
    before = node.digest()
    done = node.install()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vmgr: ") and says in done.stderr and done.stderr.count("\n") == 1
    assert node.digest() == before


def test_a_hook_that_did_not_run_may_be_taken_for_the_sites_own(node: Node) -> None:
    only_the_kept(node)
    assert node.install("--force").returncode == 0
    assert node.uninstall().returncode == 0
    assert (node.mom_priv / "prologue").read_text() == "#!/bin/sh\necho ours\n"


def spoil(node: Node) -> None:
    """What was copied by somebody else, with another umask, and hooks that mom has refused so far."""
    os.chown(node.path("opt/vtorque/scripts/hook"), 2, 2)
    node.path("opt/vtorque/scripts/prologue").chmod(0o4700)
    node.path("opt/vtorque/vtorque/model.py").chmod(0o660)
    node.path("opt/vtorque/templates").chmod(0o700)
    node.original("epilogue", "#!/bin/sh\n:\n", mode=0o4644)
    node.put("usr/local/sbin/on-sisters", "#!/bin/sh\n", mode=0o640)


@pytest.mark.parametrize("leads", ["prologue", "{mom_priv}/prologue", "by-way", "epilogue.precancel"])
def test_a_hook_that_is_a_link_to_another_goes_on_to_be_the_other(node: Node, leads: str) -> None:
    (node.mom_priv / "by-way").symlink_to("prologue")
    (node.mom_priv / "prologue.parallel").unlink()
    (node.mom_priv / "prologue.parallel").symlink_to(leads.format(mom_priv="/var/spool/torque/mom_priv"))
    before = node.digest()
    node.install()
    other = "prologue" if leads == "by-way" else Path(leads).name
    assert str((node.mom_priv / "prologue.parallel.orig").readlink()) == f"{other}.orig"
    assert chain.original(node.mom_priv / "epilogue.parallel") is not None
    assert (node.mom_priv / "epilogue.parallel.orig").read_text() == "#!/bin/sh\nexit 0\n"
    assert node.install().stdout.splitlines()[-1] == "nothing to do"
    node.uninstall()
    assert node.digest() == before


@pytest.mark.parametrize("weakened", [False, True])
def test_owners_and_modes_are_what_the_daemons_demand_and_later_what_they_were(
    node: Node, monkeypatch: pytest.MonkeyPatch, weakened: bool
) -> None:
    spoil(node)
    before = node.digest()
    shown = node.install("--dry-run").stdout
    assert node.digest() == before
    for line in (
        "/opt/vtorque/scripts/hook to root's, mode 0755; it is uid 2's, mode 0755",
        "/opt/vtorque/scripts/prologue to root's, mode 0755; it is root's, mode 4700",
        "/opt/vtorque/vtorque/model.py to root's, mode 0644; it is root's, mode 0660",
        "/opt/vtorque/templates to root's, mode 0755; it is root's, mode 0700",
        "/var/spool/torque/mom_priv/epilogue to root's, mode 0744; it is root's, mode 4644",
        "/usr/local/sbin/on-sisters to root's, mode 0740; it is root's, mode 0640",
    ):
        assert f"set      {line}\n" in shown
    assert shown.count("set      ") == 6
    assert node.install().stdout.splitlines()[:-1] == shown.splitlines()[:-1]
    for kind in ("prologue", "prologue.parallel", "epilogue"):
        for path in (node.root / "opt/vtorque/scripts" / kind, node.mom_priv / f"{kind}.orig"):
            path = node.root / "usr/local/sbin/on-sisters" if path.is_symlink() else path
            assert rules.allowed(kind, path.stat(), user=2)
    assert node.install().stdout.splitlines()[-1] == "nothing to do"
    if weakened:
        monkeypatch.setattr(modes, "to_uninstall", lambda *known: ())
        uninstall_from(node)
    else:
        assert node.uninstall().returncode == 0
    assert (node.digest() == before) is not weakened


def test_with_force_a_hook_of_others_becomes_roots_and_loses_what_it_may_do_besides(node: Node) -> None:
    node.original("epilogue", mode=0o6775, owner=2)
    before = node.digest()
    assert node.install("--force").returncode == 0
    about = (node.mom_priv / "epilogue.orig").stat()
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (0, 0o755)
    node.uninstall()
    assert node.digest() == before


def test_where_mom_checks_less_the_sites_own_hooks_stay_as_they_are(node: Node) -> None:
    node.original("config", "$reduce_prolog_checks true\n", mode=0o644)
    node.original("epilogue", mode=0o775, owner=2)
    assert "set      " not in node.install().stdout
    assert (node.mom_priv / "epilogue.orig").stat().st_uid == 2


def test_an_owner_or_a_mode_that_was_changed_since_is_the_administrators(node: Node) -> None:
    spoil(node)
    node.install()
    hook, model = node.path("opt/vtorque/scripts/hook"), node.path("opt/vtorque/vtorque/model.py")
    hook.chmod(0o711)
    model.write_text("another version\n")
    node.uninstall()
    assert (stat.S_IMODE(hook.stat().st_mode), hook.stat().st_uid) == (0o711, 0)
    assert stat.S_IMODE(model.stat().st_mode) == 0o644


def test_a_record_of_the_first_releases_is_understood(node: Node) -> None:
    before = node.digest()
    node.install()
    record = node.path(RECORD)
    old = json.loads(record.read_text()) | {"schema": 1}
    del old["mended"]
    record.write_text(json.dumps(old))
    assert node.uninstall().returncode == 0
    assert node.digest() == before


def test_a_mom_priv_that_users_cannot_pass_through_is_named(node: Node) -> None:
    node.mom_priv.chmod(0o700)
    assert "mom_priv is closed to users, as whom mom runs epilogue.precancel; chmod 751 " in node.install().stdout


@pytest.mark.parametrize("remote", ["var/spool/torque/mom_priv", "opt", "var"])
def test_a_link_that_would_dangle_when_a_server_is_down_is_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch, remote: str
) -> None:
    mounts = node.put("mounts", f"/dev/sda / ext4 rw 0 0\nnfs1:/export {node.path(remote)} nfs4 rw 0 0\n")
    monkeypatch.setattr(doctor_checks, "MOUNTS", mounts)
    with pytest.raises(ConfigError, match=r"is on nfs4: while that is not mounted .* runs jobs on bare metal"):
        install_in(node)
    setup = Setup(system="torque", prefix=PREFIX, site=install.site_of(PREFIX, node.root))
    plan = install.to_install(setup, node.root, force=True, qmgr=None)
    assert any("is on nfs4" in note for note in plan.notes)


def test_nothing_is_taken_out_while_a_job_has_guests_here(node: Node) -> None:
    before = node.digest()
    node.install()
    record = node.path("run/vtorque/jobs/12.srv")
    record.mkdir(parents=True)
    done = node.uninstall()
    assert done.returncode == 1
    assert done.stderr == "vmgr: job 12.srv may have guests on this node " \
        "(wait, or vmgr sweep; --force does not wait)\n"
    assert (node.mom_priv / "prologue").is_symlink()
    assert node.uninstall("--force").returncode == 0
    shutil.rmtree(node.path("run"))
    assert node.digest() == before


def test_what_an_administrator_changed_since_stays_and_is_named(node: Node) -> None:
    node.install()
    tmpfiles = node.put("etc/tmpfiles.d/vtorque.conf", "# changed\n")
    again = node.install()
    assert "note     /etc/tmpfiles.d/vtorque.conf was changed since, and stays" in again.stdout
    done = node.uninstall()
    assert "note     /etc/tmpfiles.d/vtorque.conf was changed since, and stays" in done.stdout
    assert tmpfiles.read_text() == "# changed\n"
    assert not (node.mom_priv / "epilogue.precancel").is_symlink()


def test_a_hook_that_the_site_put_in_our_place_stays_and_so_does_its_old_one(node: Node) -> None:
    node.install()
    (node.mom_priv / "prologue").unlink()
    node.original("prologue", "#!/bin/sh\necho new\n")
    assert "move one of them away" in node.install().stderr
    done = node.uninstall()
    assert "mom_priv/prologue was changed since, and stays; " in done.stdout
    assert (node.mom_priv / "prologue").read_text() == "#!/bin/sh\necho new\n"
    assert (node.mom_priv / "prologue.orig").read_text() == "#!/bin/sh\necho ours\n"


def test_a_file_of_the_sites_that_is_as_ours_would_be_is_the_sites(node: Node) -> None:
    snippet = (node.path("opt/vtorque/contrib/99-mikelangelo-hpc_stack.sh")).read_text()
    node.put("etc/profile.d/99-mikelangelo-hpc_stack.sh", snippet)
    before = node.digest()
    node.install()
    node.uninstall()
    assert node.digest() == before


@pytest.mark.parametrize("words", [(), ("--front-end",)])
def test_without_a_configuration_it_says_where_one_comes_from_and_goes_to(tmp_path: Path, words: tuple[str]) -> None:
    node = a_node(tmp_path / "node", "openpbs")
    settings = node.path("etc/vtorque/vtorque.yaml")
    settings.unlink()
    for done in (node.install(*words), node.install(*words)):
        (note,) = (line for line in done.stdout.splitlines() if "no configuration: " in line)
        assert note.startswith("note     there is no configuration: ")
        sample = node.path("opt/vtorque/contrib/vtorque.yaml")
        assert note.endswith(f"copy {sample} to {settings} and adapt it, with BATCH_SYSTEM: openpbs")
    shutil.copy(sample, settings)
    assert "there is no configuration" not in node.install(*words).stdout


@pytest.mark.parametrize("text, says", [
    ("", "is damaged"), ("[]", "is damaged"), ("{}", "has schema None, this version knows 2"),
    ('{"schema": 3}', "has schema 3, this version knows 2 (use the version that installed it)"),
    ('{"schema": 1, "system": 5}', "is damaged"), ('{"schema": 2}', "is damaged"), ("\0\xff", "is damaged"),
])
def test_a_record_that_is_not_understood_is_named_and_left_alone(node: Node, text: str, says: str) -> None:
    node.put(RECORD, text, mode=0o600)
    before = node.digest()
    for done in (node.install(), node.uninstall(), node.uninstall("--force")):
        assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1
    assert node.digest() == before


@pytest.mark.parametrize("words, status, says", [
    (("install",), 2, "which batch system? (--system torque, openpbs, slurm)"),
    (("install", "--system", "lsf"), 2, "invalid choice: 'lsf'"),
    (("install", "--system", "torque", "--classic"), 2, "--classic is for openpbs, not for torque"),
    (("install", "--system", "torque", "-w", "n1"), 2, "-w and --root do not go together"),
    (("install", "--system", "torque", "--root", "/nonexistent"), 2, "there is no directory /nonexistent"),
])
def test_wrong_usage_is_named(node: Node, words: tuple[str, ...], status: int, says: str) -> None:
    done = node.vmgr(*words[:1], "--root", str(node.root), *words[1:])
    assert done.returncode == status and says in done.stderr


def test_two_at_a_time_are_refused(node: Node) -> None:
    with manifest.alone(node.root):
        assert "somebody else installs below" in node.install().stderr


# As the server would: it keeps what it is given, and tells it when asked.
QMGR = """\
#!/usr/bin/python3 -I
import pathlib, shlex, sys
home = pathlib.Path(sys.argv[0]).parent
(home / "asked").open("a").write(sys.argv[2] + "\\n")
words = shlex.split(sys.argv[2])
hook = home / "hook"
if words[:2] == ["create", "hook"]:
    hook.mkdir()
elif words[:2] == ["delete", "hook"]:
    [each.unlink() for each in hook.iterdir()]
    hook.rmdir()
elif words[0] == "import":
    (hook / words[3].replace("/", "-")).write_bytes(pathlib.Path({root!r} + words[5]).read_bytes())
elif words == ["list", "hook", "vtorque"]:
    sys.exit(0 if hook.exists() else "qmgr obj=vtorque svr=default: hook not found")
elif words[0] == "set" and (home / "full").exists():
    sys.exit("qmgr: no space left")
elif words[0] == "export":
    path = hook / words[3].replace("/", "-")
    if not path.exists():
        sys.exit("qmgr obj=vtorque svr=default: hook not found")
    sys.stdout.write(path.read_text())
"""


def test_openpbs_server_gets_the_hook_once_and_a_new_text_when_there_is_one(tmp_path: Path) -> None:
    node = a_node(tmp_path / "node", "openpbs")
    before = node.digest()
    (node.root / "var/spool/torque/server_priv").mkdir()
    qmgr = tmp_path / "server/qmgr"
    qmgr.parent.mkdir()
    qmgr.write_text(QMGR.format(root=str(node.root)))
    qmgr.chmod(0o755)
    setup = Setup(system="openpbs", prefix=PREFIX, site=install.site_of(PREFIX, node.root))

    def install_it() -> install.Plan:
        plan = install.to_install(setup, node.root, force=False, qmgr=str(qmgr))
        if plan.is_due:
            install.perform(plan)
        return plan

    (qmgr.parent / "full").touch()
    with pytest.raises(StateError, match="failed") as caught:
        install_it()
    assert caught.value.hint == "vmgr install finishes it, vmgr uninstall undoes it"
    (qmgr.parent / "full").unlink()
    assert [words[2].split()[0] for words in install_it().last] == [*["set"] * 3, *["import"] * 2, "set"]
    assert not install_it().is_due
    with node.path("opt/vtorque/contrib/openpbs/vtorque_hook.py").open("a") as file:
        file.write("# newer\n")
    assert [words[2].split()[0] for words in install_it().last] == ["import", "import"]
    assert (qmgr.parent / "hook/application-x-python").read_text().endswith("# newer\n")
    assert not install_it().is_due
    plan = install.to_uninstall(node.root, force=False, qmgr=str(qmgr))
    assert plan is not None
    install.perform(plan)
    assert not (qmgr.parent / "hook").exists()
    asked = (qmgr.parent / "asked").read_text().splitlines()
    assert asked.count("create hook vtorque enabled = false") == 1
    (node.root / "var/spool/torque/server_priv").rmdir()
    hook = node.path("opt/vtorque/contrib/openpbs/vtorque_hook.py")
    shutil.copy2(ROOT / "contrib/openpbs/vtorque_hook.py", hook)
    hook.chmod(0o644)
    assert node.digest() == before


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """An ssh and a pdsh that reach every node but n2, and do there what n3 has no vmgr for."""
    directory = tmp_path / "bin"
    directory.mkdir()
    node = f"""\
case $node in
n2) echo "ssh: connect to host n2 port 22: Connection refused" >&2; status=255 ;;
n3) echo "bash: line 1: $command: No such file or directory" >&2; status=127 ;;
*) echo "note     set it"; echo "installed"; echo "$command" >>{directory}/ran; status=0 ;;
esac
"""
    (directory / "ssh").write_text(
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nnode=$2 command=$3\n" + node + "exit $status\n"
    )
    (directory / "pdsh").write_text(
        "#!/bin/sh\nwhile [ \"$1\" != -w ]; do shift; done\nnodes=$2 command=$3\n"
        "for node in $(echo $nodes | tr , ' '); do\n{\n" + node.replace(">&2", "") + "} | sed \"s/^/$node: /\"\n"
        "case $node in n2) echo \"pdsh@fe: n2: ssh exited with exit code 255\" >&2;;\n"
        "n3) echo \"pdsh@fe: n3: ssh exited with exit code 127\" >&2;; esac\ndone\n"
    )
    for name in ("ssh", "pdsh"):
        (directory / name).chmod(0o755)
    for name in ("sed", "tr"):
        (directory / name).symlink_to(f"/usr/bin/{name}")
    return directory


@pytest.mark.parametrize("over", ["ssh", "pdsh"])
def test_many_nodes_are_installed_and_those_that_failed_are_named_with_the_reason(stand_ins: Path, over: str) -> None:
    if over == "ssh":
        (stand_ins / "pdsh").unlink()
    words = [sys.executable, "-I", str(ROOT / "scripts/vmgr"), "install", "--system", "torque", "-w", "n[1-3],n10,n1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False,
                          env={"PATH": str(stand_ins)})
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == ""
    assert lines[0] == "n1   ok          installed" and lines[3] == "n10  ok          installed"
    assert lines[1].startswith("n2   failed 255  ") and "Connection refused" in lines[1]
    assert lines[2].startswith("n3   failed 127  ") and "No such file or directory" in lines[2]
    assert lines[4:] == ["note     n[1,10]: set it", "4 nodes, 2 failed: n[2-3]"]
    assert set((stand_ins / "ran").read_text().splitlines()) == {f"{ROOT}/scripts/vmgr install --system torque"}


@pytest.mark.parametrize("hosts", ["n[1-", "-lroot", "root@n1", "n1;reboot", "", "n[1-99999999]", "^file", "/n.*/"])
def test_a_list_of_nodes_that_is_none_reaches_nobody(stand_ins: Path, hosts: str) -> None:
    words = [sys.executable, "-I", str(ROOT / "scripts/vmgr"), "uninstall", f"-w={hosts}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False,
                          env={"PATH": str(stand_ins)})
    assert (done.returncode, done.stdout) == (2, "")
    assert not (stand_ins / "ran").exists()
