# SPDX-License-Identifier: Apache-2.0
"""An object that lives in a child of ours, with its libraries and not with our rights, asked as if it were here."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from vtorque import become, errors, proc
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, InternalError, VtorqueError, known, printable
from vtorque.proc import Identity

NOBODY = Identity(uid=65534, gid=65534, groups=())

CAP_NET_ADMIN = 12
"""To set up networks: capabilities(7)."""

# The child keeps the deadline itself, and says what it could not do in time.
_MARGIN_SECONDS = 1.0
_LONGEST_ANSWER, _LONGEST_TEXT = 1 << 23, 4096
# Other kinds are the program's own.
_SYSTEM = "OSError"
# What is said in place of a descriptor that comes along.
_HANDLE = "a descriptor"


class Asked(Protocol):
    """Whoever does something for us, in a child."""

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any: ...

    def dismiss(self) -> None: ...


class Gone(Exception):
    """The child is not there any more."""


class Handle(int):
    """A descriptor that a verb gives whoever has asked; it is closed here then."""


class Caller:
    """Whoever is at the other end of the socket `orders`, called `name` when he does not answer.

    Arguments and results are what JSON can say; a descriptor may go along, and one may come back.
    Threads may ask at the same time. Of what is answered no more is believed than that it is said.
    """

    def __init__(self, name: str, orders: socket.socket, *, process: str = "") -> None:
        self._name = name
        self.orders = orders
        self._process = process

    def ask(self, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any:
        """What `verb` returns there, or the descriptor that it hands over.

        Raises what it raises, if the program knows that; DeadlineExceeded, and Gone.
        """
        seconds = deadline.require(verb)
        try:
            order = {"verb": verb, "words": words, "seconds": seconds}
            line, given = self._exchange(order, [] if handle is None else [handle], seconds + _MARGIN_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name} did not answer in time: {verb}") from None
        except OSError as error:
            raise Gone(str(error)) from error
        with contextlib.ExitStack() as held:
            for each in given:
                held.callback(os.close, each)
            found = _understood(line)
            if given and found == _HANDLE:
                held.pop_all()
                return given[0]
        return found

    @property
    def process(self) -> str:
        """Who is asked, by his `proc.name`, where that was told."""
        return self._process

    def dismiss(self) -> None:
        """Ask no more."""
        self.orders.close()

    def _exchange(
        self, order: dict[str, object], handles: Sequence[int], seconds: float
    ) -> tuple[bytes, list[int]]:
        """One order has one connection, so that none waits for another."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self.orders, [b"\0"], [theirs.fileno(), *handles])
            ours.settimeout(seconds)
            ours.sendall(json.dumps(order).encode() + b"\n")
            line: bytes = b""
            with contextlib.ExitStack() as held:
                given: list[int] = []
                while not line.endswith(b"\n") and len(line) < _LONGEST_ANSWER:
                    most = min(1 << 16, _LONGEST_ANSWER - len(line))
                    part, more, _, _ = socket.recv_fds(ours, most, 1, socket.MSG_CMSG_CLOEXEC)
                    for each in more:
                        held.callback(os.close, each)
                    given += more
                    if not part:
                        break
                    line += part
                held.pop_all()
            return line, given


class Servant(Caller):
    """What `make` makes, in a child that has become `identity`, with the capabilities it `keeps`, or stays who we are.

    When nobody asks it any more it does what its `finish` says, if there is one, and goes.
    """

    def __init__(
        self, name: str, make: Callable[[], object], *, identity: Identity | None, keeps: Collection[int] = ()
    ) -> None:
        self._pid, orders = become.fork_as(identity, lambda orders: _serve(make, orders), keeps=keeps)
        super().__init__(name, orders)

    @property
    def process(self) -> str:
        """The child, by its `proc.name`, which is nobody's when it has died."""
        return proc.name(self._pid) or f"{self._pid} died"

    def dismiss(self) -> None:
        """Let the child go, whatever it is doing."""
        self.orders.close()
        # Its number may be another child's the next time.
        pid, self._pid = self._pid, 0
        # Where SIGCHLD is ignored nobody waits for it, and its number may be somebody else's.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if pid and os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _understood(line: bytes) -> Any:
    try:
        answer = json.loads(line)
        if not answer["failed"]:
            return answer["found"]
        if answer["failed"] == _SYSTEM:
            number, text, path = answer["found"]
            raise OSError(int(number), printable(str(text)), printable(str(path)) or None)
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
    serve(served, orders)
    if finish := getattr(served, "finish", None):
        finish()


def serve(served: object, orders: socket.socket) -> None:
    """Do what is asked for at the socket, each order in a thread of its own, until nobody asks any more."""
    while handles := socket.recv_fds(orders, 1, 2, socket.MSG_CMSG_CLOEXEC)[1]:
        threading.Thread(target=_obey, args=(served, *handles), daemon=True).start()


def _obey(served: object, asker: int, *handles: int) -> None:
    given: list[int] = []
    # Who has asked may have given up meanwhile, or make no sense.
    with contextlib.suppress(OSError), socket.socket(fileno=asker) as call, call.makefile("rb") as orders:
        try:
            found = _done(served, json.loads(orders.readline(_LONGEST_ANSWER)), handles)
            if isinstance(found, Handle):
                given, found = [found], _HANDLE
            answer = json.dumps({"failed": "", "found": found})
        except OSError as error:
            answer = json.dumps({"failed": _SYSTEM, "found": [error.errno or 0, error.strerror or "", _named(error)]})
        except Exception as error:  # noqa: BLE001
            trouble = known(error)
            answer = json.dumps({
                "failed": _kind(trouble), "brief": trouble.brief, "details": trouble.details, "hint": trouble.hint,
            })
        line = answer.encode() + b"\n"
        call.sendall(line[socket.send_fds(call, [line], given):])
    for handle in (*handles, *given):
        os.close(handle)


def _done(served: object, order: dict[str, Any], handles: Sequence[int]) -> object:
    verb = str(order["verb"])
    if verb.startswith("_"):
        raise InternalError(f"{verb[:80]!r} is not for others to ask for")
    named: dict[str, Any] = {"handle": handles[0]} if handles else {}
    return getattr(served, verb)(*order["words"], deadline=Deadline(order["seconds"]), **named)


def _named(error: OSError) -> str:
    return "" if error.filename is None else str(error.filename)


def _kind(error: VtorqueError) -> str:
    """The nearest kind that everybody knows."""
    return next(each.__name__ for each in type(error).__mro__ if hasattr(errors, each.__name__))
