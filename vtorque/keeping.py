# SPDX-License-Identifier: Apache-2.0
"""A connection to rank 0's guest, kept for the job's wrapper by the child that talks to guests and is nobody.

The child outlives the hook for it, so it is in the ledger. It goes when the wrapper has taken the connection over.
"""

import contextlib
import logging
import os
import signal

from vtorque import proc, serving
from vtorque.backends.transport import Prover
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.model import Guest, Resource
from vtorque.servant import NOBODY
from vtorque.state import CONNECTION, JobState

log = logging.getLogger(__name__)

KEEPER = "keeper"
"""The kind of such a process in the ledger; its name is that of `proc.name`."""

_DYING_SECONDS = 5.0


def keep(guest: Guest, prover: Prover, *, uid: int, state: JobState, deadline: Deadline) -> None:
    """Have a connection to the guest kept for processes of `uid`.

    Where it cannot be, the wrapper makes one of its own. GenerationClosed.
    """
    with state.taking(Resource(kind=KEEPER, name=prover.process), deadline=deadline):
        try:
            with serving.listening(state.path / CONNECTION, uid, NOBODY.uid) as listener:
                prover.keep(guest.address, host_key=guest.host_key, listener=listener.fileno(), deadline=deadline)
        except (VtorqueError, OSError) as error:
            log.warning("no connection to guest %s is kept: %s", guest.vm.hostname, error)


def end(name: str, *, deadline: Deadline) -> None:
    """End the process; DeadlineExceeded."""
    pid = int(name.partition(" ")[0])
    for _ in deadline.within(_DYING_SECONDS).ticks(doing=f"ending process {pid}"):
        if proc.name(pid) != name:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
