# SPDX-License-Identifier: Apache-2.0
"""`vmgr ps`, `ssh`, `console`, `logs` and `report`: the guests of the node where they are called."""

import argparse
import contextlib
import os
import platform
import pwd
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtorque import __version__, accounts, config, files, foreground, names, observe, report
from vtorque.backends.hypervisor import Usage
from vtorque.backends.hypervisor.inspector import Inspector
from vtorque.cli.prefix import PREFIX
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, RequestError, VtorqueError
from vtorque.job import JobId
from vtorque.observe import Recorded
from vtorque.state import READY

_LOOK_SECONDS = 10.0
_SSH_PORT = 22
_AFTER_SECONDS = 1.0
_CLOUD_INIT = ("/var/log/cloud-init.log", "/var/log/cloud-init-output.log")


def add(areas: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to vmgr's parser."""
    ps = areas.add_parser("ps", help="the guests on this node: your own, or all for root")
    ps.add_argument("--json", action="store_true", help="for scripts")
    ps.set_defaults(act=_ps)
    ssh = areas.add_parser("ssh", help="log in to a guest of your job, or run a command there",
                           usage="vmgr ssh JOB [RANK] [-- COMMAND...]")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="JOB [RANK] [-- COMMAND...]",
                     help="which job, which of its guests (0 if not given), what to run as ssh does")
    ssh.set_defaults(act=_ssh)
    console = areas.add_parser("console", help="what a guest prints on its console, until it ends; for root")
    logs = areas.add_parser("logs", help="what happened to a job on this node")
    bundle = areas.add_parser("report", help="all about a job in one text, for a support ticket; no secrets")
    for parser in (console, logs, bundle):
        parser.add_argument("job", metavar="JOB", help="like 12, 12.server or 58[2]")
    console.add_argument("rank", metavar="RANK", nargs="?", type=int, default=0, help="which guest, from 0")
    console.add_argument("--log", action="store_true", help="only what is there so far")
    console.set_defaults(act=_console, follow=True)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is gone from this node")
    logs.add_argument("--what", choices=("prologue", "console", "cloud-init"), default="prologue")
    logs.add_argument("--rank", type=int, default=0, help="which guest, from 0")
    logs.set_defaults(act=_logs, log=False)
    bundle.add_argument("-o", "--output", type=Path, metavar="FILE", help="a new file, not standard output")
    bundle.set_defaults(act=_report)


def enter(
    guest: Mapping[str, Any], *, user: str, key: Path, command: Sequence[str], seconds: int, port: int = _SSH_PORT
) -> int:
    """Run OpenSSH's client in our place with a known_hosts of its own, which is gone afterwards; its status."""
    has_terminal = os.isatty(0) and os.isatty(1)
    address = guest["address"] if port == _SSH_PORT else f"[{guest['address']}]:{port}"
    with tempfile.TemporaryDirectory(prefix="vmgr-ssh-") as scratch:
        known = Path(scratch, "known_hosts")
        known.write_text(f"{address} {guest['host_key']}\n")
        argv = ssh_command(guest["address"], user=user, key=key, known_hosts=known, command=command,
                           terminal=has_terminal, seconds=seconds, port=port)
        return foreground.call_through(argv, env=os.environ, terminal=True)[0]


