# SPDX-License-Identifier: Apache-2.0
"""Images from the web: downloads that go on where they were cut off, and leave holes where an image has zeros."""

import contextlib
import email.utils
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from vtorque import files, servant
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, ImageError, RequestError, StateError, printable
from vtorque.servant import Caller, Servant

# For one connect or read. A whole image may take hours, but a server that is silent for a minute is gone.
_SOCKET_SECONDS = 60.0
_SHARE = 8  # A deadline's part that a silent server may take, as something has to be left for undoing.
_NEVER = Deadline(float("inf"))
# So long the child is waited for beyond a silent server: it is a process of this node.
_CHILD_SECONDS = 60.0
_LETS_GO_SECONDS = 2.0
_PROGRESS_STEP, _RECORD_LIMIT, _LONGEST_VALIDATOR = 1 << 20, 64 * 1024, 1024
_RECORDED = ("url", "boot", "header", "value", "size")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18})", re.ASCII)
_OK, _PARTIAL, _UNSATISFIABLE = 200, 206, 416
_AGAIN = "run the command again to go on from there"

_Progress = Callable[[int, int | None], None]


def pull(
    url: str, target: Path, *, sha256: str | None, progress: _Progress, deadline: Deadline = _NEVER,
    child: Callable[[], Caller] | None = None,
) -> str:
    """Download `url` to `target`, replacing it; the SHA-256 of what came, in hexadecimal.

    HTTP is spoken by a `child`, else by one of our own who, where we are root, is nobody; into a file that we opened.
    What came before a cut stays in `<target>.part` for the next call, if the server names a version of its file.
    `progress` is told the bytes so far and in all, None when the server does not say. Raises RequestError for an
    URL or digest that cannot be, DeadlineExceeded, ImageError for everything else.
    """
    source = require(url, sha256, deadline)
    part = target.with_name(f"{target.name}.part")
    try:
        with _locked(part) as handle:
            with _spoken(source, handle, child or _own_child) as speech:
                download = _Download(source, part, handle, speech, progress, checked=sha256 is not None)
                download.fetch()
            with open(handle, "rb", closefd=False) as whole:
                whole.seek(0)
                found = hashlib.file_digest(whole, "sha256").hexdigest()
            if sha256 is not None and found != sha256.lower():
                part.unlink()
                download.record.unlink(missing_ok=True)
                raise ImageError(f"{source.shown} has SHA-256 {found}, not {sha256.lower()}; it was removed")
            os.fchmod(handle, 0o644)
            os.fsync(handle)
            part.replace(target)
            download.record.unlink(missing_ok=True)
    except (OSError, StateError) as error:
        why = error.brief if isinstance(error, StateError) else error.strerror or error
        raise ImageError(f"cannot write {target}: {why}") from error
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where an image comes from, and until when; `shown` has no query, which may hold a key."""

    url: str
    shown: str
    deadline: Deadline


def require(url: str, sha256: str | None, deadline: Deadline = _NEVER) -> _Source:
    """Refuse a URL or a digest that cannot be (RequestError)."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and parts.scheme in ("http", "https")
    except ValueError:
        usable = False
    if not (usable and url.isascii() and url.isprintable() and " " not in url):
        raise RequestError("an image is pulled from a URL that begins with http:// or https:// and has a host")
    if "@" in parts.netloc:
        raise RequestError("a URL with a user or a password in it is not supported")
    if sha256 is not None and _SHA256.fullmatch(sha256) is None:
        raise RequestError(f"{sha256[:80]!r} is not a SHA-256: 64 hexadecimal digits")
    bare = parts._replace(fragment="")
    return _Source(url=bare.geturl(), shown=bare._replace(query="").geturl(), deadline=deadline)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[int]:
    """The partial file, ours alone; ImageError when another pull is at it."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = -1
    while handle < 0:
        with contextlib.suppress(FileExistsError):
            handle = os.open(part, flags | os.O_CREAT | os.O_EXCL, 0o600)
            break
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(part, flags)
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink > 1:
            raise ImageError(f"{part} is in the way: it is not a file of an earlier pull")
        _take(handle)
        # Between our open and our lock another pull may have finished and moved the file away.
        if not part.exists() or not os.path.samestat(part.lstat(), about):
            raise BlockingIOError
        os.fchmod(handle, 0o600)
        yield handle
    except BlockingIOError:
        raise ImageError(f"another pull is writing {part}") from None
    finally:
        os.close(handle)


def _take(handle: int) -> None:
    """The lock on a part; BlockingIOError. The child of a pull that was killed holds it until it notices."""
    with contextlib.suppress(DeadlineExceeded):
        for _ in Deadline(_LETS_GO_SECONDS).ticks(doing="waiting for the lock"):
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    raise BlockingIOError


class _Answer(NamedTuple):
    """What a server answered, as the child tells it."""

    status: int
    reason: str
    length: int | None
    chunked: bool
    headers: Mapping[str, str]


class _Speech:
    """HTTP, spoken by the child. What it tells is checked like what a server says, for it may be one that tells it."""

    def __init__(self, child: Caller, source: _Source, handle: int) -> None:
        self._child, self._source, self._handle = child, source, handle

    def open(self, headers: Mapping[str, str]) -> _Answer:
        """The server's answer; ImageError when it is none or a refusal."""
        shown, deadline = self._source.shown, self._source.deadline
        silence = min(_SOCKET_SECONDS, deadline.require(f"downloading {shown}") / _SHARE)
        told = self._ask("open", self._source.url, shown, dict(headers), silence, most=_CHILD_SECONDS)
        try:
            length = None if told["length"] is None else int(told["length"])
            texts = {str(name): str(value) for name, value in told["headers"].items()}
            return _Answer(int(told["status"]), str(told["reason"]), length, bool(told["chunked"]), texts)
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ImageError(f"cannot download {shown}: what does so for us makes no sense") from None

    def more(self, position: int) -> tuple[int, bool, str]:
        """Where the next part of the answer gets to that is written at `position`, whether it is the last, and why."""
        deadline = self._source.deadline
        deadline.require(f"downloading {self._source.shown}")
        told = self._ask("more", position, _PROGRESS_STEP, most=_SOCKET_SECONDS + _CHILD_SECONDS, handle=self._handle)
        match told:
            case [int(now), bool(is_last), str(why)] if position <= now <= position + _PROGRESS_STEP:
                return now, is_last, printable(why)
        raise ImageError(f"cannot download {self._source.shown}: what does so for us makes no sense")

    def _ask(self, verb: str, *words: object, most: float, handle: int | None = None) -> Any:
        try:
            return self._child.ask(verb, *words, deadline=self._source.deadline.within(most), handle=handle)
        except servant.Gone:
            raise ImageError(f"cannot download {self._source.shown}: what does so for us has ended") from None


