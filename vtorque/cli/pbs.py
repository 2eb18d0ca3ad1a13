# SPDX-License-Identifier: Apache-2.0
"""qsub, qstat, qdel and pbs_mom of the local engine."""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtorque import config, qsub
from vtorque.cli import PREFIX
from vtorque.errors import RequestError, VtorqueError
from vtorque.mom import life, server
from vtorque.mom.spool import Home

_UNKNOWN_RESOURCE, _UNKNOWN_QUEUE = 189, 172
_KNOWN = frozenset(
    ("nodes", "walltime", "mem", "vmem", "pmem", "pvmem", "cput", "pcput", "procs", "ncpus", "other",
     "software", "arch", "file", "host", "nice", "naccesspolicy", "epilogue", "prologue", "gres")
)


class _Answer(Exception):
    """The engine, or a client of it, says no."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def main(name: str, argv: Sequence[str]) -> int:
    """Run the command of that name; its exit status, as Torque's (contract of qsub: 2 usage, PBSE else)."""
    try:
        return {"qsub": _qsub, "qstat": _qstat, "qdel": _qdel, "pbs_mom": _pbs_mom}[name](argv)
    except _Answer as answer:
        sys.stderr.write(f"{name}: {answer}\n")
        return answer.status
    except RequestError as error:
        sys.stderr.write(f"{name}: {error.one_line()}\n")
        return 2
    except (VtorqueError, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1


def _qsub(argv: Sequence[str]) -> int:
    line = qsub.parse(argv)
    if line.script is None:
        script, name = sys.stdin.buffer.read(), "STDIN"
    else:
        script, name = Path(line.script).read_bytes(), Path(line.script).name
    head = qsub.header(script, prefix=line.last("C") if line.has("C") else None)
    for letter in "It":
        if line.has(letter):
            raise qsub.UsageError(f"-{letter} is not supported by the local engine")
    options = (*head.options, *line.options)
    last = dict(options)
    if last.get("q", "batch") != "batch":
        raise _Answer(_UNKNOWN_QUEUE, f"Unknown queue: {last['q']}")
    directory = os.getcwd()  # noqa: PTH109
    answer = _ask({
        "do": "submit",
        "script": script.decode("latin-1"),
        "name": last.get("N", name),
        "directory": directory,
        "resources": _resources(options),
        "variables": _variables(last, directory),
        "queue": "batch",
        "account": last.get("A", ""),
        "shell": last.get("S", "").partition(",")[0].partition("@")[0],
        "arguments": last.get("F", ""),
        "work_directory": last.get("w", last.get("d", "")),
        "join": last.get("j", "n"),
        "output": _output(last.get("o", ""), directory),
        "error": _output(last.get("e", ""), directory),
    })
    if "z" not in last:
        sys.stdout.write(f"{answer['id']}\n")
    return 0


def _resources(options: Sequence[tuple[str, str]]) -> dict[str, str]:
    """-l merges by resource, the later one winning (qsub_functions.c:4333-4344)."""
    resources: dict[str, str] = {}
    for letter, value in options:
        for entry in value.split(",") if letter == "l" else ():
            name, _, amount = entry.partition("=")
            if name not in _KNOWN:
                raise _Answer(_UNKNOWN_RESOURCE, f"Unknown resource type: {name}")
            resources[name] = amount
    return resources


def _variables(last: dict[str, str], directory: str) -> dict[str, str]:
    chosen = dict(os.environ) if "V" in last else {}
    for part in filter(None, last.get("v", "").split(",")):
        name, equals, value = part.partition("=")
        chosen[name] = value if equals else os.environ.get(name, "")
    own = {
        "HOME": "HOME", "HOST": "HOSTNAME", "LANG": "LANG", "LOGNAME": "LOGNAME", "PATH": "PATH",
        "SHELL": "SHELL",
    }
    carried = {f"PBS_O_{name}": os.environ[source] for name, source in own.items() if source in os.environ}
    fixed = {"PBS_O_WORKDIR": directory, "PBS_O_QUEUE": "batch", "PBS_O_SERVER": socket.gethostname()}
    return {**chosen, **carried, **fixed}


def _output(path: str, directory: str) -> str:
    """-o and -e: relative to the working directory, `host:path` allowed."""
    _, colon, after = path.partition(":")
    name = after if colon else path
    return str(Path(directory, name)) if name else ""


def _qstat(argv: Sequence[str]) -> int:
    names = [word for word in argv if not word.startswith("-")]
    jobs = _ask({"do": "stat", "job": names[0] if names else None})["jobs"]
    if "--json" in argv:
        sys.stdout.write(json.dumps(jobs, indent=1) + "\n")
    elif "-f" in argv:
        sys.stdout.write("\n".join(_full(job) for job in jobs))
    elif jobs:
        sys.stdout.write(f"{'Job ID':<20} {'Name':<16} {'User':<12} S Exit\n")
        for job in jobs:
            status = "" if job["exit_status"] is None or job["state"] != "C" else job["exit_status"]
            sys.stdout.write(
                f"{job['id']:<20} {job['name'][:16]:<16} {job['owner']:<12} {job['state']} {status}\n"
            )
    return 0


def _full(job: dict[str, Any]) -> str:
    fields = {
        "Job_Name": job["name"], "Job_Owner": job["owner"], "job_state": job["state"],
        "queue": job["queue"], "exec_host": "+".join(job["hosts"]),
        "Output_Path": job["output_path"], "Error_Path": job["error_path"], "session_id": job["session"],
        "exit_status": job["exit_status"] if job["state"] == "C" else None, "comment": job["comment"],
        **{f"Resource_List.{name}": value for name, value in job["resources"].items()},
    }
    lines = [f"    {name} = {value}\n" for name, value in fields.items() if value not in (None, "")]
    return f"Job Id: {job['id']}\n{''.join(lines)}"


def _qdel(argv: Sequence[str]) -> int:
    names = [word for word in argv if not word.startswith("-")]
    if not names:
        raise qsub.UsageError("qdel needs a job id")
    for name in names:
        _ask({"do": "delete", "job": name})
    return 0


def _pbs_mom(argv: Sequence[str]) -> int:
    """`--home DIR` serves; `--home DIR --job ID [--recover]` lives one job's life."""
    home = Home(Path(argv[1]))
    if "--job" in argv:
        job = home.load(argv[argv.index("--job") + 1])
        assert job is not None
        life.live(home, job, install=signal.signal, recover="--recover" in argv)
        return 0
    host = socket.gethostname().partition(".")[0]
    command = [sys.executable, "-I", sys.argv[0], "--home", str(home.path), "--job"]
    server.Server(home, name="lab", host=host, life_command=command).serve(install=signal.signal)
    return 0


def _ask(order: dict[str, Any]) -> dict[str, Any]:
    site = config.load(config.find(PREFIX), trusted_owner=None)
    path = Home(Path(site.torque_home)).socket
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise _Answer(111, f"cannot connect to the engine at {path}: {error.strerror}") from error
        connection.sendall(json.dumps(order).encode() + b"\n")
        with connection.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline())
    if answer["status"] != 0:
        raise _Answer(answer["status"], answer["error"])
    return answer
