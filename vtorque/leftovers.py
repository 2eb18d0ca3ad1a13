# SPDX-License-Identifier: Apache-2.0
"""What is left in a user's home of jobs that no epilogue came for, removed a little at a time."""

import contextlib
import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path

from vtorque import proc, submit
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError

_OLD_SECONDS = 86400.0
_MOST_LOOKED_AT = 64
_QSTAT_SECONDS = 5.0


def tidy(home: Path, *, qstat: str, env: Mapping[str, str]) -> None:
    """Ask about one job whose directory is older than a day, and remove it when that is over.

    It costs a look at a few directories, and one question at most: what was
    asked about is not asked about again for a day. Whatever fails is left
    for another time, or for `vmgr sweep`.
    """
    with contextlib.suppress(OSError, VtorqueError):
        _tidy(home / ".vtorque", qstat, env)


def _tidy(jobs: Path, qstat: str, env: Mapping[str, str]) -> None:
    with os.scandir(jobs) as entries:
        known = (Path(entry) for entry in entries if entry.is_symlink())
        links = list(itertools.islice(known, _MOST_LOOKED_AT))
    long_ago = time.time() - _OLD_SECONDS
    for link in links:
        directory = jobs / link.readlink()
        if directory.parent != jobs or not directory.is_dir() or directory.stat().st_mtime > long_ago:
            continue
        os.utime(directory)
        _ask(directory, link.name, qstat, env)
        return


def _ask(directory: Path, job: str, qstat: str, env: Mapping[str, str]) -> None:
    from vtorque import follow  # not every submission finds one that old

    answer = proc.run([qstat, "-f", job], deadline=Deadline(_QSTAT_SECONDS), env=env, statuses=(0, *follow.GONE))
    if answer.status in follow.GONE or follow.says_over(answer.stdout):
        submit.remove(directory, job)
