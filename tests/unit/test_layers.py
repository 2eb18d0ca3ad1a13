# SPDX-License-Identifier: Apache-2.0
"""The architecture, enforced: who may import whom, who may touch what, and how large it may get."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vtorque"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS: list[tuple[str, ...]] = [
    ("errors", "wakeups", "netlink", "announcement", "units", "deadline", "logs", "orders", "hostlist", "shareserver",
     "shape", "imageformat", "optionforms", "nftext", "userclerk", "privileged", "kinds", "settings"),
    ("identity", "job"),
    ("model", "accounts"),
    ("proc", "files", "foreground", "become", "servant", "userside", "rooms", "audit", "guestscripts"),
    ("config", "options", "siteplace", "sitefile", "sitelines", "siteyaml", "sitescripts", "limits", "metadata",
     "metadatafile", "overhead", "request", "vmoptions", "qsub", "reslist", "sbatchforms", "sbatchlines",
     "slurmjob", "topology", "display", "slurmconf", "imageentry", "imageheader",
     "confined", "downloader", "overlay", "serving", "rootside", "sitecommand"),
    ("imageprobe", "domainshape", "shares", "reservation", "numa", "tuning", "datadisk", "diskserver", "sbatchsize"),
    ("domaincheck", "cloudcheck", "diskserving", "userdisk", "sbatch", "netfilter6",
     "surroundings"),
    ("names", "guestnames", "plan", "planning", "render", "state", "guardpost", "images", "seed", "backends", "submit",
     "follow", "resolve", "configimport", "imagepull", "imagecontents", "accounting", "bootphases"),
    ("resources", "catalogue", "imageverify", "published", "timings", "imagecache", "admission", "netfilter",
     "planner", "keeping", "netkeeper", "domainpolicy", "guestfiles"),
    ("submission", "slurmstarts", "service", "markers", "leftovers", "suspended", "monitor"),
    ("generate", "node", "mom", "doctor_checks", "observe"),
    ("teardown", "doctor", "doctor_network", "doctor_openpbs", "doctor_service", "doctor_site",
     "doctor_slurm", "report", "guestnet"),
    ("boot", "chain", "run", "imagebuild", "install", "metrics", "orphans"),
    ("demand", "discover", "sweeping"),
    ("aftermath", "bringup"),
    ("guard", "lab", "undo"),
    ("lifecycle",),
    ("cli",),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Within a layer of several modules these lean on one another.
SIDEWAYS = {("job", "identity"), ("foreground", "proc"), ("deadline", "errors"), ("deadline", "wakeups"),
            ("foreground", "files"),
            ("become", "proc"), ("servant", "become"),
            ("servant", "proc"), ("config", "options"), ("config", "limits"), ("config", "sitefile"),
            ("sitefile", "siteplace"), ("config", "sitelines"), ("config", "siteyaml"), ("siteyaml", "sitelines"),
            ("limits", "options"),
            ("request", "options"), ("request", "metadata"), ("metadatafile", "metadata"),
            ("state", "backends"), ("names", "backends"), ("plan", "guestnames"),
            ("guestnames", "names"), ("planning", "guestnames"), ("numa", "reservation"), ("cloudcheck", "domaincheck"),
            ("doctor", "doctor_network"), ("doctor", "doctor_openpbs"),
            ("doctor", "doctor_service"), ("doctor", "doctor_site"), ("doctor", "doctor_slurm"),
            ("node", "state"), ("teardown", "state"), ("netkeeper", "netfilter")}

ONLY_IN = {
    "subprocess": {"proc", "foreground"},
    "paramiko": {"backends.transport.ssh", "backends.transport.sshsession", "backends.transport.resumable"},
    "libvirt": {"backends.hypervisor.libvirt", "backends.hypervisor.inspector"},
    "yaml": {"siteyaml", "metadatafile", "render", "cloudcheck"},
    "psutil": {"surroundings"},
}
PURE = {"plan", "render", "domainshape", "domaincheck", "domainpolicy", "cloudcheck", "guestscripts", "reservation"}
IMPURE = {"proc", "files", "state", "backends"}

MODULE_LINES = 300
FUNCTION_LINES = 40


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """First parts of what a module imports of our own package."""
    names = {name.removeprefix("vtorque.") for name in imports_of(path) if name.startswith("vtorque.")}
    return {name.partition(".")[0] for name in names} & set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    me = name_of(path).partition(".")[0]
    if not me:
        return
    assert me in LEVEL, f"{me} has no layer"
    for other in ours(path) - {me}:
        assert LEVEL[other] < LEVEL[me] or (me, other) in SIDEWAYS, f"{me} imports {other}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "backends").rglob("*.py")), ids=name_of)
def test_a_backend_knows_only_its_own_boundary(path: Path) -> None:
    package = name_of(path).rpartition(".")[0] if path.name != "__init__.py" else name_of(path)
    for name in imports_of(path):
        if name.startswith("vtorque.backends."):
            assert name.removeprefix("vtorque.").startswith(package), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_touches_the_world_has_one_home(path: Path) -> None:
    me = name_of(path)
    roots = {name.partition(".")[0] for name in imports_of(path)}
    for library, homes in ONLY_IN.items():
        assert library not in roots or me in homes, f"{me} imports {library}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_commands_see_argv_and_the_environment(path: Path) -> None:
    if name_of(path).startswith("cli"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("os", "environ"), ("sys", "argv")}, node.lineno


@pytest.mark.parametrize("name", sorted(PURE))
def test_planning_and_rendering_touch_nothing(name: str) -> None:
    assert ours(PACKAGE / f"{name}.py").isdisjoint(IMPURE)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_outgrows_its_reader(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES, f"{path.name} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{path.name}: {node.name} has {lines} lines"
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [arg.arg for arg in every if arg.annotation is None and arg.arg not in ("self", "cls")]
            assert node.returns is not None and not bare, f"{path.name}: {node.name} is not annotated"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_shell_no_eval_no_pickle(path: Path) -> None:
    assert imports_of(path).isdisjoint({"pickle", "marshal", "shelve"})
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "os.system", "os.popen", "yaml.load"}
            assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_file_says_its_licence(path: Path) -> None:
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
