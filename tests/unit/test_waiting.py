# SPDX-License-Identifier: Apache-2.0
"""Nothing in the program waits for a fixed time: it is woken, or its looks get rarer and rarer."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "vtorque"
MODULES = sorted(PACKAGE.rglob("*.py"))
# How long a node keeps from the batch system a job that it cannot start yet: nothing is waited for.
DELAYS = {"undo.py"}


def sleeps(text: str) -> list[int]:
    """Lines that sleep in any way but `Deadline.pause`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "asyncio"):
            found += [node.lineno for alias in node.names if alias.name == "sleep"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.sleep", "asyncio.sleep"):
            found.append(node.lineno)
    return found


def fixed_pauses(text: str) -> list[int]:
    """Lines that pause for a constant time, whatever happens meanwhile."""
    return [
        node.lineno for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("pause", "wait") and len(node.args) == 1 and _is_constant(node.args[0])
    ]


def _is_constant(node: ast.expr) -> bool:
    return all(
        isinstance(each, ast.Constant | ast.operator) or (isinstance(each, ast.Name) and each.id.isupper())
        for each in ast.walk(node) if not isinstance(each, ast.BinOp | ast.expr_context)
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_sleeps_and_no_pause_is_fixed(path: Path) -> None:
    text = path.read_text()
    assert sleeps(text) == []
    assert path.name in DELAYS or fixed_pauses(text) == []


@pytest.mark.parametrize(
    "text",
    ["time.sleep(1)", "from time import sleep", "sleep = time.sleep", "deadline.pause(0.5)", "deadline.pause(_SECONDS)",
     "wakeups.wait(2 * _LONG_SECONDS)"],
)
def test_a_module_that_did_would_be_noticed(text: str) -> None:
    assert sleeps(text) + fixed_pauses(text) == [1]


@pytest.mark.parametrize(
    "text", ["deadline.pause(next(pauses))", "deadline.pause(_LONGEST_SECONDS, bell)", "child.wait()"]
)
def test_a_module_that_is_woken_is_not_taken_for_one(text: str) -> None:
    assert sleeps(text) + fixed_pauses(text) == []
