# SPDX-License-Identifier: Apache-2.0
"""What OpenPBS's hook (contrib/openpbs) starts for one event: a job on standard input, a verdict on standard output."""

import json
import logging
import socket
import sys
import time
from functools import partial

from vtorque import logs
from vtorque.cli import pelog
from vtorque.errors import InternalError, StateError, VtorqueError

log = logging.getLogger(__name__)

_LIMIT = 1 << 16


def main() -> int:
    """One event; always 0, because the verdict is what is printed."""
    started = time.monotonic()
    pelog.be_orderly()
    logs.setup(None)
    try:
        _run(sys.stdin.buffer.read(_LIMIT), started)
    except Exception as error:  # noqa: BLE001
        # A requeue that is not counted would go on until the server holds the job: the
        # wrapper finds no ready marker, and ends it.
        tell("accept", error)
    return 0


def _run(text: bytes, started: float) -> None:
    """Have the program tell its verdict; InternalError when it has ended before."""
    from vtorque.cli import rooted

    try:
        event = json.loads(text)
        starts = event["event"] == "execjob_begin"
        job = (str(event["job"]["id"]), str(event["job"]["user"])) if "job" in event else None
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"the hook said nothing that this version understands: {error!r}") from None
    program = rooted.Program(partial(_program, text, started), step=str(event["event"]))
    if status := program.run(rooted.Wanted(starts=starts), job=job, launch=pelog.launch):
        raise InternalError(f"the program ended with status {status}")


def _program(text: bytes, started: float, orders: socket.socket) -> int:
    """Where another account's life begins."""
    from vtorque.cli import pbsverbs

    return pbsverbs.main(text, started, orders)


def tell(word: str, error: Exception | None = None) -> None:
    """Print a verdict."""
    print(json.dumps(answer(word, error)), flush=True)


def answer(word: str, error: Exception | None = None) -> dict[str, str]:
    """A verdict, and why, which is also said where mom's own hook may see it."""
    said = ""
    if error is not None:
        said = error.one_line() if isinstance(error, VtorqueError) else f"internal error: {error!r}"
        log.error("%s", said, exc_info=error)
        pelog.say(said)
    return {"verdict": word, "message": said}
