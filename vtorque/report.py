# SPDX-License-Identifier: Apache-2.0
"""What there is to read of a job: its log, its consoles, and the bundle for a support ticket, without secrets."""

import codecs
import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vtorque import accounting, files, names, proc, timings
from vtorque.deadline import Deadline
from vtorque.errors import StateError, VtorqueError
from vtorque.job import phases_name
from vtorque.model import JobId, job_key
from vtorque.observe import Recorded, is_meant, visible
from vtorque.options import OPTIONS, SiteConfig
from vtorque.proc import Identity

_CHUNK = 1 << 16
_FOREVER_SECONDS = 366 * 86400.0
_LIMIT = 1 << 20
_CONSOLE_BYTES = 1 << 18
_CONSOLE_LINES = 200
_USER_SIDE_SECONDS = 5.0
_NONE = "(none)\n"

_KEY_BEGIN, _KEY_END = r"-----BEGIN [A-Z ]*PRIVATE KEY-----", r"-----END [A-Z ]*PRIVATE KEY-----"
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s"',;]+)"""
_SECRETS = (
    (re.compile(rf"{_KEY_BEGIN}.*?({_KEY_END}|\Z)", re.DOTALL), "[private key removed]"),
    (re.compile(r"\bvt1\.[A-Za-z0-9_-]{8,}"), "vt1.[removed]"),
    (re.compile(rf"(?i)(key[ \t]*=[ \t]*){_VALUE}"), r"\1[removed]"),
    (re.compile(rf"(?i)((?:password|passwd|secret|token)[\"']?[ \t]*[=:][ \t]*){_VALUE}"), r"\1[removed]"),
)
_KEY_LINE = re.compile(r"[A-Za-z0-9+/=]{16,}\s*\Z", re.ASCII)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CUT_OFF = re.compile(r"(?:\r|\x1b(?:\[[0-9;]{0,32})?)\Z")
_STEP = re.compile(r"([^:]{1,40}): ((?:failed after )?[0-9.]+ s)")


class Terminal:
    """Bytes of a guest, piece by piece, as text that is safe to show; colours are dropped."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""

    def show(self, data: bytes) -> str:
        """What can be shown now; the beginning of a sequence is held until its end is there, or nothing follows."""
        text = self._held + self._decode(data)
        cut = _CUT_OFF.search(text) if data else None
        self._held = cut[0] if cut else ""
        text = text[:cut.start()] if cut else text
        return visible(_COLOUR.sub("", text).replace("\r\n", "\n"))


def redacted(text: str) -> str:
    """The text without what looks like a private key, a password or a job's encoded request."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return _without_tails(text)


def _without_tails(text: str) -> str:
    """The text without the ends of private keys whose beginning was cut off."""
    kept: list[str] = []
    for line in text.splitlines(keepends=True):
        if re.search(_KEY_END, line):
            while kept and _KEY_LINE.search(kept[-1]):
                kept.pop()
            line = "[private key removed]\n"
        kept.append(line)
    return "".join(kept)


def log_entries(chunks: Iterable[bytes], wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """The entries of the log whose job is `wanted`; what is no entry is passed over."""
    for line in _lines(chunks):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and wanted(str(entry.get("job", ""))):
                yield entry


def log_text(entry: Mapping[str, Any]) -> str:
    """An entry as `time level step guest message`, and what else it holds on indented lines below."""
    message = str(entry.get("message", ""))
    step = str(entry.get("step", ""))
    if not step and (match := _STEP.fullmatch(message)):
        step, message = match[1], match[2]
    words = (entry.get("time", "-"), f"{entry.get('level', '-')!s:<7}", f"{step or '-':<18}", entry.get("guest") or "-")
    first = " ".join([*map(str, words), " ".join(message.splitlines())])
    more = "\n".join(str(entry[name]) for name in ("details", "traceback") if entry.get(name))
    return visible("\n    ".join([first, *more.splitlines()])) + "\n"


def phase_text(line: bytes) -> str:
    """A line of the job directory's `phases`: time, phase, and how long after its prologue's start; or nothing."""
    try:
        entry = json.loads(line)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(entry["time"])))
        after = f" after {float(entry['seconds']):.3f} s" if "seconds" in entry else ""
        word = " (the guest's word)" if entry.get("word") == accounting.GUEST else ""
        return visible(f"{stamp} {entry['phase']}{after}{word}".replace("\n", " ")) + "\n"
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError):
        return ""


def phases_text(chunks: Iterable[bytes]) -> Iterator[str]:
    """The phases as they come."""
    return filter(None, map(phase_text, _lines(chunks)))


def phases_of(directory: Path, job: JobId) -> Path:
    """Where a user's own job notes its phases; an element of an array has a file of its own."""
    element = directory / phases_name(job_key(job), 2)
    return element if element.exists() else directory / phases_name("", 1)


