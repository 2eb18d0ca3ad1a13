# SPDX-License-Identifier: Apache-2.0
"""The grammar of Torque's qsub: its options on the command line and in a script's header."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vtorque.errors import RequestError

# The getopt strings of Torque 4 to 6 taken together (qsub_functions.c, GETOPT_ARGS): what a
# given qsub does not know it refuses itself.
WITH_VALUE = frozenset("aAbcCdDeFijJkKlLmMNopPqrStTuvwW")
FLAGS = frozenset("EfhInVxXz")

OURS = ("--wait", "--version", "--help")
_LATER = ("--dry-run", "-gf")

_DEFAULT_PREFIX = "#PBS"
_NODES = re.compile(r"[0-9]{1,6}", re.ASCII)
# A word of a directive: quotes may begin anywhere in it and know no escapes (make_argv).
_WORD = re.compile(r"""(?:[^\s"'\\]|"[^"]*"|'[^']*'|\\.)+""", re.ASCII)
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'|\\(.)""")


class UsageError(RequestError):
    """The command line is not one that qsub would take; qsub itself exits with 2 then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What a user typed: `passed` is for the real qsub as it stands, the rest is ours.

    `options` holds qsub's own, letter and value, in order.
    """

    passed: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    vm: tuple[str, ...]
    ours: frozenset[str]
    script: str | None

    def last(self, letter: str, default: str = "") -> str:
        """The value of the last such option; qsub lets the last one win."""
        values = [value for name, value in self.options if name == letter]
        return values[-1] if values else default

    def has(self, letter: str) -> bool:
        """Whether the option is there at all."""
        return any(name == letter for name, _ in self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A script's directives: the lines for qsub byte for byte, what they say, and those for us."""

    lines: bytes
    options: tuple[tuple[str, str], ...]
    vm: tuple[str, ...]


def parse(words: Sequence[str]) -> CommandLine:
    """Take a command line apart as getopt does; UsageError.

    `-vm` counts as ours only as a word of its own: to getopt it is `-v m`.
    """
    line, operands = _take_apart(words)
    if len(operands) > 1:
        hint = '-F "words" hands words to the script'
        raise UsageError(f"{operands[1][:80]!r} is one word too many", hint=hint)
    return line


def header(script: bytes, *, prefix: str | None = None) -> Header:
    """The directives of a script, by qsub's rules; RequestError when it is not a text that qsub takes.

    They count until the first line that the shell would execute; blank lines,
    comments and lines that begin with a colon do not end them, and a backslash
    at the end continues a line (isexecutable, ispbsdir and get_script of
    qsub_functions.c). An empty prefix means that there are none.
    """
    if b"\0" in script:
        raise RequestError("the script is not a text file")
    if b"\r\n" in script:
        raise RequestError("the script has DOS line ends", hint="dos2unix mends it")
    mark = (_DEFAULT_PREFIX if prefix is None else prefix).encode(errors="surrogateescape")
    options: list[tuple[str, str]] = []
    vm: list[str] = []
    kept: list[bytes] = []
    for number, original, statement in _directives(script, mark):
        words = _words(number, statement)
        try:
            said, operands = _take_apart(words)
        except UsageError as error:
            raise UsageError(f"line {number}: {error.brief}", hint=error.hint) from error
        if said.ours:
            raise UsageError(f"line {number}: {min(said.ours)} belongs on the command line")
        if said.vm:
            _require_comment(number, operands)
            original = b" ".join([mark, *(_bytes(word) for word in said.passed)]) + b"\n"
        if said.passed or not said.vm:
            kept.append(original)
        vm += map(_unquoted, said.vm)
        options += [(letter, _unquoted(value)) for letter, value in said.options]
    return Header(lines=b"".join(kept), options=tuple(options), vm=tuple(vm))


def resource(options: Sequence[tuple[str, str]], name: str) -> str:
    """The value of a resource in -l, the last one given; empty when there is none."""
    found = ""
    for letter, value in options:
        for entry in value.split(",") if letter == "l" else ():
            key, _, amount = entry.partition("=")
            if key.strip() == name:
                found = amount.strip()
    return found


def nodes_requested(options: Sequence[tuple[str, str]]) -> int:
    """How many nodes `-l nodes=` asks for: `2:ppn=4+hostA` are three; one when nothing is said."""
    heads = [chunk.partition(":")[0] for chunk in resource(options, "nodes").split("+")]
    return sum(int(head) if _NODES.fullmatch(head) else 1 for head in heads)


def _take_apart(words: Sequence[str]) -> tuple[CommandLine, list[str]]:
    """The options among `words`, and what is not one: getopt finds options behind operands, too."""
    passed: list[str] = []
    options: list[tuple[str, str]] = []
    vm: list[str] = []
    ours: set[str] = set()
    operands: list[str] = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if word == "--":
            operands += reversed(rest)
            break
        if word == "-vm":
            vm.append(_value(word, rest))
        elif word in OURS:
            ours.add(word)
        elif word in _LATER:
            raise UsageError(f"{word} is not supported by this version")
        elif word.startswith("--"):
            raise UsageError(f"{word[:80]!r} is not an option", hint="vsub --help lists them")
        elif word.startswith("-") and word != "-":
            passed += _cluster(word, rest, options)
        else:
            operands.append(word)
    line = CommandLine(
        passed=tuple(passed),
        options=tuple(options),
        vm=tuple(vm),
        ours=frozenset(ours),
        script=operands[0] if operands else None,
    )
    return line, operands


def _directives(script: bytes, mark: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Line number, the line as it stands with all its continuations, and what it says behind the mark."""
    lines = script.split(b"\n")
    # What follows the last line end is a line only when there is something.
    if not lines[-1]:
        lines.pop()
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at]
        text = line.lstrip()
        at += 1
        if mark and text.startswith(mark):
            original, statement = line, text.removeprefix(mark)
            while statement.endswith(b"\\"):
                if at == len(lines):
                    raise UsageError(f"line {number}: the directive goes on behind the end of the script")
                original += b"\n" + lines[at]
                statement = statement[:-1] + lines[at]
                at += 1
            yield number, original + b"\n", statement
        elif text and not text.startswith(b"#") and not line.startswith(b":"):
            return


def _words(number: int, statement: bytes) -> list[str]:
    """Words with their quotes, which qsub keeps as well (make_argv)."""
    text = statement.decode(errors="surrogateescape")
    left = _WORD.sub("", text).strip()
    if left:
        raise UsageError(f"line {number}: unmatched {left[0]}")
    return _WORD.findall(text)


def _require_comment(number: int, operands: Sequence[str]) -> None:
    """qsub overlooks words that belong to no option; next to `-vm` they are a slip of the pen."""
    if operands and not operands[0].startswith("#"):
        hint = "no blanks between keys: -vm vcpus=4,ram=8G"
        raise UsageError(f"line {number}: {operands[0][:80]!r} is one word too many", hint=hint)


def _unquoted(word: str) -> str:
    return _QUOTED.sub(lambda match: match[1] or match[2] or match[3] or "", word)


def _bytes(word: str) -> bytes:
    return word.encode(errors="surrogateescape")


def _cluster(word: str, rest: list[str], options: list[tuple[str, str]]) -> list[str]:
    """One word of options: flags may be joined, and the last may take the rest or the next word."""
    letters = word[1:]
    for place, letter in enumerate(letters):
        if letter in FLAGS:
            options.append((letter, ""))
        elif letter in WITH_VALUE:
            attached = letters[place + 1:]
            if attached:
                options.append((letter, attached))
                return [word]
            value = _value(f"-{letter}", rest)
            options.append((letter, value))
            return [word, value]
        else:
            raise UsageError(f"-{letter} is not an option of qsub", hint="vsub --help lists them")
    return [word]


def _value(option: str, rest: list[str]) -> str:
    if not rest:
        raise UsageError(f"{option} needs a value")
    return rest.pop()
