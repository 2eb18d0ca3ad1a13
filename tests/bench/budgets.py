# SPDX-License-Identifier: Apache-2.0
"""What each thing may cost: one line a number, with its gate and what we aim at."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

INTERPRETER_SECONDS = 0.0099
"""CPU time of `python3 -c pass` on the machine that seconds and rates are budgeted for."""

NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A number's limit. A count does not depend on the machine, so that every run may be failed for it."""

    key: str
    what: str
    gate: float
    aim: float
    unit: str = ""
    counted: bool = False
    more_is_better: bool = False

    def met(self, value: float) -> bool:
        """Whether a measured value is within the gate."""
        return value >= self.gate if self.more_is_better else value <= self.gate

    def verdict(self, value: float) -> str:
        """In one word, for the report."""
        reached = value >= self.aim if self.more_is_better else value <= self.aim
        return "aim" if reached else "ok" if self.met(value) else "MISSED"


def _count(key: str, what: str, gate: float, aim: float, unit: str = "") -> Budget:
    return Budget(key=key, what=what, gate=gate, aim=aim, unit=unit, counted=True)


def _time(key: str, what: str, gate: float, aim: float, unit: str = "") -> Budget:
    return Budget(key=key, what=what, gate=gate, aim=aim, unit=unit)


BUDGETS = (
    _time("hook.ratio", "bare-metal job, each hook, beside sh -c :", 2, 1.2, "×"),
    _count("hook.processes", "bare-metal job, each hook: processes", 1, 1),
    _count("hook.home_files", "bare-metal job: files looked at below the home", 0, 0),
    _time("vsub_plain.ratio", "vsub without -vm, beside python3 -c pass", 2, 1, "×"),
    _count("vsub_plain.processes", "vsub without -vm: processes, qsub included", 1, 1),
    _count("vsub_plain.third_party", "vsub without -vm: third-party packages", 0, 0),
    _time("vsub_vm.ratio", "vsub -vm beyond qsub, beside python3 -c pass", 5, 2.5, "×"),
    _count("vsub_vm.processes", "vsub -vm: processes, qsub and the job's key included", 3, 3),
    _count("vsub_vm.modules", "vsub -vm: files of Python loaded", 80, 60),
    Budget(key="submissions", what="submissions a second, 2 at once: clock", gate=30, aim=100, unit="/s",
           more_is_better=True),
    Budget(key="submissions.cpu", what="submissions a second, for which 2 CPUs have time", gate=30, aim=100, unit="/s",
           more_is_better=True),
    _count("vsub_vm.old_jobs", "more system calls with 1,000 older jobs", 300, 0),
    _time("start1.cpu", "start of 1 guest: CPU of the prologue", 0.35, 0.15, "s"),
    _count("start1.processes", "start of 1 guest: processes", 8, 4),
    _count("start1.home_files", "start of 1 guest: files below the home looked at by root", 0, 0),
    _count("start1.written", "start of 1 guest: KiB written (a job's image has 65,536)", 1024, 256, "KiB"),
    _time("start16.cpu", "start of 16 guests: CPU of the prologue", 0.6, 0.25, "s"),
    _count("start16.more", "each of 15 further guests: processes", 1, 0),
    _time("reaction.ratio", "guest ready → script runs, beside ssh host true", 2, 0.5, "×"),
    _time("epilogue1.cpu", "epilogue, 1 guest: CPU", 0.15, 0.03, "s"),
    _time("epilogue16.cpu", "epilogue, 16 guests: CPU", 0.3, 0.05, "s"),
    _count("epilogue16.alive", "epilogue, 16 guests: alive on return", 0, 0),
    _time("disk.ms", "overlay and seed of a guest", 20, 1, "ms"),
    _count("life.processes", "whole life of a one-guest job: processes", 25, 15),
    _time("memory.prologue", "memory of a waiting prologue", 45, 30, "MiB"),
    _time("memory.guard", "memory of a waiting guard", 30, 15, "MiB"),
    _count("guard.processes", "guard of a running job: processes", 4, 1),
    _time("memory.wrapper", "memory of a waiting job wrapper", 45, 40, "MiB"),
    _time("cluster.cpu", "plan and merge of 1,000 nodes × 4 guests: CPU", 1, 0.3, "s"),
    _time("boot.ratio", "boot of the image we build, beside Debian's own layout", 0.5, 0.4, "×"),
    _count("cluster.growth", "ten times as many nodes: times as many calls", 13, 10.5, "×"),
)


def failures(
    values: Mapping[str, float], *, strict: bool, there: Mapping[str, float] = NOTHING
) -> list[str]:
    """The budgets that were exceeded; without `strict` only those of counts, which no machine changes.

    What `there` has is judged by what it is on the machine of the budgets, not by what it is here.
    """
    judged = {**values, **there}
    return [
        f"{budget.what}: {judged[budget.key]:.4g} {budget.unit}, the budget is {budget.gate:g}"
        for budget in BUDGETS
        if budget.key in judged and (strict or budget.counted) and not budget.met(judged[budget.key])
    ]
