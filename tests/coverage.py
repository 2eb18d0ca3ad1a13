# SPDX-License-Identifier: Apache-2.0
"""`make coverage`: which branches of the modules that root's hooks load no test takes. `TESTS=tests/unit` for a part.

Processes that tests fork count as well; hooks that are started as programs are not followed.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtorque import privileged, units

ROOT = Path(__file__).resolve().parents[1]
_SETTINGS = """\
[run]
branch = True
parallel = True
concurrency = multiprocessing,thread
data_file = {place}/data
source = vtorque
[report]
exclude_lines =
    if TYPE_CHECKING:
    \\.\\.\\.$
"""


def main(argv: Sequence[str]) -> int:
    """The status of the tests."""
    with tempfile.TemporaryDirectory() as place:
        settings = Path(place, "settings")
        settings.write_text(_SETTINGS.format(place=place))
        options = ["--rcfile", str(settings)]
        tests = list(argv) or ["tests/unit", "tests/contract"]
        status = _coverage("run", *options, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
        _coverage("combine", "-q", *options)
        _coverage("json", "-q", *options, "-o", f"{place}/found")
        _show(json.loads(Path(place, "found").read_text())["files"])
    return status


def _show(files: dict[str, dict[str, Any]]) -> None:
    """The worst module first, with the lines that were not reached and the branches that were not taken."""
    rows = []
    for module in privileged.modules(ROOT / "vtorque"):
        path = "vtorque/" + module.name.replace(".", "/")
        found = files.get(f"{path}.py") or files.get(f"{path}/__init__.py")
        if found and module.runs_as == "root":
            rows.append((found["summary"], module.name, found["missing_lines"], found["missing_branches"]))
    rows.sort(key=lambda row: (-row[0]["missing_branches"], -row[0]["missing_lines"], row[1]))
    for about, name, lines, branches in rows:
        if lines or branches:
            ways = " ".join(f"{start}-{end}" for start, end in branches if start not in lines)
            sys.stdout.write(f"{about['percent_covered']:5.1f} %  {name:<32} {units.cpu_list_text(lines)}; {ways}\n")
    taken, there = (sum(row[0][key] for row in rows) for key in ("covered_branches", "num_branches"))
    run, lines = (sum(row[0][key] for row in rows) for key in ("covered_lines", "num_statements"))
    sys.stdout.write(f"{len(rows)} modules: {taken} of {there} branches, {100 * taken / there:.1f} %; "
                     f"{run} of {lines} lines, {100 * run / lines:.1f} %\n")


def _coverage(*words: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *words], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
