# SPDX-License-Identifier: Apache-2.0
"""An object that lives in a child of ours, with its libraries and not with our rights, asked as if it were here."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection
from typing import Any, Protocol

from vtorque import become, errors, proc
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, InternalError, VtorqueError, known, printable
from vtorque.proc import Identity

ROOT = Identity(uid=0, gid=0, groups=())
NOBODY = Identity(uid=65534, gid=65534, groups=())

CAP_NET_ADMIN = 12
"""To set up networks: capabilities(7)."""

# The child keeps the deadline itself, and says what it could not do in time.
_MARGIN_SECONDS = 1.0
_LONGEST_ANSWER, _LONGEST_TEXT = 1 << 23, 4096


class Asked(Protocol):
    """Whoever does something for us, in a child."""

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any: ...

    def dismiss(self) -> None: ...


class Gone(Exception):
    """The child is not there any more."""


class Servant:
    """What `make` makes, in a child that has become `identity`, with the capabilities it `keeps`, or stays who we are.

    Arguments and results are what JSON can say; one descriptor may go along.
    Threads may ask at the same time. Of what the child says no more is believed than that it says so.
    When nobody asks it any more it does what its `finish` says, if there is one, and goes.
    """

    def __init__(
        self, name: str, make: Callable[[], object], *, identity: Identity | None, keeps: Collection[int] = ()
    ) -> None:
        self._name = name
        self._pid, self._orders = become.fork_as(identity, lambda orders: _serve(make, orders), keeps=keeps)

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any:
        """What `verb` returns there. Raises what it raises, if the program knows that; DeadlineExceeded, and Gone."""
        seconds = deadline.require(verb)
        try:
            line = self._exchange({"verb": verb, "words": words, "seconds": seconds}, handle, seconds + _MARGIN_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name} did not answer in time: {verb}") from None
        except OSError as error:
            raise Gone(str(error)) from error
        return _understood(line)

    @property
    def process(self) -> str:
        """The child, by its `proc.name`, which is nobody's when it has died."""
        return proc.name(self._pid) or f"{self._pid} died"

    def leave(self) -> None:
        """Ask no more: the child finishes what it has begun, and goes when it likes."""
        self._orders.close()
        # Whoever lives on meanwhile keeps no zombie.
        threading.Thread(target=_reap, args=(self._pid,), daemon=True).start()
        self._pid = 0

    def dismiss(self) -> None:
        """Let the child go, whatever it is doing."""
        self._orders.close()
        # Its number may be another child's the next time.
        pid, self._pid = self._pid, 0
        # Where SIGCHLD is ignored nobody waits for it, and its number may be somebody else's.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if pid and os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                _reap(pid)

    def _exchange(self, order: dict[str, object], handle: int | None, seconds: float) -> bytes:
        """One order has one connection, so that none waits for another."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self._orders, [b"\0"], [theirs.fileno(), *([] if handle is None else [handle])])
            ours.settimeout(seconds)
            ours.sendall(json.dumps(order).encode() + b"\n")
            with ours.makefile("rb") as answer:
                return answer.readline(_LONGEST_ANSWER)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _understood(line: bytes) -> Any:
    try:
        answer = json.loads(line)
        if not answer["failed"]:
            return answer["found"]
        kind = getattr(errors, str(answer["failed"]), None)
        texts = [printable(str(answer[name])[:_LONGEST_TEXT]) for name in ("brief", "hint")]
        details = str(answer["details"])[:_LONGEST_TEXT]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Gone("an answer that makes no sense") from None
    if not isinstance(kind, type) or not issubclass(kind, VtorqueError):
        kind = InternalError
    raise kind(texts[0], hint=texts[1], details=details)


def _serve(make: Callable[[], object], orders: socket.socket) -> None:
    # The log is root's, and not open here.
    logging.disable()
    served = make()
    while handles := socket.recv_fds(orders, 1, 2)[1]:
        threading.Thread(target=_obey, args=(served, *handles), daemon=True).start()
    if finish := getattr(served, "finish", None):
        finish()


def _obey(served: object, asker: int, *handles: int) -> None:
    # Who has asked may have given up meanwhile.
    with contextlib.suppress(OSError), socket.socket(fileno=asker) as call, call.makefile("rb") as orders:
        order = json.loads(orders.readline())
        named: dict[str, Any] = {"handle": handles[0]} if handles else {}
        try:
            found = getattr(served, order["verb"])(*order["words"], deadline=Deadline(order["seconds"]), **named)
            answer = json.dumps({"failed": "", "found": found})
        except Exception as error:  # noqa: BLE001
            trouble = known(error)
            answer = json.dumps({
                "failed": _kind(trouble), "brief": trouble.brief, "details": trouble.details, "hint": trouble.hint,
            })
        for handle in handles:
            os.close(handle)
        call.sendall(answer.encode() + b"\n")


def _kind(error: VtorqueError) -> str:
    """The nearest kind that everybody knows."""
    return next(each.__name__ for each in type(error).__mro__ if hasattr(errors, each.__name__))
