# SPDX-License-Identifier: Apache-2.0
"""End the jobs on a node that nobody else will end, and mend what somebody took from those that go on."""

import logging
from collections.abc import Iterator
from pathlib import Path

from vtorque import accounting, guardpost, guestnet, orphans, state, teardown
from vtorque.accounting import Start
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.node import Node

log = logging.getLogger(__name__)


def forgotten(node: Node) -> Iterator[str]:
    """Keys of the jobs that have left something here, that mom no longer knows, and that nobody guards.

    Each is looked at when it is asked for: to tear one down takes time, in which others come back.
    """
    root = Path(node.site.state_dir)
    keys = {*state.jobs(root), *orphans.keys(node)}
    return (key for key in sorted(keys) if not node.knows(key) and not guardpost.is_taken(root, key))


def sweep(node: Node, *, deadline: Deadline, thorough: bool = False) -> list[str]:
    """Tear down the jobs that nobody will send an epilogue for; the keys of those that are gone.

    Rules of other jobs that somebody has flushed come back; with `thorough` also those that were changed.
    """
    swept = []
    try:
        tables = guestnet.adopt(node, deadline=deadline)
        guestnet.mend(node, seen=tables, thorough=thorough, deadline=deadline)
    except (VtorqueError, OSError):
        log.exception("the network rules of jobs could not be looked at")
    orphans.forget_old(node)
    for key in forgotten(node):
        log.warning("job %s is forgotten by mom, tearing it down", key)
        record = node.state(key)
        record.bound = record.generation
        start = accounting.start(record.path, otherwise=Start(key, "", node.journal.begun))
        try:
            orphans.adopt(key, node, deadline=deadline)
            teardown.release(record, node, deadline=deadline)
            node.journal.note("swept", start=start)
            swept.append(key)
        except (VtorqueError, OSError):
            log.exception("job %s could not be torn down", key)
    return swept
