# SPDX-License-Identifier: Apache-2.0
"""A connection to rank 0's guest, kept for the job's wrapper by the child that talks to guests and is nobody.

The child outlives the hook for it, so it is in the ledger. It goes when the wrapper has taken the connection over.
"""

import logging
import socket

from vtorque.backends.transport import Prover
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.kinds import KEEPER
from vtorque.model import Guest, Resource
from vtorque.rootside import RootSide
from vtorque.state import CONNECTION, JobState

log = logging.getLogger(__name__)


def keep(guest: Guest, prover: Prover, *, root: RootSide, state: JobState, deadline: Deadline) -> None:
    """Have a connection to the guest kept for the job's user.

    Where it cannot be, the wrapper makes one of its own. GenerationClosed.
    """
    with state.taking(Resource(kind=KEEPER, name=prover.process), deadline=deadline):
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(state.path / CONNECTION))
                root.share(state.path / CONNECTION, deadline=deadline)
                listener.listen(1)
                prover.keep(guest.address, host_key=guest.host_key, listener=listener.fileno(), deadline=deadline)
        except (VtorqueError, OSError) as error:
            log.warning("no connection to guest %s is kept: %s", guest.vm.hostname, error)
