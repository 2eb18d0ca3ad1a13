# SPDX-License-Identifier: Apache-2.0
"""Numbers as people write them, and back: sizes, durations, CPU lists."""

import re
from collections.abc import Iterable

_SIZE = re.compile(r"([0-9]{1,12})\s*(?:([KMGT])(?:I?B)?)?", re.ASCII | re.IGNORECASE)
_SHOWN = 40
_KIB = {"K": 1, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}
_DURATION = r"(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,9})"


def mebibytes(text: str) -> int:
    """MiB from `15G`, `512M`, `2048` (plain MiB, as the manual's RAM options) or `1048576K`.

    Rounds up to a whole MiB. Raises ValueError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:_SHOWN]!r} is not a size: digits, then K, M, G or T")
    kib = int(match[1]) * _KIB[(match[2] or "M").upper()]
    return -(-kib // 1024)


def size(mib: int) -> str:
    """The shortest exact spelling of a number of MiB: `8G`, `1536M`."""
    return f"{mib // 1024}G" if mib and mib % 1024 == 0 else f"{mib}M"


def seconds(text: str) -> int:
    """Seconds from `[[HH:]MM:]SS`, Torque's spelling of a time. Raises ValueError."""
    match = re.fullmatch(_DURATION, text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{text[:_SHOWN]!r} is not a time: [[HH:]MM:]SS")
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + int(match[3])


def duration(total: int) -> str:
    """`HH:MM:SS`, the spelling Torque itself uses."""
    return f"{total // 3600:02d}:{total // 60 % 60:02d}:{total % 60:02d}"


def cpu_list(text: str) -> tuple[int, ...]:
    """CPU numbers from the kernel's list format, `2-5,8`. Raises ValueError."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise ValueError(f"{text[:_SHOWN]!r} is not a list of CPUs: like 2-5,8")
        cpus.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(set(cpus)))


def cpu_sequence(text: str) -> tuple[int, ...]:
    """CPU numbers in the order given, `4,0-2` is 4, 0, 1, 2. Raises ValueError."""
    return tuple(cpu for part in text.split(",") for cpu in cpu_list(part))


def cpu_list_text(cpus: Iterable[int]) -> str:
    """The kernel's list format of CPU numbers: `2-5,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
