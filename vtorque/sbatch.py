# SPDX-License-Identifier: Apache-2.0
"""The job that qsub's options describe, as a command line of sbatch, or of salloc and srun.

What has no counterpart is refused by name; nothing is dropped. Options are
those of sbatch(1) and salloc(1) of Slurm 22.05. What the user says with qsub's
options stands on the command line, and so beats his `#SBATCH` lines and
`SBATCH_*` variables; what is only qsub's default gives way to them.
"""

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from vtorque import sbatchforms, sbatchsize
from vtorque.errors import RequestError
from vtorque.reslist import Options
from vtorque.sbatchforms import Place, unsupported

ARRAYS = "tJ"
"""Torque's letter for an array, and OpenPBS's."""

_REFUSED = {
    "b": "waiting for the server", "D": "another root directory", "G": "this kind of interactive job",
    "K": "a kill delay of its own", "L": "tasks on NUMA nodes", "R": "removing output files",
    "T": "a kind of prologue",
}
_MAIL = {"b": "BEGIN", "e": "END", "a": "FAIL", "f": "FAIL", "j": "ARRAY_TASKS"}
_ATTRIBUTES = ("block", "depend", "group_list", "umask")
_ATTRIBUTE = re.compile(r"([A-Za-z_]+)[ \t]*=(.*)", re.ASCII | re.DOTALL)
# Anything else in a value would have to be quoted for sbatch; it goes by the environment.
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+=-]*", re.ASCII)
_ARRAY = re.compile(r"[0-9]{1,7}(?:-[0-9]{1,7}(?::[0-9]{1,7})?)?(?:,[0-9]{1,7}(?:-[0-9]{1,7}(?::[0-9]{1,7})?)?)*"
                    r"(?:%[0-9]{1,7})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """What Slurm is told. `environ` comes in addition; `arguments` are the script's own."""

    options: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    interactive: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)

    def command(self, sbatch: str, script: Sequence[str], *, carried: Sequence[str] = ()) -> list[str]:
        """The whole command line for a script; the other programs lie beside sbatch.

        An interactive job has salloc wait for its nodes, and an interactive step
        run the script on the first of them alone, as a batch script does
        (slurm.conf(5): InteractiveStepOptions).
        """
        words = [*self.options, *carried]
        if not self.interactive:
            return [sbatch, "--parsable", "--ignore-pbs", *words, *script, *self.arguments]
        salloc, srun = (str(PurePath(sbatch).with_name(name)) for name in ("salloc", "srun"))
        step = [srun, "--interactive", "--preserve-env", "--pty"]
        return [salloc, *words, *step, *script, *self.arguments]


def job_id(printed: bytes) -> bytes:
    """What sbatch --parsable prints, without the name of the cluster: qsub prints the id alone."""
    return re.sub(rb";[^\n]*", b"", printed)


def environ_words(environ: Mapping[str, str]) -> list[str]:
    """The words before a command line that show what it has in its environment."""
    return ["env", *(f"{name}={value}" for name, value in environ.items())] if environ else []


def translate(
    options: Options, *, place: Place, name: str, whole: bool = False, said: Collection[str] = ()
) -> Submit:
    """What to tell Slurm of a job that is called `name` unless it says so itself; RequestError.

    `said` are sbatch's options, by their long names, that stand elsewhere. With
    `whole` the job is one in guests: a task on each node has all of its cores,
    and the environment comes along for its wrapper.
    """
    last = dict(options)
    for letter, what in _REFUSED.items():
        if letter in last:
            raise unsupported(f"-{letter} {last[letter][:40]}".strip() + f", {what},")
    if "X" in last and "I" not in last:
        raise unsupported("-X without -I")
    job = _Job(options, place=place, whole=whole, said=said)
    words = [*job.naming(name), *sbatchsize.translate(options, whole=whole), *job.conditions()]
    if "n" in last and "--exclusive" not in words:
        words.append("--exclusive")
    if job.interactive:
        words += ["--x11"] if "X" in last else []
    else:
        words += [*job.files(), *job.exported(), *job.batch_only()]
    return Submit(
        options=tuple(words), arguments=tuple(_arguments(last.get("F", ""))), interactive=job.interactive,
        environ=job.environ,
    )


