# SPDX-License-Identifier: Apache-2.0
"""`vsub` for jobs that certainly want no guests: qsub's place is taken before qsub's grammar is even loaded.

Whatever is not certain is left to `vsub` itself, which knows the grammar.
"""

import os
import stat
import sys

from vtorque import cli, siteplace

QSUB = "/usr/bin/qsub"
OPTIONS = ("BATCH_SYSTEM", "REGEX_FE", "PBS_QSUB_ON_FE", "PBS_QSUB_ON_NODES", "DISABLED_HOSTS_LIST")
"""The settings that vsub has to know to become qsub."""

_QSUBS = ("torque", "local", "openpbs")
_LIMIT = 1 << 20
_QUOTES = b"\"'\\"
_SITE_LIMIT = 256 * 1024
_BLANKS = " \t"
_FIRST = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./"
_FURTHER = frozenset(f"{_FIRST}_+-")


def main() -> int:
    """Become qsub, or do what vsub does; the exit status."""
    words = sys.argv[1:]
    if is_plain(words) and (real := _real()) and not is_vsub(real):
        try:
            os.execv(real, [real, *words])
        except OSError:
            pass  # vsub is going to say why
    from vtorque.cli import vsub

    return vsub.main(words)


def is_vsub(program: str) -> bool:
    """Whether it is what runs here, under another name: whoever becomes it starts anew, for ever."""
    try:
        return os.path.samefile(program, sys.argv[0])
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
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _says_nothing(path: str) -> bool:
    """Whether it is a file of a sensible size that has no `vm` in it, whatever is quoted there."""
    if not _is_file(path):
        return False
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT)
    except OSError:
        return False
    return len(text) < _LIMIT and b"vm" not in text.translate(None, _QUOTES).lower()


def _real() -> str:
    """The real qsub, when the site's configuration names it in plain lines."""
    try:
        path = siteplace.look(cli.where())
    except OSError:
        return ""
    found = glance(path, OPTIONS) if path else None
    if found is None or {"REGEX_FE", "DISABLED_HOSTS_LIST"} & found.keys():
        return ""
    return found.get("PBS_QSUB_ON_FE", QSUB) if found.get("BATCH_SYSTEM", "torque") in _QSUBS else ""


def glance(path: str, names: tuple[str, ...]) -> dict[str, str] | None:
    """The values of the options `names` that the file sets, or nothing when that takes a YAML parser."""
    found: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(_SITE_LIMIT).splitlines()
    except (OSError, UnicodeError):
        return None
    for line in lines:
        key, _, value = line.partition(":")
        name = key.strip(" \t'\"?")
        if name not in names:
            continue
        word = _word(value)
        if key != name or not word or name in found:
            return None
        found[name] = word
    return found


def _word(value: str) -> str:
    """The plain word behind a colon, a comment allowed, if it is what YAML takes it for, too."""
    told, comment, _ = value.partition("#")
    word = told.strip(_BLANKS)
    if told[:1] not in _BLANKS or (comment and told[-1:] not in _BLANKS):
        return ""
    return word if word and word[0] in _FIRST and _FURTHER.issuperset(word) else ""
