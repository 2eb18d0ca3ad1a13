# SPDX-License-Identifier: Apache-2.0
"""The grammar of qsub, Torque's and OpenPBS's: options on the command line and in a script's header."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vtorque.errors import RequestError


class Grammar(NamedTuple):
    """A qsub's options: letters with a value, and without; what `--` means; which ones make an array."""

    with_value: frozenset[str]
    flags: frozenset[str]
    arrays: str
    command_after_dashes: bool = False


# Torque's getopt strings of 4 to 6 taken together (qsub_functions.c, GETOPT_ARGS), OpenPBS's of 23
# (qsub_sup.c) with -G of its manual: what a given qsub does not know it refuses itself.
TORQUE = Grammar(
    with_value=frozenset("aAbcCdDeFijJkKlLmMNopPqrStTuvwW"), flags=frozenset("EfhInVxXz"), arrays="t"
)
OPENPBS = Grammar(
    with_value=frozenset("aAcCejJklmMNopPqrRSuvW"), flags=frozenset("fGhIVXz"), arrays="J",
    command_after_dashes=True,
)
# There is no qsub: whoever comes from either system finds its options.
SLURM = Grammar(
    with_value=TORQUE.with_value | OPENPBS.with_value, flags=TORQUE.flags | OPENPBS.flags, arrays="tJ"
)
GRAMMARS = {"torque": TORQUE, "local": TORQUE, "openpbs": OPENPBS, "slurm": SLURM}
"""What qsub's options are with each batch system."""

OURS = ("--wait", "--version", "--help", "--dry-run", "--explain")
_GENERATE, _GENERATE_OLD = "--generate", "-gf"

_DEFAULT_PREFIX = "#PBS"
# What plain qsub takes for a comment, and so would a reader who does not know us.
_INERT = re.compile(rb"#VM[ \t]+([A-Za-z_]+)[ \t]*=[ \t]*(.*)", re.DOTALL)
# -W says with a name what other options say with a letter (qsub_functions.c, process_opts); a comma is part of a value
# unless another name follows it.
_ATTRIBUTE = re.compile(r"(?:^|,)\s*(interactive|job_array_request)\s*=\s*((?:[^,]|,(?![^,=]*=))*)")
# A word of a directive: quotes may begin anywhere in it and know no escapes (make_argv).
_WORD = re.compile(r"""(?:[^\s"'\\]|"[^"]*"|'[^']*'|\\.)+""", re.ASCII)
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'|\\(.)""")


class UsageError(RequestError):
    """The command line is not one that qsub would take; qsub itself exits with 2 then."""


class CommandLine(NamedTuple):
    """What a user typed: `passed` is for the real qsub as it stands, the rest is ours.

    `options` holds qsub's own, letter and value, in order; `places` where the
    value of each stands: the number of the word in `passed`, and the place in
    it. `generate` is a directory to write files to, empty for the usual one.
    """

    passed: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    places: tuple[tuple[int, int], ...]
    vm: tuple[str, ...]
    ours: frozenset[str]
    generate: str | None
    script: str | None
    command: tuple[str, ...] = ()

    def last(self, letter: str, default: str = "") -> str:
        """The value of the last such option; qsub lets the last one win."""
        values = [value for name, value in self.options if name == letter]
        return values[-1] if values else default

    def has(self, letter: str) -> bool:
        """Whether the option is there at all."""
        return any(name == letter for name, _ in self.options)

    def with_values(self, values: Mapping[int, str]) -> list[str]:
        """The words for qsub with other values for some options, by their number in `options`."""
        words = list(self.passed)
        for number, value in values.items():
            word, start = self.places[number]
            words[word] = words[word][:start] + value
        return words


class Header(NamedTuple):
    """A script's directives: the lines for qsub byte for byte, what they say, and those for us.

    `vm` holds numbers of lines and what they ask for.
    """

    lines: bytes
    options: tuple[tuple[str, str], ...]
    vm: tuple[tuple[int, str], ...]


def parse(words: Sequence[str], grammar: Grammar = TORQUE) -> CommandLine:
    """Take a command line apart as getopt does; UsageError.

    `-vm` counts as ours only as a word of its own: to getopt it is `-v m`.
    """
    line, operands = _take_apart(words, grammar)
    if line.script is not None and len(operands) > 1:
        hint = '-F "words" hands words to the script'
        raise UsageError(f"{operands[1][:80]!r} is one word too many", hint=hint)
    return line


def takes_next(word: str) -> bool:
    """Whether the next word is the value of this one, with any qsub."""
    if word in ("-vm", _GENERATE):
        return True
    letters = word[1:] if word.startswith("-") and not word.startswith("--") else ""
    first = next((place for place, letter in enumerate(letters) if letter in SLURM.with_value), None)
    return first == len(letters) - 1 if first is not None else False


