# SPDX-License-Identifier: Apache-2.0
"""Times of commands, interleaved, so that whatever else the machine does hits all of them alike."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SETTLED_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something to run: as the numeric `user`, after `before`, whose time does not count.

    `behind` is the CPU time, in seconds, of what it has left behind and goes on for it.
    """

    argv: Sequence[str | Path]
    env: Mapping[str, str]
    user: int = 0
    before: Callable[[], object] = lambda: None
    behind: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Seconds of every run: on the clock, and of CPU, children included."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def interleaved(commands: Mapping[str, Command], *, rounds: int) -> dict[str, Series]:
    """Every command once a round; the first round only warms caches."""
    found = {name: Series() for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            wall, cpu = _once(command)
            if number:
                found[name].wall.append(wall)
                found[name].cpu.append(cpu)
    return found


def ratio(of: Series, to: Series) -> float:
    """How many times as much CPU: the median of the rounds' own ratios."""
    return statistics.median(mine / theirs for mine, theirs in zip(of.cpu, to.cpu, strict=True))


def per_second(commands: Sequence[Command], *, seconds: float) -> float:
    """How often one gets through, each of the commands again and again beside the others."""
    begun = time.monotonic()
    done, running = 0, {_start(command): command for command in commands}
    while running:
        pid, status = os.wait()
        if pid not in running:
            continue  # In a namespace of processes whoever lost its parent is ours.
        command = running.pop(pid)
        assert status == 0, command.argv
        done += 1
        if time.monotonic() - begun < seconds:
            running[_start(command)] = command
    return done / (time.monotonic() - begun)


def memory_mib(pid: int) -> float:
    """What a process holds alone or with others, in MiB (proc_pid_status(5): VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def settled_cpu(pid: int) -> float:
    """CPU seconds that a process has taken, once it takes no more: proc_pid_stat(5)."""
    seconds = -1.0
    while True:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        before, seconds = seconds, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if seconds == before:
            return seconds
        time.sleep(_SETTLED_SECONDS)


def _start(command: Command) -> int:
    """Not Popen: its object would have to be waited for by itself."""
    child = subprocess.Popen(
        command.argv, env=command.env, user=command.user, group=command.user, extra_groups=(), cwd="/",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )
    child.returncode = 0
    return child.pid


def _once(command: Command) -> tuple[float, float]:
    command.before()
    begun = time.monotonic()
    pid = _start(command)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, f"{command.argv} ended with {os.waitstatus_to_exitcode(status)}"
    wall = time.monotonic() - begun
    return wall, usage.ru_utime + usage.ru_stime + command.behind()
