# SPDX-License-Identifier: Apache-2.0
"""What a soak found: cases run, faults injected, leaks, wrong verdicts. The last two have to be 0."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

_SHOWN = 500


@dataclass(kw_only=True)
class Tally:
    """One part of a soak."""

    name: str
    cases: int = 0
    faults: int = 0
    leaks: int = 0
    wrong: int = 0
    details: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, case: str, *, leaks: Sequence[str], wrong: Sequence[str], injected: bool) -> None:
        """Count one case, and keep what it is good for to know."""
        self.cases += 1
        self.faults += injected
        self.leaks += bool(leaks)
        self.wrong += bool(wrong)
        for kind, found in (("left", leaks), ("wrong", wrong)):
            if found:
                self.details.append(f"{case}: {kind}: {'; '.join(found)}"[:_SHOWN])
                sys.stderr.write(f"soak: {self.details[-1]}\n")


def write(tallies: Sequence[Tally], *, seed: int, seconds: float, out: Path) -> int:
    """Print a table, leave `soak.json` in `out`; 0 when nothing was left and nothing was wrong."""
    out.mkdir(parents=True, exist_ok=True)
    bad = sum(each.leaks + each.wrong for each in tallies)
    found = {"seed": seed, "seconds": round(seconds), "parts": [asdict(each) for each in tallies]}
    (out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [f"{'':24}{'cases':>8}{'faults':>8}{'leaks':>8}{'wrong':>8}"]
    lines += [f"{each.name:24}{each.cases:8}{each.faults:8}{each.leaks:8}{each.wrong:8}" for each in tallies]
    lines += [f"  {each.name}: {name} {value:g}" for each in tallies for name, value in each.numbers.items()]
    sys.stdout.write("\n".join([*lines, f"seed {seed}, {seconds:.0f} s, {out / 'soak.json'}", ""]))
    return 1 if bad else 0
