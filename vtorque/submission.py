# SPDX-License-Identifier: Apache-2.0
"""What vsub is going to submit: decided whole before anything is made."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vtorque import limits, reslist, resolve, resources, submit, vmoptions
from vtorque.errors import RequestError
from vtorque.job import Account, Image, VmRequest
from vtorque.options import SiteConfig
from vtorque.qsub import OPENPBS, SLURM, TORQUE, CommandLine, Grammar, Header
from vtorque.reslist import Options
from vtorque.resolve import Resolved
from vtorque.vmoptions import COMMAND_LINE, Source

# What only a cluster with Slurm has need of is loaded there.
if TYPE_CHECKING:
    from vtorque.sbatch import Submit

STDIN = "STDIN"
"""What qsub calls a job whose script comes from its standard input."""

# qsub takes no blanks; the rest would be trouble in file names, shells or templates.
_NAME = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+:@=-]{0,229}", re.ASCII)
# Torque takes whatever has a shape (check_job_name). We leave out what means something in the path of a file or in
# a format; as the last part of our own files' paths the rest is quoted everywhere.
_TORQUE_NAME = re.compile(r"(?!-)[!-$&-.0-~]{1,230}", re.ASCII)
_RANGE = r"([0-9]{1,7})(?:-([0-9]{1,7}))?(?::([0-9]{1,7}))?"
_MOST_ELEMENTS = 1 << 20

# What qsub is told, or Slurm; and what the user is.
_Told = tuple[tuple[str, ...], "Submit | None", list[str]]


class Script(NamedTuple):
    """The user's script: its text, the name of the job that qsub makes of it, and its header."""

    name: str
    text: bytes
    header: Header


class Submission(NamedTuple):
    """Everything that is going to be handed over; `words` are qsub's, without request and wrapper.

    `slurm` says the same where there is no qsub.
    """

    resolved: Resolved
    words: tuple[str, ...]
    slurm: "Submit | None"
    notes: tuple[str, ...]
    script: Script
    shell: str
    exported: frozenset[str]
    interactive: bool
    runs_script: bool
    x11: bool

    def command(self, real: str, wrapper: Path, *, carried: Sequence[str]) -> list[str]:
        """The command that submits the wrapper, with the options that carry the request."""
        if self.slurm is not None:
            return self.slurm.command(real, [str(wrapper)], carried=carried)
        return [real, *self.words, *carried, str(wrapper)]

    @property
    def directives(self) -> bytes:
        """The lines of the script's header that the batch system reads, byte for byte."""
        if self.slurm is None:
            return self.script.header.lines
        from vtorque import sbatchlines

        return b"".join(line + b"\n" for line in sbatchlines.directives(self.script.text))

    @property
    def environ(self) -> Mapping[str, str]:
        """Variables that the command needs besides those that are there."""
        return {} if self.slurm is None else self.slurm.environ


class Surroundings(NamedTuple):
    """Who submits, and from where."""

    account: Account
    directory: Path
    environ: Collection[str]
    grammar: Grammar


def prepare(
    line: CommandLine,
    script: Script,
    site: SiteConfig,
    *,
    around: Surroundings,
    find_image: Callable[[str], Image],
    request_id: str,
) -> Submission:
    """Decide everything, within the site's limits; RequestError when it cannot be submitted."""
    options = (*script.header.options, *line.options)
    letters = {letter for letter, _ in options}
    _refuse(options, script, around.grammar)
    resolved = resolve.resolve(
        vmoptions.collect(_sources(line, script, around.account.home)),
        site,
        find_image=find_image,
        room=resources.room(options, site, openpbs=_in_chunks(options, around.grammar)),
        directory=around.directory,
        request_id=request_id,
        public_key="",
        elements=_elements(options, around.grammar),
    )
    limits.check(resolved.request, site, [group.name for group in around.account.groups])
    tell = _slurm if around.grammar is SLURM else _words
    words, slurm, notes = tell(line, script, resolved, site, around)
    lists = [value for letter, value in options if letter == "v"]
    return Submission(
        resolved=resolved,
        words=words,
        slurm=slurm,
        notes=(*resolved.notes, *notes, *_of_elements(resolved.request, options, around.grammar)),
        script=script,
        shell=_shell(options, around.account.shell),
        exported=frozenset(submit.exported_names(lists, everything="V" in letters, environ=around.environ)),
        interactive="I" in letters,
        runs_script=bool(script.text) and ("I" not in letters or "x" in letters or bool(line.command)),
        x11="X" in letters,
    )


def _words(
    line: CommandLine, script: Script, resolved: Resolved, site: SiteConfig, around: Surroundings
) -> _Told:
    """What qsub is told, with all the cores and memory that the guests need; and what to say of it."""
    fitted = resources.fit(
        line.options, script.header.options, resources.need(resolved.request, site),
        openpbs=around.grammar is OPENPBS, exclusive=site.pbs_exclusive_node_alloc,
    )
    changed, added = {**fitted.changed}, [word for entry in fitted.added for word in ("-l", entry)]
    letters = {letter for letter, _ in (*script.header.options, *line.options)}
    if around.grammar is OPENPBS and "I" in letters:
        path = _shell_of_openpbs(script, resolved, around)
        changed |= {number: path for number, (letter, _) in enumerate(line.options) if letter == "S"}
        added += ["-S", path]
    words = [*line.with_values(changed), *added]
    if around.grammar is not OPENPBS and "I" in letters and "x" not in letters:
        # Torque runs the script of an interactive job only when told to, and ours is the way into the guest.
        words.append("-x")
    return tuple(words), None, fitted.notes


