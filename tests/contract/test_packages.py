# SPDX-License-Identifier: Apache-2.0
"""The Debian package and the Ansible role: they have what `vmgr install` needs, and name nothing that is not there."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.machines import Machine, NoOverlay, machine
from tests.contract.test_install import a_node
from vtorque import __version__
from vtorque.install import parts

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="what it installs is root's"),
]

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "contrib/ansible/roles/vtorque"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("package")
    done = subprocess.run([ROOT / "contrib/make-deb", directory], capture_output=True, text=True, check=True,
                          cwd="/", env={"PATH": "/usr/bin:/bin"})
    (path,) = directory.glob("*.deb")
    assert done.stdout == f"{path}\n"
    return path


@pytest.fixture(scope="module")
def root(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
    return directory


def field(package: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_says_what_it_is_and_needs(package: Path) -> None:
    assert (field(package, "Package"), field(package, "Architecture")) == ("vtorque", "all")
    assert package.name == f"vtorque_{field(package, 'Version')}_all.deb"
    assert field(package, "Version").startswith(__version__)
    makefile = (ROOT / "Makefile").read_text()
    runtime = makefile[makefile.index("RUNTIME :="):makefile.index("# What a cluster would have")]
    needed = {word for word in runtime.split() if word.startswith("python3-")}
    assert needed <= set(field(package, "Depends").replace(",", " ").split())


def test_a_package_that_is_made_anew_is_newer_but_a_releases_has_the_plain_version(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "tests", "__pycache__"))

    def made() -> str:
        done = subprocess.run([tree / "contrib/make-deb", tmp_path], capture_output=True, text=True, check=True,
                              env={"PATH": "/usr/bin:/bin"})
        return field(Path(done.stdout.strip()), "Version")

    def git(*words: str, at: int = 0) -> None:
        subprocess.run(["git", "-C", tree, "-c", f"safe.directory={tree}", "-c", "user.name=x", "-c", "user.email=x",
                        *words], check=True, env={**os.environ, "GIT_COMMITTER_DATE": f"{at} +0200"})

    versions = [made()]
    assert versions == [__version__]
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one", at=1_700_000_000)
    os.chown(tree, 2, 2)
    os.chown(tree / ".git", 2, 2)
    versions.append(made())
    assert re.fullmatch(re.escape(__version__) + r"\+git20231114221320\.[0-9a-f]{9}", versions[-1])
    (tree / "README.md").write_text("changed\n")
    versions.append(made())
    git("commit", "-qam", "two", at=1_700_000_001)
    versions.append(made())
    for one, other in pairwise(versions):
        subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=True)


def test_everything_in_it_is_roots_and_writable_by_nobody_else(package: Path) -> None:
    said = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in said.splitlines()]
    assert {row[1] for row in rows} == {"root/root"}
    assert {row[0] for row in rows} <= {"drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"}
    assert not [row for row in rows if "__pycache__" in row[5] or "/tests/" in row[5]]


def test_it_has_every_module_script_and_template_of_the_tree(root: Path) -> None:
    tree = root / "usr/lib/vtorque"
    for folder in ("vtorque", "scripts", "templates", "templates-vm"):
        wanted = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*")
                  if path.is_file() and "__pycache__" not in path.parts}
        has = {path.relative_to(tree) for path in (tree / folder).rglob("*") if path.is_file()}
        assert has == wanted
        for name in wanted:
            assert os.access(tree / name, os.X_OK) == os.access(ROOT / name, os.X_OK), name


def test_it_has_all_that_an_installation_copies(root: Path) -> None:
    linked = ("doc/man/", "contrib/completion/")
    for name in parts.source_names():
        assert (root / "usr/lib/vtorque" / name).is_file() == (not name.startswith(linked)), name
    for name in ("man/man1/vsub.1.gz", "man/man5/vtorque.yaml.5.gz", "man/man8/vmgr.8.gz",
                 "bash-completion/completions/vsub", "bash-completion/completions/vmgr",
                 "zsh/vendor-completions/_vsub", "zsh/vendor-completions/_vmgr", "doc/vtorque/copyright"):
        assert (root / "usr/share" / name).is_file(), name


def slug(heading: str) -> str:
    """The anchor of a heading, as those who show Markdown make it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def test_whatever_its_documents_refer_to_is_there(root: Path) -> None:
    documents = root / "usr/share/doc/vtorque"
    texts = {path: path.read_text() for path in documents.rglob("*.md")}
    assert {path.name for path in texts} >= {path.name for path in (*ROOT.glob("doc/*.md"), *ROOT.glob("doc/adr/*.md"))}
    links = [(path, link) for path, text in texts.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)
             if not link.startswith(("http://", "https://"))]
    assert len(links) > 50
    for path, link in links:
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_relative_to(root) and target.exists(), f"{path.name}: {link}"
        if anchor:
            assert anchor in map(slug, re.findall(r"(?m)^#+ (.*)", texts[target])), f"{path.name}: {link}"


