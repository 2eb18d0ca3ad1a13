# SPDX-License-Identifier: Apache-2.0
"""`vmgr node`: whether this node takes jobs with guests; `vmgr show privileged`: what root runs for them."""

import argparse
import contextlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from vtorque import audit, config, files, logs, names, privileged, service
from vtorque.cli.prefix import PREFIX
from vtorque.config import SiteConfig
from vtorque.errors import RequestError, StateError

# Torque and the local engine hold nothing against a node whose health check is content again.
_TELL = {"slurm": "scontrol update NodeName=NAME State=RESUME", "openpbs": "pbsnodes -r NAME"}


def add(areas: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `node`."""
    node = areas.add_parser("node", help="whether this node takes jobs with guests; take it out, bring it back")
    verbs = node.add_subparsers(required=True, metavar="status|out|return")
    status = verbs.add_parser("status", help="in or out, since when and why: exit 0 in, 3 out")
    status.set_defaults(act=_status)
    out = verbs.add_parser("out", help="start no more guests on this node; those that run go on")
    out.add_argument("reason", nargs="+", metavar="REASON", help="what users and the batch system are told")
    out.set_defaults(act=_out)
    back = verbs.add_parser("return", help="start guests again, and count failures anew")
    back.set_defaults(act=_return)


def add_show(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `show privileged`."""
    show = verbs.add_parser("privileged", help="what runs with uid 0 for jobs: modules, lines of code, why")
    show.add_argument("--json", action="store_true", help="for scripts: name, lines, runs_as, wanted_by, about")
    show.set_defaults(act=_show)


def _show(arguments: argparse.Namespace) -> int:
    every = privileged.modules(Path(privileged.__file__).parent)
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(each) for each in every], indent=1) + "\n")
        return 0
    roots = [each for each in every if each.runs_as == "root"]
    for each in roots:
        sys.stdout.write(f"{each.lines:5} {each.name:<30} {each.wanted_by or 'started by root':<24} {each.about}\n")
    sys.stdout.write(f"{sum(each.lines for each in roots):5} lines of code in {len(roots)} modules\n")
    for each in every:
        if each.runs_as != "root":
            sys.stdout.write(f"{each.lines:5} {each.name:<30} runs as {each.runs_as}\n")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    standing = service.look(_site())
    for each in standing.row:
        sys.stdout.write(f"failed: job {each.job} of {each.user}\n")
    sys.stdout.write(f"out since {standing.since}: {standing.out}\n" if standing.out else "in\n")
    return 3 if standing.out else 0


def _out(arguments: argparse.Namespace) -> int:
    site = _site()
    service.take_out(site, " ".join(arguments.reason))
    if not service.look(site).out:
        raise StateError(f"the node is still in: that is noted neither in {site.disk_dir} nor in {site.state_dir}")
    return 0


def _return(arguments: argparse.Namespace) -> int:
    site = _site()
    was_out = service.bring_back(site)
    sys.stdout.write("the node takes jobs with guests again\n" if was_out else "the node was not out\n")
    if was_out and site.batch_system in _TELL:
        sys.stdout.write(f"tell the batch system, too: {_TELL[site.batch_system]}\n")
    return 0


def _site() -> SiteConfig:
    if os.geteuid() != 0:
        raise RequestError("how a node stands is root's note", hint="run it as root")
    site = config.load(config.find(PREFIX), trusted_owner=0)
    with contextlib.suppress(OSError):
        files.directory(Path(site.log_dir), mode=0o711)
    logs.setup(names.log(site), verbose=site.debug_default)
    audit.setup(site.audit_log, Path(site.log_dir), step="vmgr")
    return site
