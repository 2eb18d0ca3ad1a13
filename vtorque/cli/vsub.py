# SPDX-License-Identifier: Apache-2.0
"""`vsub`, in place of qsub: the same options, and `-vm`.

Here is only what a job without guests needs, and nothing third-party. Most such
jobs do not even get here: `plain` sees to them.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vtorque import qsub, sitefile
from vtorque.cli import PREFIX
from vtorque.cli.plain import OPTIONS, QSUB
from vtorque.errors import ConfigError, RequestError, VtorqueError
from vtorque.qsub import CommandLine, Grammar, Header

EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 1, 2, 78

_STDIN = "STDIN"
_SBATCH = "/usr/bin/sbatch"


def main(argv: Sequence[str] | None = None) -> int:
    """Submit; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return _main(list(words))
    except RequestError as error:
        return _complain(error.one_line(), EXIT_USAGE)
    except ConfigError as error:
        return _complain(error.one_line(), EXIT_CONFIG)
    except VtorqueError as error:
        return _complain(error.one_line(), EXIT_FAILED)
    except OSError as error:
        return _complain(f"{error.filename or 'cannot submit'}: {error.strerror}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _main(words: list[str]) -> int:
    named, words = _batch(words)
    try:
        system, real = _facts(named)
    except ConfigError:
        if not ({"--help", "--version"} & set(words) or _is_lost(words)):
            raise
        system, real = "torque", ""
    grammar = qsub.GRAMMARS[system]
    try:
        line = qsub.parse(words, grammar)
    except RequestError:
        if system == "slurm" or any(word == "-vm" or word in qsub.OURS for word in words):
            raise
        os.execv(real, [real, *words])
    if line.ours & {"--help", "--version"} or _is_lost(words):
        from vtorque.cli import vsubhelp

        return vsubhelp.version() if "--version" in line.ours else vsubhelp.show(PREFIX)
    text, head = _script(line, grammar)
    name = Path(line.script).name if line.script not in (None, "-") else _STDIN
    if not line.vm and not (head and head.vm):
        if system == "slurm":
            from vtorque.cli import slurmsubmit

            return slurmsubmit.run(line, name, text, head.options if head else (), real)
        if line.ours or line.generate is not None:
            raise qsub.only_in_guests(line)
        os.execv(real, [real, *words])
    from vtorque.cli import vmsubmit

    return vmsubmit.run(line, name, text, head or qsub.header(b"", grammar=grammar), system=system, real=real)


def _is_lost(words: list[str]) -> bool:
    """Whether somebody who types asks what there is to type: qsub's -h, a hold, would go with a script."""
    return words == ["-h"] and os.isatty(0)


def _batch(words: list[str]) -> tuple[str, list[str]]:
    """The batch system that --batch names, and the other words, which are for its qsub as they stand."""
    named, rest = "", list(reversed(words))
    others: list[str] = []
    while rest:
        word = rest.pop()
        if word == "--batch" or word.startswith("--batch="):
            named = word.partition("=")[2] or (rest.pop() if rest else "")
            if named not in qsub.GRAMMARS:
                hint = f"one of {' '.join(qsub.GRAMMARS)}"
                raise qsub.UsageError(f"--batch {named[:40]!r} is not a batch system", hint=hint)
            continue
        others.append(word)
        if word == "--":
            break
        if rest and qsub.takes_next(word):
            others.append(rest.pop())
    return named, [*others, *reversed(rest)]


def _facts(named: str) -> tuple[str, str]:
    """What has to be known to become qsub: the batch system, the site's own or the one `named`, and its command."""
    path = sitefile.find(PREFIX)
    found = sitefile.glance(path, OPTIONS)
    if found is not None and not {"REGEX_FE", "DISABLED_HOSTS_LIST"} & set(found):
        own, configured = found.get("BATCH_SYSTEM", "torque"), found.get("PBS_QSUB_ON_FE", QSUB)
    else:
        from vtorque.cli import vmsubmit

        site = vmsubmit.site(path)
        own, configured = site.batch_system, vmsubmit.real_qsub(site)
    system = named or (own if own in qsub.GRAMMARS else "torque")
    if system == own and configured != QSUB:
        return system, configured
    return system, _SBATCH if system == "slurm" else QSUB


def _script(line: CommandLine, grammar: Grammar) -> tuple[bytes, Header | None]:
    """The script and its header; no header when qsub itself should complain, or reads no script."""
    if line.command:
        return qsub.script_of(line.command), None
    try:
        if line.script not in (None, "-"):
            text = Path(str(line.script)).read_bytes()
        elif line.has("I"):
            return b"", None
        else:
            text = _standard_input()
        prefix = line.last("C") if line.has("C") else os.environ.get("PBS_DPREFIX")
        return text, qsub.header(text, prefix=prefix, grammar=grammar)
    except (OSError, RequestError):
        if line.vm or grammar is qsub.SLURM:
            raise
        return b"", None


def _standard_input() -> bytes:
    """All of it; and it is there once more for qsub to read."""
    with open(0, "rb", closefd=False) as file:
        text = file.read()
    offer(text)
    return text


def offer(text: bytes) -> None:
    """Make it what the next program reads from its standard input."""
    again = os.memfd_create("script")
    view = memoryview(text)
    while view:
        view = view[os.write(again, view):]
    os.lseek(again, 0, os.SEEK_SET)
    os.dup2(again, 0)


def _complain(message: str, status: int) -> int:
    for text in message.splitlines():
        sys.stderr.write(f"vsub: {text}\n")
    return status
