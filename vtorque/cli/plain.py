# SPDX-License-Identifier: Apache-2.0
"""`vsub` for jobs that certainly want no guests: qsub's place is taken before qsub's grammar is even loaded.

Whatever is not certain is left to `vsub` itself, which knows the grammar.
"""

import contextlib
import os
import re
import stat
import sys
from collections.abc import Collection
from pathlib import Path

from vtorque import sitefile
from vtorque.cli import PREFIX
from vtorque.errors import ConfigError

QSUB = "/usr/bin/qsub"
OPTIONS = ("BATCH_SYSTEM", "REGEX_FE", "PBS_QSUB_ON_FE", "PBS_QSUB_ON_NODES", "DISABLED_HOSTS_LIST")
"""The settings that vsub has to know to become qsub."""

_QSUBS = ("torque", "local", "openpbs")
_LIMIT = 1 << 20
_QUOTES = b"\"'\\"
_SITE_LIMIT = 256 * 1024
# What YAML and we read the same way: a key at the beginning of a line, a plain word, a comment.
_PLAIN = re.compile(r"([A-Z_0-9]+):[ \t]+([A-Za-z0-9./][A-Za-z0-9._/+-]*)[ \t]*(?:[ \t]#.*)?", re.ASCII)


def main() -> int:
    """Become qsub, or do what vsub does; the exit status."""
    words = sys.argv[1:]
    if is_plain(words) and (real := _real()) and not is_vsub(real):
        # When that fails vsub is going to say why.
        with contextlib.suppress(OSError):
            os.execv(real, [real, *words])
    from vtorque.cli import vsub

    return vsub.main(words)


def is_vsub(program: str) -> bool:
    """Whether it is what runs here, under another name: whoever becomes it starts anew, for ever."""
    try:
        return os.path.samefile(program, sys.argv[0])  # noqa: PTH121
    except OSError:
        return False


def is_plain(words: list[str]) -> bool:
    """Whether the last word is the job's script, and no other word and no line of it can be about guests."""
    if not words or any(word.startswith(("--", "-gf")) or (word[:1] == "-" and "vm" in word) for word in words):
        return False
    # A word after an option may be the option's value; then the script comes from standard input.
    if words[-1].startswith("-") or (len(words) > 1 and words[-2].startswith("-") and words[-2] != "-V"):
        return False
    return _says_nothing(words[-1]) and not any(_is_file(word) and not _says_nothing(word) for word in words[:-1])


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return False


def _says_nothing(path: str) -> bool:
    """Whether it is a file of a sensible size that has no `vm` in it, whatever is quoted there."""
    if not _is_file(path):
        return False
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            text = file.read(_LIMIT)
    except OSError:
        return False
    return len(text) < _LIMIT and b"vm" not in text.translate(None, _QUOTES).lower()


def _real() -> str:
    """The real qsub, when the site's configuration names it in plain lines."""
    try:
        found = glance(sitefile.find(PREFIX), OPTIONS)
    except ConfigError:
        return ""
    if found is None or {"REGEX_FE", "DISABLED_HOSTS_LIST"} & found.keys():
        return ""
    return found.get("PBS_QSUB_ON_FE", QSUB) if found.get("BATCH_SYSTEM", "torque") in _QSUBS else ""


def glance(path: Path, names: Collection[str]) -> dict[str, str] | None:
    """The values of the options `names` that the file sets, or nothing when that takes a YAML parser."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text()[:_SITE_LIMIT].splitlines()
    except (OSError, UnicodeError):
        return None
    for line in lines:
        name = line.partition(":")[0].strip(" \t'\"?")
        if name not in names:
            continue
        plain = _PLAIN.fullmatch(line)
        if plain is None or name in found:
            return None
        found[name] = plain[2]
    return found
