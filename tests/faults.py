# SPDX-License-Identifier: Apache-2.0
"""Faults at the N-th effect: what runs is forked from a process that has all imported, and counts what it does.

An effect is a call that changes something outside of the process. Killed before
the N-th one for N = 1, 2, … until nothing is hit any more, it has died after
every effect it has. What it forks, root's program and whoever else is asked for something, is counted
with it: of them the one dies, or fails, whose effect it is. Costs milliseconds a point; with strace, which sees
everything and needs no counting, `make soak` does the same to the real hooks.
"""

import ctypes
import errno
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtorque import proc

KILL = "kill"
FULL = "full"
"""From the N-th effect on there is no room: the first write is short, what comes then fails with ENOSPC."""

BESIDE = "beside"
"""Before the effect something else is done in another process, as far as it gets; then both go on."""

KINDS = (KILL, "ENOSPC", "EIO", "EACCES", FULL)

_EFFECTS = (
    "open", "write", "pwrite", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod", "fchmod", "fchown",
    "chown", "truncate", "link", "symlink", "kill", "fork",
)
_NEED_ROOM = ("open", "write", "pwrite", "mkdir", "rename", "truncate", "link", "symlink")
_POSSIBLE = {
    "ENOSPC": (*_NEED_ROOM, "fsync"),
    "EIO": ("open", "write", "pwrite", "fsync", "rename", "unlink", "rmdir", "mkdir", "chmod", "fchmod", "truncate"),
    "EACCES": ("open", "rename", "unlink", "rmdir", "mkdir", "chmod", "fchmod", "fchown", "chown", "kill", "fork"),
}
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_SECONDS = 20.0
_COUNTING_SECONDS = 2.0
_MEANWHILE_SECONDS = 0.06


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`kind` (one of KINDS) at effect `number`, from 1; 0 is none."""

    kind: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it ended: its exit status, or minus the signal; what it said; how many effects it had, 0 if it was killed."""

    status: int
    said: str
    effects: int


class _Injector:
    """Stands before the functions of `os` by which Python changes the world, here and in what is forked here."""

    def __init__(self, fault: Fault, meanwhile: Callable[[], object]) -> None:
        self._fault = fault
        self._meanwhile = meanwhile
        self._fork = os.fork
        self._kill = os.kill
        self._counts = True
        # Neither is a descriptor, which whoever is forked here closes.
        self._lock = multiprocessing.get_context("fork").Lock()
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def count(self) -> int:
        """The effects there were until now, in all processes together."""
        return int.from_bytes(self._shared[:8], sys.byteorder)

    def arm(self) -> None:
        for name in _EFFECTS:
            setattr(os, name, self._before(name, getattr(os, name)))
        proc.spawn = self._before("fork", proc.spawn)

    def _before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            if self._counts and (name != "open" or words[1] & os.O_CREAT):
                words = self._strike(name, words)
            return real(*words, **named)

        return call

    def _strike(self, name: str, words: tuple[Any, ...]) -> tuple[Any, ...]:
        """The call's arguments, changed if it is to do less; it raises what it is to fail with."""
        number = self._next()
        kind = self._fault.kind
        if kind == FULL and 0 < self._fault.number <= number and name in _NEED_ROOM and name != "rename":
            if number == self._fault.number and name == "write" and len(words[1]) > 1:
                return (words[0], bytes(words[1])[: len(words[1]) // 2])
            raise _error("ENOSPC", words)
        if number == self._fault.number:
            if kind == KILL:
                self._kill(os.getpid(), signal.SIGKILL)
            elif kind == BESIDE:
                self._do_meanwhile()
            elif name in _POSSIBLE.get(kind, ()):
                raise _error(kind, words)
        return words

    def _next(self) -> int:
        # A thread of a process that has died here gives it back no more.
        held = self._lock.acquire(timeout=_COUNTING_SECONDS)
        number = self.count + 1
        self._shared[:8] = number.to_bytes(8, sys.byteorder)
        if held:
            self._lock.release()
        return number

    def _do_meanwhile(self) -> None:
        pid = self._fork()
        if pid == 0:
            self._counts = False
            try:
                # A lock belongs to whoever has its descriptor: what is beside us is no child of ours.
                os.closerange(3, 1024)
                self._meanwhile()
            finally:
                os._exit(0)
        # It may wait for us, for something that we hold.
        until = time.monotonic() + _MEANWHILE_SECONDS
        while time.monotonic() < until and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.002)


def _error(name: str, words: tuple[Any, ...]) -> OSError:
    code = getattr(errno, name)
    # Of a descriptor the kernel's callers are not told the name.
    return OSError(code, os.strerror(code), *(words[:1] if words and not isinstance(words[0], int) else ()))


def adopt_orphans() -> None:
    """What a killed child leaves running becomes ours to wait for, and to notice."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def under(
    fault: Fault, work: Callable[[], int], *, said: Path, meanwhile: Callable[[], object] = lambda: None
) -> Outcome:
    """Do `work` in a child that meets the fault; `work` returns its exit status. `said` is a file for its words.
    `meanwhile` is what BESIDE does.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(words, 1)
            os.dup2(words, 2)
            os.close(words)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            report, answer = os.write, b""
            injector = _Injector(fault, meanwhile)
            injector.arm()
            status = work()
            answer = str(injector.count).encode()
            sys.stderr.flush()
            report(theirs, answer)
        finally:
            os._exit(status)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        _, ended = os.waitpid(pid, 0)
        effects = int(pipe.read() or 0)
    return Outcome(status=os.waitstatus_to_exitcode(ended), said=said.read_text(), effects=effects)


def orphans() -> list[str]:
    """What is still running of those that were left, after a while; with `adopt_orphans` only."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
        except ChildProcessError:
            return []
    return list(_children())


def _children() -> Iterator[str]:
    for entry in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        yield f"process {entry}: {Path('/proc', entry, 'cmdline').read_bytes()!r}"
