# SPDX-License-Identifier: Apache-2.0
"""The documents say what is in the program: its layers, what templates are given; and their links lead somewhere."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from tests.builders import a_plan, a_request, a_site, some_keys
from tests.unit.test_layers import LAYERS
from vtorque import render
from vtorque.job import Account, Group, Image, Job, VmRequest
from vtorque.model import GuestCell, GuestKeys, JobPlan, Mount, VmPlan

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "build"} & set(path.parts))
TEMPLATES = ROOT / "templates-vm"
ALL = {
    "domain.xml", "meta-data.yaml", "network-config.yaml", "sshd.conf", "user-data.debian.yaml",
    "user-data.redhat.yaml", "user-data.osv.yaml",
}
"""What the manual calls all templates."""
PARTS = {
    "plan": JobPlan, "plan.job": Job, "plan.account": Account, "plan.request": VmRequest, "plan.image": Image,
    "plan.mounts": Mount, "vm": VmPlan, "vm.cells": GuestCell, "keys": GuestKeys,
}


def rows(name: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of a document, without the table's own head."""
    (_, below) = re.split(rf"^#+ {re.escape(heading)}$", (ROOT / "doc" / name).read_text(), flags=re.MULTILINE)
    lines = below[below.index("\n|"):].lstrip("\n").partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def words(cell: str) -> list[str]:
    """What stands in backquotes in a cell, word by word."""
    return " ".join(re.findall(r"`([^`]*)`", cell)).split()


def test_the_table_of_layers_has_every_module_in_the_layer_that_is_enforced() -> None:
    table = rows("architecture.md", "Layers")
    assert [int(number) for number, _, _ in table] == list(range(len(LAYERS)))
    found = [{name.removesuffix("/*") for name in words(modules)} for _, modules, _ in table]
    assert found == [set(names) for names in LAYERS]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The names that each template is given, of guests of every family."""
    found: dict[str, set[str]] = {}
    original = render._render

    def noted(environment: object, name: str, values: Mapping[str, object]) -> str:
        found.setdefault(name, set()).update(values)
        return original(environment, name, values)  # type: ignore[arg-type]

    monkeypatch.setattr(render, "_render", noted)
    for distro in ("debian", "redhat", "osv"):
        decided = a_plan(request=a_request(distro=distro))
        render.guest(
            decided, decided.vms[0], site=a_site(), keys=some_keys(), announce="10.0.0.1", templates=TEMPLATES,
            scripts={"epilogue": "#!/bin/sh\n"},
        )
    return found


def test_the_manual_names_every_variable_that_a_template_is_given(given: dict[str, set[str]]) -> None:
    table = rows("admin.md", "The site's own templates")
    said: dict[str, set[str]] = {}
    for variable, places, _ in table:
        for place in ALL if places == "all" else words(places):
            said.setdefault(place, set()).update(words(variable))
    assert given.keys() == said.keys()
    for name in given:
        # Those of the user-data are there for the others, too, and of no use to them.
        assert said[name] <= given[name], name
    assert {*said["user-data.debian.yaml"]} == given["user-data.debian.yaml"] == given["user-data.redhat.yaml"]
    assert said["user-data.osv.yaml"] == given["user-data.osv.yaml"]
    assert set().union(*given.values()) == set().union(*said.values())


def test_every_template_uses_only_what_the_manual_names() -> None:
    known = {word for variable, _, _ in rows("admin.md", "The site's own templates") for word in words(variable)}
    for path in TEMPLATES.glob("*"):
        used = re.findall(r"{{ *\(*([a-z_]+)", path.read_text())
        assert set(used) <= known | {"cpus", "cell", "mount", "file", "key", "value", "command", "loop"}, path.name


def test_the_manual_names_every_part_of_what_templates_are_given() -> None:
    table = {words(variable)[0]: parts for variable, parts in rows("admin.md", "What they hold")}
    assert table.keys() == PARTS.keys()
    for variable, kind in PARTS.items():
        named = words(table[variable].partition(";")[0])
        assert set(names(kind)) <= set(named) and all(hasattr(kind, each) or each in names(kind) for each in named)
        assert len(named) == len(set(named)), variable
    assert words(table["plan.account"].partition(";")[2]) == list(Group._fields)


def names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)] if is_dataclass(kind) else list(kind._fields)  # type: ignore[attr-defined]


def anchors(path: Path) -> set[str]:
    """What the headings of a document are called in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", path.read_text())
    yield from (link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for link in links(path):
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not heading or heading in anchors(target), link
