# SPDX-License-Identifier: Apache-2.0
"""Where the time of a guest's boot goes: what root saw from outside, and what a job in the guest reads there.

What the guest tells is its own word: a measurement of an image, and proof of nothing.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

HOST, GUEST = "host", "guest"
"""Who says when something was."""

SCRIPT = b"""\
#!/bin/sh
# Tells when the parts of this guest's boot were. systemd answers no user without D-Bus, which a lean image
# does not have: the times are those of what systemd, cloud-init, sshd and vtorque leave below /run.
LC_ALL=C
export LC_ALL
say() {
    printf 'vtorque-boot %s\\n' "$*"
}
read -r uptime rest </proc/uptime
now=$(date +%s.%N)
say uptime "$uptime"
say now "$now"
say userspace "$(stat -c %.9W /run/systemd/system 2>&1)"
say set-up-began "$(stat -c %.9W /run/vtorque 2>&1)"
say set-up-ended "$(stat -c %.9Y /run/vtorque/status 2>&1)"
say sshd "$(stat -c %.9Y /run/sshd.pid 2>&1)"
[ ! -r /run/cloud-init/status.json ] || say cloud-init "$(tr -d '\\n' </run/cloud-init/status.json)"
exit 0
"""
"""The job: a fact a line, wall-clock times in seconds; what is not there, or no tool can tell, is no number."""

_FACT = re.compile(r"^vtorque-boot ([a-z-]{1,20}) (.{1,8192})$", re.ASCII | re.MULTILINE)
_NUMBER = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?", re.ASCII)
_FIRST = "planned"
_STAGES = {"init-local": "local", "init": "network", "modules-config": "config", "modules-final": "final"}


class Span(NamedTuple):
    """A part of a boot, in seconds since the guest was started, and whose word that is."""

    name: str
    began: float
    ended: float
    word: str

    @property
    def took(self) -> float:
        """Seconds; nothing when it was a moment."""
        return self.ended - self.began


def facts(output: str) -> dict[str, float]:
    """What SCRIPT said, as seconds since the guest's kernel began; `uptime` is when it was asked.

    Whatever is no sensible number was not said; without an uptime and a clock nothing was.
    """
    said = dict(_FACT.findall(output))
    numbers = {name: float(text) for name, text in said.items() if _NUMBER.fullmatch(text)}
    if not {"uptime", "now"} <= set(numbers):
        return {}
    uptime, began = numbers["uptime"], numbers.pop("now") - numbers["uptime"]
    found = {name: number - began for name, number in numbers.items() if name != "uptime"}
    for name, (start, end) in _stages(said.get("cloud-init", "")).items():
        found |= {f"{name}-began": start - began, f"{name}-ended": end - began}
    # A clock that was set in between has made nonsense of what is before or after.
    return {name: at for name, at in found.items() if 0 <= at <= uptime} | {"uptime": uptime}


def phases(data: bytes) -> dict[str, float]:
    """When the job reached each phase in its last start, by the host's clock, from the record in its directory."""
    found: dict[str, float] = {}
    for line in data.splitlines():
        try:
            entry = json.loads(line)
            phase, at = str(entry["phase"]), float(entry["time"])
        except (ValueError, KeyError, TypeError):
            continue
        if phase == _FIRST:
            found.clear()
        found[phase] = at
    return found


def spans(host: Mapping[str, float], guest: Mapping[str, float]) -> list[Span]:
    """The parts of one boot, as far as both of their ends are known, in the order in which they began.

    The guest's clock is set beside the host's by the one event that both note: its script begins.
    """
    start = host.get("started")
    if start is None:
        return []
    at = {name: seconds - start for name, seconds in host.items()}
    if guest and "running" in at:
        kernel = max(0.0, at["running"] - guest["uptime"])
        at |= {f"guest {name}": kernel + seconds for name, seconds in guest.items()} | {"guest": kernel}
    parts = [
        ("firmware", "started", "guest", GUEST), ("kernel", "guest", "guest userspace", GUEST),
        ("userspace", "guest userspace", "guest sshd", GUEST),
        *((f"cloud-init {name}", f"guest {name}-began", f"guest {name}-ended", GUEST) for name in _STAGES.values()),
        ("mounts", "guest set-up-began", "guest set-up-ended", GUEST), ("sshd listens", *2 * ("guest sshd",), GUEST),
        ("first packet", *2 * ("first-packet",), HOST), ("announced", *2 * ("announced",), GUEST),
        ("SSH", *2 * ("ssh",), HOST), ("set up", *2 * ("cloud-init",), GUEST), ("boot", "started", "ready", HOST),
        ("hand-over", "ready", "running", HOST),
    ]
    found = [Span(name, at[began], at[ended], word) for name, began, ended, word in parts if {began, ended} <= set(at)]
    return sorted(found, key=lambda span: span.began)


def medians(boots: Iterable[Sequence[Span]]) -> list[Span]:
    """Of each part the median begin and the median length; a part counts where it was seen."""
    seen: dict[tuple[str, str], list[Span]] = {}
    for span in (span for boot in boots for span in boot):
        seen.setdefault((span.name, span.word), []).append(span)
    found = []
    for (name, word), every in seen.items():
        began = statistics.median(span.began for span in every)
        found.append(Span(name, began, began + statistics.median(span.took for span in every), word))
    return sorted(found, key=lambda span: span.began)


def table(found: Iterable[Span]) -> str:
    """The parts to read, in seconds."""
    text = f"{'PHASE':<20}{'BEGAN':>10}{'TOOK':>12}  SAYS\n"
    for span in found:
        took = f"{span.took:.3f} s" if span.took else "-"
        text += f"{span.name:<20}{span.began:>8.3f} s{took:>12}  {span.word}\n"
    return text


def _stages(text: str) -> dict[str, tuple[float, float]]:
    """When each stage of cloud-init began and ended (cloudinit/cmd/main.py, status_wrapper), as far as it has."""
    found = {}
    try:
        for key, name in _STAGES.items():
            stage = json.loads(text)["v1"][key]
            times = stage["start"], stage["finished"]
            if all(isinstance(each, int | float) and math.isfinite(each) for each in times):
                found[name] = times
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return found
