# SPDX-License-Identifier: Apache-2.0
"""`python3 -m tests.soak`: crash anywhere, jobs that come and go, random histories; what is too long for CI.

It works in namespaces of its own, which take with them whatever is left. Exit
status 0 when nothing was left behind and no verdict was wrong.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests import crash, faults, histories
from tests.churn import churn
from tests.contract import fidelity, jobscripts
from tests.faults import KILL, KINDS, Fault
from tests.soak import real, report
from tests.soak.report import Tally

_INSIDE = "--inside"
_NAMESPACES = ("/usr/bin/unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_LONG = {"jobs": 200, "at_once": 8, "histories": 2000}
_GROWTH_KIB = 5 << 10


def main() -> int:
    if os.getuid() != 0:
        sys.stderr.write("soak: only root can kill root's hooks\n")
        return 2
    options = _options()
    if not options.inside:
        os.execv(_NAMESPACES[0], [*_NAMESPACES, sys.executable, "-m", "tests.soak", *sys.argv[1:], _INSIDE])
    begun = time.monotonic()
    sys.stdout.write(f"seed {options.seed}\n")
    tallies = []
    for name, part in _PARTS.items():
        if not options.only or name in options.only:
            tallies.append(Tally(name=name))
            part(tallies[-1], options)
    return report.write(tallies, seed=options.seed, seconds=time.monotonic() - begun, out=options.out)


def _effects(tally: Tally, options: argparse.Namespace) -> None:
    """Every hook at every effect, in processes forked from this one."""
    faults.adopt_orphans()
    chance = random.Random(options.seed)
    for hook in crash.CASES:
        with crash.stage(Path(f"/var/lib/vtorque-soak-{os.getpid()}"), hook) as meet:
            effects = meet(Fault(kind=KILL, number=0)).effects
            points = [Fault(kind=kind, number=number) for kind in KINDS for number in range(1, effects + 1)]
            for fault in chance.sample(points, max(1, len(points) // options.every)):
                found = meet(fault)
                tally.add(f"{hook} {fault}", leaks=found.leaks, wrong=found.wrong, injected=True)


def _calls(tally: Tally, options: argparse.Namespace) -> None:
    """The real hooks at every system call that has an effect."""
    real.soak(tally, seed=options.seed, every=options.every)


def _jobs(tally: Tally, options: argparse.Namespace) -> None:
    """Many jobs on one node."""
    found = churn(
        Path(f"/var/lib/vtorque-soak-{os.getpid()}"), jobs=max(40, _LONG["jobs"] // options.every),
        at_once=_LONG["at_once"], seed=options.seed,
    )
    flat = max(found.grown_kib) <= _GROWTH_KIB and max(found.more_descriptors) <= 0
    grown = [] if flat else [f"grown by {found.grown_kib} KiB and {found.more_descriptors} descriptors"]
    tally.add("all jobs", leaks=[*found.left, *grown], wrong=found.twice, injected=False)
    tally.cases, tally.faults = found.lives, found.faults
    tally.numbers |= {"most growth, KiB": max(found.grown_kib), "more descriptors": max(found.more_descriptors)}


def _histories(tally: Tally, options: argparse.Namespace) -> None:
    """Random histories of a cluster."""
    for number in range(max(10, _LONG["histories"] // options.every)):
        found = histories.run(Path(f"/dev/shm/vtorque-soak-{os.getpid()}"), seed=options.seed + number)
        name = f"history {options.seed + number}"
        tally.add(name, leaks=found.outlived, wrong=found.broken, injected=bool(found.faults))


def _scripts(tally: Tally, options: argparse.Namespace) -> None:
    """Job scripts of all kinds, with a guest and without."""
    options.out.mkdir(parents=True, exist_ok=True)
    cannot = jobscripts.otherwise()
    for name, (bare, guest) in fidelity.both_ways(options.out / "scripts.json", "--long").items():
        wrong = [] if bare == guest or name in cannot else [f"{bare} became {guest}"]
        tally.add(name, leaks=[], wrong=wrong, injected=False)


_PARTS: dict[str, Callable[[Tally, argparse.Namespace], None]] = {
    "effects": _effects, "jobs": _jobs, "histories": _histories, "scripts": _scripts,
    # The last: it leaves us with users of its own, in an /etc that is gone with it.
    "system calls": _calls,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.soak", allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--every", type=int, default=1, help="try one of so many points only")
    parser.add_argument("--only", action="append", choices=[*_PARTS], help="this part; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="where soak.json goes")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
