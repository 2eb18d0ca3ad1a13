# SPDX-License-Identifier: Apache-2.0
"""`vsub`, in place of qsub: the same options, and `-vm`.

Here is only what a job without guests needs, and nothing third-party: it must
cost no more than starting Python once.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vtorque import qsub, sitefile
from vtorque.cli import PREFIX
from vtorque.errors import ConfigError, RequestError, VtorqueError
from vtorque.qsub import OPENPBS, TORQUE, CommandLine, Grammar, Header

EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 1, 2, 78

_STDIN = "STDIN"
_OPTIONS = ("BATCH_SYSTEM", "REGEX_FE", "PBS_QSUB_ON_FE", "PBS_QSUB_ON_NODES", "DISABLED_HOSTS_LIST")


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
    try:
        grammar, real = _facts()
    except ConfigError:
        if not {"--help", "--version"} & set(words):
            raise
        grammar, real = TORQUE, ""
    try:
        line = qsub.parse(words, grammar)
    except RequestError:
        if any(word == "-vm" or word in qsub.OURS for word in words):
            raise
        os.execv(real, [real, *words])
    if line.ours & {"--help", "--version"} or (words == ["-h"] and os.isatty(0)):
        from vtorque.cli import vsubhelp

        return vsubhelp.version() if "--version" in line.ours else vsubhelp.show(PREFIX)
    text, head = _script(line, grammar)
    if not line.vm and not (head and head.vm):
        if line.ours or line.generate is not None:
            option = min(line.ours, default="--generate")
            raise qsub.UsageError(f"{option} is for jobs in guests", hint="like vsub -vm vcpus=4 job.sh")
        os.execv(real, [real, *words])
    from vtorque.cli import vmsubmit

    name = Path(line.script).name if line.script not in (None, "-") else _STDIN
    return vmsubmit.run(line, name, text, head or qsub.header(b"", grammar=grammar), grammar, real)


def _facts() -> tuple[Grammar, str]:
    """What has to be known of the site to become qsub: its grammar, and where it is."""
    path = sitefile.find(PREFIX)
    found = sitefile.glance(path, _OPTIONS)
    if found is not None and not {"REGEX_FE", "DISABLED_HOSTS_LIST"} & set(found):
        grammar = OPENPBS if found.get("BATCH_SYSTEM") == "openpbs" else TORQUE
        return grammar, found.get("PBS_QSUB_ON_FE", "/usr/bin/qsub")
    from vtorque.cli import vmsubmit

    site = vmsubmit.site(path)
    return OPENPBS if site.batch_system == "openpbs" else TORQUE, vmsubmit.real_qsub(site)


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
        if line.vm:
            raise
        return b"", None


def _standard_input() -> bytes:
    """All of it; and it is there once more for qsub to read."""
    with open(0, "rb", closefd=False) as file:
        text = file.read()
    again = os.memfd_create("script")
    view = memoryview(text)
    while view:
        view = view[os.write(again, view):]
    os.lseek(again, 0, os.SEEK_SET)
    os.dup2(again, 0)
    return text


def _complain(message: str, status: int) -> int:
    for text in message.splitlines():
        sys.stderr.write(f"vsub: {text}\n")
    return status
