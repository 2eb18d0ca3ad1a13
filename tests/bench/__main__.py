# SPDX-License-Identifier: Apache-2.0
"""`python3 -m tests.bench`: measure all budgets and report them.

It works in namespaces of its own, with a user and a network that nobody else
sees, and that take with them whatever is left.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from tests.bench import budgets, real, report, scenes
from tests.bench.measure import Series
from tests.bench.report import Spans
from tests.bench.world import GUESTS, World, world

_INSIDE = "--inside"
_NAMESPACES = ("/usr/bin/unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


def main() -> int:
    if os.getuid() != 0:
        sys.stderr.write("bench: only root can measure root's hooks\n")
        return 2
    options = _options()
    if options.real:
        return real.measure(options.out, rounds=options.boots, strict=options.strict)
    if not options.inside:
        os.execv(_NAMESPACES[0], [*_NAMESPACES, sys.executable, "-m", "tests.bench", *sys.argv[1:], _INSIDE])
    with world(heavier=options.heavier) as here:
        return _measure(here, options)


def _measure(here: World, options: argparse.Namespace) -> int:
    values, counted = scenes.counts(here)
    there: dict[str, float] = {}
    series: dict[str, Series] = {}
    starts: dict[str, Spans] = {}
    if not options.counts:
        timed, there, series = scenes.times(here, rounds=options.rounds)
        values |= timed
        starts = {f"start of {guests} guest{'s' * (guests > 1)}": scenes.phases(here, guests=guests)
                  for guests in (1, GUESTS)}
    found = {
        "values": values,
        "there": there,
        "counts": {name: asdict(each) for name, each in counted.items()},
        "series": {name: asdict(each) for name, each in series.items()},
        "phases": starts,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    text = [report.table(values, there)]
    if series:
        text += [report.legend(statistics.median(series[scenes.INTERPRETER].cpu)), report.series(series)]
    text.append(report.counted(counted))
    if starts:
        text.append(report.costs(starts))
        (options.out / "bench.svg").write_text(report.svg(starts))
    sys.stdout.write("\n".join(text))
    failures = budgets.failures(values, strict=options.strict, there=there)
    sys.stderr.writelines(f"bench: {failure}\n" for failure in failures)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", allow_abbrev=False)
    parser.add_argument("--counts", action="store_true", help="only what does not depend on the machine")
    parser.add_argument("--strict", action="store_true", help="fail for times as well, not for counts only")
    parser.add_argument("--heavier", action="store_true", help="with waste in every part, which the gates must notice")
    parser.add_argument("--rounds", type=int, default=15, help="how often each start is measured")
    parser.add_argument("--real", action="store_true", help="instead: real guests in the lab, the boots of two images")
    parser.add_argument("--boots", type=int, default=3, help="how often each image is booted")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where bench.json and bench.svg go")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
