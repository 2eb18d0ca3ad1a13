# SPDX-License-Identifier: Apache-2.0
"""What a command does, counted from strace's log: counts do not depend on the machine."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Command

_LONGEST_SECONDS = 60.0

_LINE = re.compile(r"(?P<pid>[0-9]+) +(?P<text>.*)", re.ASCII)
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_CALL = re.compile(r"(?P<name>\w+)\((?P<words>.*)\) += (?P<value>-?[0-9]+)", re.ASCII)
_UNFINISHED = " <unfinished ...>"
_FORKS = ("clone", "clone3", "fork", "vfork")
_WRITES = ("write", "pwrite64", "writev", "pwritev")
_BECOMES = ("setresuid", "setuid")
_NAMES = ("open", "openat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat2", "readlink", "readlinkat",
          "mkdir", "mkdirat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "symlink", "symlinkat", "execve")
_AT = re.compile(r"[0-9A-Z_]+<(?P<base>[^>]*)>, ")
_PATH = re.compile(r'"(?P<path>[^"]*)"')
_OPENED = re.compile(r"[0-9]+<(?P<path>/[^>]*)>")
_MODULE = re.compile(r"\.(?:pyc?|so)$")
_PACKAGE = re.compile(r"/dist-packages/(?:__pycache__/)?(?P<name>[^/.]+)[^>]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one run did. `home_files` are names below the home that were looked at by root, or by
    anybody when it was no root's command; `bytes_written` went to files.
    """

    processes: int
    calls: int
    home_files: int
    third_party: tuple[str, ...]
    modules: int
    bytes_written: int


def count(
    command: Command, *, home: Path, meanwhile: Callable[[], object] = lambda: None
) -> Counts:
    """Run a command under strace, until all that it started has ended as well, for which `meanwhile` may have to care.

    Raises CalledProcessError when it fails.
    """
    with tempfile.NamedTemporaryFile() as log:
        Path(log.name).chmod(0o666)
        argv = ["/usr/bin/strace", "-f", "-y", "-qq", "-s", "512", "-o", log.name, *command.argv]
        with subprocess.Popen(
            argv, env=command.env, user=command.user, group=command.user, extra_groups=(), cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        ) as child:
            try:
                meanwhile()
                status = child.wait(_LONGEST_SECONDS)
            except BaseException:
                # Who has not ended by now would be waited for without end.
                child.kill()
                raise
        if status:
            raise subprocess.CalledProcessError(status, argv)
        return _counts(log.read().decode(errors="replace").splitlines(), home, command.user)


def _counts(lines: Sequence[str], home: Path, user: int) -> Counts:
    processes, calls, written = 1, 0, 0
    touched: set[str] = set()
    modules: set[str] = set()
    users: dict[str, int] = {}
    for pid, text in _whole(lines):
        calls += 1
        match = _CALL.match(text)
        if match is None or (int(match["value"]) < 0 and match["name"] not in _NAMES):
            continue
        name, words, value = match["name"], match["words"], int(match["value"])
        if name in _FORKS:
            processes += "CLONE_THREAD" not in words
            # The child may have become somebody else before its parent was told that there is one.
            users.setdefault(str(value), users.get(pid, user))
        elif name in _BECOMES:
            users[pid] = int(words.split(",")[0])
        elif name in _WRITES and (opened := _OPENED.match(words)) and not opened["path"].startswith("/dev/"):
            written += value
        elif name in _NAMES:
            path = _path(words)
            if path.startswith(f"{home}/") and users.get(pid, user) == user:
                touched.add(path)
            if value >= 0 and name == "openat" and "O_DIRECTORY" not in words and _MODULE.search(path):
                modules.add(path)
    names = {match["name"] for path in modules if (match := _PACKAGE.search(path))}
    return Counts(
        processes=processes, calls=calls, home_files=len(touched), third_party=tuple(sorted(names)),
        modules=len(modules), bytes_written=written,
    )


def _path(words: str) -> str:
    """The first path of a call, made absolute where strace tells the directory."""
    found = _PATH.search(words)
    if found is None:
        return ""
    base = _AT.match(words)
    return str(Path(base["base"] if base else "/", found["path"]))


def _whole(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Calls with their process; those that strace had to break in two are put together."""
    begun: dict[str, str] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None or match["text"].startswith(("---", "+++")):
            continue
        pid, text = match["pid"], match["text"]
        if text.endswith(_UNFINISHED):
            begun[pid] = text.removesuffix(_UNFINISHED)
        else:
            rest = _RESUMED.sub("", text, count=1)
            yield pid, begun.pop(pid, "") + rest
