# SPDX-License-Identifier: Apache-2.0
"""The X display of a job that was submitted with -X: where it is, and the cookie that opens it."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, RequestError, VtorqueError

# `host:10.0`, `:0`, `unix:0`; X(7), DISPLAY NAMES.
_NAME = re.compile(r"(?:unix|([A-Za-z0-9][A-Za-z0-9.-]{0,252}))?:([0-9]{1,5})(?:\.([0-9]{1,3}))?", re.ASCII)
_FIRST_PORT = 6000
_XAUTH = "/usr/bin/xauth"
_XAUTH_SECONDS = 10.0
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """An X server. Without a host it is this machine's own, by its socket."""

    host: str
    number: int
    screen: int
    cookie: str | None

    def connect(self) -> socket.socket:
        """A new connection; OSError."""
        if self.host:
            return socket.create_connection((self.host, _FIRST_PORT + self.number), _CONNECT_SECONDS)
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"/tmp/.X11-unix/X{self.number}")
        return server


def find(environ: Mapping[str, str]) -> Display:
    """The display that DISPLAY names; RequestError when it names none."""
    name = environ.get("DISPLAY", "")
    match = _NAME.fullmatch(name)
    if match is None:
        raise RequestError(f"-X: the job has no display: DISPLAY is {name[:80]!r}")
    return Display(
        host=match[1] or "", number=int(match[2]), screen=int(match[3] or 0), cookie=_cookie(name, environ)
    )


def _cookie(name: str, environ: Mapping[str, str]) -> str | None:
    """The last word of xauth's line; a server without one may let everybody in."""
    try:
        done = proc.run([_XAUTH, "list", name], deadline=Deadline(_XAUTH_SECONDS), env=environ)
    except CommandError:
        return None
    except VtorqueError as error:
        raise RequestError(f"-X: {error.brief}") from error
    words = done.stdout.decode(errors="replace").split()
    return words[-1] if words and re.fullmatch(r"(?:[0-9a-f]{2})+", words[-1]) else None
