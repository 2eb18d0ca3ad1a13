# SPDX-License-Identifier: Apache-2.0
"""What a script tells sbatch itself, in `#SBATCH` lines (sbatch(1) of Slurm 22.05)."""

import shlex
from collections.abc import Collection, Sequence

from vtorque.errors import RequestError

_MARK = b"#SBATCH"
# sbatch's short options, as far as they say something that qsub's defaults and guests say as well.
_SHORT = {
    "a": "array", "c": "cpus-per-task", "e": "error", "J": "job-name", "n": "ntasks", "N": "nodes", "o": "output",
}
_SIZES = ("array", "comment", "cpus-per-task", "export", "mem", "mem-per-cpu", "nodes", "ntasks", "ntasks-per-node")
# The one variable for them that the command line does not beat.
_ARRAY = "SBATCH_ARRAY_INX"
_LONG = {*_SHORT.values(), *_SIZES}


def directives(script: bytes) -> list[bytes]:
    """A script's `#SBATCH` lines as they stand: up to the first line that is no comment."""
    found = []
    for line in script.split(b"\n"):
        if line.strip() and not line.startswith(b"#"):
            break
        if line.startswith(_MARK):
            found.append(line)
    return found


def said(lines: Sequence[bytes], environ: Collection[str] = ()) -> frozenset[str]:
    """The long names of what `#SBATCH` lines and `SBATCH_*` variables say, as far as they matter here; RequestError."""
    found = {name for name in _LONG if f"SBATCH_{name.upper().replace('-', '_')}" in environ}
    for line in lines:
        text = line.removeprefix(_MARK).decode(errors="surrogateescape")
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise RequestError(f"#SBATCH {text.strip()[:80]}: {error}") from None
        for word in words:
            if word.startswith("--"):
                # getopt_long takes as much of a name as tells it from others.
                given = word[2:].partition("=")[0]
                found |= {given} if given in _LONG else {name for name in _LONG if given and name.startswith(given)}
            elif word.startswith("-") and word[1:2] in _SHORT:
                found.add(_SHORT[word[1]])
    return frozenset(found)


def refuse_sizes(lines: Sequence[bytes], environ: Collection[str]) -> None:
    """RequestError for what `#SBATCH` must not say of a job in guests, for vsub has to know it."""
    if _ARRAY in environ:
        raise RequestError(f"{_ARRAY} is set: a job in guests says that in qsub's words", hint="say it with -t")
    for name in sorted(said(lines) & set(_SIZES)):
        if name == "comment":
            raise RequestError("#SBATCH --comment is what carries the request for guests; leave it out")
        hint = {"array": "say it with -t", "export": "say it with -v or -V"}.get(name, "like -l nodes=2:ppn=4,mem=8gb")
        raise RequestError(f"#SBATCH --{name}: a job in guests says that in qsub's words", hint=hint)
