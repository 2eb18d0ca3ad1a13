# SPDX-License-Identifier: Apache-2.0
"""The hypervisor of those who start guests and then wait for them long.

libvirt's binding brings 17 MiB of libraries along. While guests are started a child has them, which is let go
then; whether a guest runs is seen from its own process. What is left to do, its end, loads them here.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vtorque import servant
from vtorque.backends.hypervisor import Domains
from vtorque.backends.hypervisor.pulse import Pulses
from vtorque.deadline import Deadline
from vtorque.servant import Servant
from vtorque.wakeups import Wakeup


class Aside:
    """What `load` makes, in a child of ours until `rest`; without `child` here, when a verb needs it.

    The child is forked at once: later there may be threads.
    """

    def __init__(self, load: Callable[[], Domains], *, child: bool, pulses: Pulses) -> None:
        self._load = load
        self._pulses = pulses
        self._servant = Servant("libvirt", load, identity=servant.ROOT) if child else None
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

    def rest(self) -> None:
        """Let the child go. What it has begun libvirtd ends."""
        gone, self._servant = self._servant, None
        if gone is not None:
            gone.dismiss()

    def close(self) -> None:
        """Give everything back."""
        self.rest()
        self._pulses.close()
        if self._here is not None:
            self._here.close()

    def _do(self, verb: str, *words: str, deadline: Deadline) -> Any:
        if (asked := self._servant) is not None:
            with contextlib.suppress(servant.Gone):
                return asked.ask(verb, *words, deadline=deadline)
        # Nobody answers there, or any more. Every verb may be repeated.
        return getattr(self._itself(), verb)(*words, deadline=deadline)

    def _itself(self) -> Domains:
        with self._lock:
            if self._here is None:
                self._here = self._load()
            return self._here
