# SPDX-License-Identifier: Apache-2.0
"""What has to be where, for each batch system: links to our hooks, and the files that other programs read."""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vtorque import names
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError
from vtorque.model import PelogKind

SYSTEMS = ("torque", "openpbs", "slurm")

# What the files in contrib say, to be replaced by what this site has.
_PREFIX, _STATE, _LOG = "/opt/vtorque", "/run/vtorque", "/var/log/vtorque"
_ACCOUNTING = f"{_LOG}/accounting/"
_PROFILE = "99-mikelangelo-hpc_stack.sh"
_SWEEP = "vtorque-sweep"
_UNITS = Path("/etc/systemd/system")
PBS_HOOK_SETTINGS = Path("/etc/vtorque/openpbs-hook.json")
"""Tells OpenPBS's hook where vtorque is on the nodes."""

LINKED_BY_HAND = "vtorque"
"""Stands for a Prolog or Epilog in slurm.conf that leads to ours by no doing of an installation."""

PBS_HOOK = "contrib/openpbs/vtorque_hook.py"
"""OpenPBS's hook, below the prefix."""

# What gives back comes before what takes: a job may start between two of these, and must find its end.
_TORQUE = (
    PelogKind.EPILOGUE, PelogKind.EPILOGUE_PARALLEL, PelogKind.PRECANCEL, PelogKind.PROLOGUE_PARALLEL,
    PelogKind.PROLOGUE,
)
_CLASSIC = (PelogKind.EPILOGUE, PelogKind.PROLOGUE)
KEPT_LINK = ".link"
"""What a site's hook that is a link to another of its hooks is kept as, beside an `.orig` that leads to the other's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is wanted on a node: all paths as the node sees them.

    `classic` links OpenPBS's own prologue and epilogue, which it runs where no
    hook is enabled. A front end gets no hooks.
    """

    system: str
    prefix: Path
    site: SiteConfig
    front_end: bool = False
    classic: bool = False
    systemd: bool = False

    @property
    def mom_priv(self) -> Path:
        """Where Torque and OpenPBS look for their hooks."""
        return Path(self.site.torque_home) / "mom_priv"

    @property
    def links_hooks(self) -> bool:
        """Whether there are hooks in mom_priv."""
        return not self.front_end and (self.system == "torque" or self.classic)

    @property
    def hooks(self) -> tuple[PelogKind, ...]:
        """Those in mom_priv that become ours."""
        if not self.links_hooks:
            return ()
        return _TORQUE if self.system == "torque" else _CLASSIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A link to `target`, or a file with `text`; what was at `path` before is kept beside it as `aside`."""

    path: Path
    aside: str
    target: str = ""
    text: str = ""
    mode: int = 0o644
    is_hook: bool = False


def items(
    setup: Setup, sources: Mapping[str, str], conf: Mapping[str, str], aliases: Mapping[str, str]
) -> tuple[Item, ...]:
    """All that is to be there, hooks last.

    `sources` are the texts of the tree's files that are copied or linked, by
    their names below the prefix; what is not among them is left out. `conf`
    are the settings of slurm.conf, `aliases` the hooks of the site's own that are
    links to another.
    """
    if setup.front_end:
        return tuple(_for_everybody(setup, sources))
    hooks = (each for kind in setup.hooks for each in _mom_hook(setup, kind, aliases))
    return (*_for_everybody(setup, sources), *_for_nodes(setup, sources, conf), *hooks)


def source_names() -> tuple[str, ...]:
    """The files below the prefix that `items` asks for."""
    return (
        f"contrib/{_PROFILE}", "contrib/tmpfiles.d/vtorque.conf", "contrib/logrotate.d/vtorque",
        "contrib/cron.d/vtorque", f"contrib/systemd/{_SWEEP}.service", f"contrib/systemd/{_SWEEP}.timer",
        *_LINKED,
    )


# Read by people and their shells: a link follows the tree, and does no harm when it dangles.
_LINKED = {
    "doc/man/vsub.1": "/usr/local/share/man/man1/vsub.1",
    "doc/man/vtorque.yaml.5": "/usr/local/share/man/man5/vtorque.yaml.5",
    "doc/man/vmgr.8": "/usr/local/share/man/man8/vmgr.8",
    "contrib/completion/vsub.bash": "/usr/local/share/bash-completion/completions/vsub",
    "contrib/completion/vmgr.bash": "/usr/local/share/bash-completion/completions/vmgr",
    "contrib/completion/_vsub": "/usr/local/share/zsh/site-functions/_vsub",
    "contrib/completion/_vmgr": "/usr/local/share/zsh/site-functions/_vmgr",
}


def slurm_place(conf: Mapping[str, str], name: str) -> tuple[Path, str]:
    """Where slurmd finds our `Prolog` or `Epilog`, and the site's own program that ours has to run.

    A pattern in slurm.conf finds ours beside the site's own; a single program
    is run by ours, as `.orig` beside it: slurmd of version 21 knows only one.
    Raises ConfigError when it is neither.
    """
    setting = conf.get(name.lower(), "")
    # Where ours stands beside others, as contrib/slurm/slurm.conf has it, and where it stands for another.
    beside, ours = Path(f"/etc/slurm/{name.lower()}.d/vtorque"), Path("/etc/slurm/vtorque", name.lower())
    if not setting:
        return beside, ""
    if setting in (str(beside), str(ours)):
        return Path(setting), ""
    pattern = PurePosixPath(setting)
    if pattern.is_absolute() and "," not in setting and not set("*?[") & set(str(pattern.parent)):
        if not set("*?[") & set(pattern.name):
            return ours, setting
        as_others = (f"50-vtorque{pattern.suffix}", pattern.name.replace("*", "vtorque"))
        for candidate in ("vtorque", "50-vtorque", *as_others):
            if fnmatch.fnmatchcase(candidate, pattern.name):
                return Path(pattern.parent / candidate), ""
    raise ConfigError(f"{name}={setting} in slurm.conf is neither one program nor a pattern that may find ours",
                      hint=f"{name}=/etc/slurm/{name.lower()}.d/*")


def _for_everybody(setup: Setup, sources: Mapping[str, str]) -> Iterator[Item]:
    yield from _text(setup, sources, f"contrib/{_PROFILE}", Path("/etc/profile.d", _PROFILE))
    for name, where in _LINKED.items():
        if name in sources:
            yield _item(Path(where), target=str(setup.prefix / name))


def _for_nodes(setup: Setup, sources: Mapping[str, str], conf: Mapping[str, str]) -> Iterator[Item]:
    yield from _text(setup, sources, "contrib/tmpfiles.d/vtorque.conf", Path("/etc/tmpfiles.d/vtorque.conf"))
    yield from _text(setup, sources, "contrib/logrotate.d/vtorque", Path("/etc/logrotate.d/vtorque"))
    if setup.systemd:
        for unit in (f"{_SWEEP}.service", f"{_SWEEP}.timer"):
            yield from _text(setup, sources, f"contrib/systemd/{unit}", _UNITS / unit)
        timer = f"{_SWEEP}.timer"
        yield _item(_UNITS / "timers.target.wants" / timer, target=str(_UNITS / timer))
    else:
        yield from _text(setup, sources, "contrib/cron.d/vtorque", Path("/etc/cron.d/vtorque"))
    if setup.system == "openpbs" and not setup.classic:
        text = json.dumps({"prefix": str(setup.prefix)}) + "\n"
        yield _item(PBS_HOOK_SETTINGS, text=text)
    if setup.system == "slurm":
        for name in ("Epilog", "Prolog"):
            yield from _slurm(setup, conf, name)


def _mom_hook(setup: Setup, kind: PelogKind, aliases: Mapping[str, str]) -> Iterator[Item]:
    hook = _hook(setup, setup.mom_priv / kind, kind)
    if kind in aliases:
        # Kept as it is, it would lead to ours.
        yield _item(setup.mom_priv / hook.aside, target=f"{aliases[kind]}.orig")
        hook = replace(hook, aside=f"{kind}{KEPT_LINK}")
    yield hook


def _slurm(setup: Setup, conf: Mapping[str, str], name: str) -> Iterator[Item]:
    if conf.get(name.lower()) == LINKED_BY_HAND:
        return
    path, own = slurm_place(conf, name)
    if own:
        yield _item(path.with_name(f"{path.name}.orig"), target=own)
    yield _hook(setup, path, f"slurm/{name.lower()}")


def _hook(setup: Setup, path: Path, script: str) -> Item:
    target = str(setup.prefix / "scripts" / script)
    return Item(path=path, aside=f"{path.name}.orig", target=target, is_hook=True)


def _text(setup: Setup, sources: Mapping[str, str], name: str, path: Path) -> Iterator[Item]:
    if name in sources:
        text = sources[name].replace(_PREFIX, str(setup.prefix))
        text = text.replace(_ACCOUNTING, f"{names.accounting(setup.site)}/")
        yield _item(path, text=text.replace(_STATE, setup.site.state_dir).replace(_LOG, setup.site.log_dir))


def _item(path: Path, *, target: str = "", text: str = "") -> Item:
    # Nobody who reads whole directories (cron, logrotate, profile.d, systemd-tmpfiles) reads a name with a ~.
    return Item(path=path, aside=f"{path.name}~", target=target, text=text)
