# SPDX-License-Identifier: Apache-2.0
"""What is read of the configuration without a YAML parser is what a YAML parser reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtorque import options, sitelines, siteyaml
from vtorque.cli import wording
from vtorque.errors import ConfigError
from vtorque.sitelines import Entry

ROOT = Path(__file__).resolve().parents[2]
# All that may mean something to YAML, and words of options.
PIECES = (
    "A", "VM_IMG_DIR", "KEY_2", "a", "b.c", "nfs1:/home", "/x/y", "null", "~", "true", "012", "1.5", "=", "<<", ":",
    ": ", " ", "  ", "\n", "\n ", "\n\n", "#", " # ", '"', "'", '""', "''", "\\", "[", "]", "{", "}", ",", ", ", "- ",
    "-", "--- ", "...", "?", "? ", "!", "!!str ", "&x ", "*x", "|", ">", "%", "@", "`", "^", "$", "(", "\t", "\r", "é",
    "\0", "\ufeff", "\x7f", "\x85", "\u2028",
)
LINES = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
ENTRIES = st.builds("{}: {}{}".format, st.sampled_from(("A", "KEY_2")), LINES, st.sampled_from(("", " # x")))
FILES = st.lists(ENTRIES | LINES, max_size=4).map("\n".join)

Reader = Callable[[str], list[Entry] | None]


def by_yaml(text: str) -> list[Entry] | str:
    try:
        return siteyaml.entries(Path("f"), text)
    except ConfigError as error:
        return str(error)


def careless(text: str) -> list[Entry] | None:
    """What one would write at first."""
    pairs = [line.partition(": ") for line in text.splitlines() if ": " in line]
    return [Entry(line=number, key=key, text=value) for number, (key, _, value) in enumerate(pairs, 1)]


def agree(read: Reader, text: str) -> bool:
    found = read(text)
    return found is None or found == by_yaml(text)


@given(FILES)
@example("A: [a, 'b, c', \"d\"]  # e\nA: a b # c\nKEY_2: 'x: y' \n")
@example("A: a:\n")
@example("A: [a b]\n")
@example("A: []\nKEY_2: [ a ]")
@example("A: a\n b\n")
def test_it_is_read_as_yaml_or_left_to_yaml(text: str) -> None:
    assert agree(sitelines.entries, text)


@pytest.mark.parametrize("text", ["A: a # b", "A: a\n b", "A: 'a'", "A: [a]", "A: a: b", "A: &x a", "\tA: a"])
def test_a_careless_reader_would_be_noticed(text: str) -> None:
    assert agree(sitelines.entries, text)
    assert not agree(careless, text)


@pytest.mark.parametrize(
    "text",
    [
        (ROOT / "contrib/vtorque.yaml").read_text(),
        "".join(f"{wording.example(name)}\n" for name in options.OPTIONS),
        'A: "login[0-9]+"  # all\n\n# b\nKEY_2: [a, "b c"]\n',
    ],
    ids=["example", "all options", "quotes and lists"],
)
def test_a_usual_file_needs_no_yaml_parser(text: str) -> None:
    found = sitelines.entries(text)
    assert found
    assert found == by_yaml(text)


@pytest.mark.parametrize(
    "text", ["A:\n- a\n", "A: |\n  a\n", "A: *x", "A: {a: b}", 'A: "a\\tb"', "a: b", "A: a\t# b", "A:"]
)
def test_what_is_not_simple_is_left_to_yaml(text: str) -> None:
    assert sitelines.entries(text) is None
