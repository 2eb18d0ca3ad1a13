# SPDX-License-Identifier: Apache-2.0
"""The manual pages in man(7), made from the parsers and the tables that the program itself uses.

`python3 -m vtorque.cli.manual doc/man contrib/completion` writes them, and the completion.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtorque import __version__, units, vmoptions
from vtorque.cli import completion, vmgr, vsubhelp, wording
from vtorque.cli.completion import Command
from vtorque.cli.wording import KEY_EXAMPLES, KIND_FORMS
from vtorque.lab import parts
from vtorque.optionforms import INERT
from vtorque.options import ALIASES, LIMITS, OPTIONS
from vtorque.qsub import OPENPBS, TORQUE, Grammar

JOB_VARIABLES = {
    "PBS_NODEFILE": "a file in the guest with the guests' names in order of rank, a line for every vCPU",
    "PBS_VM_NODEFILE": "the same",
    "PBS_NP": "the lines of that file",
    "PBS_NUM_PPN": "vCPUs on a node",
    "PBS_VMS_PN": "guests on a node",
    "DISTRO": "`SLG`, as the original set it",
}
"""What a job finds in its environment that is not as on bare metal."""

_WIDTH = 78
_ESCAPES = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", '"': r"\(dq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
)
_USAGE = re.compile(r"(?P<bold>(?<!\w)--?[A-Za-z][\w-]*|\{[^}]*\})|(?P<italic>[A-Za-z]\w*)|(?P<plain>.)")
_EXAMPLE = re.compile(r" {1,4}(\S.*?)(?: {2,}(\S.*))?")
_BLOCK = re.compile(r"^([a-z ]+):((?:.|\n(?!\n))*)", re.MULTILINE)


def texts() -> dict[str, str]:
    """All pages by the names of their files."""
    pages = {"vsub.1": _vsub(), "vmgr.8": _vmgr(), "vtorque.yaml.5": _configuration()}
    return {name: "\n".join(lines) + "\n" for name, lines in pages.items()}


def main(argv: Sequence[str]) -> int:
    """Write the pages into one directory, the completion into another."""
    for directory, files in zip(map(Path, argv), (texts(), completion.texts()), strict=True):
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text)
    return 0


def escaped(text: str) -> str:
    """Text of which roff changes nothing."""
    plain = text.translate(_ESCAPES)
    return "".join(char if ord(char) < 127 else f"\\[u{ord(char):04X}]" for char in plain)


def _vsub() -> list[str]:
    page = _top("vsub", 1, "User Commands", "submit batch jobs that run in virtual machines")
    page += [*_usage("vsub", vsubhelp.SYNOPSIS), _heading("DESCRIPTION")]
    page += _paragraph(
        "vsub takes the place of `qsub`: its options mean what they mean to qsub, and a job without `-vm` is an "
        "ordinary job. With `-vm` the script runs in virtual machines that are started for this job alone. What vsub "
        "prints is what qsub prints, the job's id; all else goes to standard error."
    )
    page += [_heading("OPTIONS")]
    for option, text in vsubhelp.OPTIONS.items():
        page += _entry(_synopsis(option), text)
    page += _paragraph(f"Torque's qsub has {_letters(TORQUE)}. OpenPBS's has {_letters(OPENPBS)}.")
    page += [_heading("KEYS OF -vm")]
    page += _paragraph(
        "Keys and words may be written in any case. Switches are true, yes, enabled or 0, and false, no, disabled or "
        "1: 0 is true, as an exit status is to the shell."
    )
    for key, text in vmoptions.KEYS.items():
        default = completion.site_default(key)
        inert = not default or INERT in OPTIONS[default].metadata or "not given" in text
        unless = "" if inert else f" The site's `{default}` if not given."
        page += _entry(rf"{_bold(f'{key}=')}\fIvalue\fR", f"{text}.{unless} Like `-vm {KEY_EXAMPLES[key]}`.")
    page += [*_where(), _heading("ENVIRONMENT")]
    page += _entry(_bold("PBS_DPREFIX"), "what a script's directives begin with, not `#PBS`; `-C` goes before it")
    page += _paragraph("The job finds the batch system's variables, `PBS_*`, and those sent along with `-v` or `-V`. "
                       "These differ from bare metal:")
    page += _entries(JOB_VARIABLES)
    page += [_heading("EXIT STATUS"), *_paragraph(f"The {vsubhelp.STATUSES.replace('status:', 'status is', 1)}")]
    page += _paragraph("With `--wait` it is the job's own, 128 plus the signal when one ended it. 130: interrupted.")
    return page + _end({
        f"~/{vmoptions.USER_FILE}": "your own defaults",
        "~/.vtorque/ID": "the script, a key pair and the wrapper of a job; its end removes them",
        "~/.vtorque/JOB": "a link to that, by the id of the job",
    }, vsubhelp.EXAMPLES, "qsub(1B)", "qstat(1B)", "qdel(1B)", "vmgr(8)", "vtorque.yaml(5)")


def _letters(grammar: Grammar) -> str:
    valued, flags = (
        " ".join(f"`-{letter}`" for letter in sorted(letters, key=lambda letter: (letter.lower(), letter)))
        for letters in (grammar.with_value - grammar.flags, grammar.flags)
    )
    return f"{valued} with a value, {flags} without"


def _where() -> list[str]:
    page = [_heading("WHERE THEY MAY STAND")]
    page += _paragraph("From the weakest to the strongest; of a key that comes more than once, the last counts:")
    key_value = r" \fIkey\fR=\fIvalue\fR,..."
    page += _entry("1. the site", "options like `VCPUS_DEFAULT` of vtorque.yaml(5)")
    page += _entry(f"2. {_bold(f'~/{vmoptions.USER_FILE}')}", "a line `key = value` for each; `#` begins a comment")
    page += _entry(f"3. the script: {_bold('#PBS -vm')}{key_value} or {_bold('#VM')}{key_value}",
                   "in its header, down to the first command; plain qsub takes the second form for a comment")
    page += _entry(f"4. the command line: {_bold('-vm')}{key_value}", "any number of them")
    return page + _paragraph(
        "The site's switches beat all of these: without `VRDMA_ENABLED`, for one, a job runs without virtual RDMA, and "
        "vsub says so. Its limits refuse a job that asks for more. `--explain` shows each value and where it is from."
    )


def _vmgr() -> list[str]:
    top, *below = completion.commands(vmgr.parser())
    page = _top("vmgr", 8, "System Administration", "manage images, guests and nodes of vtorque")
    page += [*_usage("vmgr", "vmgr command [arguments]"), _heading("DESCRIPTION")]
    page += _paragraph(f"{top.parser.description} Every command takes `--help`.")
    page += [*_entries(top.children), _heading("OPTIONS"), *_arguments(top), _heading("COMMANDS")]
    for command in below:
        if not command.children:
            page += _command(command)
    about = dict(_BLOCK.findall(top.parser.epilog or ""))
    page += [_heading("EXIT STATUS"), *_paragraph(f"{about['exit status'].strip()}; 130 interrupted")]
    return page + _end({
        f"{OPTIONS['VM_IMG_DIR'].default}/": "the catalogue of images, `VM_IMG_DIR`",
        f"{OPTIONS['STATE_DIR'].default}/": "what jobs hold on this node, `STATE_DIR`",
        f"{OPTIONS['LOG_DIR'].default}/vtorque.log": "a JSON object a line, `LOG_DIR`",
        f"{OPTIONS['LOG_DIR'].default}/accounting/": "the phases of every job, a file a day, `ACCOUNTING_DIR`",
        f"{parts.ROOT}/": "the one-machine lab",
        f"{parts.IMAGES}/": "images of the lab, which stay",
    }, about["examples"], "vsub(1)", "vtorque.yaml(5)")


def _command(command: Command) -> list[str]:
    name, parser = " ".join(["vmgr", *command.words]), command.parser
    formatter = argparse.HelpFormatter(name, width=1000)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    usage = formatter.format_help().strip().replace(" [-h]", "", 1)
    said = [text.strip().rstrip(".") for text in (command.help, parser.description, parser.epilog) if text]
    about = "".join(f"{text}. " for text in dict.fromkeys(said))
    return [_heading(name, "SS"), *_usage(name, usage), *_paragraph(about), *_arguments(command)]


def _arguments(command: Command) -> list[str]:
    page: list[str] = []
    formatter = argparse.HelpFormatter("vmgr", width=1000)
    for action in [*command.operands, *command.options]:
        choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else ""
        name = str(action.metavar or choices or (action.dest.upper() if action.option_strings else action.dest))
        value = f" {name}" if action.nargs != 0 else ""
        tag = ", ".join(f"{word}{value}" for word in action.option_strings) or name
        page += _entry(_synopsis(tag), formatter._expand_help(action) if action.help else "")
    return page


def _configuration() -> list[str]:
    page = _top("vtorque.yaml", 5, "File Formats", "configuration of a site's jobs in virtual machines")
    page += _paragraph(
        "One YAML file, the same on front ends and nodes, with lines `NAME: value`. Each job reads it anew. Names are "
        "in upper case and come once; what is left out has its default. Anchors, aliases, tags and several documents "
        "in a file are refused."
    )
    page += _paragraph(
        "Root acts on what it says: the file and all directories above it have to belong to root, must not be writable "
        "by others and must not be symbolic links. Otherwise root's hooks refuse it."
    )
    page += _paragraph(
        "A wrong file is refused as a whole, with a line for each mistake: the file, the line, the option, and what "
        "would be right. `vmgr config check` shows the same."
    )
    page += _literal("/etc/vtorque/vtorque.yaml:3: TIMOUT: is not an option; did you mean TIMEOUT?\n"
                     "/etc/vtorque/vtorque.yaml:9: MAX_VCPUS: must be 0 or at least VCPUS_DEFAULT, which is 7")
    inert = {name: option.metadata[INERT] for name, option in OPTIONS.items() if INERT in option.metadata}
    page += [_heading("OPTIONS"), *_paragraph("Each with its default.")]
    for name in OPTIONS:
        page += _option(name) if name not in inert else []
    page += [_heading("OPTIONS WITHOUT EFFECT"), *_paragraph("The original's, so that a site can keep its file.")]
    for name, why in inert.items():
        page += _option(name, why)
    page += [_heading("OTHER NAMES"), *_entries({alias: f"`{name}`" for alias, name in ALIASES.items()})]
    return page + _end({}, "\n".join(f"  {wording.example(name)}" for name in wording.EXAMPLES), "vsub(1)", "vmgr(8)")


def _option(name: str, why: str = "") -> list[str]:
    option = OPTIONS[name]
    about = option.metadata
    form = KIND_FORMS.get(about.get("kind", ""), "")
    if "choices" in about:
        form = " or ".join(about["choices"])
    elif option.type is bool:
        form = "true or false"
    elif option.type is int and about.get("kind") != "size":
        form = f"{about.get('low', 0)} to {about['high']}" if "high" in about else "a whole number"
        form += f" {about['unit']}" if "unit" in about else ""
    elif "low" in about:
        form += f", at least {units.size(about['low'])}"
    limits = "".join(f" 0, or at least `{usual.upper()}`." for limit, usual in LIMITS if limit == option.name)
    text = f"{about['text']}.{form and f' Value: {form}.'}{limits}{why and f' No effect: {why}.'}"
    return _entry(_bold(name, f": {wording.written(name)}"), text)


def _top(name: str, part: int, group: str, brief: str) -> list[str]:
    # No date: the page of a version is the same whenever it is made.
    return [
        '.\\" SPDX-License-Identifier: Apache-2.0', '.\\" `make manual` writes this.',
        f'.TH {escaped(name.upper())} {part} "" "vtorque {escaped(__version__)}" "{group}"',
        _heading("NAME"), rf"{escaped(name)} \- {escaped(brief)}", _heading("DESCRIPTION" if part == 5 else "SYNOPSIS"),
    ]


def _end(files: Mapping[str, str], examples: str, *others: str) -> list[str]:
    page = [_heading("FILES"), *_entries(files)]
    page += _entry(_bold("/etc/vtorque/vtorque.yaml"),
                   "the site's configuration; `etc/vtorque.yaml` in vtorque's own directory goes before it")
    page.append(_heading("EXAMPLES"))
    for match in filter(None, map(_EXAMPLE.fullmatch, examples.splitlines())):
        page += _entry(_bold(match[1]), match[2]) if match[2] else [".PP", _bold(match[1])]
    return [*page, _heading("SEE ALSO"), *_paragraph(", ".join(re.sub(r"^[^(]+", r"`\g<0>`", each) for each in others))]


def _heading(title: str, macro: str = "SH") -> str:
    return f'.{macro} "{escaped(title)}"'


def _paragraph(text: str) -> list[str]:
    return [".PP", *_filled(_marked(text))]


def _entry(tag: str, text: str) -> list[str]:
    return [".TP", _protected(tag), *(_filled(_marked(text)) or [r"\&"])]


def _entries(named: Mapping[str, str]) -> list[str]:
    return [line for name, text in named.items() for line in _entry(_bold(name), text)]


def _literal(text: str) -> list[str]:
    return [".PP", ".RS 4", ".EX", *(_protected(escaped(line)) for line in text.splitlines()), ".EE", ".RE"]


def _usage(name: str, text: str) -> list[str]:
    return [".PP", *_filled(f"{_bold(name)}{_synopsis(text.removeprefix(name))}")]


def _synopsis(text: str) -> str:
    """Options bold, what stands for something else in italics."""
    fonts = {"bold": r"\fB{}\fR", "italic": r"\fI{}\fR", "plain": "{}"}
    return "".join(fonts[str(match.lastgroup)].format(escaped(match[0])) for match in _USAGE.finditer(text))


def _bold(name: str, rest: str = "") -> str:
    return rf"\fB{escaped(name)}\fR{escaped(rest)}"


def _marked(text: str) -> str:
    """Plain text; what stands in `backticks` is bold."""
    pieces = re.split(r"`([^`]+)`", " ".join(text.split()))
    return "".join(_bold(piece) if place % 2 else escaped(piece) for place, piece in enumerate(pieces))


def _filled(marked: str) -> list[str]:
    # Names of options are not to be hyphenated.
    unbroken = re.sub(r"(?<!\S)(?=\S*_)", r"\\%", marked)
    sentences = re.split(r"(?<=[\w)]\.) (?=\S)", unbroken)
    wrapped = (textwrap.wrap(each, _WIDTH, break_on_hyphens=False, break_long_words=False) for each in sentences)
    return [_protected(line) for lines in wrapped for line in lines]


def _protected(line: str) -> str:
    return rf"\&{line}" if line.startswith((".", "'")) else line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
