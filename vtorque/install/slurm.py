# SPDX-License-Identifier: Apache-2.0
"""The lines that slurm.conf lacks. It is the whole cluster's: nobody changes it but its administrator."""

from collections.abc import Mapping
from pathlib import Path

from vtorque import doctor_slurm, slurmconf
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError, StateError
from vtorque.install.manifest import Manifest
from vtorque.install.parts import LINKED_BY_HAND, slurm_place
from vtorque.install.tree import inside, leads_to_a_hook

_HOOKS = ("Prolog", "Epilog")
_FLAGS = {"alloc": "Alloc", "deferbatch": "DeferBatch", "contain": "Contain"}


def settings(site: SiteConfig, root: Path) -> dict[str, str]:
    """What slurm.conf says on a node; ConfigError when there is none."""
    path = inside(root, Path(site.slurm_conf))
    path = slurmconf.find(path) if root == Path("/") else path
    try:
        conf = slurmconf.parse(slurmconf.read(path))
    except OSError as trouble:
        raise ConfigError(f"cannot read {trouble.filename}: {trouble.strerror}", hint="set SLURM_CONF") from None
    for name in _HOOKS:
        setting = conf.get(name.lower(), "")
        # Ours must not become the site's own, which ours would run.
        if setting and leads_to_a_hook(root, Path(setting)) and slurm_place(conf, name)[1]:
            conf[name.lower()] = LINKED_BY_HAND
    return conf


def require_unnamed(installed: Manifest, site: SiteConfig, root: Path) -> None:
    """Raise StateError when slurm.conf names a hook that an uninstallation removes: slurmd drains its node for that."""
    if installed.system != "slurm" or installed.front_end:
        return
    try:
        conf = settings(site, root)
    except ConfigError:
        return
    ours = {str(each.path) for each in installed.made}
    if named := [f"{name}={conf[name.lower()]}" for name in _HOOKS if conf.get(name.lower()) in ours]:
        raise StateError(
            f"slurm.conf has {' and '.join(named)}, which would be gone, and slurmd would drain this node",
            hint="first have your own line there again, or none, on all nodes, then scontrol reconfigure; "
                 "--force does not wait",
        )


def missing_lines(site: SiteConfig, conf: Mapping[str, str]) -> list[str]:
    """What is to be written into slurm.conf, of the whole cluster, and then `scontrol reconfigure`."""
    lines = []
    for name in (each for each in _HOOKS if conf.get(each.lower()) != LINKED_BY_HAND):
        path, own = slurm_place(conf, name)
        if own:
            lines.append(f"{name}={path}")
        elif not conf.get(name.lower()):
            lines.append(f"{name}={path.parent}/*")
    flags = slurmconf.flags(conf, "PrologFlags")
    if not _FLAGS.keys() <= flags:
        # X11 comes with Contain, and Alloc with either.
        said = [each.strip() for each in conf.get("prologflags", "").split(",")]
        others = [each for each in said if each and each.lower() not in _FLAGS]
        lines.append(f"PrologFlags={','.join([*_FLAGS.values(), *others])}")
    needed = doctor_slurm.seconds_needed(site)
    for name in ("PrologEpilogTimeout", "BatchStartTimeout"):
        if (slurmconf.seconds(conf, name) or 0) < needed:
            lines.append(f"{name}={needed}")
    return lines
