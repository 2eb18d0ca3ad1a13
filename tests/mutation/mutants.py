# SPDX-License-Identifier: Apache-2.0
"""Programs that are wrong in one place each: made from the syntax tree of a right one."""

import ast
import copy
import re
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}
# The most that a pattern lets pass: `{1,64}`.
_MOST = re.compile(r"(\{[0-9]*,)([0-9]+)(\})")
_Node = TypeVar("_Node")


class Mutant(NamedTuple):
    """A program's text, and what is wrong with it."""

    line: int
    wrong: str
    text: str


def of(source: str) -> Iterator[Mutant]:
    """All of them, in the order of the text."""
    tree = ast.parse(source)
    words = _words(tree)
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in words:
            continue
        for changed in _changed(node):
            mutant = copy.deepcopy(tree)
            _put(mutant, index, changed)
            wrong = _difference(ast.unparse(node), ast.unparse(changed))
            text = ast.unparse(ast.fix_missing_locations(mutant))
            yield Mutant(line=getattr(node, "lineno", 0), wrong=wrong, text=text)


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                if type(operator) in _COMPARED:
                    other = copy.deepcopy(node)
                    other.ops[place] = _COMPARED[type(operator)]()
                    yield other
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int(number)):
            yield from (ast.Constant(number + 1), ast.Constant(number - 1))
        case ast.Constant(value=str(text)):
            for match in _MOST.finditer(text):
                more = f"{match[1]}{int(match[2]) + 1}{match[3]}"
                yield ast.Constant(text[:match.start()] + more + text[match.end():])
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() if type(node.op) in _COMPUTED and not isinstance(node.left, ast.Constant | ast.JoinedStr):
            yield ast.BinOp(node.left, _COMPUTED[type(node.op)](), node.right)
        case ast.If() if not isinstance(node.test, ast.Compare | ast.UnaryOp):
            yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Raise() | ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()
        case ast.Dict(keys=keys, values=values):
            for place in range(len(keys)):
                yield ast.Dict(_without(keys, place), _without(values, place))
        # Fewer are a pair of different things rather than a list.
        case ast.Tuple(elts=[_, _, _, *_] as words) if all(map(_is_word, words)):
            for place in range(len(words)):
                yield ast.Tuple(_without(words, place), ast.Load())
        case ast.Return(value=None | ast.Constant(value=None)):
            pass
        case ast.Return():
            yield ast.Return(ast.Constant(None))


def _is_word(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _without(every: list[_Node], place: int) -> list[_Node]:
    return every[:place] + every[place + 1:]


def _words(tree: ast.AST) -> set[int]:
    """What is no program: docstrings, annotations, messages."""
    found: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        match node:
            case ast.Expr(value=ast.Constant()):
                parts = [node]
            case ast.FunctionDef():
                parts = [node.returns, *(each.annotation for each in (*node.args.args, *node.args.kwonlyargs))]
            case ast.AnnAssign():
                parts = [node.annotation]
            case ast.Assign(targets=[ast.Name("hint")]):
                parts = [node]
            case ast.Raise(exc=ast.Call() as call):
                parts = [*call.args, *call.keywords]
        found |= {id(each) for part in parts if part is not None for each in ast.walk(part)}
    return found


def _put(tree: ast.AST, index: int, changed: ast.AST) -> None:
    """Put it in the place of the node that is reached as the `index`th."""
    target = next(node for place, node in enumerate(ast.walk(tree)) if place == index)
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, changed)
                return
            if isinstance(value, list) and any(each is target for each in value):
                setattr(parent, name, [changed if each is target else each for each in value])
                return


def _difference(before: str, after: str) -> str:
    """Both on a line, from shortly before the place where they begin to differ."""
    one, other = (" ".join(text.split()) for text in (before, after))
    differ = (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    start = max(0, next(differ, 0) - 20)
    return f"{one[start:][:60]} -> {other[start:][:60]}"
