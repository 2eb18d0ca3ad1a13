# SPDX-License-Identifier: Apache-2.0
"""Completion for bash and zsh, as text: made from the parsers, so that it cannot disagree with them.

What may come next is decided by functions that both shells read; only how to ask and to tell is each shell's own.
"""

import argparse
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vtorque import imagebuild, resolve, vmoptions
from vtorque.cli import vmgr, vsubhelp
from vtorque.options import OPTIONS
from vtorque.qsub import GRAMMARS, OPENPBS, TORQUE

_USER_FILES = ("vcpu_pinning", "vm_prologue", "vm_epilogue", "disk", "metadata")
_AUTO = ("vcpus", "ram")
_LONG_NAMES = {"fs_type": "filesystem_type"}
# The options of qsub whose value is a file or a directory.
_QSUB_FILES, _QSUB_DIRECTORIES = {"-e", "-o", "-S"}, {"-d", "-D", "-w"}
# Whose NAME is not that of an image in the catalogue.
_NOT_IMAGES = ("build", "suspended")


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What a value may be: one of `words`; also one of files, directories or images when `kind` says so."""

    words: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command or subcommand: its words behind the program's name, and its subcommands with their help."""

    words: tuple[str, ...]
    parser: argparse.ArgumentParser
    help: str
    children: dict[str, str]

    @property
    def options(self) -> list[argparse.Action]:
        """What it takes by name, without --help and what is hidden."""
        return [
            action for action in self.parser._actions
            if action.option_strings and action.dest != "help" and action.help != argparse.SUPPRESS
        ]

    @property
    def operands(self) -> list[argparse.Action]:
        """What it takes by place, without subcommands."""
        return [
            action for action in self.parser._actions
            if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
        ]


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = (), help_text: str = ""
) -> Iterator[Command]:
    """A command and all below it."""
    areas = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    children = {each.dest: each.help or "" for area in areas for each in area._choices_actions}
    yield Command(words=words, parser=parser, help=help_text, children=children)
    for name in children:
        yield from commands(areas[0].choices[name], (*words, name), children[name])


def site_default(key: str) -> str:
    """The option of the site that says what a key of -vm is when nobody does; empty when there is none."""
    stem = _LONG_NAMES.get(key, key).upper()
    return next((name for name in (f"{stem}_DEFAULT", f"{stem}_ENABLED_DEFAULT") if name in OPTIONS), "")


def key_values(key: str) -> Values:
    """What a key of -vm may be."""
    if key == "img":
        return Values(kind="images")
    option = OPTIONS.get(site_default(key))
    words: tuple[str, ...] = (resolve.AUTO,) if key in _AUTO else ()
    if option is not None:
        words += option.metadata.get("choices", ("true", "false") if option.type is bool else ())
    return Values(words=words, kind="files" if key in _USER_FILES else "")


def argument_values(command: Command, action: argparse.Action) -> Values:
    """What an argument of vmgr may be."""
    if action.choices is not None:
        return Values(words=tuple(map(str, action.choices)))
    if action.dest == "name" and not action.option_strings and command.words[-1] not in _NOT_IMAGES:
        return Values(kind="images")
    if command.words == ("image", "build") and not action.option_strings:
        return Values(words=tuple(imagebuild.RECIPES))
    if action.dest == "directory":
        return Values(kind="directories")
    return Values(kind="files" if action.type is Path else "")


def own_options() -> list[str]:
    """vsub's own options, each spelling."""
    every = ", ".join(vsubhelp.OPTIONS).split(", ")
    return [option.split()[0] for option in every if not option.startswith("-h ")]


def qsub_options() -> dict[str, bool]:
    """The options of every qsub that we know, and whether a value belongs to each."""
    flags = TORQUE.flags | OPENPBS.flags
    letters = sorted(flags | TORQUE.with_value | OPENPBS.with_value, key=lambda letter: (letter.lower(), letter))
    return {f"-{letter}": letter not in flags for letter in letters}


def texts() -> dict[str, str]:
    """All scripts by the names of their files."""
    found = {}
    for name, decide in (("vsub", _vsub()), ("vmgr", _vmgr())):
        about = f"# SPDX-License-Identifier: Apache-2.0\n# Completion of {name}; `make manual` writes it.\n"
        found[f"{name}.bash"] = f"{about}\n{_IMAGES}\n{decide}\n{_fill(_BASH, NAME=name)}"
        found[f"_{name}"] = f"#compdef {name}\n{about}\n{_IMAGES}\n{decide}\n{_fill(_ZSH, NAME=name)}"
    return found


_IMAGES = """\
# The names of the images, asked for once.
_vtorque_images() {
    [[ -n ${_vtorque_image_names-} ]] && return
    _vtorque_image_names=$(vmgr image list </dev/null 2>/dev/null | while read -r name rest; do echo "$name"; done)
}
"""

_VSUB = """\
# What vt_typed may become behind the words of the command line.
_vtorque_vsub() {
    local previous='' key each
    for each in "$@"; do previous=$each; done
    case "$previous $vt_typed" in
        "-vm "*) ;;
        @DIRECTORIES@) vt_kind=directories; return ;;
        @FILES@) vt_kind=files; return ;;
        @OTHERS@) return ;;
        "--batch "*) vt_words=@SYSTEMS@; return ;;
        *" --batch="*) vt_words=@SYSTEMS@ vt_typed=${vt_typed#*=}; return ;;
        *" --generate="*) vt_kind=directories vt_typed=${vt_typed#*=}; return ;;
        *" -"*) vt_words=@OPTIONS@; return ;;
        *) vt_kind=files; return ;;
    esac
    key=${vt_typed##*,}
    if [[ $key == *=* ]]; then
        vt_typed=${key#*=}
        case ${key%%=*} in
@VALUES@
        esac
    else
        for each in @KEYS@; do
            [[ ",$vt_typed" == *",$each="* ]] || vt_words+=" $each="
        done
        vt_typed=$key
    fi
}
"""