def header(script: bytes, *, prefix: str | None = None, grammar: Grammar = TORQUE) -> Header:
    """The directives of a script, by qsub's rules; RequestError when it is not a text that qsub takes.

    They count until the first line that the shell would execute; blank lines,
    comments and lines that begin with a colon do not end them, and a backslash
    at the end continues a line (isexecutable, ispbsdir and get_script of
    qsub_functions.c). An empty prefix means that there are none. `#VM key=value`
    says the same as `-vm` and is a comment to qsub.
    """
    if b"\0" in script:
        raise RequestError("the script is not a text file")
    if b"\r\n" in script or script.endswith(b"\r"):
        raise RequestError("the script has DOS line ends", hint="dos2unix mends it")
    mark = (_DEFAULT_PREFIX if prefix is None else prefix).encode(errors="surrogateescape")
    options: list[tuple[str, str]] = []
    vm: list[tuple[int, str]] = []
    kept: list[bytes] = []
    for number, original, statement in _directives(script, mark):
        words = _words(number, statement)
        try:
            said, operands = _take_apart(words, grammar)
        except UsageError as error:
            raise UsageError(f"line {number}: {error.brief}", hint=error.hint) from error
        if said.ours or said.generate is not None:
            raise UsageError(f"line {number}: {min(said.ours or {_GENERATE})} belongs on the command line")
        if not original and said.passed:
            raise UsageError(f"line {number}: {said.passed[0][:80]!r} does not belong behind #VM")
        if said.vm:
            _require_comment(number, operands)
            original = b" ".join([mark, *(_bytes(word) for word in said.passed)]) + b"\n"
        if said.passed or not said.vm:
            kept.append(original)
        vm += [(number, _unquoted(text)) for text in said.vm]
        options += [(letter, _unquoted(value)) for letter, value in said.options]
    return Header(lines=b"".join(kept), options=tuple(options), vm=tuple(vm))


def _take_apart(words: Sequence[str], grammar: Grammar) -> tuple[CommandLine, list[str]]:
    """The options among `words`, and what is not one: getopt finds options behind operands, too."""
    line = _Parsing(grammar)
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if word == "--":
            if grammar.command_after_dashes and not line.operands:
                line.command = tuple(reversed(rest))
            else:
                line.operands += reversed(rest)
            break
        line.take(word, rest)
    return line.result(), line.operands


class _Parsing:
    """A command line while it is taken apart."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._passed: list[str] = []
        self._options: list[tuple[str, str]] = []
        self._places: list[tuple[int, int]] = []
        self._vm: list[str] = []
        self._ours: set[str] = set()
        self._generate: str | None = None
        self.operands: list[str] = []
        self.command: tuple[str, ...] = ()

    def take(self, word: str, rest: list[str]) -> None:
        """One word, and what belongs to it of the `rest`, which is reversed."""
        if word == "-vm":
            self._vm.append(_value(word, rest))
        elif word in OURS:
            self._ours.add(word)
        elif word == _GENERATE_OLD:
            self._generate = ""
        elif word == _GENERATE or word.startswith(f"{_GENERATE}="):
            self._generate = _value(_GENERATE, [word.partition("=")[2]] if "=" in word else rest)
        elif word.startswith("--"):
            import difflib  # for whoever mistyped something only

            near = difflib.get_close_matches(word, (*OURS, _GENERATE, "--batch"), n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else "vsub --help lists them"
            raise UsageError(f"{word[:80]!r} is not an option", hint=hint)
        elif word.startswith("-") and word != "-":
            self._cluster(word, rest)
        else:
            self.operands.append(word)

    def _cluster(self, word: str, rest: list[str]) -> None:
        """One word of options: flags may be joined, and the last may take the rest or the next word."""
        self._passed.append(word)
        for place, letter in enumerate(word[1:], 1):
            if letter in self._grammar.flags:
                self._add(letter, "", len(self._passed) - 1, place)
            elif letter in self._grammar.with_value:
                if attached := word[place + 1:]:
                    self._add(letter, attached, len(self._passed) - 1, place + 1)
                else:
                    self._passed.append(_value(f"-{letter}", rest))
                    self._add(letter, self._passed[-1], len(self._passed) - 1, 0)
                return
            else:
                shown = f"-{letter}" if letter.isprintable() else repr(f"-{letter}")
                raise UsageError(f"{shown} is not an option of qsub", hint="vsub --help lists them")

    def _add(self, letter: str, value: str, word: int, start: int) -> None:
        self._options.append((letter, value))
        self._places.append((word, start))
        if letter == "W" and self._grammar is not SLURM:
            for name, said in _ATTRIBUTE.findall(_unquoted(value)):
                # Neither interactive job nor array: qsub refuses other values of the one, OpenPBS's the other name.
                if (name, said) == ("interactive", "true"):
                    self._add("I", "", word, start)
                elif name == "job_array_request" and "t" in self._grammar.arrays:
                    self._add("t", said, word, start)

    def result(self) -> CommandLine:
        """What has been taken apart so far."""
        return CommandLine(
            passed=tuple(self._passed), options=tuple(self._options), places=tuple(self._places),
            vm=tuple(self._vm), ours=frozenset(self._ours), generate=self._generate,
            script=self.operands[0] if self.operands else None, command=self.command,
        )


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
        elif inert := _INERT.fullmatch(text):
            yield number, b"", b" -vm " + inert[1] + b"=" + inert[2]
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


def _value(option: str, rest: list[str]) -> str:
    if not rest or (option == _GENERATE and not rest[-1]):
        raise UsageError(f"{option} needs a value")
    return rest.pop()
