# SPDX-License-Identifier: Apache-2.0
"""Makes a process note which lines and branches of vtorque it runs.

The copy that `make coverage` tests executes this text when the package is imported, whoever does that and
with whatever environment, and at the start of the script that is not part of it.
"""

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any


def follow(settings: str) -> None:
    """Note from here on, as the file `settings` says, until this process ends or becomes another program."""
    sys.path.append("/usr/lib/python3/dist-packages")
    try:
        import coverage  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except (ImportError, FileNotFoundError):
        # It asks where it is at once: a process whose directory is gone is not seen.
        return
    finally:
        del sys.path[-1]
    if coverage.Coverage.current() is not None:
        return
    found = coverage.Coverage(config_file=settings)

    def save() -> None:
        # One that may write nothing is not seen.
        with contextlib.suppress(Exception):
            found.stop()
            found.save()

    def saving(leave: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(leave)
        def save_and_leave(*arguments: Any) -> Any:
            save()
            return leave(*arguments)

        return save_and_leave

    found.start()
    atexit.register(save)
    for name in ("_exit", "execv", "execve"):
        setattr(os, name, saving(getattr(os, name)))
