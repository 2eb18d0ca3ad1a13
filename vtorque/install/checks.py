# SPDX-License-Identifier: Apache-2.0
"""Whether vtorque may be linked from where it is to where it should be, and what an administrator should know."""

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import stat_result
from pathlib import Path

from vtorque import config, doctor_checks, files
from vtorque.doctor_checks import REMOTE, Level, filesystem
from vtorque.errors import ConfigError, VtorqueError
from vtorque.install import account
from vtorque.install.manifest import Manifest
from vtorque.install.modes import Demand
from vtorque.install.parts import KEPT_LINK, Item, Setup
from vtorque.install.steps import Made, Seen
from vtorque.install.tree import below, follow, inside, siblings
from vtorque.model import PelogKind
from vtorque.mom import rules
from vtorque.mom.places import Place

_OURS = frozenset(PelogKind)
_TREE = ("vtorque", "scripts", "templates", "templates-vm", "contrib", "doc")
_DANGLES = "while that is not mounted the batch system takes our hooks for successful, and runs jobs on bare metal"


def refuse(setup: Setup, items: Iterable[Item], root: Path, *, force: bool) -> list[str]:
    """Raise ConfigError when hooks linked like this would not run, or would run what others can change.

    With `force` a remote file system is a warning, which is returned.
    """
    mounts = doctor_checks.MOUNTS.read_text()
    if not inside(root, setup.prefix / "scripts" / "hook").is_file():
        raise ConfigError(f"there is no vtorque at {setup.prefix} below {root}", hint="put its tree there first")
    if setup.links_hooks:
        _require_mom(inside(root, setup.mom_priv))
        if setup.system == "torque":
            _require_own_files(setup, root)
    warnings = []
    for item in items:
        warnings += _place(inside(root, item.path).parent, mounts, force=force)
        if item.is_hook:
            script = inside(root, Path(item.target))
            if not script.is_file():
                raise ConfigError(f"there is no {script}", hint="the tree is not complete")
            warnings += _local(script.resolve(), mounts, force=force)
    return list(dict.fromkeys(warnings))


def refuse_another(setup: Setup, before: Manifest | None) -> None:
    """Raise ConfigError when something else is installed here: its hooks would stay, or the wanted ones be missing."""
    if before is None:
        return
    was, wanted = (_role(each.system, each.front_end, each.classic) for each in (before, setup))
    if was != wanted:
        raise ConfigError(f"vtorque is installed here for {was}, not for {wanted}", hint="vmgr uninstall first")


def demands(setup: Setup, made: Sequence[Made], seen: Mapping[Path, Seen], root: Path) -> Iterator[Demand]:
    """What mom demands of hooks (prolog.c:488-539): of ours, and of the site's own among `made` that ours run.

    Raises ConfigError when others can put something into our tree.
    """
    yield from _ours(setup.prefix, root)
    if setup.links_hooks and not _is_lenient(inside(root, setup.mom_priv)):
        for each in made:
            if each.kept and each.path.parent == setup.mom_priv and each.aside == f"{each.path.name}.orig":
                now = each.before if each.before in seen else each.path
                end = follow(root, now)
                yield Demand(path=end, stays=each.path if end == now else end, bits=_own(each.path.name), is_sites=True)


def notes(setup: Setup, root: Path) -> Iterator[str]:
    """What stays as it is but matters, and what is still to be set."""
    site = setup.site
    try:
        config.find(inside(root, setup.prefix), root=root)
    except ConfigError as missing:
        yield f"{missing.brief}; {missing.hint}, with BATCH_SYSTEM: {setup.system}"
    else:
        if site.batch_system != setup.system:
            yield f"set BATCH_SYSTEM: {setup.system} in the configuration, which says {site.batch_system}"
    yield from account.notes(setup, root)
    if not setup.links_hooks:
        return
    mom_priv = inside(root, setup.mom_priv)
    for path in sorted(mom_priv.glob("*logue*")):
        kind, _, rest = path.name.partition(".")
        if kind not in ("prologue", "epilogue") or path.name in _OURS or path.name.endswith((".orig", KEPT_LINK, "~")):
            continue
        if rest == "user" or rest == "user.parallel":
            yield f"{setup.mom_priv / path.name} stays as it is: it runs as the job's user, beside ours"
        else:
            text = f"jobs of qsub -T {rest} run it in place of {kind}, so they get no guests"
            yield f"{setup.mom_priv / path.name} stays as it is: {text}"
    if mom_priv.stat().st_mode & 0o001 == 0:
        yield f"{setup.mom_priv} is closed to users, as whom mom runs epilogue.precancel; chmod 751 {setup.mom_priv}"
    try:
        yield from (f"{each.text}; {each.hint}" for each in doctor_checks.hook_time(site, mom_priv)
                    if each.level is not Level.OK)
    except VtorqueError as error:
        yield error.one_line()