class _Job:
    """qsub's options, one group after the other."""

    def __init__(self, options: Options, *, place: Place, whole: bool, said: Collection[str]) -> None:
        self._last = dict(options)
        self._lists = [value for letter, value in options if letter == "v"]
        self._attributes = _attributes(options)
        self._place = place
        self._whole = whole
        self._said = said
        self.interactive = "I" in self._last
        self.array = self._array()
        self.environ = {"SLURM_UMASK": self._attributes["umask"]} if "umask" in self._attributes else {}

    def naming(self, name: str) -> Iterator[str]:
        """Name, queue, account, project, array."""
        last = self._last
        if name := last.get("N") or ("" if "job-name" in self._said else name):
            yield f"--job-name={name}"
        if queue := last.get("q", ""):
            if "@" in queue:
                raise unsupported(f"-q {queue[:80]}: a server", hint="name a partition")
            yield f"--partition={queue}"
        if "A" in last:
            yield f"--account={last['A']}"
        if "P" in last:
            yield f"--wckey={last['P']}"
        if self.array:
            yield f"--array={self.array}"

    def conditions(self) -> Iterator[str]:
        """When, after what, before whom, and where in the tree of directories."""
        last = self._last
        if "a" in last:
            yield f"--begin={sbatchforms.begin(last['a'], self._place.now)}"
        if "h" in last:
            yield "--hold"
        if depend := self._attributes.get("depend", ""):
            yield f"--dependency={sbatchforms.dependency(depend)}"
        if "p" in last:
            yield f"--nice={-_whole_number('p', last['p'])}"
        if "f" in last:
            yield "--no-kill"
        if group := self._attributes.get("group_list", ""):
            yield f"--gid={group.partition(',')[0].partition('@')[0]}"
        if directory := last.get("d", last.get("w", "")):
            yield f"--chdir={directory}"
        self._check()
        yield from self._mail()
        if "z" in last:
            yield "--quiet"

    def files(self) -> Iterator[str]:
        """Standard input, output and error."""
        last, said = self._last, self._said
        kept, joined = last.get("k", "n"), last.get("j", "n")
        if set(kept) - set("oend"):
            raise unsupported(f"-k {kept[:40]}")
        if joined not in ("oe", "eo", "n"):
            raise unsupported(f"-j {joined[:40]}")
        if "i" in last:
            yield f"--input={sbatchforms.literal(last['i'])}"
        first = "e" if joined == "eo" else "o"
        if self._says(first) or "output" not in said:
            yield f"--output={self._file(first, kept)}"
        if joined == "n" and (self._says("e") or not {"output", "error"} & set(said)):
            yield f"--error={self._file('e', kept)}"

    def exported(self) -> Iterator[str]:
        """Which variables come along; values that are not plain go by the environment of sbatch."""
        named = sbatchforms.variables(self._lists)
        everything = self._whole or "V" in self._last
        words = ["ALL"] if everything else []
        for name, value in named.items():
            if value is None or everything or _PLAIN.fullmatch(value) is None:
                self.environ.update({} if value is None else {name: value})
                words += [] if everything else [name]
            else:
                words.append(f"{name}={value}")
        if words or "export" not in self._said:
            yield f"--export={','.join(words) or 'NONE'}"

    def batch_only(self) -> Iterator[str]:
        """What salloc does not know."""
        if requeue := self._last.get("r", ""):
            if requeue not in ("y", "n"):
                raise RequestError(f"-r {requeue[:40]}: must be y or n")
            yield "--requeue" if requeue == "y" else "--no-requeue"
        if self._attributes.get("block", "").lower() == "true":
            yield "--wait"

    def _check(self) -> None:
        """What needs nothing of Slurm, or cannot be had of it."""
        last = self._last
        if last.get("c", "n") not in ("n", "none", "u", ""):
            raise unsupported(f"-c {last['c'][:40]}, checkpointing,")
        for user in last.get("u", "").split(","):
            if user.partition("@")[0] not in ("", self._place.user):
                raise unsupported(f"-u {user[:40]}", hint="the job is yours")
        if self._attributes.get("block", "false").lower() not in ("true", "false"):
            raise RequestError(f"-W block={self._attributes['block'][:40]}: must be true or false")
        if self.interactive:
            if self.array or last.get("r") == "y":
                raise unsupported("-I with an array" if self.array else "-I with -r y")
            self.environ |= {
                name: value for name, value in sbatchforms.variables(self._lists).items() if value is not None
            }

    def _mail(self) -> Iterator[str]:
        """PBS sends mail for a job that it aborts unless told otherwise; here only who is named gets it."""
        letters = self._last.get("m", "a" if "M" in self._last else "")
        if set(letters) - {*_MAIL, "n", "p"}:
            raise unsupported(f"-m {letters[:40]}")
        if letters:
            kinds = dict.fromkeys(kind for letter, kind in _MAIL.items() if letter in letters)
            yield f"--mail-type={','.join(kinds) or 'NONE'}"
        if "M" in self._last:
            yield f"--mail-user={self._last['M']}"

    def _says(self, letter: str) -> bool:
        return letter in self._last or letter in self._last.get("k", "")

    def _file(self, letter: str, kept: str) -> str:
        array, moved = bool(self.array), "d" in self._last
        given = self._last.get(letter, "")
        if letter in kept and "d" not in kept:
            given = "~/"
        if not given and not moved:
            return sbatchforms.default_file(letter, array=array)
        return sbatchforms.file_name(given or "./", letter, self._place, array=array, moved=moved)

    def _array(self) -> str:
        given = [self._last[letter] for letter in ARRAYS if letter in self._last]
        if len(given) > 1:
            raise RequestError("-t and -J do not go together")
        if given and _ARRAY.fullmatch(given[0]) is None:
            raise RequestError(f"{given[0][:40]!r} is not an array", hint="like -t 1-10%2, or -t 0,2,5-7")
        return given[0] if given else ""


def _attributes(options: Options) -> dict[str, str]:
    """What -W says; a part without `name=` belongs to the value before it, as in depend=afterok:1,afterany:2."""
    found: dict[str, str] = {}
    name = ""
    for part in (part for letter, text in options if letter == "W" for part in text.split(",")):
        if match := _ATTRIBUTE.fullmatch(part.strip()):
            name, found[match[1]] = match[1], match[2].strip()
        elif name:
            found[name] += f",{part}"
        else:
            raise RequestError(f"-W {part[:80]}: is not name=value")
    for name, value in found.items():
        if name not in _ATTRIBUTES:
            raise unsupported(f"-W {name}={value[:60]}")
    if re.fullmatch("[0-7]{1,4}", found.get("umask", "0")) is None:
        raise RequestError(f"-W umask={found['umask'][:40]}: must be an octal number")
    return found


def _arguments(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RequestError(f"-F {text[:80]!r}: {str(error).lower()}") from None


def _whole_number(letter: str, text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,6}", text, re.ASCII) is None:
        raise RequestError(f"-{letter} {text[:40]}: must be a whole number")
    return int(text)