def ssh_command(
    address: str, *, user: str, key: Path, known_hosts: Path, command: Sequence[str], terminal: bool, seconds: int,
    port: int = _SSH_PORT,
) -> list[str]:
    """ssh with the job's own key, the guest's proven host key, and no file of the user's."""
    # ssh expands % in file names, and splits them at blanks.
    known, identity = (f'"{str(path).replace("%", "%%")}"' for path in (known_hosts, key))
    settings = {
        "BatchMode": "yes", "StrictHostKeyChecking": "yes", "UserKnownHostsFile": known, "IdentityFile": identity,
        "GlobalKnownHostsFile": "/dev/null", "UpdateHostKeys": "no", "CheckHostIP": "no", "IdentitiesOnly": "yes",
        "IdentityAgent": "none", "LogLevel": "ERROR", "ConnectTimeout": str(seconds), "ServerAliveInterval": "15",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    # After -- ssh takes no more options, not even from the command.
    return ["/usr/bin/ssh", "-F", "none", *options, "-p", str(port), "-l", user, "-t" if terminal else "-T",
            "--", address, *command]


def _ps(arguments: argparse.Namespace) -> int:
    """Show the guests on this node.

    With --json a list of objects, one for each guest (`rank` null: a job
    without guests), each with these keys and null for what the caller cannot
    know: job, user, rank, name, hostname, node, state, address, vcpus,
    memory_mib, cpu_seconds, age_seconds, reason (of the state "failed").
    States: starting, planned, ready (to a user: running), running, paused,
    stopping, stopped, crashed, gone, failed. Keys may be added, none is removed.
    """
    site = _site()
    jobs = [job for job in _jobs(site) if _is_root() or job.ready or job.failed]
    with _look(site) as look:
        lines = [line for job in jobs for line in _guests(job, look)]
    if arguments.json or lines:
        _write([observe.as_json(lines) if arguments.json else observe.table(lines)])
    else:
        sys.stderr.write("vmgr: no guests on this node\n" if _is_root() else "vmgr: no guests of yours on this node\n")
    return 0


def _ssh(arguments: argparse.Namespace) -> int:
    words, command = _split(arguments.words)
    if not 1 <= len(words) <= 2 or not all(word.isdecimal() for word in words[1:]):
        raise RequestError("usage: vmgr ssh JOB [RANK] [-- COMMAND...]", hint="a command comes after --")
    site = _site()
    return _enter(site, observe.find(words[0], _jobs(site)), int(words[1]) if words[1:] else 0, command)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at + 1:])


def _enter(site: SiteConfig, job: Recorded, rank: int, command: Sequence[str]) -> int:
    if job.directory is None:
        words = ["vmgr", "ssh", job.id, str(rank), *(["--", *command] if command else [])]
        raise RequestError(
            f"the guests of job {job.id} let in {job.user or 'its user'} only, with a key that root does not read",
            hint=f"su - {job.user or 'USER'} -c {shlex.quote(shlex.join(words))}",
        )
    guest = observe.ready_guest(job, rank)
    key = job.directory / "key"
    if not key.is_file():
        raise RequestError(f"the key of job {job.id} is gone: {key}")
    user = pwd.getpwuid(os.getuid()).pw_name
    return enter(guest, user=user, key=key, command=command, seconds=site.ssh_timeout)