def _role(system: str, front_end: bool, classic: bool) -> str:
    return f"{'a front end' if front_end else 'a node'} of {system}{', --classic' if classic else ''}"


def _require_mom(mom_priv: Path) -> None:
    if not mom_priv.is_dir():
        raise ConfigError(f"there is no {mom_priv}", hint="set TORQUE_HOME")
    if not (mom_priv / "config").exists() and not (mom_priv / "jobs").is_dir():
        raise ConfigError(f"{mom_priv} is not a mom's directory: no config, no jobs", hint="set TORQUE_HOME")


def _require_own_files(setup: Setup, root: Path) -> None:
    """What stays as it is must not become ours by a link."""
    for path in sorted(inside(root, setup.mom_priv).glob("*logue.*")):
        name = setup.mom_priv / path.name
        if path.name.endswith((".orig", KEPT_LINK)) or path.name in setup.hooks:
            continue
        for other in {*siblings(root, name)} & {*setup.hooks}:
            raise ConfigError(f"{name} is a link to {other}, which is going to be ours",
                              hint=f"make it a file: cp --remove-destination {setup.mom_priv / other} {name}")


def _place(directory: Path, mounts: str, *, force: bool) -> list[str]:
    existing = next(each for each in (directory, *directory.parents) if each.exists()).resolve()
    if not existing.is_dir():
        raise ConfigError(f"{existing} is not a directory")
    files.require_trusted(existing)
    return _local(existing, mounts, force=force)


def _local(path: Path, mounts: str, *, force: bool) -> list[str]:
    kind = filesystem(path, mounts)
    if kind not in REMOTE:
        return []
    text = f"{path} is on {kind}: {_DANGLES}"
    if not force:
        raise ConfigError(text, hint="use a local disk, or --force")
    return [text]


def _ours(prefix: Path, root: Path) -> Iterator[Demand]:
    """Root runs some of it, and users most."""
    files.require_trusted(inside(root, prefix).resolve().parent)
    for top in ("", *_TREE):
        for path in below(root, prefix / top) if top else (prefix,):
            about = inside(root, path).lstat()
            if stat.S_ISDIR(about.st_mode):
                _require_nobody_elses(path, about, prefix)
            runs = stat.S_ISDIR(about.st_mode) or top == "scripts" or about.st_mode & 0o111
            # Whoever cannot read what Python keeps for itself compiles anew.
            bits = 0o555 if runs else 0 if path.parent.name == "__pycache__" else 0o444
            yield Demand(path=path, stays=path, bits=bits)


def _require_nobody_elses(path: Path, about: stat_result, prefix: Path) -> None:
    """What is in a directory that others own or may write can be anybody's; the group root is root."""
    if about.st_uid != 0:
        raise ConfigError(f"{path} belongs to uid {about.st_uid}", hint=f"chown -R root: {prefix}")
    if about.st_mode & 0o002 or (about.st_mode & 0o020 and about.st_gid != 0):
        raise ConfigError(f"{path} is writable by others", hint=f"chmod -R go-w {prefix}")


def _own(kind: str) -> int:
    return 0o505 if rules.HOOKS[kind].as_user else 0o500


def _is_lenient(mom_priv: Path) -> bool:
    """Whether mom runs whatever is executable (prolog.c:488-539)."""
    return Place(mom_priv).setting("reduce_prolog_checks") == "true"
