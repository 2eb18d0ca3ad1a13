# SPDX-License-Identifier: Apache-2.0
"""The part of vsub that submits a job in guests."""

import contextlib
import os
import re
import shlex
import signal
from pathlib import Path

from vtorque import accounts, config, foreground, imageentry, qsub, request, submission, submit
from vtorque.backends.batch import front
from vtorque.cli.prefix import PREFIX
from vtorque.cli.vsub import here, own_account, say, show
from vtorque.config import SiteConfig
from vtorque.errors import CommandError, RequestError, VtorqueError
from vtorque.job import JobId
from vtorque.qsub import CommandLine, Header
from vtorque.submission import Script, Submission, Surroundings
from vtorque.submit import JobDirectory, JobFile

# A key of 32 zero bytes: what shows the request before there is a job directory with a real one.
_NO_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def site(path: Path) -> SiteConfig:
    """The site's configuration; RequestError when it does not let this host submit."""
    found = config.load(path, trusted_owner=None)
    host = _host()
    if found.disabled_hosts_list and re.search(found.disabled_hosts_list, host):
        raise RequestError(f"jobs cannot be submitted from {host}")
    return found


def real_qsub(site: SiteConfig) -> str:
    """The qsub of this host."""
    return site.pbs_qsub_on_fe if re.fullmatch(site.regex_fe, _host()) else site.pbs_qsub_on_nodes


def run(line: CommandLine, name: str, text: bytes, head: Header, *, system: str, real: str) -> int:
    """Submit a job in guests to the batch `system`, or show what would be submitted; the exit status."""
    _hear_signals()
    found = site(config.find(PREFIX)).but(batch_system=system)
    grammar = qsub.GRAMMARS[system]
    letters = {letter for letter, _ in (*head.options, *line.options)}
    if "--wait" in line.ours and letters & {"I", *grammar.arrays}:
        raise qsub.UsageError("--wait follows one batch job, not an interactive one or an array")
    around = Surroundings(
        account=accounts.account(own_account().pw_name, min_uid=0),
        directory=here(),
        environ=frozenset(os.environ),
        grammar=grammar,
    )
    draft = submission.prepare(
        line, Script(name=name, text=text, header=head), found,
        around=around,
        find_image=lambda image: imageentry.find(Path(found.vm_img_dir), image),
        request_id=os.urandom(8).hex(),
    )
    # Only now is everything known to fit: nothing has been made yet.
    request.encode(draft.resolved.request._replace(public_key=_NO_KEY))
    try:
        return _submit_or_show(line, draft, found, real, around)
    except _OverError as error:
        return error.status


def _submit_or_show(line: CommandLine, draft: Submission, site: SiteConfig, real: str, around: Surroundings) -> int:
    """What the user's switches ask for."""
    for note in draft.notes:
        say(f"vsub: {note}")
    if "--explain" in line.ours:
        width = max(len(setting.key) for setting in draft.resolved.settings)
        show("".join(
            f"{setting.key:<{width}}  {setting.value or '-':<24}  {setting.origin}\n"
            for setting in draft.resolved.settings
        ))
    if "--dry-run" in line.ours or line.generate is not None:
        # What a submission does not need it does not load.
        from vtorque import generate

        command, wrapper = _preview(draft, site, real)
        if line.generate is None:
            show(f"{shlex.join(command)}\n\n{os.fsdecode(wrapper)}")
        else:
            target = Path(line.generate or f"vtorque-{draft.script.name}")
            for path in generate.write(
                target, draft, site, account=around.account, command=command, wrapper=wrapper,
                public_key=_NO_KEY, templates=PREFIX / "templates-vm", host=_host(),
            ):
                show(f"{path}\n")
    if line.ours & {"--explain", "--dry-run"} or line.generate is not None:
        return 0
    return _submit(draft, site, line, real)


class _OverError(VtorqueError):
    """There is no job any more, or none has come about: qsub has said why, and this was its status."""

    def __init__(self, status: int) -> None:
        super().__init__("there is no job")
        self.status = status


