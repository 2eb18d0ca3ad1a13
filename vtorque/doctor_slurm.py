# SPDX-License-Identifier: Apache-2.0
"""What a node's slurm.conf says of its hooks and their time."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vtorque import files, slurmconf
from vtorque.config import SiteConfig
from vtorque.doctor_checks import Finding, error, ok, warning
from vtorque.errors import ConfigError

# It makes the links, beside the site's own, and shows the lines that slurm.conf lacks.
_INSTALL = "vmgr install --system slurm"
# What hooks keep for their own end, and slurmd for starting them.
_MARGIN_SECONDS = 15
_BATCH_START_SECONDS = 10


def hooks(site: SiteConfig, scripts: Path) -> Iterator[Finding]:
    """Prolog and Epilog lead to ours in `scripts`, and run when and where guests need them."""
    settings = _settings(site)
    found = [_hook(settings, name, scripts / "slurm" / name.lower()) for name in ("Prolog", "Epilog")]
    found.append(_flags(settings))
    if bad := [each for each in found if each is not None]:
        yield from bad
    else:
        yield ok("hooks", f"Prolog and Epilog of {_path(site)} lead to {scripts / 'slurm'}")


def hook_time(site: SiteConfig) -> Iterator[Finding]:
    """slurmd lets a hook run for as long as a guest may take to boot, and to be undone, but not for ever."""
    settings = _settings(site)
    needs = site.timeout + site.undo_reserve
    wanted, path = seconds_needed(site), _path(site)
    has = slurmconf.seconds(settings, "PrologEpilogTimeout")
    if has is None:
        text = "PrologEpilogTimeout is not set: a node whose hook hangs is lost to other jobs"
        yield warning("time", text, f"put the line PrologEpilogTimeout={wanted} into {path}")
    elif has < wanted:
        text = f"slurmd ends a hook after {has} s, TIMEOUT and UNDO_RESERVE are {needs} s together"
        yield warning("time", text, f"put the line PrologEpilogTimeout={wanted} into {path}, or lower TIMEOUT")
    else:
        yield ok("time", f"slurmd ends a hook after {has} s, TIMEOUT and UNDO_RESERVE are {needs} s together")
    batch = slurmconf.seconds(settings, "BatchStartTimeout") or _BATCH_START_SECONDS
    if batch < wanted:
        text = f"BatchStartTimeout is {batch} s: a job whose guests take longer may count as missing"
        yield warning("time", text, f"put the line BatchStartTimeout={wanted} into {path}")


def seconds_needed(site: SiteConfig) -> int:
    """What PrologEpilogTimeout and BatchStartTimeout have to be, at least."""
    return site.timeout + site.undo_reserve + _MARGIN_SECONDS


def _settings(site: SiteConfig) -> dict[str, str]:
    path = _path(site)
    try:
        return slurmconf.parse(slurmconf.read(path))
    except OSError as trouble:
        raise ConfigError(f"cannot read {trouble.filename}: {trouble.strerror}", hint="set SLURM_CONF") from None


def _hook(settings: Mapping[str, str], name: str, script: Path) -> Finding | None:
    pattern = settings.get(name.lower(), "")
    if not pattern:
        return error("hooks", f"{name} is not set, so no job gets guests", _INSTALL)
    # A pattern, or several names with commas, may stand for other scripts as well.
    paths = [path for each in pattern.split(",") for path in _paths(each.strip())]
    ours = [path for path in paths if path.resolve() == script.resolve()]
    if not ours:
        return error("hooks", f"{name}={pattern} does not lead to {script}", _INSTALL)
    try:
        files.require_trusted(ours[0].resolve())
    except ConfigError as trouble:
        return error("hooks", trouble.brief, trouble.hint)
    if not os.access(ours[0], os.X_OK):
        return error("hooks", f"{ours[0]} is not executable", f"chmod 755 {script}")
    return None


def _paths(pattern: str) -> Iterator[Path]:
    root = Path("/")
    return root.glob(pattern.removeprefix("/")) if pattern.strip("/") else iter(())


def _flags(settings: Mapping[str, str]) -> Finding | None:
    flags = slurmconf.flags(settings, "PrologFlags")
    line = "PrologFlags=Alloc,DeferBatch,Contain"
    if not flags & {"alloc", "contain", "deferbatch", "x11"}:
        return error("hooks", "PrologFlags has no Alloc: only a job's first node runs its Prolog in time", line)
    if "deferbatch" not in flags:
        return warning("hooks", "PrologFlags has no DeferBatch: a job starts when one of its nodes is ready", line)
    if not flags & {"contain", "x11"}:
        text = "PrologFlags has no Contain: a node that missed an Epilog cannot tell that the job is over"
        return warning("hooks", text, line)
    return None


def _path(site: SiteConfig) -> Path:
    return slurmconf.find(Path(site.slurm_conf))
