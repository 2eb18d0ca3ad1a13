# SPDX-License-Identifier: Apache-2.0
"""The list of what runs with uid 0: how it is made, how large it may be, and what must not be in it."""

import ast
from pathlib import Path

import pytest

from vtorque import privileged

PACKAGE = Path(__file__).resolve().parents[2] / "vtorque"
EVERY = privileged.modules(PACKAGE)
ROOTS = [each for each in EVERY if each.runs_as == "root"]

AIM = 2500

# By a path they would follow a link that somebody put there; through a descriptor there is nothing to follow.
BY_PATH = {"chmod", "lchmod", "chown", "lchown", "copymode", "copystat", "copy", "copy2", "copytree", "move"}


def test_what_root_runs_does_not_grow() -> None:
    lines = sum(each.lines for each in ROOTS)
    assert lines <= AIM, f"{lines} lines run with uid 0: vmgr show privileged"


def test_lines_are_those_with_code() -> None:
    values = 'x = [\n    1,  # one\n\n    2,\n]\n'
    function = 'def f():\n    """Does."""\n    return """a\nb"""\n'
    assert privileged.code_lines(f'"""Says\n\nwhat."""\n\n# why\n{values}\n\n{function}') == 4 + 3


@pytest.mark.parametrize("how", [
    "import vtorque.low", "from vtorque import low", "from vtorque.low import x",
    "def later():\n    from vtorque.low import x", 'SCRIPT = "low.py"', 'MEMBER = "vtorque.low:Member"',
])
def test_whatever_is_imported_anywhere_or_started_by_its_name_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    package = tmp_path / "vtorque"
    package.mkdir()
    texts = {"__init__": "", "top": how, "low": "from vtorque import child", "child": "import vtorque.far", "far": ""}
    for name, text in texts.items():
        (package / f"{name}.py").write_text(f'"""{name}."""\n{text}\n')
    monkeypatch.setattr(privileged, "ENTRIES", ("top",))
    monkeypatch.setattr(privileged, "AS_OTHERS", {"child": "nobody"})
    found = {each.name: (each.wanted_by, each.runs_as, each.about) for each in privileged.modules(package)}
    assert found == {
        "top": ("", "root", "top."), "low": ("top", "root", "low."), "child": ("low", "nobody", "child."),
    }


def test_it_has_what_hooks_and_guards_are_made_of_and_nothing_of_other_commands() -> None:
    names = {each.name for each in EVERY}
    assert names >= {"cli.pelog", "cli.rooted", "monitor", "domainpolicy", "shareserver", "backends.hypervisor.libvirt"}
    assert names.isdisjoint({"cli.vmgr", "cli.vsub", "cli.jobrun", "run", "submit", "lab", "mom", "install"})


def test_root_decides_nothing_and_reads_nothing_of_a_users() -> None:
    """That is the program's, which is an account of its own; modules that decide are none of root's."""
    roots = {each.name for each in ROOTS}
    assert roots.isdisjoint({
        "lifecycle", "aftermath", "guard", "boot", "bringup", "discover", "demand", "plan", "planning", "render",
        "request", "state", "teardown", "sweeping", "orphans", "config", "siteyaml", "userside", "published",
        "cli.assembly", "userclerk", "planner", "netkeeper", "backends.transport.speaker",
    })
    others = {each.name: each.runs_as for each in EVERY if each.runs_as != "root"}
    assert others["cli.hooked"] == others["cli.pbsverbs"] == "vtorque"


@pytest.mark.parametrize("name", [each.name for each in ROOTS])
def test_root_changes_modes_and_owners_through_descriptors_only(name: str) -> None:
    assert name == "files" or not changed_by_path(privileged._file(PACKAGE, name).read_text())


@pytest.mark.parametrize("line", ["os.chmod(p, 0o644)", "p.chmod(0o644)", "os.chown(p, 0, 0)", "shutil.copy2(p, q)"])
def test_what_goes_by_a_path_is_noticed(line: str) -> None:
    assert changed_by_path(line)
    assert not changed_by_path("os.fchmod(handle, 0o644); os.fchown(handle, 0, 0); os.fchmod(f.fileno(), 1); copy(x)")


def changed_by_path(text: str) -> list[str]:
    return [
        ast.unparse(node) for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in BY_PATH
    ]