def _shell_of_openpbs(script: Script, resolved: Resolved, around: Surroundings) -> str:
    """What its mom runs on the terminal of an interactive job, as the user and without words: our wrapper.

    She executes the shell that -S names, and the script of such a job never (start_exec.c, finish_exec). Where
    there are no guests, there is no shell either.
    """
    directory = around.account.home / ".vtorque" / resolved.request.request_id
    path = str(submit.wrapper_path(directory, script.name))
    if set(path) & {"@", ","}:
        raise RequestError(f"-I: qsub's -S cannot name {path}, with @ or a comma in it", hint="rename the script")
    return path


def _slurm(
    line: CommandLine, script: Script, resolved: Resolved, site: SiteConfig, around: Surroundings
) -> _Told:
    """The same for sbatch: qsub's options with what the guests need, translated; and what to say of it."""
    from vtorque import sbatch, sbatchforms, sbatchlines

    header = script.header.options
    lines = sbatchlines.directives(script.text)
    sbatchlines.refuse_sizes(lines, around.environ)
    fitted = resources.fit(
        line.options, header, resources.need(resolved.request, site),
        openpbs=_in_chunks([*header, *line.options], around.grammar), exclusive=False,
    )
    options = [
        *header,
        *((letter, fitted.changed.get(number, value)) for number, (letter, value) in enumerate(line.options)),
        *(("l", entry) for entry in fitted.added),
    ]
    if site.pbs_exclusive_node_alloc and not reslist.value(options, "naccesspolicy"):
        options.append(("l", "naccesspolicy=singlejob"))
    place = sbatchforms.here(
        user=around.account.name, home=str(around.account.home), directory=str(around.directory)
    )
    said = sbatchlines.said(lines, around.environ)
    return (), sbatch.translate(options, place=place, name=script.name, whole=True, said=said), fitted.notes


def _in_chunks(options: Options, grammar: Grammar) -> bool:
    """Whether cores are counted in OpenPBS's way; with Slurm the user may take either."""
    return grammar is OPENPBS or (grammar is SLURM and bool(reslist.value(options, "select")))


def _sources(line: CommandLine, script: Script, home: Path) -> list[Source]:
    """From the weakest to the strongest."""
    return [
        *vmoptions.user_defaults(home),
        *(Source(origin=f"{script.name}:{number}", text=text) for number, text in script.header.vm),
        *(Source(origin=COMMAND_LINE, text=text) for text in line.vm),
    ]


def _refuse(options: Sequence[tuple[str, str]], script: Script, grammar: Grammar) -> None:
    letters = [letter for letter, _ in options]
    if "I" in letters and (array := next((letter for letter in letters if letter in grammar.arrays), "")):
        raise RequestError(f"-I and -{array} do not go together")
    if not script.text.strip() and "I" not in letters:
        raise RequestError(f"the script {'on standard input' if script.name == STDIN else script.name} is empty")
    names = [value for letter, value in options if letter == "N"]
    name = names[-1] if names else script.name
    allowed, form = _NAME, "letters, digits and _ . + : @ = -,"
    if grammar is TORQUE:
        allowed, form = _TORQUE_NAME, "characters of ASCII without blanks, % and /,"
    if allowed.fullmatch(name) is None:
        hint = "-N gives the job another name" if not names else ""
        raise RequestError(f"{name[:40]!r} cannot be a job's name: at most 230 {form} and no - in front", hint=hint)
    if reslist.value(options, "procs"):
        raise RequestError("-l procs=: guests need whole shares of nodes", hint="like -l nodes=2:ppn=4")
    carrier = "site" if grammar is OPENPBS else "other"
    if reslist.value(options, carrier):
        raise RequestError(f"-l {carrier}= is what carries the request for guests; leave it out")


def _elements(options: Sequence[tuple[str, str]], grammar: Grammar) -> int:
    """How many jobs `-t 1-3,7%2` or `-J 1-9:2` makes; what qsub will refuse counts as one."""
    texts = [value for letter, value in options if letter in grammar.arrays]
    count = 0
    for part in texts[-1].partition("%")[0].split(",") if texts else ():
        match = re.fullmatch(_RANGE, part.strip(), re.ASCII)
        if match is None:
            return 1
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        count += max(0, (last - first) // max(1, step) + 1)
    return min(max(1, count), _MOST_ELEMENTS)


def _of_elements(wanted: VmRequest, options: Sequence[tuple[str, str]], grammar: Grammar) -> tuple[str, ...]:
    """What goes wrong for some elements of an array only, and hours later."""
    letter, text = next(((letter, text) for letter, text in reversed(options) if letter in grammar.arrays), ("", ""))
    if not wanted.disk or wanted.elements == 1 or text.partition("%")[2].strip() == "1":
        return ()
    one = f"-{letter} {text.partition('%')[0].strip()}%1"
    return (f"-vm disk=: one job has it at a time, and elements that start meanwhile fail; {one} runs them in turn",)


def _shell(options: Sequence[tuple[str, str]], login_shell: str) -> str:
    """The first path of the last -S, whose form is `path[@host][,path[@host]...]`."""
    paths = [value for letter, value in options if letter == "S"]
    return paths[-1].partition(",")[0].partition("@")[0] if paths else login_shell
