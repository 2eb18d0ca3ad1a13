# SPDX-License-Identifier: Apache-2.0
"""`make coverage`: which branches of the modules that root's hooks load no test takes. `TESTS=tests/unit` for a part.

The tests run in a copy of the tree in which every process that imports vtorque is followed, hooks and
guards with all that they fork included. Not followed is who is killed, and who becomes another program.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtorque import privileged, units

ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = ("tests/unit", "tests/contract")
BRANCHES_PERCENT = 99.9
"""Less of them than this in a run over everything is a failure. It only ever rises."""

_PYTEST = ("-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup")
# What reads the text of the package, or counts what a process does: it would see us.
_LEFT_OUT = (
    "tests/unit/test_layers.py", "tests/unit/test_privileged.py", "tests/contract/test_privileged.py",
    "tests/contract/test_budgets.py", "tests/contract/test_crash.py", "tests/contract/test_bench_boot.py",
)
# A loop over ticks() or growing() ends from within or with DeadlineExceeded, one that comes to a last None
# there, and what next() asks for without a default is found.
_SETTINGS = """\
[run]
branch = True
parallel = True
concurrency = thread
data_file = {place}/data/of
include = */vtorque/*.py
disable_warnings = no-data-collected,module-not-imported,module-not-measured,already-imported,trace-changed
[paths]
ours =
    {place}/tree/vtorque
    */vtorque
[report]
exclude_lines =
    if TYPE_CHECKING:
    \\.\\.\\.$
    if __name__ == .__main__.:
partial_branches =
    for \\w+ in .*(ticks|growing)\\(
    for \\w+ in \\(.*, None\\):
    next\\([^(]\\S* for\\b
"""
_FOLLOW = """\
try:
    with open("{place}/followed.py") as text: exec(compile(text.read(), text.name, "exec"), told := {{}})
except OSError: pass
else: told["follow"]("{place}/settings")
"""
# Starts without importing the package.
_SCRIPT = "shareserver.py"
_SUMS = ("covered_branches", "num_branches", "covered_lines", "num_statements")


def main(argv: Sequence[str]) -> int:
    """1 when a test failed, or, over everything, when fewer branches were taken than before."""
    parser = argparse.ArgumentParser(prog="make coverage")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="add to what is there, and leave the sum there")
    parser.add_argument("tests", nargs="*", default=EVERYTHING)
    options = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        place = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _prepare(place)
        left_out = [f"--ignore={name}" for name in _LEFT_OUT]
        status = _python(place, "pytest", *_PYTEST, *left_out, *options.tests)
        said = ("--quiet", f"--rcfile={place}/settings")
        _python(place, "coverage", "combine", *said, "--append", f"{place}/data")
        if _python(place, "coverage", "json", *said, "--ignore-errors", "-o", f"{place}/found") != 0:
            return 1
        percent = _show(place / "tree/vtorque", json.loads((place / "found").read_text())["files"])
    if options.tests == EVERYTHING and percent < BRANCHES_PERCENT:
        sys.stdout.write(f"that is less than the {BRANCHES_PERCENT} % of branches that were taken before\n")
        status = 1
    return int(status != 0)


def _prepare(place: Path) -> None:
    """A tree as ours, whose package notes what it runs; anybody may add to the notes."""
    if not (place / "tree").exists():
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "build")
        shutil.copytree(ROOT, place / "tree", symlinks=True, ignore=ignored)
        with (place / "tree/vtorque/__init__.py").open("a") as package:
            package.write(_FOLLOW.format(place=place))
        script = place / "tree/vtorque" / _SCRIPT
        again = f"exec({_FOLLOW.format(place=place)!r}); import "
        script.write_text(script.read_text().replace("import ", again, 1))
    place.chmod(0o755)
    shutil.copy(ROOT / "tests/followed.py", place)
    (place / "settings").write_text(_SETTINGS.format(place=place))
    (place / "data").mkdir(exist_ok=True)
    (place / "data").chmod(0o1777)


def _show(package: Path, files: dict[str, dict[str, Any]]) -> float:
    """The worst module first, with the lines that were not reached and the branches that were not taken."""
    rows = []
    for name in (module.name for module in privileged.modules(package) if module.runs_as == "root"):
        path = "vtorque/" + name.replace(".", "/")
        if found := files.get(f"{path}.py") or files.get(f"{path}/__init__.py"):
            rows.append((name, found))
        else:
            sys.stdout.write(f"  0.0 %  {name:<32} no test loads it\n")
    rows.sort(key=lambda row: (-row[1]["summary"]["missing_branches"], -row[1]["summary"]["missing_lines"], row[0]))
    for name, found in rows:
        lines, branches = found["missing_lines"], found["missing_branches"]
        if lines or branches:
            ways = " ".join(f"{start}-{end}" for start, end in branches if start not in lines)
            percent = found["summary"]["percent_covered"]
            sys.stdout.write(f"{percent:5.1f} %  {name:<32} {units.cpu_list_text(lines)}; {ways}\n")
    sums = {key: sum(found["summary"][key] for _, found in rows) for key in _SUMS}
    taken, there, run, lines = sums.values()
    percent = 100 * taken / there
    sys.stdout.write(f"{len(rows)} modules: {taken} of {there} branches, {percent:.2f} %; "
                     f"{run} of {lines} lines, {100 * run / lines:.2f} %\n")
    return float(percent)


def _python(place: Path, *words: str) -> int:
    return subprocess.run([sys.executable, "-m", *words], cwd=place / "tree", check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
