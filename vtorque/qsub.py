# SPDX-License-Identifier: Apache-2.0
"""The grammar of Torque's qsub: its options on the command line and in a script's header."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from vtorque.errors import RequestError

# The getopt string of Torque 4 to 6 (qsub_functions.c, GETOPT_ARGS).
WITH_VALUE = frozenset("aAbcCdDeFjJkKlLmMNopPqrStTuvwW")
FLAGS = frozenset("EfhInVxXz")

OURS = ("--wait", "--version", "--help")

_DEFAULT_PREFIX = "#PBS"
_NODES = re.compile(r"[0-9]{1,6}", re.ASCII)


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
    passed: list[str] = []
    options: list[tuple[str, str]] = []
    vm: list[str] = []
    ours: set[str] = set()
    operands: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            operands += rest
            break
        if word == "-vm":
            vm.append(_value(word, rest))
        elif word in OURS:
            ours.add(word)
        elif word.startswith("--"):
            raise UsageError(f"{word[:80]!r} is not an option", hint="vsub --help lists them")
        elif word.startswith("-") and word != "-":
            passed += _cluster(word, rest, options)
        else:
            operands.append(word)
    if len(operands) > 1:
        hint = '-F "words" hands words to the script'
        raise UsageError(f"{operands[1][:80]!r} is one word too many", hint=hint)
    return CommandLine(
        passed=tuple(passed),
        options=tuple(options),
        vm=tuple(vm),
        ours=frozenset(ours),
        script=operands[0] if operands else None,
    )


def header(script: bytes, *, prefix: str | None = None) -> Header:
    """The directives of a script, by qsub's rules; RequestError when it is not a text that qsub takes.

    They count until the first line that the shell would execute; blank lines,
    comments and lines that begin with a colon do not end them, and a backslash
    at the end continues a line (qsub_functions.c:604-624).
    """
    if b"\0" in script:
        raise RequestError("the script is not a text file")
    if re.search(rb"\r\n", script):
        raise RequestError("the script has DOS line ends", hint="dos2unix mends it")
    mark = (_DEFAULT_PREFIX if prefix is None else prefix).encode(errors="surrogateescape")
    options: list[tuple[str, str]] = []
    vm: list[str] = []
    kept = statement = original = b""
    continued = False
    for line in script.split(b"\n"):
        if not continued and not (mark and line.startswith(mark)):
            if line.strip() and not line.lstrip().startswith((b"#", b":")):
                break
            continue
        text = line if continued else line[len(mark):]
        if not continued:
            statement, original = b"", b""
        continued = text.endswith(b"\\")
        statement += text.removesuffix(b"\\")
        original += line + b"\n"
        if not continued:
            said = _directive(statement)
            vm += said.vm
            options += said.options
            kept += original if not said.vm else _without_vm(mark, said)
    return Header(lines=kept, options=tuple(options), vm=tuple(vm))


def nodes_requested(options: Sequence[tuple[str, str]]) -> int:
    """How many nodes `-l nodes=` asks for: `2:ppn=4+hostA` are three; one when nothing is said."""
    count = 1
    for letter, value in options:
        for resource in value.split(",") if letter == "l" else ():
            name, _, what = resource.partition("=")
            if name == "nodes":
                heads = [chunk.partition(":")[0] for chunk in what.split("+")]
                count = sum(int(head) if _NODES.fullmatch(head) else 1 for head in heads)
    return count


def _directive(statement: bytes) -> CommandLine:
    text = statement.decode(errors="surrogateescape")
    try:
        words = shlex.split(text, comments=False)
    except ValueError as error:
        raise RequestError(f"directive {text.strip()[:80]!r}: {error}") from None
    line = parse(words)
    if line.ours or line.script is not None:
        raise RequestError(f"directive {text.strip()[:80]!r} is not made of qsub's options")
    return line


def _without_vm(mark: bytes, said: CommandLine) -> bytes:
    """What is left of a directive line for qsub, which would read `-vm` as `-v m`."""
    if not said.passed:
        return b""
    return mark + b" " + shlex.join(said.passed).encode(errors="surrogateescape") + b"\n"


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
    return rest.pop(0)