_VMGR = """\
# What vt_typed may become behind the words of the command line.
_vtorque_vmgr() {
    local at='' option='' place=0 each
    for each in "$@"; do
        case "${option:+value}$at $each" in
            value*) option='' ;;
            @COMMANDS@) at+=" $each" ;;
            @VALUED@) option=" $each" ;;
            *' -'*) ;;
            *) place=$((place + 1)) ;;
        esac
    done
    if [[ $vt_typed == --*=* ]]; then
        option=" ${vt_typed%%=*}" vt_typed=${vt_typed#*=}
    fi
    _vtorque_place "$at${option:-:$place}"
    if [[ -z $option && ($vt_typed == -* || -z $vt_kind$vt_words) ]]; then
        _vtorque_place "$at:-"
    fi
}

# A place: a command and its option, or the number of its operand, or - for any of its options.
_vtorque_place() {
    vt_kind='' vt_words=''
    case $1 in
@PLACES@
    esac
}
"""

_BASH = """\
_@NAME@() {
    # COMP_WORDS is cut at = and more; these are the words as the shell will see them.
    local line=${COMP_LINE:0:COMP_POINT} vt_kind='' vt_words='' vt_typed before lead kept candidate
    vt_typed=${line##*[[:space:]]} lead=$vt_typed
    # Readline replaces only $2, the end of the word.
    kept=${lead%"$2"}
    read -rd '' -a before <<<"${line%"$lead"}"
    _vtorque_@NAME@ "${before[@]:1}"
    lead=${lead%"$vt_typed"}
    case $vt_kind in
        images) _vtorque_images && vt_words+=" $_vtorque_image_names" ;;
        files | directories) compopt -o filenames 2>/dev/null ;;
    esac
    [[ $vt_words == *= ]] && compopt -o nospace 2>/dev/null
    COMPREPLY=()
    while IFS= read -r candidate; do
        candidate=$lead$candidate
        COMPREPLY+=("${candidate#"$kept"}")
    done < <(
        [[ $vt_kind == files ]] && compgen -f -- "$vt_typed"
        [[ $vt_kind == directories ]] && compgen -d -- "$vt_typed"
        compgen -W "$vt_words" -- "$vt_typed"
    )
}

complete -F _@NAME@ @NAME@
"""

_ZSH = """\
_@NAME@() {
    local vt_kind='' vt_words='' vt_typed=$PREFIX suffix=' ' failed=1
    _vtorque_@NAME@ ${words[2,CURRENT-1]}
    compset -p $(( ${#PREFIX} - ${#vt_typed} ))
    case $vt_kind in
        images) _vtorque_images; vt_words+=" $_vtorque_image_names" ;;
        files) _files && failed=0 ;;
        directories) _files -/ && failed=0 ;;
    esac
    [[ $vt_words == *'=' ]] && suffix=''
    compadd -S "$suffix" -- ${=vt_words} && failed=0
    return failed
}

_@NAME@ "$@"
"""


def _vsub() -> str:
    values = {key: key_values(key) for key in vmoptions.KEYS}
    valued = {option for option, value in qsub_options().items() if value}
    return _fill(
        _VSUB,
        VALUES="\n".join(_case([key], value, 3) for key, value in values.items() if value != Values()),
        KEYS=" ".join(vmoptions.KEYS),
        DIRECTORIES=_behind({"--generate"} | _QSUB_DIRECTORIES),
        FILES=_behind(_QSUB_FILES),
        OTHERS=_behind(valued - _QSUB_FILES - _QSUB_DIRECTORIES),
        SYSTEMS=shlex.quote(" ".join(GRAMMARS)),
        OPTIONS=shlex.quote(" ".join([*own_options(), *qsub_options()])),
    )


def _vmgr() -> str:
    paths, valued, places = [], [], []
    for command in commands(vmgr.parser()):
        at = "".join(f" {word}" for word in command.words)
        paths += [f"'{at}'"] if at else []
        if command.children:
            places.append(_case([f"'{at}:0'"], Values(words=tuple(command.children))))
        for place, action in enumerate(command.operands):
            many = action.nargs in ("*", "+", argparse.REMAINDER)
            places.append(_case([f"'{at}:'[0-9]*" if many else f"'{at}:{place}'"], argument_values(command, action)))
        for action in command.options:
            if action.nargs != 0:
                patterns = [f"'{at} {word}'" for word in action.option_strings]
                valued += patterns
                places.append(_case(patterns, argument_values(command, action)))
        spellings = [word for action in command.options for word in action.option_strings]
        places.append(_case([f"'{at}:-'"], Values(words=(*spellings, "--help"))))
    return _fill(_VMGR, COMMANDS=" | ".join(paths), VALUED=" | ".join(valued), PLACES="\n".join(places))


def _case(patterns: Collection[str], values: Values, depth: int = 2) -> str:
    kind = f"vt_kind={values.kind} " if values.kind else ""
    words = f"vt_words={shlex.quote(' '.join(values.words))} " if values.words else ""
    return f"{'    ' * depth}{' | '.join(patterns)}) {kind}{words};;"


def _behind(options: Collection[str]) -> str:
    return " | ".join(f'"{option} "*' for option in sorted(options))


def _fill(template: str, **parts: str) -> str:
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template
