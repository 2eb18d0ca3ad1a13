# SPDX-License-Identifier: Apache-2.0
"""The documents say what is in the program: its layers."""

import re
from pathlib import Path

from tests.unit.test_layers import LAYERS

ROOT = Path(__file__).resolve().parents[2]


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
