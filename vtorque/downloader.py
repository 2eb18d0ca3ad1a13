# SPDX-License-Identifier: Apache-2.0
"""What root's child does that downloads images and is nobody: it speaks HTTP, and writes into the file it is handed."""

import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPDefaultErrorHandler, HTTPHandler, HTTPSHandler, ProxyHandler

from vtorque import __version__, servant
from vtorque.deadline import Deadline
from vtorque.errors import ImageError, StateError

HEADERS = ("ETag", "Last-Modified", "Date", "Content-Range", "Content-Encoding")
"""Those of an answer that are told of."""

_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)
# A server that trickles must not keep whoever waits from hearing how far it is.
_TELL_SECONDS = 1.0
_UNSATISFIABLE = 416


class Downloader:
    """One answer at a time, in words that JSON can say."""

    def __init__(self) -> None:
        self._answer: HTTPResponse | None = None

    def open(
        self, url: str, shown: str, headers: Mapping[str, str], silence: float, *, deadline: Deadline
    ) -> dict[str, object]:
        """Ask for `url`, `shown` in messages; ImageError. No read takes longer than `silence` seconds."""
        deadline.require(f"downloading {shown}")
        if self._answer is not None:
            self._answer.close()
        answer = self._answer = _open(url, shown, headers, silence)
        return {
            "status": answer.status, "reason": _line(answer.reason), "length": answer.length,
            "chunked": bool(answer.chunked),
            "headers": {name: answer.headers[name] for name in HEADERS if name in answer.headers},
        }

    def more(self, position: int, most: int, *, deadline: Deadline, handle: int) -> list[object]:
        """Put up to `most` bytes of the answer at `position`; where that ends, whether it was all, and why it broke."""
        assert self._answer is not None
        first, told = position, time.monotonic() + _TELL_SECONDS
        while position - first < most and time.monotonic() < told and not deadline.expired:
            block, why = _read(self._answer, min(_BLOCK - position % _BLOCK, first + most - position))
            if not block:
                return [position, True, why]
            _put(block, position, handle)
            position += len(block)
        return [position, False, ""]


def main() -> int:
    """The life of a downloader: its standard input is the socket at which it is asked."""
    with socket.socket(fileno=0) as orders:
        servant.serve(Downloader(), orders)
    return 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or "@" in new.netloc:
            fp.close()
            raise ImageError(f"{old.hostname} redirects to what is not a plain http or https URL")
        if old.scheme == "https" and new.scheme != "https":
            fp.close()
            raise ImageError(f"{old.hostname} redirects from https to http, which anybody could change")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Answers(urllib.request.HTTPErrorProcessor):
    """An answer that there is nothing behind what we have is no failure."""

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> Any:
        if response.status == _UNSATISFIABLE and request.has_header("Range"):
            return response
        return super().http_response(request, response)

    https_response = http_response


def _open(url: str, shown: str, headers: Mapping[str, str], silence: float) -> HTTPResponse:
    """The server's answer; ImageError when it is none or a refusal."""
    # Only these handlers: the standard opener also knows file:, ftp: and data:.
    opener = urllib.request.OpenerDirector()
    for handler in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, _Redirects, _Answers):
        opener.add_handler(handler())
    # Compressed on the way, a file has other bytes and another length.
    usual = {"User-Agent": f"vtorque/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=usual | dict(headers))
    try:
        answer: HTTPResponse = opener.open(request, timeout=silence)
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            raise ImageError(f"{shown} redirects too often, or not to http or https") from None
        raise ImageError(f"{shown} answers {error.code} {_line(error.reason)}") from None
    except (OSError, HTTPException) as error:
        raise ImageError(f"cannot reach {shown}: {_line(getattr(error, 'reason', error))}") from None
    except ValueError:
        raise ImageError(f"cannot reach {shown}: its URL or the proxy's is not valid") from None
    return answer


def _line(reason: object) -> str:
    """What a server or a library says, fit for one line of ours."""
    text = " ".join(str(getattr(reason, "strerror", None) or reason).split()) or type(reason).__name__
    return "".join(char if char.isprintable() else "?" for char in text)[:120]


def _read(answer: HTTPResponse, size: int) -> tuple[bytes, str]:
    """What came, and when nothing did, why the connection broke; apart from the errors of our own disk."""
    try:
        # Not all that was asked for: a server that trickles must not outlive the deadline.
        return answer.read1(size), ""
    except (OSError, HTTPException) as error:
        return b"", _line(error)


def _put(block: bytes, position: int, handle: int) -> None:
    """All but zeros, of which a hole is made."""
    if block == _ZEROS[: len(block)]:
        return
    view = memoryview(block)
    try:
        while view:
            written = os.pwrite(handle, view, position)
            view, position = view[written:], position + written
    except OSError as error:
        raise StateError(str(error.strerror)) from error
