# SPDX-License-Identifier: Apache-2.0
"""A command in the user's own place: his terminal, his signals, his environment. Root starts none like this."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vtorque.errors import CommandError
from vtorque.files import write_all
from vtorque.proc import Child


class Called(NamedTuple):
    """How a command ended, what it printed, and why that could not be passed on if so."""

    status: int
    printed: bytes
    untold: str = ""


def call(argv: Sequence[str], *, env: Mapping[str, str]) -> tuple[int, bytes]:
    """Run a command in the user's own place, terminal and signals included; its status and what it printed.

    Everything but its standard output is ours. A status of 128 and more stands for a signal.
    """
    try:
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=False)
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}") from error
    return done.returncode if done.returncode >= 0 else 128 - done.returncode, done.stdout


def call_through(
    argv: Sequence[str], *, env: Mapping[str, str], terminal: bool, shown: Callable[[bytes], bytes] | None = None
) -> Called:
    """Run a command in the user's own place, and pass its output on as it comes.

    Output that nobody takes does not end it: it has something to do besides.
    `shown` makes of a piece of output what is to be seen of it. With `terminal`
    its standard output is ours, and nothing of it is seen. What would end us is
    left to the command, so that somebody is there to clean up after it: a
    terminal's Ctrl-C reaches it anyway, TERM and HUP are passed on.
    """
    printed, untold = b"", ""
    with _signals_passed_on() as pass_on_to:
        try:
            child = subprocess.Popen(argv, env=env, stdout=None if terminal else subprocess.PIPE)
        except OSError as error:
            raise CommandError(f"cannot run {argv[0]}: {error.strerror}") from error
        pass_on_to(child)
        if child.stdout is not None:
            with child.stdout:
                while data := os.read(child.stdout.fileno(), 1 << 16):
                    printed += data
                    try:
                        write_all(1, shown(data) if shown else data)
                    except OSError as error:
                        untold = error.strerror or str(error)
        status = child.wait()
    return Called(status if status >= 0 else 128 - status, printed, untold)


@contextlib.contextmanager
def _signals_passed_on() -> Iterator[Callable[[Child], None]]:
    """What would end us goes to the command that is told of, also when it came before there was one."""
    child: Child | None = None
    early: list[int] = []

    def hear(number: int, frame: object) -> None:
        if child is None:
            early.append(number)
        elif number != signal.SIGINT:
            child.send_signal(number)

    def pass_on_to(started: Child) -> None:
        nonlocal child
        child = started
        for number in early:
            child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    # What is ignored, as in the background, the command has to ignore, too.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield pass_on_to
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