def _submit(draft: Submission, site: SiteConfig, line: CommandLine, real: str) -> int:
    """Make the job directory, call qsub, print what it prints; its exit status."""
    wanted, shown = draft.resolved.request, None
    if draft.slurm is not None:
        from vtorque import sbatch

        shown = sbatch.job_id
    dialect = front.by_name(site.batch_system)
    home = Path(own_account().pw_dir)
    with submit.job_directory(home, wanted.request_id) as directory:
        encoded = request.encode(wanted._replace(public_key=directory.public_key))
        wrapper = _fill(directory, draft, dialect.script_comment(encoded))
        command = draft.command(real, wrapper, carried=dialect.submit_options(encoded))
        status, printed, untold = foreground.call_through(
            command, env={**os.environ, **draft.environ}, terminal=draft.interactive,
            shown=shown,
        )
        job = None
        with contextlib.suppress(VtorqueError):
            job = dialect.job_id_from(printed)
        # With -W block=true the status is the job's own, and an interactive job is over now.
        if draft.interactive or (status != 0 and job is None):
            raise _OverError(status)
    # The directory is the job's from here on, whatever happens to us.
    if job is not None and directory.path.exists():
        directory.submitted(job)
    if untold:
        raise CommandError(f"{f'job {job}' if job else 'the job'} is submitted; its id could not be written: {untold}")
    if draft.slurm is None:
        _tidy(home, real)
    if "--wait" not in line.ours or status != 0:
        return status
    if job is None:
        raise RequestError("--wait needs the job's id, which qsub did not print", hint="leave out -z")
    return _follow(job, directory, real, slurm=draft.slurm is not None)


def _tidy(home: Path, real: str) -> None:
    from vtorque import leftovers

    leftovers.tidy(home, qstat=str(Path(real).with_name("qstat")), env=os.environ)


def _fill(directory: JobDirectory, draft: Submission, comment: bytes) -> Path:
    about = JobFile(
        script=draft.script.name if draft.runs_script else "",
        shell=draft.shell,
        exported=tuple(sorted(draft.exported)),
        interactive=draft.interactive,
        x11=draft.x11,
        elements=draft.resolved.request.elements,
    )
    directory.keep(about, draft.script.text, draft.resolved.scripts)
    return directory.keep_wrapper(draft.script.name, _wrapper(draft, comment))


def _wrapper(draft: Submission, comment: bytes) -> bytes:
    template = (PREFIX / "templates" / "job-wrapper.sh").read_bytes()
    command = [str(PREFIX / "scripts" / "jobrun"), draft.resolved.request.request_id]
    return submit.wrapper(template, directives=comment + draft.directives, command=command)


def _preview(draft: Submission, site: SiteConfig, real: str) -> tuple[list[str], bytes]:
    from vtorque import sbatch

    wanted = draft.resolved.request._replace(public_key=_NO_KEY)
    directory = Path(own_account().pw_dir, ".vtorque", wanted.request_id)
    path = submit.wrapper_path(directory, draft.script.name)
    dialect, encoded = front.by_name(site.batch_system), request.encode(wanted)
    command = draft.command(real, path, carried=dialect.submit_options(encoded))
    return [*sbatch.environ_words(draft.environ), *command], _wrapper(draft, dialect.script_comment(encoded))


def _follow(job: JobId, directory: JobDirectory, real: str, *, slurm: bool) -> int:
    from vtorque import follow, slurmjob

    def tell(phase: str, seconds: float) -> None:
        say(f"vtorque: {seconds:6.1f} s  {phase}")

    program = str(Path(real).with_name("scontrol" if slurm else "qstat"))
    ask = slurmjob.ask(program, os.environ) if slurm else follow.qstat(program, os.environ)
    try:
        end = follow.until_done(job, directory.phases, ask=ask, show=tell)
    except KeyboardInterrupt:
        say(f"vsub: job {job} goes on")
        raise
    if end.comment:
        say(f"vtorque: {end.comment}")
    return end.exit_status


def _hear_signals() -> None:
    """Whatever ends us has to come as an exception: a job directory that is made in vain is cleared away."""
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What is ignored, as in the background, stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _host() -> str:
    return os.uname().nodename.partition(".")[0]
