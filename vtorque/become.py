# SPDX-License-Identifier: Apache-2.0
"""A child of root's that has become somebody else, for good."""

import ctypes
import os
import resource
import socket
from collections.abc import Callable

from vtorque.proc import Identity

_PR_SET_NO_NEW_PRIVS = 38


def fork_as(identity: Identity | None, serve: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Fork a child that has become `identity` for good, and runs `serve` on its end of a socket pair.

    With no identity it stays who it is. Call it before the first thread is started. The child is in a session of its
    own, holds nothing open but 0 to 2 and the socket, and ends with `serve`.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        os.setsid()
        keep = theirs.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        _become(identity)
        serve(theirs)
        status = 0
    finally:
        # Nothing of the parent may run here: no atexit, no flushing of its buffers.
        os._exit(status)


def _become(identity: Identity | None) -> None:
    if identity is not None:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
            raise PermissionError("the ids were not dropped")
    if ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PermissionError("no_new_privs was refused")
    # Nor may what it has in memory of its parent's end in a file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.chdir("/")
