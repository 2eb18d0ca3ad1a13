# SPDX-License-Identifier: Apache-2.0
"""`vsub`, in place of qsub: the same options, and `-vm`.

Here is only what a job without guests needs, and nothing third-party. Most such
jobs do not even get here: `plain` sees to them.
"""

import contextlib
import os
import re
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vtorque import qsub, sitefile
from vtorque.cli.plain import OPTIONS, QSUB, glance, is_vsub
from vtorque.cli.prefix import PREFIX
from vtorque.errors import CommandError, ConfigError, RequestError, VtorqueError
from vtorque.qsub import CommandLine, Grammar, Header

# What only a job of ours has need of is loaded there.
if TYPE_CHECKING:
    import pwd

EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 1, 2, 78

_STDIN = "STDIN"
_SBATCH = "/usr/bin/sbatch"
_SCRIPT_LIMIT = 64 << 20
_INTERRUPT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Submit; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    _plug()
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
    except KeyboardInterrupt as error:
        return _complain("interrupted", 128 + (error.args[0] if error.args else _INTERRUPT))


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
        _become(real, words)
    if line.ours & {"--help", "--version"} or _is_lost(words):
        from vtorque.cli import vsubhelp

        return vsubhelp.version() if "--version" in line.ours else vsubhelp.show(PREFIX)
    if line.script in ("", "-"):
        # To qsub either is its standard input (main_func).
        line = line._replace(script=None)
    name = Path(line.script).name if line.script else _STDIN
    text, head = _script(line, name, grammar)
    if not line.vm and not (head and head.vm):
        if system == "slurm":
            from vtorque.cli import slurmsubmit

            return slurmsubmit.run(line, name, text, head.options if head else (), real)
        if line.ours or line.generate is not None:
            raise only_in_guests(line)
        _become(real, words)
    from vtorque.cli import vmsubmit

    return vmsubmit.run(line, name, text, head or qsub.header(b"", grammar=grammar), system=system, real=real)


def say(text: str) -> None:
    """A line on standard error. Whether somebody hears it is no reason to submit a job or not."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def show(text: str) -> None:
    """What was asked for, on standard output; CommandError when nobody takes it."""
    data = memoryview(os.fsencode(text))
    try:
        while data:
            data = data[os.write(1, data):]
    except OSError as error:
        raise CommandError(f"cannot write to standard output: {error.strerror}") from error


def own_account() -> "pwd.struct_passwd":
    """Who calls; RequestError when the host knows nobody of his uid."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        raise RequestError(f"uid {os.getuid()} has no account here") from None


def here() -> Path:
    """The working directory, where the job is to start."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise RequestError("the working directory is not there any more", hint="cd to one that is") from None


def only_in_guests(line: CommandLine) -> RequestError:
    """The refusal of an option of ours without -vm."""
    option = min(line.ours, default="--generate")
    return qsub.UsageError(f"{option} is for jobs in guests", hint="like vsub -vm vcpus=4 job.sh")


def _plug() -> None:
    """Open what is closed in a way that is as good as closed, so that no file or pipe of ours gets its number.

    A program that is executed finds it closed again.
    """
    for stream, mode in ((sys.stdin, os.O_WRONLY), (sys.stdout, os.O_RDONLY), (sys.stderr, os.O_RDONLY)):
        if stream is None:
            os.open(os.devnull, mode)


def _become(real: str, words: list[str]) -> NoReturn:
    try:
        os.execv(real, [real, *words])
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | PermissionError)
        hint = "PBS_QSUB_ON_FE of the site's configuration names the batch system's qsub" if missing else ""
        raise CommandError(f"cannot run {real}: {error.strerror}", hint=hint) from error


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
    found = glance(str(path), OPTIONS)
    if found is not None and not {"REGEX_FE", "DISABLED_HOSTS_LIST"} & set(found):
        own, configured = found.get("BATCH_SYSTEM", "torque"), found.get("PBS_QSUB_ON_FE", QSUB)
    else:
        from vtorque.cli import vmsubmit

        site = vmsubmit.site(path)
        own, configured = site.batch_system, vmsubmit.real_qsub(site)
    system = named or (own if own in qsub.GRAMMARS else "torque")
    real = _SBATCH if system == "slurm" else QSUB
    if system == own and configured != QSUB:
        real = configured
    if is_vsub(real):
        hint = "PBS_QSUB_ON_FE has to name the batch system's own qsub"
        raise ConfigError(f"{path}: {real} is vsub itself", hint=hint)
    return system, real


def _script(line: CommandLine, name: str, grammar: Grammar) -> tuple[bytes, Header | None]:
    """The script and its header; no header when qsub itself should complain, or reads no script."""
    if line.command:
        return b"#!/bin/sh\nexec " + os.fsencode(shlex.join(line.command)) + b"\n", None
    if not line.script and line.has("I"):
        return b"", None
    if not line.script and (line.vm or line.ours) and os.isatty(0):
        _expect_typing(line)
    text, prefix = b"", line.last("C") if line.has("C") else os.environ.get("PBS_DPREFIX")
    try:
        text = _contents(line.script) if line.script else _standard_input()
        if len(text) > _SCRIPT_LIMIT:
            raise RequestError(f"the script has more than {_SCRIPT_LIMIT >> 20} MiB")
        return text, qsub.header(text, prefix=prefix, grammar=grammar)
    except OSError:
        if not line.vm and grammar is not qsub.SLURM:
            return b"", None
        raise
    except RequestError as error:
        # A script that asks for guests must not run without them because of a slip in its header.
        if not line.vm and grammar is not qsub.SLURM and not _asks_for_guests(text, prefix):
            return b"", None
        raise RequestError(f"{name}: {error.brief}", hint=error.hint) from error


def _asks_for_guests(text: bytes, prefix: str | None) -> bool:
    """Whether a line of a script that cannot be read as qsub reads it has been meant for us."""
    mark = re.escape(os.fsencode("#PBS" if prefix is None else prefix))
    said = rb"|" + mark + rb"(?:.*\\\n)*(?:.*[ \t])?-vm(?![!-~])" if mark else rb""
    return re.search(rb"(?m)^[ \t]*(?:#VM[ \t]+[A-Za-z_]+[ \t]*=" + said + rb")", text) is not None


def _contents(path: str) -> bytes:
    """A script's text. What is no file qsub refuses, too (main_func); a pipe would be empty when qsub looks."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise RequestError("the script is not a regular file")
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read(_SCRIPT_LIMIT + 1)


def _expect_typing(line: CommandLine) -> None:
    """Complain before somebody types a script for nothing, and tell whoever forgot its name or a value."""
    from vtorque import vmoptions

    vmoptions.collect([vmoptions.Source(origin=vmoptions.COMMAND_LINE, text=text) for text in line.vm])
    say("vsub: no script is named: type it, and Ctrl-D at its end")


def _standard_input() -> bytes:
    """All of it; and it is there once more for qsub to read."""
    with open(0, "rb", closefd=False) as file:
        text = file.read(_SCRIPT_LIMIT + 1)
    if len(text) > _SCRIPT_LIMIT:
        # Nobody could give qsub the rest as well.
        raise CommandError(f"the script on standard input has more than {_SCRIPT_LIMIT >> 20} MiB")
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
        say(f"vsub: {text}")
    return status
