# SPDX-License-Identifier: Apache-2.0
"""What was measured, to read and to look at."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape

from tests.bench.budgets import BUDGETS, INTERPRETER_SECONDS, NOTHING
from tests.bench.measure import Series
from tests.bench.trace import Counts

Spans = Sequence[tuple[str, float, float]]

_COSTS = 3
_WIDTH, _LEFT, _BAR, _TOP = 1000, 230, 22, 40
_COLOURS = ("#4878a8", "#6aa56a", "#b07aa1", "#d08a4e", "#8c6d4f", "#5aa7a7")


def table(values: Mapping[str, float], there: Mapping[str, float] = NOTHING) -> str:
    """Every budget that was measured: value here, and on the machine of the budgets, gate, aim and verdict."""
    rows = [("what", "measured", "there", "budget", "aim", "")]
    for budget in BUDGETS:
        if budget.key in values:
            value, unit = values[budget.key], f" {budget.unit}".rstrip()
            sign = "≥" if budget.more_is_better else "≤"
            rows.append((
                budget.what, f"{_number(value)}{unit}",
                f"{_number(there[budget.key])}{unit}" if budget.key in there else "",
                f"{sign} {budget.gate:g}{unit}", f"{budget.aim:g}", budget.verdict(there.get(budget.key, value)),
            ))
    return _columns(rows if there else [(*row[:2], *row[3:]) for row in rows])


def legend(interpreter: float) -> str:
    """What is meant by *there*, where the interpreter takes so many seconds here."""
    ours, theirs = 1000 * interpreter, 1000 * INTERPRETER_SECONDS
    return f"there: where `python3 -c pass` takes {theirs:g} ms of CPU, and not {ours:.1f} as here\n"


def series(found: Mapping[str, Series]) -> str:
    """Milliseconds of every command: CPU and on the clock, median with least and most."""
    rows = [("milliseconds", "CPU", "least", "most", "clock", "least", "most")]
    for name, each in found.items():
        rows.append((name, *_spread(each.cpu), *_spread(each.wall)))
    return _columns(rows)


def counted(found: Mapping[str, Counts]) -> str:
    """What every command did."""
    rows = [("counts", "processes", "system calls", "modules", "KiB written", "third-party packages")]
    bare = set(next(iter(found.values())).third_party)
    for name, each in found.items():
        packages = " ".join(sorted(set(each.third_party) - bare)) or "-"
        rows.append((
            name, str(each.processes), str(each.calls), str(each.modules), f"{each.bytes_written / 1024:.0f}", packages,
        ))
    return _columns(rows)


def costs(starts: Mapping[str, Spans]) -> str:
    """The largest costs that are left in each start; why they stay is in doc/performance.md."""
    lines = []
    for title, spans in starts.items():
        took: dict[str, float] = {}
        for name, begin, end in spans:
            if not name.startswith("phase: "):
                took[name] = took.get(name, 0.0) + end - begin
        largest = sorted(took, key=lambda name: -took[name])[:_COSTS]
        told = ", ".join(f"{name} {1000 * took[name]:.0f} ms" for name in largest)
        lines.append(f"{title}, largest costs on the clock, added up over guests: {told}\n")
    return "".join(lines) + "why they stay: doc/performance.md\n"


def svg(starts: Mapping[str, Spans]) -> str:
    """Where the time of each start goes, phase by phase: a bar for each phase, on one time axis."""
    parts, y = [], _TOP
    longest = max(end for spans in starts.values() for _, _, end in spans)
    scale = (_WIDTH - _LEFT - 90) / longest
    for title, spans in starts.items():
        parts.append(_text(10, y, title, weight="bold"))
        names = list(dict.fromkeys(name for name, _, _ in spans))
        for number, name in enumerate(names):
            y += _BAR
            own = [(begin, end) for each, begin, end in spans if each == name]
            parts.append(_text(10, y, name))
            parts += [_bar(begin, end, y, scale, _COLOURS[number % len(_COLOURS)]) for begin, end in own]
            label = f"{1000 * sum(end - begin for begin, end in own):.0f} ms"
            parts.append(_text(_LEFT + scale * max(end for _, end in own) + 6, y, label))
        y += 2 * _BAR
    parts += [_tick(milliseconds, y, scale) for milliseconds in range(0, int(1000 * longest) + 1, 100)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 20}" font-family="sans-serif" '
    return "\n".join([f'{head}font-size="13">', '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, *, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}">{escape(text)}</text>'


def _bar(begin: float, end: float, y: int, scale: float, colour: str) -> str:
    width = max(1.0, scale * (end - begin))
    x = _LEFT + scale * begin
    return f'<rect x="{x:.1f}" y="{y - 13}" width="{width:.1f}" height="16" fill="{colour}" fill-opacity="0.7"/>'


def _tick(milliseconds: int, bottom: int, scale: float) -> str:
    x = _LEFT + scale * milliseconds / 1000
    line = f'<line x1="{x:.1f}" y1="{_TOP - 10}" x2="{x:.1f}" y2="{bottom - 10}" stroke="#ddd"/>'
    return line + _text(x - 10, bottom + 5, f"{milliseconds} ms")


def _spread(seconds: Sequence[float]) -> tuple[str, str, str]:
    return f"{1000 * statistics.median(seconds):.1f}", f"{1000 * min(seconds):.1f}", f"{1000 * max(seconds):.1f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.2f}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(width) if number else cell.ljust(width)
                  for number, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)
