# SPDX-License-Identifier: Apache-2.0
"""qsub, qstat, qdel, qrls, qrerun and pbs_mom of the local engine."""

import json
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtorque import qsub
from vtorque.cli import pbssub
from vtorque.cli.pbsclient import Answer, ask, jobs
from vtorque.errors import RequestError, VtorqueError
from vtorque.mom import life, places, server
from vtorque.mom.spool import Home


def main(name: str, argv: Sequence[str]) -> int:
    """Run the command of that name; its exit status, as Torque's: 2 for usage, PBSE of the engine, else 1."""
    commands = {
        "qsub": pbssub.run, "qstat": _qstat, "qdel": _qdel, "qrls": _qrls, "qrerun": _qrerun, "pbs_mom": _pbs_mom,
    }
    try:
        return commands[name](argv)
    except Answer as answer:
        sys.stderr.write(f"{name}: {answer}\n")
        return answer.status
    except RequestError as error:
        sys.stderr.write(f"{name}: {error.one_line()}\n")
        return 2 if isinstance(error, qsub.UsageError) else 1
    except (VtorqueError, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1


def _qstat(argv: Sequence[str]) -> int:
    names = [word for word in argv if not word.startswith("-")]
    found = [job for name in names for job in jobs(name)] if names else jobs(None)
    if "--json" in argv:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    elif "-f" in argv:
        sys.stdout.write("\n".join(_full(job) for job in found))
    elif found:
        sys.stdout.write(f"{'Job ID':<20} {'Name':<16} {'User':<12} S Exit\n")
        for job in found:
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
        "interactive": "True" if job["interactive"] else None, "job_array_id": job["array_index"],
        "Hold_Types": "u" if job["state"] == "H" else None,
        **{f"Resource_List.{name}": value for name, value in job["resources"].items()},
    }
    lines = [f"    {name} = {value}\n" for name, value in fields.items() if value not in (None, "")]
    return f"Job Id: {job['id']}\n{''.join(lines)}"


def _qdel(argv: Sequence[str]) -> int:
    return _each("qdel", "delete", argv)


def _qrls(argv: Sequence[str]) -> int:
    return _each("qrls", "release", argv)


def _qrerun(argv: Sequence[str]) -> int:
    return _each("qrerun", "rerun", argv)


def _each(command: str, order: str, argv: Sequence[str]) -> int:
    """Give the same order for every job that is named."""
    names = [word for word in argv if not word.startswith("-")]
    if not names:
        raise qsub.UsageError(f"{command} needs a job id")
    for name in names:
        ask({"do": order, "job": name})
    return 0


def _pbs_mom(argv: Sequence[str]) -> int:
    """`--home DIR [--nodes DIR]` serves; with `--job ID [--recover]` it lives one job's life."""
    home = Home(Path(argv[1]))
    place = places.here(home.mom_priv)
    if "--nodes" in argv:
        place = places.nodes(Path(argv[argv.index("--nodes") + 1]), mom_priv=home.mom_priv)
    if "--job" in argv:
        job = home.load(argv[argv.index("--job") + 1])
        assert job is not None
        life.live(home, job, place=place, install=signal.signal, recover="--recover" in argv)
        return 0
    host = socket.gethostname().partition(".")[0]
    command = [sys.executable, "-I", sys.argv[0], *argv, "--job"]
    server.Server(home, name="lab", host=host, place=place, life_command=command).serve(install=signal.signal)
    return 0
