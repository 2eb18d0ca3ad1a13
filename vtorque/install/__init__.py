# SPDX-License-Identifier: Apache-2.0
"""Put vtorque into a running cluster, and take it out again: everything is as it was.

What is to be done is decided first, from what is there, and shown. A record of
it is written before the first change, so whatever cuts a call short, the next
one finishes or undoes it. At no moment is a hook missing that was there
before: a missing hook is a successful one to Torque (prolog.c:413-464).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vtorque import config, proc, state
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError, VtorqueError
from vtorque.install import account, checks, manifest, modes, parts, pbshook, slurm, steps, tree
from vtorque.install.manifest import Manifest
from vtorque.install.parts import Setup
from vtorque.install.steps import Step, Verb
from vtorque.install.tree import ROOT

__all__ = ["ROOT", "Plan", "Setup", "earlier", "has_systemd", "perform", "site_of", "to_install", "to_uninstall"]

_SOURCE_LIMIT = 1 << 20
_COMMAND_SECONDS = 60.0
_SYSTEMD = Path("/run/systemd/system")
_TIMER = "vtorque-sweep.timer"
_CUT_SHORT = "vmgr install finishes it, vmgr uninstall undoes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done below `root`, in the order of its fields, and what to say of it.

    `record` is None when nothing remains to be recorded. `is_due` says whether
    there is anything to do at all.
    """

    root: Path
    begun: Manifest
    first: tuple[tuple[str, ...], ...] = ()
    steps: tuple[Step, ...]
    last: tuple[tuple[str, ...], ...] = ()
    record: Manifest | None
    notes: tuple[str, ...]
    is_due: bool

    def lines(self) -> list[str]:
        """Every change and every command, one a line, and the notes."""
        shown = [
            *(f"run      {_words(each)}" for each in self.first), *map(str, self.steps),
            *(f"run      {_words(each)}" for each in self.last),
        ]
        return [*(shown if self.is_due else ()), *(f"note     {each}" for each in self.notes)]


def site_of(prefix: Path, root: Path) -> SiteConfig:
    """The site's settings below `root`; the defaults when it has no configuration yet. Raises ConfigError."""
    try:
        path = config.find(tree.inside(root, prefix), root=root)
    except ConfigError:
        return SiteConfig()
    return config.load(path, trusted_owner=0)


def earlier(root: Path) -> Manifest | None:
    """What is installed below `root`, or was begun to be."""
    return manifest.read(root)


def has_systemd(root: Path) -> bool:
    """Whether timers of systemd will run there."""
    return _SYSTEMD.is_dir() if root == ROOT else tree.inside(root, Path("/usr/lib/systemd/systemd")).exists()


def to_install(setup: Setup, root: Path, *, force: bool, qmgr: str | None) -> Plan:
    """What makes everything be there that `setup` wants. Changes nothing.

    `qmgr` is OpenPBS's, when there is one. Raises ConfigError with the reason
    why hooks linked like this would do harm, and when something else is installed.
    """
    before = earlier(root)
    checks.refuse_another(setup, before)
    conf = slurm.settings(setup.site, root) if setup.system == "slurm" and not setup.front_end else {}
    items = parts.items(setup, _sources(setup.prefix, root), conf, _aliases(setup, root))
    notes = checks.refuse(setup, items, root, force=force)
    made = before.made if before else ()
    seen = tree.look(root, steps.paths(items, made))
    changes = steps.to_install(items, seen, made, force=force)
    demands = tuple(checks.demands(setup, changes.made, seen, root))
    held = tree.held(root, (each.path for each in demands))
    mends, mended = modes.to_install(demands, held, before.mended if before else (), force=force)
    notes += [*changes.notes, *checks.notes(setup, root)]
    if setup.system == "slurm" and not setup.front_end:
        lines = slurm.missing_lines(setup.site, conf)
        notes += [f"put {line} into slurm.conf on all nodes" for line in lines]
    cut_short = before is not None and before.pbs_hook and not before.is_complete
    last, says = _pbs_hook(setup, root, qmgr, cut_short=cut_short)
    directories = (*(before.directories if before else ()), *(s.path for s in changes.steps if s.verb is Verb.MAKE))
    done = Manifest(
        system=setup.system, prefix=setup.prefix, front_end=setup.front_end, classic=setup.classic, is_complete=True,
        made=changes.made, directories=tuple(dict.fromkeys(directories)),
        pbs_hook=bool(last) or (before is not None and before.pbs_hook), mended=mended,
    )
    first = account.first(setup, root)
    is_due = bool(first or mends or changes.steps or last or before != done)
    return Plan(
        root=root, begun=replace(done, is_complete=False), first=first, steps=(*mends, *changes.steps),
        last=(*(_timer_started(setup, root) if is_due else ()), *last),
        record=done, notes=(*notes, *says), is_due=is_due,
    )


