# SPDX-License-Identifier: Apache-2.0
"""The program's own side of its beginning: what it says to root, and whom root lets it ask."""

import json
import socket
from typing import Any, NamedTuple

from vtorque.config import SiteConfig
from vtorque.errors import InternalError, known
from vtorque.servant import Caller

_LONGEST, _MOST = 1 << 16, 8
_NAMES = {"network": "network", "speaker": "SSH", "planner": "planner"}


class Family(NamedTuple):
    """Whom the program has to ask: root, and others that are anybody else."""

    root: Caller
    network: Caller
    speaker: Caller | None
    planner: Caller | None
    clerk: socket.socket | None


def refuse(orders: socket.socket, error: Exception, *, seconds: float | None = None) -> None:
    """Say why there is nothing to begin with, and how long this hook may take all the same."""
    trouble = known(error)
    _say(orders, {"failed": trouble.brief, "hint": trouble.hint, "seconds": seconds})


def begin(orders: socket.socket, site: SiteConfig, *, seconds: float | None = None) -> Family:
    """Tell root of the configuration, and how long this may take; whom to ask. InternalError when root ends first."""
    _say(orders, {"failed": "", "site": vars(site), "seconds": seconds})
    word, handles, _, _ = socket.recv_fds(orders, _LONGEST, _MOST)
    if not word:
        raise InternalError("root has ended")
    told: dict[str, Any] = json.loads(word)
    sockets = dict(zip(told["asked"], (socket.socket(fileno=each) for each in handles), strict=True))
    callers = {
        name: Caller(_NAMES[name], each, process=told["processes"][name])
        for name, each in sockets.items() if name in _NAMES
    }
    return Family(
        root=Caller("root", orders), network=callers["network"], speaker=callers.get("speaker"),
        planner=callers.get("planner"), clerk=sockets.get("clerk"),
    )


def _say(orders: socket.socket, word: dict[str, object]) -> None:
    orders.sendall(json.dumps(word).encode() + b"\n")
