# SPDX-License-Identifier: Apache-2.0
"""How far something is that takes a while, on standard error."""

import sys
import time
from collections.abc import Callable

_BAR, _UNKNOWN_STEP = 30, 256 << 20


def lines() -> Callable[[str], None]:
    """Lines with the seconds since the start."""
    start = time.monotonic()

    def show(text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - start:6.1f} s] {text}\n")
        sys.stderr.flush()

    return show


class Transfer:
    """How far a download is: a bar on a terminal, else a line for every tenth."""

    def __init__(self) -> None:
        self._bar, self._step = sys.stderr.isatty(), -1

    def __call__(self, done: int, total: int | None) -> None:
        """Show `done` of `total` bytes."""
        share, of = (done / total, f" of {total >> 20}") if total else (0.0, "")
        text = f"{share:4.0%}  {done >> 20}{of} MiB" if total else f"{done >> 20} MiB"
        if self._bar:
            sys.stderr.write(f"\r[{'#' * int(share * _BAR):<{_BAR}}] {text}\033[K" + "\n" * (done == total))
        elif (step := int(share * 10) if total else done // _UNKNOWN_STEP) != self._step:
            sys.stderr.write(f"{text}\n")
            self._step = step
        sys.stderr.flush()
