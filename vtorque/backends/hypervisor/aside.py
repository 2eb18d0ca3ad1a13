# SPDX-License-Identifier: Apache-2.0
"""The hypervisor of those who start guests and then wait for them long.

libvirt's binding brings 17 MiB of libraries along. While guests are started a child has them, which is let go
then; whether a guest runs is seen from its own process. What is left to do, its end, loads them here.
"""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vtorque import become, errors
from vtorque.backends.hypervisor import Domains, Usage
from vtorque.backends.hypervisor.pulse import Pulses
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, VtorqueError, known
from vtorque.proc import Identity
from vtorque.wakeups import Wakeup

_ROOT = Identity(uid=0, gid=0, groups=())
# The child keeps the deadline itself, and says what it could not do in time.
_MARGIN_SECONDS = 1.0


class Aside:
    """What `load` makes, in a child of ours until `rest`; without `child` here, when a verb needs it."""

    def __init__(self, load: Callable[[], Domains], *, child: bool, pulses: Pulses) -> None:
        self._load = load
        self._child = child
        self._pulses = pulses
        self._pid = 0
        self._orders: socket.socket | None = None
        self._here: Domains | None = None
        self._lock = threading.Lock()

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        """Start a transient domain."""
        self._do("create", domain_xml, deadline=deadline)

    def shutdown(self, name: str, *, deadline: Deadline) -> None:
        """Press the power button, once."""
        self._do("shutdown", name, deadline=deadline)

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        """Stop and forget the domain; whether there was one."""
        self._pulses.forget(name)
        return bool(self._do("destroy", name, deadline=deadline))

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        """Names of all domains with our tag, and the job each belongs to."""
        return dict(self._do("domains", deadline=deadline))

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        """Whether the guest's process is there; the hypervisor is asked where there is none to be seen."""
        beats = self._pulses.beats(name)
        return bool(self._do("is_running", name, deadline=deadline)) if beats is None else beats

    @contextlib.contextmanager
    def changes(self) -> Iterator[Wakeup]:
        """What tells when one of the guests has ended that were asked about."""
        yield self._pulses

    def usage(self, name: str, *, deadline: Deadline) -> Usage | None:
        """What the domain does and has used so far."""
        return self._itself().usage(name, deadline=deadline)

    def rest(self) -> None:
        """Let the child go. What it has begun libvirtd ends."""
        with self._lock:
            self._child = False
            orders, self._orders = self._orders, None
        if orders is not None:
            orders.close()
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def close(self) -> None:
        """Give everything back."""
        self.rest()
        self._pulses.close()
        if self._here is not None:
            self._here.close()

    def _do(self, verb: str, *words: str, deadline: Deadline) -> Any:
        orders = self._servant()
        if orders is not None:
            with contextlib.suppress(OSError, EOFError):
                return _ask(orders, verb, words, deadline)
        # Nobody answers there, or any more. Every verb may be repeated.
        return getattr(self._itself(), verb)(*words, deadline=deadline)

    def _servant(self) -> socket.socket | None:
        with self._lock:
            if self._child and self._orders is None:
                self._child = threading.active_count() == 1
                if self._child:
                    self._pid, self._orders = become.fork_as(_ROOT, self._serve)
            return self._orders

    def _itself(self) -> Domains:
        with self._lock:
            if self._here is None:
                self._here = self._load()
            return self._here

    def _serve(self, orders: socket.socket) -> None:
        domains = self._load()
        while handles := socket.recv_fds(orders, 1, 1)[1]:
            call = socket.socket(fileno=handles[0])
            threading.Thread(target=_answer, args=(domains, call), daemon=True).start()


def _ask(orders: socket.socket, verb: str, words: tuple[str, ...], deadline: Deadline) -> Any:
    """What the child answers to one order, which has a connection of its own; OSError or EOFError when it is gone."""
    seconds = deadline.require(f"libvirt: {verb}")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(orders, [b"\0"], [theirs.fileno()])
        ours.settimeout(seconds + _MARGIN_SECONDS)
        with ours.makefile("rwb") as stream:
            stream.write(json.dumps({"verb": verb, "words": words, "seconds": seconds}).encode() + b"\n")
            stream.flush()
            try:
                line = stream.readline()
            except TimeoutError:
                raise DeadlineExceeded(f"libvirt did not answer in time: {verb}") from None
    if not line:
        raise EOFError
    answer = json.loads(line)
    if answer["failed"]:
        raise getattr(errors, answer["failed"])(answer["brief"], details=answer["details"], hint=answer["hint"])
    return answer["found"]


def _answer(domains: Domains, call: socket.socket) -> None:
    # Who has asked may have given up meanwhile.
    with contextlib.suppress(OSError), call, call.makefile("rwb") as stream:
        order = json.loads(stream.readline())
        try:
            found = getattr(domains, order["verb"])(*order["words"], deadline=Deadline(order["seconds"]))
            answer = {"failed": "", "found": found}
        except Exception as error:  # noqa: BLE001
            answer = _failure(known(error))
        stream.write(json.dumps(answer).encode() + b"\n")


def _failure(error: VtorqueError) -> dict[str, str]:
    return {"failed": type(error).__name__, "brief": error.brief, "details": error.details, "hint": error.hint}
