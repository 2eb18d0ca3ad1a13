# SPDX-License-Identifier: Apache-2.0
"""The log: one JSON object a line, with the job and the guest it is about."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

log = logging.getLogger(__name__)

_FIELD_LIMIT = 4096
_job: ContextVar[str] = ContextVar("job", default="")
_guest: ContextVar[str] = ContextVar("guest", default="")


class JsonLines(logging.Formatter):
    """JSON escapes control characters, so a job name cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line; every field is capped."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "pid": record.process,
            "job": _job.get(),
            "guest": _guest.get(),
            "message": record.getMessage()[:_FIELD_LIMIT],
            "details": str(getattr(record, "details", ""))[-_FIELD_LIMIT:],
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)[-_FIELD_LIMIT:]
        return json.dumps({name: value for name, value in fields.items() if value != ""})


class _File(logging.FileHandler):
    """A log that takes no line any more is no reason to print tracebacks on the job's stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def setup(path: Path | None, *, verbose: bool = False) -> None:
    """Send this process's log to `path`; nowhere when it is None or cannot be opened.

    A full or missing log disk must not keep an epilogue from giving back guests.
    """
    root = logging.getLogger()
    while root.handlers:
        root.handlers[0].close()
        root.removeHandler(root.handlers[0])
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # paramiko logs every failed connection attempt with a traceback; while a guest
    # boots these are the normal case.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    handler: logging.Handler = logging.NullHandler()
    if path is not None:
        with contextlib.suppress(OSError):
            handler = _File(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(JsonLines())
    root.addHandler(handler)


@contextlib.contextmanager
def about(*, job: str = "", guest: str = "") -> Iterator[None]:
    """Every record made inside says which job or guest it is about."""
    tokens = [(var, var.set(value)) for var, value in ((_job, job), (_guest, guest)) if value]
    try:
        yield
    finally:
        for var, token in reversed(tokens):
            var.reset(token)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Log a step's end and its seconds."""
    start = time.monotonic()
    try:
        yield
    except BaseException:
        log.info("%s: failed after %.2f s", name, time.monotonic() - start)
        raise
    log.info("%s: %.2f s", name, time.monotonic() - start)
