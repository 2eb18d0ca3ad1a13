# SPDX-License-Identifier: Apache-2.0
"""The original's config.sh, turned into vtorque.yaml: never run, and nothing taken that needs a shell to decide."""

import json
import re
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vtorque import config
from vtorque.errors import ConfigError
from vtorque.optionforms import INERT
from vtorque.options import ALIASES, OPTIONS

_HEADER = "# converted from config.sh by vmgr config import\n"
# What the original shipped, where that differs from our default: a site that left it never decided it.
_SHIPPED = re.compile(
    r'NFS_TIMEOUT: 3|(VRDMA|IOCM)_ENABLED_DEFAULT: false|IOCM_MIN_CORES: 0|MAC_PREFIX: "52:54:00"|\w+: "([a-z0-9-]+\.)?'
    r'my-domain\.com"|SW_PACKAGES_DEBIAN: \["nfs-common", "libnfs1", "openmpi-bin", "libopenmpi-dev", "libmetis5", '
    r'"libmetis-dev", "9mount"\]|SW_PACKAGES_REDHAT: \["nfs-common", "libnfs1", "nfs-utils", "openmpi", '
    r'"openmpi-devel", "metis", "metis-devel", "nfs-ganesha-mount-9P"\]'
)
_LONGEST = 1024
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_OPERATOR = re.compile(r";;&|;;|;&|&&|\|\||\|&|<<<|<<-|<<|&>>|&>|>>|[<>]&|>\||<>|[;&|<>()\n]")
_ASSIGNMENT = re.compile(rf"{_NAME}(\[[^\]]*\])?\+?=.*", re.DOTALL)
# Also what is set within quotes (eval "A=1") and in passing (${A:=1}).
_SETS = re.compile(rf"(?<![\w$])({_NAME})(?:\[[^\]]{{0,80}}\])?\+?=|\$\{{({_NAME}):?=")
_MENTIONS = re.compile(rf"(?<![\w${{])({_NAME})()")
_SETTERS = re.compile(r"\b(unset|read|readarray|mapfile|printf|let|getopts|for|select|declare|typeset)\b")
_BLOCKS = {"if": "fi", "case": "esac", "{": "}", "(": ")"} | dict.fromkeys(("for", "while", "until", "select"), "done")
_LEADS = {"if", "while", "until", "{", "then", "do", "else", "elif", "!"}
_SEPARATORS = {"\n", ";", "&", "&&", "||", "|", "|&", ";;", ";&", ";;&"}
_REFERENCE = rf"\$(?P<name>{_NAME})|\$\{{(?P<braced>{_NAME})\}}|(?P<command>\$\(|`)"
_BARE = re.compile(
    r"""(?s)\\(?P<escaped>.)|'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|"""
    rf"""{_REFERENCE}|(?P<odd>\$[\[{{'\"0-9@*#?$!-])|(?P<plain>.)"""
)
_QUOTED = re.compile(rf"(?s)\\(?P<escaped>[$`\"\\\n])|{_REFERENCE}|(?P<odd>\$[\[{{0-9@*#?$!-])|(?P<plain>.)")


@dataclass(frozen=True, slots=True)
class Imported:
    """A configuration for config.load, and one line for each thing in the file that is not in it."""

    text: str
    notes: tuple[str, ...]


def convert(source: str, *, name: str) -> Imported:
    """What the text of a config.sh sets beyond defaults, as vtorque.yaml; `name` is what notes call the file.

    Raises ConfigError only when the result as a whole cannot be checked.
    """
    reader = _Reader(source)
    reader.read()
    lines = _accepted(reader, _chosen(reader))
    notes = tuple(f"{name}:{line}: {key}: {text}" for line, key, text in sorted(set(reader.notes)))
    return Imported(text=_HEADER + "".join(f"{key}: {text}\n" for key, text in lines.items()), notes=notes)


class _Undecided(Exception):
    """A value that only a shell could tell."""


class _Unreadable(Exception):
    """Text whose end cannot be found, so that nothing behind it can be trusted."""


class _Token(NamedTuple):
    text: str
    at: int


def _past(source: str, at: int) -> int:
    """The place behind the character at `at` and all that it quotes or opens."""
    for opener, closer in (("'", "'"), ('"', '"'), ("`", "`"), ("$'", "$'"), ("$(", ")"), ("${", "}")):
        if source.startswith(opener, at):
            end = _closed(source, at + len(opener), closer)
            # In such a command brackets need not match, and in "${...}" a single quote may or may not quote.
            if re.search({"$(": r"\bcase\b|<<", "${": "'"}.get(opener, r"\Z."), source[at:end]):
                raise _Unreadable
            return end
    return at + (2 if source[at] == "\\" else 1)