def to_uninstall(root: Path, *, force: bool, qmgr: str | None) -> Plan | None:
    """What makes everything be as it was before the first installation; nothing when there was none.

    Raises StateError while jobs have guests on this node, or slurm.conf names what would be gone, unless `force`.
    """
    before = earlier(root)
    if before is None:
        return None
    if not force:
        site = _site_now(before.prefix, root)
        _require_idle(site, root)
        slurm.require_unnamed(before, site, root)
    seen = tree.look(root, [*steps.paths((), before.made), *before.directories])
    changes = steps.to_uninstall(before.made, before.directories, seen, force=force)
    held = tree.held(root, steps.paths((), before.made) | {each.path for each in before.mended})
    restored = [each.path for each in changes.steps if each.verb is Verb.RESTORE]
    unmends = modes.to_uninstall(before.mended, before.made, held, restored)
    notes = [*changes.notes, *account.left(root, front_end=before.front_end)]
    last: tuple[tuple[str, ...], ...] = ()
    if before.pbs_hook and qmgr:
        last = tuple((qmgr, "-c", each) for each in pbshook.remove()) if pbshook.is_there(qmgr) else ()
    elif before.pbs_hook:
        notes += [f"on the server: {pbshook.shown(each)}" for each in pbshook.remove()]
    timed = root == ROOT and has_systemd(root) and any(each.path.name == _TIMER for each in before.made)
    runs = timed and any(path.name == _TIMER for path in seen)
    return Plan(
        root=root, begun=replace(before, is_complete=False), steps=(*changes.steps, *unmends), record=None,
        notes=tuple(notes),
        first=(("systemctl", "stop", _TIMER),) if runs else (),
        last=(*((("systemctl", "daemon-reload"),) if timed else ()), *last), is_due=True,
    )


def perform(plan: Plan) -> None:
    """Do all of it. Raises StateError, and can then be called again, with a plan made anew."""
    # A directory has its mode from the beginning, or a call that is cut short would leave it another.
    umask = os.umask(0o022)
    try:
        manifest.write(plan.root, plan.begun)
        _run(plan.first)
        for step in plan.steps:
            tree.perform(step, plan.root)
        _run(plan.last)
        if plan.record is None:
            manifest.forget(plan.root)
        else:
            manifest.write(plan.root, plan.record)
    except OSError as trouble:
        raise StateError(f"{trouble.filename or plan.root}: {trouble.strerror}", hint=_CUT_SHORT) from None
    except VtorqueError as trouble:
        raise StateError(trouble.brief, details=trouble.details, hint=_CUT_SHORT) from None
    finally:
        os.umask(umask)


def _site_now(prefix: Path, root: Path) -> SiteConfig:
    """The site's settings, or the defaults when nobody can read them any more."""
    try:
        return site_of(prefix, root)
    except ConfigError:
        return SiteConfig()


def _require_idle(site: SiteConfig, root: Path) -> None:
    if jobs := state.jobs(tree.inside(root, Path(site.state_dir))):
        more = f" and {len(jobs) - 1} others" if len(jobs) > 1 else ""
        raise StateError(
            f"job {jobs[0]}{more} may have guests on this node", hint="wait, or vmgr sweep; --force does not wait"
        )


def _aliases(setup: Setup, root: Path) -> dict[str, str]:
    """Hooks of the site's own that are links to another, also when ours have taken their place."""
    found = {}
    for kind in setup.hooks:
        for name in (kind, f"{kind}{parts.KEPT_LINK}"):
            others = [each for each in tree.siblings(root, setup.mom_priv / name) if each in setup.hooks]
            if others and others[0] != kind:
                found[str(kind)] = others[0]
    return found


def _sources(prefix: Path, root: Path) -> dict[str, str]:
    paths = {name: tree.inside(root, prefix / name) for name in parts.source_names()}
    return {name: path.read_text()[:_SOURCE_LIMIT] for name, path in paths.items() if path.is_file()}


def _pbs_hook(
    setup: Setup, root: Path, qmgr: str | None, *, cut_short: bool
) -> tuple[tuple[tuple[str, ...], ...], list[str]]:
    """Commands for OpenPBS's server, to be run here or elsewhere."""
    if setup.system != "openpbs" or setup.front_end or setup.classic:
        return (), []
    is_server = tree.inside(root, Path(setup.site.torque_home, "server_priv")).is_dir()
    if is_server and qmgr:
        return tuple((qmgr, "-c", each) for each in pbshook.missing(setup, root, qmgr=qmgr, cut_short=cut_short)), []
    return (), [f"once, on the server: {pbshook.shown(each)}" for each in pbshook.create(setup)]


def _timer_started(setup: Setup, root: Path) -> tuple[tuple[str, ...], ...]:
    if setup.front_end or not setup.systemd or root != ROOT:
        return ()
    return ("systemctl", "daemon-reload"), ("systemctl", "start", _TIMER)


def _run(commands: Sequence[tuple[str, ...]]) -> None:
    for command in commands:
        proc.run(command, deadline=Deadline(_COMMAND_SECONDS))


def _words(command: tuple[str, ...]) -> str:
    return " ".join(f'"{word}"' if " " in word else word for word in command)