def _console(arguments: argparse.Namespace) -> int:
    if not _is_root():
        raise RequestError("a guest's console is root's to read", hint=f"see vmgr logs {arguments.job}")
    site = _site()
    job = observe.find(arguments.job, _jobs(site))
    vm = observe.planned_guest(job, arguments.rank)
    path = Path(vm["console"])
    with contextlib.closing(Inspector(site.libvirt_uri)) as hypervisor:

        def going() -> bool:
            # Before its start a guest is as little running as after its end.
            return (job.path / "plan.json").exists() and (
                not (job.path / READY).exists() or hypervisor.is_running(vm["name"], deadline=Deadline(_LOOK_SECONDS))
            )

        follows = arguments.follow and not arguments.log
        try:
            _show_console(report.tail(path, going=going if follows else None))
        except FileNotFoundError:
            raise RequestError(f"guest {vm['name']} has no console log yet") from None
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    if arguments.what == "console":
        return _console(arguments)
    site = _site()
    log = Path(site.log_dir, "vtorque.log")
    if arguments.what == "cloud-init":
        command = ["tail", "-n", "+1", "-F"] if arguments.follow else ["cat"]
        return _enter(site, observe.find(arguments.job, _jobs(site)), arguments.rank, [*command, *_CLOUD_INIT])
    job = _job_or_trace(site, arguments.job, log)
    if _is_root() or os.access(log, os.R_OK):
        going = _lingering(job.path) if arguments.follow else None
        try:
            _write(map(report.log_text, report.log_entries(report.tail(log, going=going), job.id.__eq__)))
        except FileNotFoundError:
            raise RequestError(f"there is no log {log}") from None
        return 0
    assert job.directory is not None
    if job.reason is not None:
        _write([f"failed: {job.reason}\n"])
    with contextlib.suppress(FileNotFoundError):
        going = _lingering(job.directory) if arguments.follow else None
        _write(report.phases_text(report.tail(report.phases_of(job.directory, job.id), going=going)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    site = _site()
    log = Path(site.log_dir, "vtorque.log")
    job = _job_or_trace(site, arguments.job, log)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    title = (f"vtorque {__version__}, job {job.id}, node {socket.gethostname()}, {stamp}, "
             f"seen by uid {os.geteuid()}, {platform.platform()}, Python {platform.python_version()}")
    with _look(site) as look:
        text = report.bundle(job, title, site=site, guests=lambda: observe.table(_guests(job, look)), log=log)
    if arguments.output is None:
        _write([text])
        return 0
    try:
        files.write_new(arguments.output, text.encode(), mode=0o600)
    except OSError as error:
        raise RequestError(f"cannot write {arguments.output}: {error.strerror}") from error
    return 0


def _site() -> SiteConfig:
    return config.load(config.find(PREFIX), trusted_owner=0)


def _is_root() -> bool:
    return os.geteuid() == 0


def _jobs(site: SiteConfig) -> list[Recorded]:
    root, owner = Path(site.state_dir), 0
    # Front ends do without the account.
    with contextlib.suppress(ConfigError):
        owner = accounts.program()[0]
    if _is_root():
        return observe.all_jobs(root, owner=owner)
    me = pwd.getpwuid(os.getuid())
    return observe.own_jobs(root, Path(me.pw_dir), user=me.pw_name, owner=owner)


def _job_or_trace(site: SiteConfig, text: str, log: Path) -> Recorded:
    """The job; to root also one that is over and has left its lines in the log or in accounting."""
    try:
        return observe.find(text, _jobs(site))
    except RequestError:
        found = report.finished(log, names.accounting(site), text) if _is_root() else []
        if len(found) != 1:
            raise
    path = Path(site.state_dir, "jobs", "-")
    return Recorded(id=JobId(found[0]), user=None, path=path, directory=None, plan={}, ready=None, failed=None,
                    begun=None)


def _guests(job: Recorded, look: observe.Look | None) -> list[observe.Guest]:
    return observe.guests(job, node=socket.gethostname(), look=look, now=time.time())


@contextlib.contextmanager
def _look(site: SiteConfig) -> Iterator[observe.Look | None]:
    """What libvirt says, to root; nobody waits twice for one that does not answer."""
    if not _is_root():
        yield None
        return
    with contextlib.closing(Inspector(site.libvirt_uri)) as hypervisor:
        try:
            hypervisor.domains(deadline=Deadline(_LOOK_SECONDS))
        except VtorqueError as error:
            sys.stderr.write(f"vmgr: {error.one_line()}\n")
            yield None
            return

        def look(name: str) -> Usage | None:
            return hypervisor.usage(name, deadline=Deadline(_LOOK_SECONDS))

        yield look


def _lingering(path: Path) -> Callable[[], bool]:
    """Whether the job is there; a little longer, for what its epilogue says last."""
    last = time.monotonic()

    def going() -> bool:
        nonlocal last
        if path.exists():
            last = time.monotonic()
        return time.monotonic() - last < _AFTER_SECONDS

    return going


def _show_console(chunks: Iterable[bytes]) -> None:
    if not sys.stdout.isatty():
        _write(chunks)
        return
    terminal = report.Terminal()
    _write(map(terminal.show, chunks))
    _write([terminal.show(b"")])


def _write(parts: Iterable[str | bytes]) -> None:
    """Pass on what comes; Ctrl-C and a reader that has gone end it quietly."""
    try:
        for part in parts:
            sys.stdout.buffer.write(part.encode(errors="backslashreplace") if isinstance(part, str) else part)
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