def _closed(source: str, at: int, closer: str) -> int:
    while at < len(source):
        if source[at] == closer[-1]:
            return at + 1
        if closer in ("'", "`", "$'") or (closer == '"' and source.startswith(("'", "$'"), at)):
            at += 2 if source[at] == "\\" and closer != "'" else 1
        elif closer == ")" and source[at] == "(":
            at = _closed(source, at + 1, ")")
        elif closer == ")" and source[at] == "#" and source[at - 1].isspace():
            at = source.find("\n", at) % (len(source) + 1)
        else:
            at = _past(source, at)
    raise _Unreadable


def _tokens(source: str) -> Iterator[_Token]:
    """Words, as they are written, and operators; comments are passed over."""
    at = 0
    while at < len(source):
        if source[at] in " \t" or source.startswith("\\\n", at):
            at += 2 if source[at] == "\\" else 1
        elif source[at] == "#":
            at = source.find("\n", at) % (len(source) + 1)
        else:
            operator = _OPERATOR.match(source, at)
            end = operator.end() if operator else at
            while not operator and end < len(source) and source[end] not in " \t\n;&|<>()":
                end = _past(source, end)
                if source.startswith("=(", end - 1) and _ASSIGNMENT.fullmatch(source[at:end]):
                    end = _closed(source, end + 1, ")")
            if source[at:end] in ("<<", "<<-"):
                raise _Unreadable
            yield _Token(source[at:end], at)
            at = end


def _statements(tokens: Iterable[_Token]) -> Iterator[list[_Token]]:
    """The file's commands, each with all of its blocks."""
    statement: list[_Token] = []
    blocks: list[str] = []
    begins, function = True, False
    for token in tokens:
        text, before = token.text, statement[-1].text if statement else ""
        ends = text in (";", "&") or (text == "\n" and before not in ("&&", "||", "|", "|&"))
        if ends and not blocks and not function:
            yield [*statement, token] if text == "&" else statement
            statement, begins = [], True
            continue
        statement.append(token)
        if text == "(" or (begins and text in _BLOCKS):
            blocks.append(_BLOCKS[text])
            begins, function = text == "(" or text in _LEADS, False
        elif text == ")" and blocks[-1:] == ["esac"]:
            begins = True
        elif text == ")" or (begins and text in _BLOCKS.values()):
            if not blocks or blocks.pop() != text:
                raise _Unreadable
            begins = function = text == ")" and before == "("
        elif begins and text == "function":
            function, begins = True, False
        else:
            begins = function or (begins and text in _LEADS) or text in _SEPARATORS
    if blocks or function:
        raise _Unreadable
    yield statement


