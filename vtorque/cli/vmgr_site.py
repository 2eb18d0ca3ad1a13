# SPDX-License-Identifier: Apache-2.0
"""`vmgr`'s site side: the configuration, this node's health, and what jobs have left behind."""

import argparse
import json
import logging
import os
import pwd
import socket
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from vtorque import config, configimport, doctor, follow, install, logs, names, slurmjob, submit, sweeping, teardown
from vtorque.cli import assembly, family, rooted
from vtorque.cli.prefix import PREFIX
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.doctor import Finding, Level
from vtorque.doctor_checks import warning
from vtorque.errors import ConfigError, RequestError, StateError, known, printable
from vtorque.options import OPTIONS

_SWEEP_SECONDS = 300.0
_DOCTOR_SECONDS = 60.0
# Mom waits for her node check script and does nothing else meanwhile.
_NHC_SECONDS = 20.0
_IMPORT_LIMIT = 1 << 20
# What the original shows to users who are not root.
_FOR_USERS = (
    "ENABLED", "DEFAULT", "NODES", "HOST_OS_", "PBS_EXCLUSIVE_NODE_ALLOC", "SW_PACKAGES", "DISABLED_HOSTS_LIST",
    "PARALLEL", "ALLOW_USER_IMAGES", "ENABLE_DEV_MODE", "IOCM_M", "MAX_", "LIMITS", "NODE_", "VM_IMG_DIR",
)


