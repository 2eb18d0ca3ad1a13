# SPDX-License-Identifier: Apache-2.0
"""What may run with uid 0 in root's hooks, its guards and its helpers: every module of ours, and how large it is.

Read from the program's own text: a module belongs to it when anything that
belongs to it imports it, wherever, or starts it by its file's name. Lines are
those with code: no blank ones, no comments, no docstrings.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ENTRIES = ("cli.pelog", "cli.pbshook", "shareserver")
"""Where root's processes begin: `scripts/hook`, `scripts/pbs-hook`, and the server of a share before it is the user."""

AS_OTHERS: Mapping[str, str] = MappingProxyType({
    "backends.transport.speaker": "nobody", "cli.hooked": "vtorque", "cli.pbsverbs": "vtorque",
    "diskserver": "the job's user", "downloader": "nobody",
    "imageformat": "nobody", "netkeeper": "nobody, with CAP_NET_ADMIN", "planner": "nobody",
    "userclerk": "the job's user",
})
"""What only a child runs that is somebody else by then. Root's processes know no more of it than constants."""

_SCRIPT = re.compile(r"([a-z_]+)\.py")
_MEMBER = re.compile(r"vtorque\.([a-z_.]+):[A-Za-z]+")
_LAYOUT = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    tokenize.ENCODING,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module, whose process it runs in, who wants it there, and what it says of itself."""

    name: str
    lines: int
    runs_as: str
    wanted_by: str
    about: str


def modules(package: Path) -> tuple[Module, ...]:
    """All of them in `package`, by name."""
    wanted_by = dict.fromkeys(ENTRIES, "")
    waiting = list(ENTRIES)
    found = []
    while waiting:
        name = waiting.pop(0)
        text = _file(package, name).read_text()
        tree = ast.parse(text)
        about = (ast.get_docstring(tree) or "").partition("\n")[0]
        runs_as = AS_OTHERS.get(name, "root")
        found.append(Module(
            name=name, lines=code_lines(text), runs_as=runs_as, wanted_by=wanted_by[name], about=about,
        ))
        # What somebody else imports is no affair of root's.
        new = [each for each in _imports(tree, package) if each not in wanted_by] if runs_as == "root" else []
        wanted_by |= dict.fromkeys(new, name)
        waiting += sorted(set(new))
    return tuple(sorted(found, key=lambda each: each.name))


def code_lines(text: str) -> int:
    """How many lines of a program's text have code in them."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A string that stands alone is a docstring, wherever it is.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def _imports(tree: ast.Module, package: Path) -> Iterator[str]:
    """Modules of ours that a text names: in its imports, or as a script or a member to be loaded."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = _SCRIPT.fullmatch(node.value) or _MEMBER.fullmatch(node.value)
            names = [f"vtorque.{match[1]}"] if match else []
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name:
                # Importing one runs the packages above it as well.
                above = (".".join(parts[1:end]) for end in range(2, len(parts) + 1))
                yield from (each for each in above if _file(package, each).is_file())


def _file(package: Path, name: str) -> Path:
    path = package.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