def _own_child() -> Caller:
    def make() -> object:
        from vtorque.downloader import Downloader
        return Downloader()

    return Servant("the download", make, identity=servant.NOBODY if os.geteuid() == 0 else None)


@contextlib.contextmanager
def _spoken(source: _Source, handle: int, make: Callable[[], Caller]) -> Iterator[_Speech]:
    child = make()
    try:
        yield _Speech(child, source, handle)
    finally:
        child.dismiss()


class _Download:
    """One file on its way into `part`; the record beside it says of which version it is a part."""

    def __init__(
        self, source: _Source, part: Path, handle: int, speech: _Speech, progress: _Progress, *, checked: bool
    ) -> None:
        self.record = part.with_name(f"{part.name}.json")
        self._source, self._handle, self._speech = source, handle, speech
        self._progress, self._checked = progress, checked

    def fetch(self) -> None:
        """Get all that is missing."""
        offset, version = os.fstat(self._handle).st_size, self._recorded()
        if offset and version is not None:
            headers = {"Range": f"bytes={offset}-", "If-Range": version["value"]}
            answer = self._speech.open(headers)
            total = _continues(answer, version, offset)
            if total is not None and total > offset:
                self._receive(offset, total, _AGAIN)
            elif total is None and answer.status == _OK:
                self._begin(answer)
            if total is not None or answer.status == _OK:
                return
        self._begin(self._speech.open({}))

    def _begin(self, answer: _Answer) -> None:
        shown = self._source.shown
        if answer.status != _OK:
            raise ImageError(f"{shown} answers {answer.status} {printable(answer.reason)}")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ImageError(f"{shown} is sent in a coding that nobody asked for")
        if answer.length is None and not answer.chunked and not self._checked:
            raise ImageError(f"{shown} does not say how long it is", hint="give its digest with --sha256")
        os.ftruncate(self._handle, 0)
        header, value = _validator(answer.headers)
        version = dict(zip(_RECORDED, (self._source.url, _boot(), header, value, answer.length), strict=True))
        files.replace(self.record, json.dumps(version).encode(), mode=0o600)
        again = _AGAIN if value else "run the command again; it begins anew, as the server names no version"
        self._receive(0, answer.length, again)

    def _recorded(self) -> dict[str, Any] | None:
        """The version that the part can go on with; None when it has to begin anew."""
        try:
            version = json.loads(files.read(self.record, limit=_RECORD_LIMIT, owner=os.geteuid()))
        except (FileNotFoundError, StateError, ValueError):
            return None
        if not isinstance(version, dict) or set(version) != set(_RECORDED) or version["url"] != self._source.url:
            return None
        # After a power cut a file can be as long as it was and hold zeros; only a digest would tell.
        return version if version["value"] and (self._checked or version["boot"] == _boot()) else None

    def _receive(self, position: int, total: int | None, again: str) -> None:
        self._progress(position, total)
        is_last = False
        try:
            while not is_last:
                before = position
                position, is_last, why = self._speech.more(position)
                if position > before:
                    self._progress(position, total)
        finally:
            # Its length says how much came, even when that ends with a hole.
            os.ftruncate(self._handle, position)
        if why or total not in (None, position):
            came = f"{position} of {total} bytes" if total is not None else f"{position} bytes"
            why = why or "the connection was cut"
            raise ImageError(f"only {came} of {self._source.shown} came: {why}", hint=again)
        self._progress(position, position)