def add(areas: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `config`, `doctor` and `sweep`."""
    about = areas.add_parser("config", help="check the configuration, or convert one of the original")
    verbs = about.add_subparsers(required=True, metavar="check|import")
    check = verbs.add_parser("check", help="name every mistake with file, line and key")
    check.add_argument("file", nargs="?", type=Path, help="the file; the one in effect if not given")
    check.add_argument("--strict", action="store_true", help="options without effect are mistakes, too")
    check.set_defaults(act=_check)
    importing = verbs.add_parser("import", help="convert a config.sh of the original; print vtorque.yaml")
    importing.add_argument("file", type=Path, help="config.sh; it is read, never executed")
    importing.set_defaults(act=_import)
    health = areas.add_parser("doctor", help="whether this node can run guests: exit 0 yes, 1 warnings, 2 errors")
    how = health.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="for scripts: a list of name, level, text, hint")
    how.add_argument("--nhc", action="store_true", help="one line when there is an error, for $node_check_script")
    health.set_defaults(act=_doctor)
    sweep = areas.add_parser("sweep", help="give back what jobs have left that the batch system no longer knows")
    sweep.add_argument("--dry-run", action="store_true", help="only say which jobs these are")
    sweep.set_defaults(act=_sweep)


def add_show(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `show config`."""
    show = verbs.add_parser("config", help="every option in effect; users see what concerns them")
    show.add_argument("--origin", action="store_true", help="and the file and line it comes from")
    show.add_argument("--json", action="store_true", help="for scripts: option, value, origin")
    show.set_defaults(act=_show)


def _show(arguments: argparse.Namespace) -> int:
    path = config.find(PREFIX)
    loaded = config.load_whole(path, trusted_owner=None)
    rows = []
    for name in OPTIONS:
        if os.getuid() == 0 or any(part in name for part in _FOR_USERS):
            origin = f"{path}:{loaded.lines[name]}" if name in loaded.lines else "default"
            rows.append({"option": name, "value": getattr(loaded.site, name.lower()), "origin": origin})
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return 0
    for row in rows:
        text = f"{row['option']} = {_written(row['value'])}"
        sys.stdout.write(f"{text:<60} {row['origin']}\n" if arguments.origin else f"{text}\n")
    return 0


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def _check(arguments: argparse.Namespace) -> int:
    path = (arguments.file or config.find(PREFIX)).absolute()
    # Root acts on the file in effect; a draft may lie anywhere.
    owner = 0 if arguments.file is None else None
    loaded = config.load_whole(path, trusted_owner=owner)
    for note in loaded.notes:
        sys.stdout.write(f"{path}:{note.line}: {note.key}: {note.text}\n")
    sys.stdout.write(f"{path}: {len(loaded.lines)} options set, {len(loaded.notes)} without effect\n")
    return 1 if arguments.strict and loaded.notes else 0


def _import(arguments: argparse.Namespace) -> int:
    try:
        with arguments.file.open("rb") as file:
            source = file.read(_IMPORT_LIMIT)
    except OSError as error:
        raise RequestError(f"{arguments.file}: {error.strerror}") from None
    made = configimport.convert(source.decode(errors="surrogateescape"), name=arguments.file.name)
    sys.stdout.write(made.text)
    sys.stderr.writelines(f"vmgr: {note}\n" for note in made.notes)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    if os.getuid() != 0:
        raise RequestError("doctor looks at what only root can see", hint="run it as root")
    seconds = _NHC_SECONDS if arguments.nhc else _DOCTOR_SECONDS
    try:
        site = config.load(config.find(PREFIX), trusted_owner=0)
    except ConfigError as wrong:
        lines = wrong.brief.splitlines()
        findings = [Finding(name="config", level=Level.ERROR, text=line, hint=wrong.hint) for line in lines]
    else:
        findings = _examined(site, Deadline(seconds))
    if arguments.nhc:
        # Torque takes a line that begins with ERROR for the verdict, and the exit status for the script's own.
        if line := doctor.nhc(findings):
            sys.stdout.write(f"{line}\n")
        return 0
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(f"{_coloured(finding.level):<8} {finding.name:<12} {finding.text}\n")
            if finding.hint:
                sys.stdout.write(f"{'':<8} {'':<12} -> {finding.hint}\n")
    return doctor.exit_status(findings)


def _examined(site: SiteConfig, deadline: Deadline) -> list[Finding]:
    """What the doctor finds, of a node or of what was installed as a front end."""
    try:
        record, wrong = install.earlier(install.ROOT), []
    except StateError as trouble:
        hint = "put it back from a backup: vmgr uninstall needs it"
        record, wrong = None, [warning("install", trouble.brief, trouble.hint or hint)]
    # A lab on a front end is all the node that there is.
    front_end = record is not None and record.front_end and site.batch_system != "local"
    return [*wrong, *doctor.examine(site, prefix=PREFIX, front_end=front_end, deadline=deadline)]


def _coloured(level: Level) -> str:
    text = f"{level.value:<8}"
    colour = {Level.OK: 32, Level.WARNING: 33, Level.ERROR: 31}[level]
    return f"\033[{colour}m{text}\033[0m" if sys.stdout.isatty() else text


def _sweep(arguments: argparse.Namespace) -> int:
    if os.getuid() != 0:
        return _sweep_own(dry_run=arguments.dry_run)
    program = rooted.Program(partial(_sweeping, arguments.dry_run), step="sweep")
    return abs(program.run(rooted.Wanted()))


def _sweeping(dry_run: bool, orders: socket.socket) -> int:
    """The sweep itself, by the account that the hooks' program is, too."""
    try:
        site = assembly.site(PREFIX)
    except ConfigError as error:
        family.refuse(orders, error)
        return 1
    kin = family.begin(orders, site)
    logs.setup(names.log(site), verbose=site.debug_default)
    said = _Said()
    logging.getLogger().addHandler(said)
    with assembly.node(site, kin) as node:
        found = list(sweeping.forgotten(node))
        gone = found if dry_run else sweeping.sweep(node, deadline=Deadline(_SWEEP_SECONDS), thorough=True)
    sys.stdout.writelines(f"{key}\n" for key in gone)
    sys.stdout.flush()
    return 0 if len(gone) == len(found) and not said.anything else 1


class _Said(logging.Handler):
    """What went wrong, a line each on standard error; the log has the rest."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.anything = False
        # Whoever tears a job down sums up what this says of each thing that the job still holds.
        self.addFilter(lambda record: record.name != teardown.log.name)

    def emit(self, record: logging.LogRecord) -> None:
        self.anything = True
        error = record.exc_info[1] if record.exc_info else None
        reason = f": {known(error).one_line()}" if isinstance(error, Exception) else ""
        sys.stderr.write(f"vmgr: {printable(record.getMessage() + reason)}\n")


def _sweep_own(*, dry_run: bool) -> int:
    """A user has job directories only: of jobs that were deleted before they started."""
    site = config.load(config.find(PREFIX), trusted_owner=None)
    status = 0
    for path, job in submit.directories(Path(pwd.getpwuid(os.getuid()).pw_dir)).items():
        if not job:
            sys.stderr.write(f"vmgr: {path}: which job it belongs to is not known; remove it by hand\n")
            status = 1
        elif follow.is_over(job, ask=_ask(site)):
            if not dry_run:
                submit.remove(path, job)
            sys.stdout.write(f"{job}\n")
    return status


def _ask(site: SiteConfig) -> follow.Ask:
    beside = Path(site.pbs_qsub_on_fe)
    if site.batch_system == "slurm":
        return slurmjob.ask(str(beside.with_name("scontrol")), os.environ)
    return follow.qstat(str(beside.with_name("qstat")), os.environ)
