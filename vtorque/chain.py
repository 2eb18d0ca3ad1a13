# SPDX-License-Identifier: Apache-2.0
"""The site's own hook, `<hook>.orig` beside ours, run as if it were the only one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import StateError


def original(hook: Path) -> Path | None:
    """The hook that ours was put in place of, when there is one: a link that dangles is none to mom (prolog.c:413-464).

    Raises StateError when it cannot be run, for which mom would fail every job (prolog.c:488-539).
    """
    path = hook.with_name(f"{hook.name}.orig")
    if not path.exists():
        return None
    if not path.is_file() or not os.access(path, os.X_OK):
        raise StateError(f"{path} is not executable", hint=f"chmod 755 {path}")
    return path


def run(
    path: Path,
    arguments: Sequence[str],
    *,
    environ: Mapping[str, str],
    directory: Path,
    umask: int,
    deadline: Deadline,
) -> int:
    """Run a site's hook with exactly what mom gave ours; its exit status, minus the signal that killed it.

    Descriptors 0 to 2 and the session are mom's, so that her alarm reaches it
    too. Raises DeadlineExceeded, after killing it, when it does not end in time.
    """
    child = proc.spawn(
        (str(path), *arguments),
        stdin=0, stdout=1, stderr=2, env=environ, cwd=directory, umask=umask, session=False,
    )
    return proc.wait_in_group(child, deadline=deadline)