class _Reader:
    """What the file sets, and what there is to say about it."""

    def __init__(self, source: str) -> None:
        self.values: dict[str, tuple[int, str | tuple[str, ...] | None]] = {}
        self.used: set[str] = set()
        self.moving: set[str] = set()
        self.notes: list[tuple[int, str, str]] = []
        self._source = source
        self._ends = [match.start() for match in re.finditer("\n", source)]

    def read(self) -> None:
        start = 0
        try:
            for statement in filter(None, _statements(_tokens(self._source))):
                if statement[0].text in ("exit", "return"):
                    return self.note(statement[0].at, statement[0].text, "what follows is not read: here the file ends")
                self._take(statement)
                start = statement[-1].at + len(statement[-1].text)
        except (_Unreadable, RecursionError):
            rest = re.compile(r"\S.*").finditer(self._source, start)
            self._refuse([_Token(each[0], each.start()) for each in rest], "cannot be read from here to the end")

    def note(self, at: int, key: str, text: str) -> None:
        shown = key if re.fullmatch(r"[A-Za-z0-9_./+:\[{(!-]{1,40}", key) else ascii(key[:40])
        self.notes.append((bisect_left(self._ends, at) + 1, shown, text))

    def left_out(self, at: int, given: str, why: str) -> None:
        """Note why an option is not taken; for one that does nothing any more that is reason enough."""
        about = OPTIONS[ALIASES.get(given, given)].metadata
        self.note(at, given, f"has no effect any more: {about[INERT]}" if INERT in about else f"left out: {why}")

    def _take(self, statement: list[_Token]) -> None:
        texts = [token.text for token in statement]
        words = statement
        if texts[0] in ("export", "readonly", "declare", "typeset"):
            words = [token for token in statement[1:] if re.fullmatch(rf"-[rxga]+|{_NAME}", token.text) is None]
        # `declare A=1 B=$A` expands all of it before it sets anything.
        unclear = words is not statement and len(words) > 1 and "$" in "".join(texts)
        if not unclear and all(_ASSIGNMENT.fullmatch(word.text) for word in words):
            for word in words:
                self._assign(word)
        elif texts[0] == "function" or texts[1:3] == ["(", ")"]:
            self._refuse(statement, "what a function does is not taken", moving=True)
        elif texts[0] in _BLOCKS or {"&&", "||"} & set(texts):
            self._refuse(statement, "what depends on a condition, or is done in a block, is not taken")
        else:
            self._refuse(statement, "no command is run")

    def _assign(self, word: _Token) -> None:
        left, _, raw = word.text.partition("=")
        name, value = re.split(r"[+\[]", left)[0], None
        try:
            if name != left:
                raise _Undecided("only a part of it is set here")
            value = self._array(raw[1:-1]) if raw.startswith("(") else self._expanded(raw, _BARE)
        except _Undecided as why:
            if ALIASES.get(name, name) in OPTIONS:
                self.left_out(word.at, name, f"it cannot be decided without running it: {why}")
        self.values[name] = word.at, value

    def _refuse(self, statement: list[_Token], why: str, *, moving: bool = False) -> None:
        """Take nothing of it, and no longer trust what it may have changed."""
        self.note(statement[0].at, statement[0].text.partition(" ")[0], why)
        pattern = _MENTIONS if any(_SETTERS.search(token.text) for token in statement) else _SETS
        for token in statement:
            for match in pattern.finditer(token.text):
                name = match[1] or match[2]
                self.values[name] = -1, None
                self.moving |= {name} if moving else set()
                if ALIASES.get(name, name) in OPTIONS:
                    self.left_out(token.at + match.start(), name, why)

    def _array(self, raw: str) -> tuple[str, ...]:
        texts = [token.text for token in _tokens(raw) if token.text != "\n"]
        for text in texts:
            if _OPERATOR.match(text) or re.search(r"[*?\[{$~]", re.sub(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"", "", text)):
                raise _Undecided("a word in its list is not plain")
        return tuple(self._expanded(text, _BARE) for text in texts)

    def _expanded(self, raw: str, pattern: re.Pattern[str]) -> str:
        text = ""
        for match in pattern.finditer(raw):
            kind, part = str(match.lastgroup), match[str(match.lastgroup)]
            if kind in ("command", "odd") or (part in "~()" and kind == "plain" and pattern is _BARE):
                raise _Undecided("the output of a command" if kind == "command" else f"it uses {match[0]}")
            if kind in ("name", "braced"):
                value = self.values.get(part, (0, None))[1]
                if not isinstance(value, str) or part in self.moving:
                    raise _Undecided(f"${part[:40]} is not known")
                self.used.add(part)
                part = value
            text += self._expanded(part, _QUOTED) if kind == "double" else part if match[0] != "\\\n" else ""
            if len(text) > _LONGEST:
                raise _Undecided("it is too long")
        return text


def _chosen(reader: _Reader) -> dict[str, tuple[int, str, str]]:
    """Place, name in the file and YAML of each option that has a value."""
    chosen: dict[str, tuple[int, str, str]] = {}
    for given, (at, value) in sorted(reader.values.items(), key=lambda item: (item[0] in ALIASES, item[1][0])):
        name = ALIASES.get(given, given)
        if name not in OPTIONS:
            if at >= 0 and given not in reader.used:
                reader.note(at, given, "is not an option of vtorque.yaml")
        elif name != given and (name in reader.values or name in chosen):
            reader.left_out(at, given, f"{name} is set too")
        elif not "".join(value or ()).isprintable():
            reader.left_out(at, given, "must be one line of printable characters")
        elif value is not None and given not in reader.moving:
            chosen[name] = at, given, _yaml(name, value)
    return {name: each for name, each in chosen.items() if not _SHIPPED.fullmatch(f"{name}: {each[2]}")}


def _yaml(name: str, value: str | tuple[str, ...]) -> str:
    forms: dict[object, str] = {bool: "true|false", int: "[0-9]+[A-Za-z]*"}
    plain = isinstance(value, str) and re.fullmatch(forms.get(OPTIONS[name].type, "(?!)"), value)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _accepted(reader: _Reader, chosen: dict[str, tuple[int, str, str]]) -> dict[str, str]:
    """The YAML of the options that config.load takes and that are not what they would be anyway."""
    site = None
    while site is None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "vtorque.yaml")
            path.write_text("".join(f"{name}: {text}\n" for name, (_, _, text) in chosen.items()), encoding="utf-8")
            try:
                site = config.load(path, trusted_owner=None)
            except ConfigError as error:
                refused = dict(re.findall(r"^.*?:[0-9]+: (\w+): (.*)$", error.brief, re.MULTILINE))
                if not refused:
                    raise
                for name, why in refused.items():
                    reader.left_out(*chosen.pop(name)[:2], why)
    lines = {}
    for name, (at, given, text) in chosen.items():
        if getattr(site, OPTIONS[name].name) != OPTIONS[name].default:
            if INERT in OPTIONS[name].metadata:
                reader.left_out(at, given, "")
            else:
                lines[name] = text
    return lines
