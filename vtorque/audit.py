# SPDX-License-Identifier: Apache-2.0
"""Root's audit log: one line for each privileged act, whose job it was for and how it ended.

To a file, to syslog's authpriv, or both. An act is never kept waiting and
never fails because of its line: what cannot be written is lost.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vtorque.errors import VtorqueError
from vtorque.kinds import Resource

FILE = "audit.log"
"""Its name in LOG_DIR."""

DONE, FAILED = "done", "failed"

log = logging.getLogger("vtorque-audit")

# Of a value as it is written. A line stays below the 4096 bytes that one write appends in one piece.
_FIELD_LIMIT = 450
_REASON, _LARGEST_BITS = 200, 64
_FIELDS = ("job", "user", "uid", "act", "kind", "object", "result", "reason")
# syslog(3): LOG_AUTHPRIV | LOG_INFO.
_PRIORITY = 10 << 3 | 6
_SYSLOG = Path("/dev/log")


class _Sink(logging.Handler):
    """Where lines go; `step` is the hook or the command that acts."""

    def __init__(self, step: str, *, file: Path | None, syslog: Path | None) -> None:
        super().__init__()
        self._step = step
        self._file = -1
        self._syslog: socket.socket | None = None
        if file is not None:
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                self._file = os.open(file, flags, 0o600)
        if syslog is not None:
            with contextlib.suppress(OSError):
                self._syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._syslog.connect(str(syslog))

    def emit(self, record: logging.LogRecord) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{stamp}.{int(record.msecs):03d}Z", "pid": record.process, "step": self._step,
            **vars(record)["about"],
        }
        text = json.dumps({name: _capped(value) for name, value in fields.items() if value not in ("", None)})
        with contextlib.suppress(OSError):
            os.write(self._file, f"{text}\n".encode())
        if self._syslog is not None:
            with contextlib.suppress(OSError):
                self._syslog.send(f"<{_PRIORITY}>vtorque[{record.process}]: {text}".encode())

    def close(self) -> None:
        super().close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._syslog is not None:
            self._syslog.close()


def setup(where: str, directory: Path, *, step: str, syslog: Path = _SYSLOG) -> None:
    """Send this process's lines where AUDIT_LOG says: file (in `directory`), syslog, both or none."""
    file = directory / FILE if where in ("file", "both") else None
    _begin(_Sink(step, file=file, syslog=syslog if where in ("syslog", "both") else None))


class _Forward(logging.Handler):
    """To root, who writes them."""

    def __init__(self, tell: Callable[[Mapping[str, object]], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        # What cannot be said to root is lost, as what root cannot write.
        with contextlib.suppress(VtorqueError, OSError):
            self._tell(vars(record)["about"])


def forward(tell: Callable[[Mapping[str, object]], None]) -> None:
    """Send this process's lines to root, who has opened the log already."""
    _begin(_Forward(tell))


def write(about: Mapping[str, object]) -> None:
    """A line that the program has sent."""
    log.info("", extra={"about": {name: about.get(name) for name in _FIELDS}})


def _begin(handler: logging.Handler) -> None:
    while log.handlers:
        log.handlers[0].close()
        log.removeHandler(log.handlers[0])
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)


class Trail:
    """The lines of one job's acts on this node, with whose it is."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._uid: int | None = None
        self._user = ""

    @property
    def whose(self) -> str:
        """The user's number, if it is known, a blank and his name: for the job's own record."""
        return f"{'' if self._uid is None else self._uid} {self._user}"

    def belongs(self, whose: str) -> None:
        """What another process found in `whose`."""
        uid, _, self._user = whose.partition(" ")
        self._uid = int(uid) if uid.isdecimal() else None

    def note(self, act: str, thing: Resource | None = None, *, failure: Exception | None = None) -> None:
        """One act, and why it failed if it did."""
        reason = failure.brief if isinstance(failure, VtorqueError) else repr(failure) if failure else ""
        note(act, job=self._job, user=self._user, uid=self._uid, thing=thing,
             result=FAILED if failure else DONE, reason=reason[:_REASON])


def note(
    act: str, *, job: str = "", user: str = "", uid: int | None = None, thing: Resource | None = None,
    result: str = DONE, reason: str = "",
) -> None:
    """One act: whose, on what, and how it ended; a command on the node has no job."""
    if log.isEnabledFor(logging.INFO):
        kind, name = (thing.kind, thing.name) if thing else ("", "")
        about = {"job": job, "user": user, "uid": uid, "act": act, "kind": kind, "object": name,
                 "result": result, "reason": reason}
        log.info("%s", act, extra={"about": about})


def _capped(value: object) -> object:
    # A number that the program has sent may have thousands of digits.
    if isinstance(value, int) and value.bit_length() <= _LARGEST_BITS:
        return value
    text = str(value)[-_FIELD_LIMIT:]
    while len(json.dumps(text)) > _FIELD_LIMIT:
        # What tells paths apart is at their end.
        text = f"...{text[len(text) // 8 + 4:]}"
    return text