def bundle(job: Recorded, title: str, *, site: SiteConfig, guests: Callable[[], str], log: Path) -> str:
    """Everything a support ticket needs, of what the caller may read: text without secrets."""
    every: list[tuple[str, Callable[[], str]]] = [
        ("guests", guests),
        ("failed marker", lambda: _spell(job.failed)),
        ("ready marker", lambda: _spell(job.ready)),
        ("plan", lambda: _spell(_without_secrets(job.plan))),
        ("ledger", lambda: files.read(job.path / "ledger", limit=_LIMIT).decode(errors="replace")),
        ("phases, as the job's user may have written them", lambda: _in_order(_phases(job))),
        ("accounting", lambda: timings.job_text(timings.of_job(names.accounting(site), job.id.__eq__))),
        ("log", lambda: "".join(map(_log_line, log_entries(tail(log, going=None), job.id.__eq__)))),
        *((f"console of {vm['name']}", partial(_console, Path(vm["console"]))) for vm in job.vms),
        ("options that differ from their defaults", lambda: _options(site)),
    ]
    parts = [f"{title}\n"]
    for name, read in every:
        try:
            text = read() or _NONE
        except FileNotFoundError:
            text = _NONE
        except (OSError, VtorqueError) as error:
            text = f"(not readable: {error})\n"
        parts.append(f"--- {name}\n{text if text.endswith(chr(10)) else text + chr(10)}")
    return visible("\n".join(map(redacted, parts)))


def tail(path: Path, *, going: Callable[[], bool] | None) -> Iterator[bytes]:
    """What a file holds and, with `going`, what is added to it until that says no; b"" when nothing is new.

    The file may come later or be rotated. Raises FileNotFoundError when it
    never came, and StateError when it is a link or no regular file.
    """
    handle: int | None = None
    try:
        for _ in Deadline(_FOREVER_SECONDS).ticks(doing=f"follow {path.name}", first=0.05):
            is_last = going is None or not going()
            with contextlib.suppress(FileNotFoundError):
                handle = _open(path) if handle is None else handle
            while handle is not None:
                while data := os.read(handle, _CHUNK):
                    yield data
                newer = _newer(handle, path)
                if newer is None:
                    break
                os.close(handle)
                handle = newer
            if is_last and handle is None:
                raise FileNotFoundError(2, "it is not there", str(path))
            if is_last:
                return
            yield b""
    finally:
        if handle is not None:
            os.close(handle)


def _open(path: Path) -> int:
    """A descriptor of a regular file; a guest's console belongs to its QEMU, which is not trusted."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StateError(f"{path} is not a regular file")
    return handle


def _newer(handle: int, path: Path) -> int | None:
    """The file that has taken the place of the open one."""
    with contextlib.suppress(FileNotFoundError):
        if not os.path.samestat(path.lstat(), os.fstat(handle)):
            return _open(path)
    return None


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _log_line(entry: Mapping[str, Any]) -> str:
    # One by one: a key that was cut off must not take the lines after it along.
    return redacted(log_text(entry))


def _spell(data: Mapping[str, Any] | None) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n" if data else ""


def _without_secrets(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan without the job's key, its request in the form that holds the key, and the user's own metadata."""
    kept = dict(plan)
    for area, secret in (("job", ("request",)), ("request", ("public_key", "metadata"))):
        if isinstance(part := kept.get(area), dict):
            kept[area] = {name: value for name, value in part.items() if name not in secret}
    return kept


def _phases(job: Recorded) -> bytes:
    if job.directory is not None:
        return files.read(phases_of(job.directory, job.id), limit=_LIMIT)
    account, wanted = job.plan.get("account"), job.plan.get("request")
    if not (account and wanted):
        return b""
    # Root resolves nothing below a home: a child that is the user reads there, for as long as it may take.
    identity = Identity(uid=account["uid"], gid=account["group"]["gid"],
                        groups=tuple(group["gid"] for group in account["groups"]))
    name = phases_name(job_key(job.id), wanted.get("elements", 1))
    path = Path(account["home"], ".vtorque", wanted["request_id"], name)
    words: list[str | Path] = ["/usr/bin/head", "-c", str(_CHUNK), "--", path]
    return proc.run(words, deadline=Deadline(_USER_SIDE_SECONDS), identity=identity).stdout


def _console(path: Path) -> str:
    handle = _open(path)
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(handle).st_size
        file.seek(max(0, size - _CONSOLE_BYTES))
        terminal = Terminal()
        text = terminal.show(file.read(_CONSOLE_BYTES)) + terminal.show(b"")
    # A key may begin before the last lines.
    return "\n".join(redacted(text).splitlines()[-_CONSOLE_LINES:])


def _options(site: SiteConfig) -> str:
    values = {name: getattr(site, each.name) for name, each in OPTIONS.items()}
    return "".join(f"{name}: {value}\n" for name, value in values.items() if value != OPTIONS[name].default)


def finished(log: Path, accounts: Path, text: str) -> list[str]:
    """Ids in the log and accounting of the jobs that a user may mean by `text`."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in log_entries(tail(log, going=None), lambda job: is_meant(text, job)):
            found.add(entry["job"])
    with contextlib.suppress(OSError, VtorqueError):
        found |= {entry["job"] for entry in timings.of_job(accounts, lambda job: is_meant(text, job))}
    return sorted(found)


def _in_order(data: bytes) -> str:
    """The phases of a job by time: its user's command and root write at the same time."""
    return "".join(sorted(phases_text([data])))
