# SPDX-License-Identifier: Apache-2.0
"""The part of vsub that submits a job without guests where there is no qsub: to Slurm."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from vtorque import foreground, sbatch, sbatchforms, sbatchlines
from vtorque.cli import vsub
from vtorque.errors import CommandError
from vtorque.qsub import CommandLine
from vtorque.sbatch import Submit

_THE_SCRIPT = "/dev/stdin"


def run(line: CommandLine, name: str, text: bytes, directives: Sequence[tuple[str, str]], real: str) -> int:
    """Submit the job that qsub's options describe, or show how; the exit status."""
    if line.generate is not None or line.ours - {"--dry-run"}:
        raise vsub.only_in_guests(line)
    options = (*directives, *line.options)
    user = vsub.own_account()
    place = sbatchforms.here(user=user.pw_name, home=user.pw_dir, directory=str(vsub.here()))
    interactive = line.has("I")
    slurm = sbatch.translate(
        options, place=place, name="" if interactive else name,
        said=sbatchlines.said(sbatchlines.directives(text), os.environ),
    )
    shells = [value for letter, value in options if letter == "S"]
    shell = shells[-1].partition(",")[0].partition("@")[0] if shells else ""
    if interactive:
        script = [str(Path(str(line.script)).absolute())] if line.has("x") and line.script else [user.pw_shell, "-l"]
    else:
        script = _script(line, text, shell, user.pw_shell, slurm)
    command = slurm.command(real, script)
    if "--dry-run" in line.ours:
        vsub.show(f"{shlex.join([*sbatch.environ_words(slurm.environ), *command])}\n")
        return 0
    environ = {**os.environ, **slurm.environ}
    called = foreground.call_through(command, env=environ, terminal=interactive, shown=sbatch.job_id)
    if called.untold:
        job = os.fsdecode(sbatch.job_id(called.printed)).strip()
        raise CommandError(f"job {job} is submitted; its id could not be written: {called.untold}")
    return called.status


def _script(line: CommandLine, text: bytes, shell: str, login_shell: str, slurm: Submit) -> list[str]:
    """The words for the script: none when sbatch reads it from its standard input.

    qsub's shell is that of -S, or the user's own, and a script need not name
    one; sbatch takes only those that do.
    """
    if shell or not text.startswith(b"#!"):
        vsub.offer(f"#!{shell or login_shell}\n".encode(errors="surrogateescape") + text)
        return [_THE_SCRIPT]
    if line.script:
        return [line.script]
    return [_THE_SCRIPT] if slurm.arguments else []
