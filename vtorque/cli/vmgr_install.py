# SPDX-License-Identifier: Apache-2.0
"""`vmgr install` and `uninstall`: vtorque into a batch system and out of it, on one node or on many."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from vtorque import __version__, install
from vtorque.cli.prefix import PREFIX
from vtorque.errors import RequestError
from vtorque.install import manifest, nodes, parts
from vtorque.install.parts import Setup

_NOTHING = "nothing to do"


def add(areas: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `install` and `uninstall`."""
    there = areas.add_parser("install", help="link the hooks into the batch system, and what belongs to them; as root")
    there.add_argument("--system", choices=parts.SYSTEMS, help="the batch system; all as before if not given")
    there.add_argument("--front-end", action="store_true", help="only what users need: this is no node")
    there.add_argument("--classic", action="store_true",
                       help="OpenPBS: its own prologue and epilogue in place of the hook, for jobs of one node")
    there.set_defaults(act=_install)
    back = areas.add_parser("uninstall", help="put everything back as it was before install; as root")
    back.set_defaults(act=_uninstall)
    for parser in (there, back):
        parser.add_argument("--dry-run", action="store_true", help="only show every change")
        parser.add_argument("--force", action="store_true", help="although something would be refused; see the manual")
        parser.add_argument("--root", type=Path, default=install.ROOT, metavar="DIR",
                            help="a node's whole file tree, as in an image; no command is run then")
        parser.add_argument("-w", dest="hosts", metavar="HOSTS", help="on these nodes, over pdsh or ssh: cn[001-128]")


def _install(arguments: argparse.Namespace) -> int:
    _require_root()
    if arguments.hosts is not None:
        flags = [f"--{name.replace('_', '-')}" for name in ("front_end", "classic") if getattr(arguments, name)]
        system = ["--system", arguments.system] if arguments.system else []
        return _on_many(arguments, ["install", *system, *flags])
    root = _root(arguments)
    with manifest.alone(root):
        plan = install.to_install(_setup(arguments, root), root, force=arguments.force, qmgr=_qmgr(arguments, root))
        return _carry_out(plan, arguments, done="installed")


def _uninstall(arguments: argparse.Namespace) -> int:
    _require_root()
    if arguments.hosts is not None:
        return _on_many(arguments, ["uninstall"])
    root = _root(arguments)
    with manifest.alone(root):
        plan = install.to_uninstall(root, force=arguments.force, qmgr=_qmgr(arguments, root))
        if plan is None:
            if not arguments.dry_run:
                # What an installation leaves that was cut short before its record was written.
                manifest.forget(root)
            sys.stdout.write(f"{_NOTHING}: vtorque is not installed\n")
            return 0
        return _carry_out(plan, arguments, done="everything is as it was")


def _setup(arguments: argparse.Namespace, root: Path) -> Setup:
    before = install.earlier(root)
    system = arguments.system or (before.system if before else None)
    if system is None:
        raise RequestError("which batch system?", hint=f"--system {', '.join(parts.SYSTEMS)}")
    prefix = Path("/", PREFIX.relative_to(root)) if PREFIX.is_relative_to(root) else PREFIX
    # With --system all of it is said anew.
    front_end, classic = (
        getattr(arguments, name) or bool(before and not arguments.system and getattr(before, name))
        for name in ("front_end", "classic")
    )
    if classic and system != "openpbs":
        raise RequestError(f"--classic is for openpbs, not for {system}")
    return Setup(system=system, prefix=prefix, site=install.site_of(prefix, root), front_end=front_end,
                 classic=classic, systemd=install.has_systemd(root))


def _carry_out(plan: install.Plan, arguments: argparse.Namespace, *, done: str) -> int:
    sys.stdout.write(f"vtorque {__version__} of {plan.begun.prefix}, for {plan.begun.system}\n")
    sys.stdout.writelines(f"{line}\n" for line in plan.lines())
    sys.stdout.flush()
    if not plan.is_due:
        sys.stdout.write(f"{_NOTHING}\n")
        return 0
    changes = len(plan.first) + len(plan.steps) + len(plan.last)
    if arguments.dry_run:
        sys.stdout.write(f"{changes} changes, none made\n")
        return 0
    install.perform(plan)
    sys.stdout.write(f"{done}, {changes} changes made\n")
    return 0


def _on_many(arguments: argparse.Namespace, command: list[str]) -> int:
    """The same on each node, by the vtorque that is there at the same place."""
    if arguments.root != install.ROOT:
        raise RequestError("-w and --root do not go together")
    flags = [f"--{name.replace('_', '-')}" for name in ("dry_run", "force") if getattr(arguments, name)]
    wanted = nodes.names(arguments.hosts)
    words = [str(PREFIX / "scripts" / "vmgr"), *command, *flags]
    answers = nodes.run(wanted, words, which=shutil.which, env=os.environ)
    width = max(len(each.node) for each in answers)
    for each in answers:
        verdict = f"failed {each.status}" if each.status else "ok"
        sys.stdout.write(f"{each.node:<{width}}  {verdict:<10}  {each.says}\n")
    sys.stdout.writelines(f"note     {each}\n" for each in nodes.notes(answers))
    failed = [each.node for each in answers if each.status]
    sys.stdout.write(f"{len(answers)} nodes, {len(failed)} failed{': ' + nodes.fold(failed) if failed else ''}\n")
    return 1 if failed else 0


def _qmgr(arguments: argparse.Namespace, root: Path) -> str | None:
    """OpenPBS's own, beside its qsub; an image of a node has no server."""
    if root != install.ROOT:
        return None
    return shutil.which("qmgr") or shutil.which("/opt/pbs/bin/qmgr")


def _root(arguments: argparse.Namespace) -> Path:
    root: Path = arguments.root.resolve()
    if not root.is_dir():
        raise RequestError(f"there is no directory {root}")
    return root


def _require_root() -> None:
    if os.getuid() != 0:
        raise RequestError("install and uninstall change what is root's", hint="run it as root")
