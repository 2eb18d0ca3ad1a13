# SPDX-License-Identifier: Apache-2.0
"""Whether vtorque may be linked from where it is to where it should be, and what an administrator should know."""

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from vtorque import doctor_checks, files
from vtorque.doctor_checks import REMOTE, Level, filesystem
from vtorque.errors import ConfigError, VtorqueError
from vtorque.install.parts import Item, Setup
from vtorque.install.tree import inside
from vtorque.model import PelogKind

_OURS = frozenset(PelogKind)
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
    warnings = []
    for item in items:
        warnings += _place(inside(root, item.path).parent, mounts, force=force)
        if item.is_hook:
            _require_runnable(inside(root, Path(item.target)))
            warnings += _local(inside(root, Path(item.target)).resolve(), mounts, force=force)
    return list(dict.fromkeys(warnings))


def notes(setup: Setup, root: Path) -> Iterator[str]:
    """What stays as it is but matters, and what is still to be set."""
    site = setup.site
    if site.batch_system != setup.system:
        yield f"set BATCH_SYSTEM: {setup.system} in the configuration, which says {site.batch_system}"
    if not setup.links_hooks:
        return
    mom_priv = inside(root, setup.mom_priv)
    for path in sorted(mom_priv.glob("*logue*")):
        kind, _, rest = path.name.partition(".")
        if kind not in ("prologue", "epilogue") or path.name in _OURS or path.name.endswith((".orig", "~")):
            continue
        if rest == "user" or rest == "user.parallel":
            yield f"{setup.mom_priv / path.name} stays as it is: it runs as the job's user, beside ours"
        else:
            text = f"jobs of qsub -T {rest} run it in place of {kind}, so they get no guests"
            yield f"{setup.mom_priv / path.name} stays as it is: {text}"
    for name in sorted(_OURS):
        yield from _original(mom_priv / name, setup.mom_priv / name)
    try:
        yield from (f"{each.text}; {each.hint}" for each in doctor_checks.hook_time(site, mom_priv)
                    if each.level is not Level.OK)
    except VtorqueError as error:
        yield error.one_line()


def _original(path: Path, named: Path) -> Iterator[str]:
    """Torque itself would have refused to run it (prolog.c:488-539)."""
    if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o500 != 0o500:
        yield f"{named} is not executable: mom fails every job for it, and ours will as well"


def _require_mom(mom_priv: Path) -> None:
    if not mom_priv.is_dir():
        raise ConfigError(f"there is no {mom_priv}", hint="set TORQUE_HOME")
    if not (mom_priv / "config").exists() and not (mom_priv / "jobs").is_dir():
        raise ConfigError(f"{mom_priv} is not a mom's directory: no config, no jobs", hint="set TORQUE_HOME")


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


def _require_runnable(script: Path) -> None:
    """What the daemons demand of a hook (prolog.c:488-539), and Torque of one that runs as the job's user."""
    target = script.resolve()
    if not target.is_file():
        raise ConfigError(f"there is no {script}", hint="the tree is not complete")
    files.require_trusted(target)
    mode = stat.S_IMODE(target.stat().st_mode)
    if mode & 0o555 != 0o555:
        raise ConfigError(f"{target} has mode {mode:04o}, so it cannot be a hook", hint=f"chmod 755 {target}")