def _continues(answer: _Answer, version: dict[str, Any], offset: int) -> int | None:
    """How long the whole is, if the answer is the rest of it or says that nothing is missing; else None."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None or answer.headers.get(version["header"], version["value"]) != version["value"]:
        return None
    total = int(match[2])
    if answer.status == _UNSATISFIABLE:
        return total if total == offset else None
    usable = answer.status == _PARTIAL and match[1] == str(offset) and version["size"] in (None, total)
    return total if usable and total > offset else None


def _validator(headers: Mapping[str, str]) -> tuple[str, str]:
    """Header and value that name exactly this version of the file; empty when none does (RFC 9110, 8.8)."""
    tag, changed = headers.get("ETag", ""), headers.get("Last-Modified", "")
    for header, value in (("ETag", tag), ("Last-Modified", changed)):
        exact = value.startswith('"') if header == "ETag" else _settled(value, headers.get("Date", ""))
        if exact and value.isascii() and value.isprintable() and len(value) <= _LONGEST_VALIDATOR:
            return header, value
    return "", ""


def _settled(changed: str, now: str) -> bool:
    """A file that changed this very second may change again without a new date."""
    try:
        then, date = email.utils.parsedate_to_datetime(changed), email.utils.parsedate_to_datetime(now)
        return (date - then).total_seconds() >= 1
    except (ValueError, TypeError):
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
