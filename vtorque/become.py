# SPDX-License-Identifier: Apache-2.0
"""A child of root's that has become somebody else, for good."""

import ctypes
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Collection
from typing import Any

from vtorque.proc import Identity

# linux/prctl.h, and linux/capability.h: version 3 has 64 bits of each set, in two parts.
_PR_SET_DUMPABLE = 4
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 38, 47, 2
_CAPABILITIES, _VERSION_3 = struct.Struct("=6I"), struct.Struct("=Ii").pack(0x20080522, 0)


def fork_as(
    identity: Identity | None, serve: Callable[[socket.socket], int | None], *, keeps: Collection[int] = (),
    dies_with_us: bool = False,
) -> tuple[int, socket.socket]:
    """Fork a child that has become `identity` for good, and runs `serve` on its end of a socket pair.

    Of root's capabilities it and what it starts have those that it `keeps`, by their numbers, which are below 32.
    With no identity it stays who it is. Call it before the first thread is started. The child is in a session of its
    own, holds nothing open but 0 to 2 and the socket, and ends with `serve`, whose status is its own.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        os.setsid()
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _become(identity, keeps)
        if dies_with_us:
            _die_with(parent)
        status = serve(theirs) or 0
    finally:
        # Nothing of the parent may run here: no atexit, no flushing of its buffers.
        os._exit(status)


def _die_with(parent: int) -> None:
    """Whoever kills the parent kills us; to become somebody takes that back, so it comes after that (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _become(identity: Identity | None, keeps: Collection[int]) -> None:
    libc = ctypes.CDLL(None)
    if identity is not None:
        if keeps:
            libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
            raise PermissionError("the ids were not dropped")
        if keeps:
            _keep(keeps, libc)
        # Whatever fs.suid_dumpable says: others of the same account are not to look at what root has left in memory.
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PermissionError("no_new_privs was refused")
    # Nor may what it has in memory of its parent's end in a file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.chdir("/")


def _keep(capabilities: Collection[int], libc: Any) -> None:
    """Have these capabilities, as far as root has them, and no others, and hand them down to what is executed."""
    # The kernel may write into both.
    version, held = ctypes.create_string_buffer(_VERSION_3), ctypes.create_string_buffer(_CAPABILITIES.size)
    libc.capget(version, held)
    kept = _CAPABILITIES.unpack(held.raw)[1] & sum(1 << each for each in capabilities)
    if libc.capset(version, _CAPABILITIES.pack(kept, kept, kept, 0, 0, 0)) or any(
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, each, 0, 0) for each in capabilities if kept >> each & 1
    ):
        raise PermissionError("the capabilities were not dropped")
