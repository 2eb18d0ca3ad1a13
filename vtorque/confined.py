# SPDX-License-Identifier: Apache-2.0
"""Look at what nobody has vouched for in a child without rights: what it reads is its standard input, open already."""

import contextlib
import os
import select
import sys
from pathlib import Path
from typing import NamedTuple

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded

_SETPRIV, _PRLIMIT = "/usr/bin/setpriv", "/usr/bin/prlimit"
_NOBODY = 65534
# Limits come last: that of processes counts those of the user one becomes.
_POWERLESS = ("--no-new-privs", "--inh-caps=-all")
_NOBODYS = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--bounding-set=-all")
_OPEN_FILES = 16
_IMAGE = Path(__file__).with_name("imageformat.py")


class Limits(NamedTuple):
    """What a child may take: CPU time in seconds, memory in MiB, and the length of its answer in bytes."""

    cpu_seconds: int
    memory_mib: int
    answer: int


_IMAGE_LIMITS = Limits(cpu_seconds=2, memory_mib=256, answer=256)


def powerless() -> tuple[str, ...]:
    """What a command is begun with that is to have no capability and get none; where root begins it, as nobody."""
    return (_SETPRIV, *_POWERLESS, *(_NOBODYS if os.geteuid() == 0 else ()), "--")


def look_at_image(handle: int, *, deadline: Deadline) -> bytes:
    """What imageformat.py says of the image behind `handle`. CommandError, DeadlineExceeded."""
    return run(_IMAGE, handle=handle, limits=_IMAGE_LIMITS, deadline=deadline)


def run(script: Path, *, handle: int, limits: Limits, deadline: Deadline) -> bytes:
    """What `script` says of the file behind `handle`. Root becomes nobody for it; anybody else stays who he is.

    The child has no environment, no capability and can get none, writes no file and starts
    no process. Raises CommandError when it fails or says too much, and DeadlineExceeded.
    """
    rights = powerless()
    caps = (
        f"--cpu={limits.cpu_seconds}", f"--as={limits.memory_mib << 20}", f"--nofile={_OPEN_FILES}", "--fsize=0",
        "--nproc=0", "--core=0",
    )
    argv = [*rights, _PRLIMIT, *caps, "--", sys.executable, "-I", "-S", str(script)]
    child = proc.spawn(argv, stdin=handle, stdout=proc.PIPE, stderr=proc.DEVNULL, env={}, cwd=Path("/"))
    assert child.stdout is not None
    try:
        with child.stdout:
            answer = _read(child.stdout.fileno(), limits.answer, deadline)
        status = proc.wait_in_group(child, deadline=deadline)
    except DeadlineExceeded:
        raise DeadlineExceeded(f"{script.stem} did not answer in time") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        proc.reap(child)
    if status:
        how = f"was killed by signal {-status}" if status < 0 else f"failed with exit status {status}"
        raise CommandError(f"{script.stem} {how}")
    return answer


def _read(pipe: int, limit: int, deadline: Deadline) -> bytes:
    answer = b""
    while True:
        if not select.select([pipe], [], [], deadline.remaining)[0]:
            raise DeadlineExceeded("no answer")
        part = os.read(pipe, limit + 1 - len(answer))
        answer += part
        if len(answer) > limit:
            raise CommandError(f"an answer of more than {limit} bytes")
        if not part:
            return answer
