# SPDX-License-Identifier: Apache-2.0
"""qsub of the local engine."""

import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtorque import qsub
from vtorque.cli import pbsterm
from vtorque.cli.pbsclient import Answer, ask, jobs
from vtorque.deadline import Deadline
from vtorque.mom import arrays

_FOREVER_SECONDS = 366 * 86400.0
_INTERRUPTED = 128 + 2
_SIGNAL_BASE = 256
_UNKNOWN_RESOURCE, _UNKNOWN_QUEUE, _UNKNOWN_ATTRIBUTE = 189, 172, 154
_RESOURCES = frozenset(
    ("nodes", "walltime", "mem", "vmem", "pmem", "pvmem", "cput", "pcput", "procs", "ncpus", "other",
     "software", "arch", "file", "host", "nice", "naccesspolicy", "epilogue", "prologue", "gres")
)
# What would change how or whether the job runs, and this engine does not do. Overlooked are -b, -c,
# -f, -m, -M, -p and -r: it sends no mail, keeps no checkpoints, and knows no order but the queue's.
_REFUSED = "aDEiJKkLnPTu"
_REFUSED_ATTRIBUTES = frozenset(
    ("depend", "stagein", "stageout", "group_list", "umask", "interactive", "job_array_request",
     "job_radix", "fault_tolerant")
)
_OVERLOOKED_ATTRIBUTES = frozenset(("x",))
_TRUE, _FALSE = ("true", "TRUE", "y", "1"), ("false", "FALSE", "n", "0")


def run(argv: Sequence[str]) -> int:
    """Submit a job; with -I be its terminal, with -W block=true wait for it."""
    line = _parse(argv)
    script, name = _script(line)
    prefix = line.last("C") if line.has("C") else os.environ.get("PBS_DPREFIX")
    options = (*qsub.header(script, prefix=prefix).options, *line.options)
    last = dict(options)
    blocks = _check(options, last)
    if "I" not in last:
        identity = str(ask(_order(script, last.get("N", name), options))["id"])
        if "z" not in last:
            sys.stdout.write(f"{identity}\n")
            sys.stdout.flush()
        return _wait(identity) if blocks else 0
    command = _command(line, last) if "x" in last else ""
    pbsterm.require_terminal(unless=bool(command))
    with pbsterm.listen() as listener:
        order = _order(script, last.get("N", name), options)
        order |= {"interactive": True, "terminal": listener.getsockname(), "command": command}
        pbsterm.hold_interrupts()
        return pbsterm.attend(listener, str(ask(order)["id"]))


def _parse(argv: Sequence[str]) -> qsub.CommandLine:
    """To a plain qsub `-vm` is `-v m`, and there are no long options."""
    words = [part for word in argv for part in (("-v", "m") if word == "-vm" else (word,))]
    line = qsub.parse(words)
    if line.ours or line.generate is not None:
        raise qsub.UsageError(f"{min(line.ours or {'--generate'})} is not an option of qsub")
    return line


def _script(line: qsub.CommandLine) -> tuple[bytes, str]:
    if line.script is not None and line.script != "-":
        return Path(line.script).read_bytes(), Path(line.script).name
    # Of an interactive job nobody reads the standard input but the job.
    return (b"" if line.has("I") else sys.stdin.buffer.read()), "STDIN"


def _command(line: qsub.CommandLine, last: dict[str, str]) -> str:
    """What -x runs: the user's own file, not a copy of it."""
    if line.script in (None, "-"):
        raise qsub.UsageError("'-x' used without a script specified")
    assert line.script is not None
    return f"{shlex.quote(str(Path(_here(), line.script)))} {last.get('F', '')}".rstrip()


def _check(options: Sequence[tuple[str, str]], last: dict[str, str]) -> bool:
    """Refuse by name what the engine does not do; whether qsub is to wait for the job."""
    for letter, value in options:
        if letter in _REFUSED and not (letter == "k" and value == "n"):
            raise qsub.UsageError(f"-{letter} is not supported by the local engine")
    blocks = False
    for _, value in (option for option in options if option[0] == "W"):
        name, _, setting = value.strip().partition("=")
        name, setting = name.strip(), setting.strip()
        if name in _REFUSED_ATTRIBUTES:
            raise qsub.UsageError(f"-W {name} is not supported by the local engine")
        if name == "block" and setting in (*_TRUE, *_FALSE):
            blocks = setting in _TRUE
        elif name not in _OVERLOOKED_ATTRIBUTES:
            raise Answer(_UNKNOWN_ATTRIBUTE, f"submit error (Undefined attribute {value[:80]})")
    if "I" in last and blocks:
        raise qsub.UsageError("-W block does not go with -I")
    _check_values(last)
    return blocks


