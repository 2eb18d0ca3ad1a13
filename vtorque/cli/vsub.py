# SPDX-License-Identifier: Apache-2.0
"""`vsub`, in place of qsub: the same options, and `-vm`."""

import dataclasses
import os
import pwd
import re
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from vtorque import __version__, config, follow, images, proc, qsub, render, request, submit
from vtorque.backends import batch
from vtorque.cli import PREFIX
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError, RequestError, VtorqueError
from vtorque.model import JobId
from vtorque.qsub import CommandLine, Header

EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 1, 2, 78

_HELP = """\
usage: vsub [qsub options] [-vm key=value[,key=value...]]... [--wait] script

Submits a batch script that runs in virtual machines of its own. All options of
qsub mean what they mean to qsub; without -vm, vsub is qsub.

  vsub -vm img=debian-12.qcow2 job.sh             the image to boot, site defaults for the rest
  vsub -vm vcpus=4,ram=8G -l walltime=2:00:00 job.sh
  vsub -vm vms_per_node=2 -vm ram=1G job.sh       several -vm add up, the last of a key wins
  vsub --wait -vm img=debian-12.qcow2 job.sh      follow the job, exit with its status

keys of -vm:
  img=NAME            an image of the catalogue: vmgr image list
  vcpus=N             virtual CPUs of each guest
  ram=SIZE            memory of each guest, with K, M, G or T; a plain number is MiB
  vms_per_node=N      guests on each node
  distro=NAME         debian ubuntu redhat centos osv; taken from the image's name if not given
  arch=x86_64

A script may carry them as well: #PBS -vm img=debian-12.qcow2

options of vsub:
  --wait              show a line for each phase, exit with the job's exit status
  --version, --help

exit status: qsub's own; 2 the command line or the request is wrong, 1 it could
not be submitted, 78 the site's configuration is wrong. A job that could not
run in a guest ends with 65 (refused), 69 (no guest), 70 (a bug), 76 (lost).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Submit; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return _main(words)
    except _NotAcceptedError as error:
        _print(error.printed)
        return error.status
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


def _main(words: Sequence[str]) -> int:
    line = qsub.parse(words)
    if "--help" in line.ours:
        sys.stdout.write(_HELP)
        return 0
    if "--version" in line.ours:
        sys.stdout.write(f"vtorque {__version__}\n")
        return 0
    site = config.load(config.find(PREFIX), trusted_owner=None)
    host = socket.gethostname().partition(".")[0]
    if site.disabled_hosts_list and re.search(site.disabled_hosts_list, host):
        return _complain(f"jobs cannot be submitted from {host}", EXIT_FAILED)
    real = site.pbs_qsub_on_fe if re.fullmatch(site.regex_fe, host) else site.pbs_qsub_on_nodes
    script, head = _read(line)
    if not line.vm and not (head and head.vm):
        if "--wait" in line.ours:
            raise qsub.UsageError("--wait is for jobs with -vm")
        os.execv(real, [real, *words])
    if head is None or line.script is None:
        raise RequestError("a job in guests needs a script file", hint="jobs on stdin and -I will come")
    return _submit(line, head, script, site, real)


def _read(line: CommandLine) -> tuple[bytes, Header | None]:
    """The script and its header; nothing of it when qsub itself should complain."""
    if line.script is None:
        return b"", None
    try:
        script = Path(line.script).read_bytes()
        return script, qsub.header(script, prefix=line.last("C") if line.has("C") else None)
    except (OSError, RequestError):
        if line.vm:
            raise
        return b"", None


def _submit(line: CommandLine, head: Header, script: bytes, site: SiteConfig, real: str) -> int:
    options = (*head.options, *line.options)
    _refuse_unsupported(options)
    account = pwd.getpwuid(os.getuid())
    # All that can be refused is refused before anything is made.
    draft = request.resolve(
        request.parse_vm_options((*head.vm, *line.vm)),
        site,
        request_id=secrets.token_hex(8),
        public_key="",
    )
    images.find(Path(site.vm_img_dir), draft.image)
    name = Path(line.script or "").name
    lists = [value for letter, value in options if letter == "v"]
    everything = any(letter == "V" for letter, _ in options)
    exported = submit.exported_names(lists, everything=everything, environ=os.environ)
    with submit.job_directory(Path(account.pw_dir), draft.request_id) as directory:
        directory.keep_script(name, script, shell=_shell(options, account.pw_shell), exported=exported)
        command = [str(PREFIX / "scripts" / "jobrun"), draft.request_id]
        text = render.job_wrapper(directives=head.lines, command=command, templates=PREFIX / "templates")
        wrapper = directory.keep_wrapper(name, text)
        encoded = request.encode(dataclasses.replace(draft, public_key=directory.public_key))
        carried = batch.by_name(site.batch_system).submit_options(encoded)
        status, printed = proc.call([real, *line.passed, *carried, str(wrapper)], env=os.environ)
        if status != 0:
            raise _NotAcceptedError(status, printed)
    _print(printed)
    job = batch.by_name(site.batch_system).job_id_from(printed)
    directory.submitted(job)
    return _follow(job, directory, real) if "--wait" in line.ours else 0


class _NotAcceptedError(VtorqueError):
    """The real qsub said no, in its own words and with its own status."""

    def __init__(self, status: int, printed: bytes) -> None:
        super().__init__("qsub did not accept the job")
        self.status = status
        self.printed = printed


def _refuse_unsupported(options: Sequence[tuple[str, str]]) -> None:
    letters = {letter for letter, _ in options}
    for letter, what in (("I", "interactive jobs"), ("X", "X11 forwarding"), ("t", "job arrays")):
        if letter in letters:
            raise RequestError(f"-{letter}: {what} in guests are not supported by this version")
    nodes = qsub.nodes_requested(options)
    if nodes != 1:
        raise RequestError(f"-l nodes: guests on {nodes} nodes are not supported by this version")


def _shell(options: Sequence[tuple[str, str]], login_shell: str) -> str:
    """The first path of the last -S, whose form is `path[@host][,path[@host]...]`."""
    paths = [value for letter, value in options if letter == "S"]
    return paths[-1].partition(",")[0].partition("@")[0] if paths else login_shell


def _follow(job: JobId, directory: submit.JobDirectory, real: str) -> int:
    def show(phase: str, seconds: float) -> None:
        sys.stderr.write(f"vtorque: {seconds:6.1f} s  {phase}\n")
        sys.stderr.flush()

    qstat = str(Path(real).with_name("qstat"))
    end = follow.until_done(job, directory.phases, qstat=qstat, env=os.environ, show=show)
    if end.comment:
        sys.stderr.write(f"vtorque: {end.comment}\n")
    return end.exit_status


def _print(printed: bytes) -> None:
    sys.stdout.buffer.write(printed)
    sys.stdout.buffer.flush()


def _complain(message: str, status: int) -> int:
    for text in message.splitlines():
        sys.stderr.write(f"vsub: {text}\n")
    return status