def test_it_has_nothing_that_is_of_use_in_a_source_tree_only(root: Path) -> None:
    assert not (root / "usr/lib/vtorque/contrib/make-deb").exists()
    for name in ("contrib/slurm/slurm.conf", "contrib/scripts-vm/prologue", "contrib/vtorque.yaml"):
        assert (root / "usr/lib/vtorque" / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize("system", parts.SYSTEMS)
def test_a_node_with_the_package_is_installed_from_it_and_is_as_it_was_afterwards(
    package: Path, tmp_path: Path, system: str
) -> None:
    node = a_node(tmp_path / "node", system)
    subprocess.run(["dpkg-deb", "-x", package, node.root], check=True)
    before = node.digest()
    vmgr = [sys.executable, "-I", str(node.root / "usr/sbin/vmgr")]
    done = subprocess.run([*vmgr, "install", "--system", system, "--root", node.root],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "VTORQUE_DIR=/usr/lib/vtorque" in node.path("etc/profile.d/99-mikelangelo-hpc_stack.sh").read_text()
    if system == "torque":
        assert str((node.mom_priv / "prologue").readlink()) == "/usr/lib/vtorque/scripts/prologue"
    subprocess.run([*vmgr, "uninstall", "--root", node.root], check=True, capture_output=True)
    assert node.digest() == before


def test_what_the_package_runs_is_plain_shell(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-e", package, tmp_path / "control"], check=True)
    for name in ("preinst", "postinst", "prerm", "postrm"):
        path = tmp_path / "control" / name
        assert os.access(path, os.X_OK)
        subprocess.run(["/bin/sh", "-n", path], check=True)
    # Hooks lead to what is unpacked before it is configured.
    assert (tmp_path / "control/preinst").read_text() == (ROOT / "contrib/make-account").read_text()


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next version, which has one file more."""
    directory = tmp_path_factory.mktemp("newer")
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    for path, version in ((tree / "DEBIAN/control", field(package, "Version")),
                          (tree / "usr/lib/vtorque/vtorque/__init__.py", __version__)):
        path.write_text(path.read_text().replace(version, "999"))
    (tree / "usr/lib/vtorque/contrib/new").write_text("new\n")
    path = directory / "vtorque_999_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, stdout=subprocess.DEVNULL)
    return path


MOM_PRIV = "var/spool/torque/mom_priv"
CONFIGURATION = "BATCH_SYSTEM: torque\nLIBVIRT_URI: test:///default\n"


@pytest.fixture
def node(package: Path, newer: Path) -> Iterator[Machine]:
    """A machine with a mom who has a prologue of the site's own, and a configuration that waits for the package."""
    with contextlib.ExitStack() as stack:
        try:
            node = stack.enter_context(machine())
        except NoOverlay as error:
            pytest.skip(str(error))
        node.put(f"{MOM_PRIV}/config", "$prologalarm 300\n")
        node.put(f"{MOM_PRIV}/prologue", "#!/bin/sh\necho site\n", mode=0o755)
        node.put("etc/vtorque/vtorque.yaml", CONFIGURATION)
        for path in (package, newer):
            shutil.copy(path, node.path("tmp"))
        yield node


def dpkg(node: Machine, *words: str, status: int = 0) -> str:
    # Triggers make man's index, for all there is.
    return node.run("dpkg", "--no-triggers", *words, status=status)


def changed(node: Machine) -> set[str]:
    """What is not as it was on the machine, but for dpkg's and Python's own records."""
    own = ("/var/lib/dpkg/", "/var/log/dpkg.log", "/var/cache/", "/var/lib/systemd/")
    return {name for name in node.changed() if not name.startswith(own) and "__pycache__" not in name}


def test_dpkg_installs_upgrades_removes_and_purges_it_and_nothing_is_left(
    node: Machine, package: Path, newer: Path
) -> None:
    before = changed(node)
    dpkg(node, "-i", f"/tmp/{package.name}")
    assert node.run("vmgr", "--version") == f"vtorque {__version__}\n"
    assert node.run("vsub", "--version").endswith(f" {__version__}\n")
    (compiled,) = node.path("usr/lib/vtorque/vtorque/__pycache__").glob("options.*.pyc")
    assert compiled.stat().st_mode & 0o777 == 0o644, "users would have to compile it for each vsub"
    hook = node.path(f"{MOM_PRIV}/prologue")
    assert not hook.is_symlink() and not node.path("var/lib/vtorque").exists()
    assert {name for name in changed(node) - before if not name.startswith("/usr/")} == set()
    node.run("vmgr", "install", "--system", "torque")
    assert str(hook.readlink()) == "/usr/lib/vtorque/scripts/prologue"

    assert "nothing to do" in dpkg(node, "-i", f"/tmp/{newer.name}")
    assert node.run("vmgr", "--version") == "vtorque 999\n"
    assert str(hook.readlink()) == "/usr/lib/vtorque/scripts/prologue"
    assert node.path("usr/lib/vtorque/contrib/new").is_file()

    node.put("var/log/vtorque/vtorque.log", "{}\n")
    node.put("var/lib/vtorque/disks/7.srv/console", "")
    assert "everything is as it was" in dpkg(node, "-r", "vtorque")
    assert hook.read_text() == "#!/bin/sh\necho site\n" and not hook.with_name("prologue.orig").exists()
    assert changed(node) - before == {"/var/log/vtorque/vtorque.log", "/var/lib/vtorque/disks/7.srv/console"}
    dpkg(node, "-P", "vtorque")
    assert changed(node) == before
    assert node.path("etc/vtorque/vtorque.yaml").read_text() == CONFIGURATION
    assert not node.path("usr/lib/vtorque").exists() and not node.path("var/lib/vtorque").exists()


USERADD = "--no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vtorque"


def account(node: Machine) -> list[str]:
    """Its entry, but for the numbers; none where there is no such user."""
    fields = node.run("getent", "passwd", "vtorque", status=None).strip().split(":")
    assert len(fields) == 1 or 0 < int(fields[2]) < 1000
    return [each for number, each in enumerate(fields) if number not in (2, 3)]


LAB = """\
import sys
sys.path.insert(0, "/usr/lib/vtorque")
from vtorque.lab.parts import ProgramUser
user = ProgramUser()
was, _, _, now, _ = user.is_up(), user.up(), user.up(), user.is_up(), user.down()
print(was, now, user.is_up())
"""


def without_account(node: Machine) -> None:
    node.run("userdel", "vtorque", status=None)
    assert account(node) == [""]


def test_the_package_an_installation_the_script_and_the_lab_make_one_and_the_same_account(
    node: Machine, package: Path
) -> None:
    like = ["vtorque", "x", "", "/nonexistent", "/usr/sbin/nologin"]
    without_account(node)
    dpkg(node, "-i", f"/tmp/{package.name}")
    assert account(node) == like
    assert node.run("id", "-Gn", "vtorque") == "vtorque\n"
    without_account(node)
    line = f"run      useradd --system --user-group {USERADD}\n"
    shown = node.run("vmgr", "install", "--system", "torque", "--dry-run")
    assert line in shown and account(node) == [""]
    assert node.run("vmgr", "install", "--system", "torque").splitlines()[:-1] == shown.splitlines()[:-1]
    assert account(node) == like and node.path("etc/passwd").stat().st_mode & 0o777 == 0o644
    assert node.run("vmgr", "install").endswith("nothing to do\n")
    without_account(node)
    node.run("groupadd", "--system", "vtorque")
    assert node.run("vmgr", "install").endswith("installed, 1 changes made\n")
    assert account(node) == like and node.run("id", "-Gn", "vtorque") == "vtorque\n"
    assert "note     the user vtorque stays, " in node.run("vmgr", "uninstall")
    assert account(node) == like
    for group in ((), ("groupadd", "--system", "vtorque")):
        without_account(node)
        if group:
            node.run(*group)
        assert node.run("/usr/lib/vtorque/contrib/make-account") == ""
        assert account(node) == like and node.run("id", "-Gn", "vtorque") == "vtorque\n"
    without_account(node)
    assert node.run("/usr/bin/python3", "-I", "-c", LAB) == "False True True\n"
    assert account(node) == like
    passwd = node.path("etc/passwd").read_text()
    assert node.run("/usr/lib/vtorque/contrib/make-account") == ""
    assert node.path("etc/passwd").read_text() == passwd
    dpkg(node, "-P", "vtorque")
    assert account(node) == like, "nobody else gets its number"


def test_a_front_end_gets_no_account_from_an_installation(node: Machine, package: Path) -> None:
    dpkg(node, "-i", f"/tmp/{package.name}")
    without_account(node)
    said = node.run("vmgr", "install", "--system", "torque", "--front-end")
    assert "useradd" not in said and account(node) == [""]
    assert "the user vtorque" not in node.run("vmgr", "uninstall")


def test_an_account_that_cannot_be_made_stops_an_installation_before_there_are_hooks(
    node: Machine, package: Path
) -> None:
    dpkg(node, "-i", f"/tmp/{package.name}")
    without_account(node)
    node.put("usr/sbin/useradd", "#!/bin/sh\necho 'useradd: cannot lock /etc/passwd' >&2\nexit 1\n", mode=0o755)
    said = node.run("vmgr", "install", "--system", "torque", status=1)
    assert "useradd failed with exit status 1: useradd: cannot lock /etc/passwd" in said
    assert not node.path(f"{MOM_PRIV}/prologue").is_symlink()


def test_a_package_that_a_job_still_needs_is_not_removed(node: Machine, package: Path) -> None:
    dpkg(node, "-i", f"/tmp/{package.name}")
    node.run("vmgr", "install", "--system", "torque")
    node.path("run/vtorque/jobs/12.srv").mkdir(parents=True)
    assert "job 12.srv may have guests on this node" in dpkg(node, "-r", "vtorque", status=1)
    assert node.path(f"{MOM_PRIV}/prologue").is_symlink()
    assert node.run("vmgr", "--version") == f"vtorque {__version__}\n"
    node.path("run/vtorque/jobs/12.srv").rmdir()
    dpkg(node, "-r", "vtorque")
    assert not node.path(f"{MOM_PRIV}/prologue").is_symlink()


def documents() -> dict[str, Any]:
    return {str(path.relative_to(ROLE)): yaml.safe_load(path.read_text()) for path in sorted(ROLE.rglob("*.yml"))}


def tasks() -> list[dict[str, Any]]:
    return [task for name, found in documents().items() if name.startswith("tasks/") for task in found]


def test_the_role_is_yaml_and_each_task_has_a_name_and_one_action() -> None:
    assert {"tasks/main.yml", "defaults/main.yml", "meta/main.yml"} <= documents().keys()
    for task in tasks():
        assert task["name"]
        assert len([key for key in task if key.startswith("ansible.builtin.")]) == 1


def test_the_role_looks_at_a_nodes_health_each_time_and_takes_back_what_it_has_copied() -> None:
    last = documents()["tasks/present.yml"][-1]
    assert last["ansible.builtin.command"]["argv"] == ["/usr/sbin/vmgr", "doctor"] and "notify" not in last
    assert (last["changed_when"], last["failed_when"]) == (False, f"{last['register']}.rc > 1")
    copied = {task["ansible.builtin.copy"]["dest"] for task in tasks() if "ansible.builtin.copy" in task}
    removed = {task["ansible.builtin.file"]["path"] for task in documents()["tasks/absent.yml"]
               if task.get("ansible.builtin.file", {}).get("state") == "absent"}
    assert copied - removed == {"/etc/vtorque/vtorque.yaml"}, "the site's own"


def test_the_role_makes_the_account_before_hooks_that_need_it_as_the_package_would() -> None:
    steps = documents()["tasks/present.yml"]
    actions = [next(key for key in task if key.startswith("ansible.builtin.")) for task in steps]
    place = actions.index("ansible.builtin.user")
    assert actions.index("ansible.builtin.getent") < actions.index("ansible.builtin.group") < place
    assert place < next(number for number, task in enumerate(steps) if "deb" in task.get("ansible.builtin.apt", {}))
    about = steps[place]["ansible.builtin.user"]
    assert (about["name"], about["group"], about["system"], about["create_home"]) == ("vtorque", "vtorque", True, False)
    assert f"--home-dir {about['home']} --shell {about['shell']} {about['name']}" in USERADD
    assert not any("ansible.builtin.user" in task for task in documents()["tasks/absent.yml"])


def test_the_roles_files_and_variables_are_there() -> None:
    for task in tasks():
        if included := task.get("ansible.builtin.include_tasks"):
            assert (ROLE / "tasks" / included).is_file()
        assert "notify" not in task, "there are no handlers"
    known = documents()["defaults/main.yml"].keys()
    registered = {task["register"] for task in tasks() if "register" in task}
    text = "".join(path.read_text() for path in ROLE.rglob("*.yml"))
    assert set(re.findall(r"\bvtorque_\w+", text)) <= known | registered
    assert all(f"`{name}`" in (ROLE / "README.md").read_text() for name in known)


def test_the_roles_commands_are_those_of_the_package_and_its_words_those_of_vmgr(root: Path) -> None:
    from vtorque.cli import vmgr

    text = "".join(path.read_text() for path in ROLE.rglob("*.yml"))
    assert "/usr/sbin/vmgr" in text and (root / "usr/sbin/vmgr").is_symlink() and (root / "usr/sbin/vmgr").exists()
    for words in (["install", "--system", "torque", "--front-end", "--dry-run"], ["install", "--classic"],
                  ["uninstall", "--dry-run"], ["doctor"], ["config", "check", "/x"]):
        assert vmgr.parser().parse_args(words).act