def _check_values(last: dict[str, str]) -> None:
    if "I" in last and "t" in last:
        raise qsub.UsageError("interactive job can not be job array.")
    if last.get("j", "n") not in ("oe", "eo", "n"):
        raise qsub.UsageError("illegal -j value")
    if "N" in last and (not last["N"].isprintable() or not last["N"] or set(last["N"]) & {" ", "/"}):
        raise qsub.UsageError("illegal -N value")
    if "X" in last and not os.environ.get("DISPLAY"):
        raise qsub.UsageError("DISPLAY not set")
    if last.get("q", "batch") != "batch":
        raise Answer(_UNKNOWN_QUEUE, f"Unknown queue: {last['q']}")
    try:
        if "t" in last:
            arrays.parse(last["t"])
    except ValueError as error:
        raise qsub.UsageError(f"illegal -t value: {error}") from None


def _order(script: bytes, name: str, options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    last = dict(options)
    directory = _here()
    return {
        "do": "submit",
        "script": script.decode("latin-1"),
        "name": name,
        "directory": directory,
        "resources": _resources(options),
        "variables": _variables(last, directory),
        "queue": "batch",
        "account": last.get("A", ""),
        "shell": last.get("S", "").partition(",")[0].partition("@")[0],
        "arguments": last.get("F", ""),
        "work_directory": _work_directory(last, directory),
        "join": last.get("j", "n"),
        "output": _output(last.get("o", ""), directory),
        "error": _output(last.get("e", ""), directory),
        "array": last.get("t", ""),
        "hold": "h" in last,
    }


def _resources(options: Sequence[tuple[str, str]]) -> dict[str, str]:
    """-l merges by resource, the later one winning (qsub_functions.c:4333-4344)."""
    resources: dict[str, str] = {}
    for letter, value in options:
        for entry in value.split(",") if letter == "l" else ():
            name, _, amount = entry.partition("=")
            if name not in _RESOURCES:
                raise Answer(_UNKNOWN_RESOURCE, f"Unknown resource type: {name}")
            resources[name] = amount
    return resources


def _variables(last: dict[str, str], directory: str) -> dict[str, str]:
    chosen = dict(os.environ) if "V" in last else {}
    for part in filter(None, last.get("v", "").split(",")):
        name, equals, value = part.partition("=")
        chosen[name] = value if equals else os.environ.get(name, "")
    if "X" in last:
        # The job is on the same machine: what shows windows here shows them there.
        chosen |= {name: os.environ[name] for name in ("DISPLAY", "XAUTHORITY") if name in os.environ}
    own = {
        "HOME": "HOME", "HOST": "HOSTNAME", "LANG": "LANG", "LOGNAME": "LOGNAME", "PATH": "PATH",
        "SHELL": "SHELL",
    }
    carried = {f"PBS_O_{name}": os.environ[source] for name, source in own.items() if source in os.environ}
    fixed = {
        "PBS_O_WORKDIR": last.get("w") or directory, "PBS_O_QUEUE": "batch", "PBS_O_SERVER": socket.gethostname(),
    }
    return {**chosen, **carried, **fixed}


def _work_directory(last: dict[str, str], directory: str) -> str:
    """-d is relative to here and has to be there; -w is taken as it is."""
    if "w" in last:
        return str(Path(directory, last["w"]))
    if "d" not in last:
        return ""
    path = Path(directory, last["d"])
    if not path.is_dir():
        raise qsub.UsageError(f"cannot chdir to '{last['d']}'")
    return str(path)


def _output(path: str, directory: str) -> str:
    """-o and -e: relative to the working directory, `host:path` allowed; a directory ends with a slash."""
    _, colon, after = path.partition(":")
    name = after if colon else path
    if not name:
        return ""
    target = Path(directory, name)
    return f"{target}/" if name.endswith("/") or target.is_dir() else str(target)


def _wait(name: str) -> int:
    """The exit status of a job that is over: of an array's elements the largest."""
    with contextlib.suppress(KeyboardInterrupt):
        for _ in Deadline(_FOREVER_SECONDS).ticks(doing=f"wait for job {name}", first=0.1, longest=2.0):
            found = jobs(name)
            if all(job["state"] == "C" for job in found):
                return max(_shell_status(int(job["exit_status"] or 0)) for job in found)
    # The job goes on: only nobody waits for it here any more.
    return _INTERRUPTED


def _shell_status(status: int) -> int:
    """As a shell would say it: 128 and the signal, and 1 for a job that mom ended for her own reasons."""
    if status >= _SIGNAL_BASE:
        return 128 + (status - _SIGNAL_BASE)
    return status if status >= 0 else 1


def _here() -> str:
    return os.getcwd()  # noqa: PTH109
