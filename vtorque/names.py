# SPDX-License-Identifier: Apache-2.0
"""What a job's things are called on a node, so that whoever ends it finds them without the plan they came from."""

import contextlib
import os
import re
from pathlib import Path

from vtorque import files
from vtorque.backends.filter import PREFIX
from vtorque.errors import ConfigError, InternalError
from vtorque.settings import Settings

KEY = r"[0-9][A-Za-z0-9._-]*"
"""A job's key, as a regular expression."""

_USUAL = "/run/vtorque"
# What a guest's files are called: <key>_<slot>of<number>.<what>
_GUEST_FILE = re.compile(rf"(?P<key>{KEY})_[0-9]{{1,3}}of[0-9]{{1,3}}\.[A-Za-z0-9.]+", re.ASCII)


def owner_of(name: str) -> str:
    """The job whose guest has a file of this name, empty when none has."""
    match = _GUEST_FILE.fullmatch(name)
    return match["key"] if match else ""


def owner_at(path: Path, site: Settings) -> str:
    """The job whose guest may have a file there, empty when none may: what else is called so is somebody else's."""
    owner = owner_of(path.name)
    of_job = path.parent.name == owner and path.parent.parent in places(site).values()
    return owner if path.parent == seeds(site) or of_job else ""


def seeds(site: Settings) -> Path:
    """Where guests' seeds and sockets are."""
    return Path(site.state_dir, "seeds")


def jobs(site: Settings) -> Path:
    """Where mom keeps what she has of her jobs."""
    return Path(site.torque_home, "mom_priv", "jobs")


def accounting(site: Settings) -> Path:
    """Where a site's accounting files are."""
    return Path(site.accounting_dir) if site.accounting_dir else Path(site.log_dir, "accounting")


def log(site: Settings) -> Path:
    """The log of all that is done on a node."""
    return Path(site.log_dir, "vtorque.log")


def caches(site: Settings) -> tuple[Path, Path]:
    """Where images from the web are, and those of the RAM disk."""
    return Path(site.image_cache_dir), Path(site.ramdisk_dir, "images")


def standing(site: Settings) -> Path:
    """Where a node's own standing is noted, beside the overlays."""
    return Path(site.disk_dir, "node")


def guest_file(path: Path, site: Settings, *, key: str = "") -> Path:
    """A path at which there may be a file of a guest's, of job `key` if that is given; else InternalError."""
    owner = owner_at(path, site)
    if not owner or key not in ("", owner):
        raise InternalError(f"{str(path)[:200]!r} is no place for a guest's file")
    return path


def places(site: Settings) -> dict[str, Path]:
    """Where jobs have directories with their guests' overlays, by fs_type."""
    return {"sharedfs": Path(site.disk_dir), "ramdisk": Path(site.ramdisk_dir, "jobs")}


def directories(site: Settings, key: str) -> dict[str, Path]:
    """Where job `key` has them, for whoever looks for what it has left: nowhere that is not root's alone."""
    found = {}
    for fs_type, place in places(site).items():
        with contextlib.suppress(ConfigError, OSError):
            files.require_private(place)
            found[fs_type] = place / key
    return found


def table(key: str, site: Settings) -> str:
    """The table of a job's guests; a job's key consists of what nft takes in a name."""
    return f"{_prefix(site)}{key}"


def key(table: str, site: Settings) -> str:
    """The job that a table belongs to, empty when it is no job of this installation's."""
    return table.removeprefix(_prefix(site)) if table.startswith(_prefix(site)) else ""


def _prefix(site: Settings) -> str:
    """Two installations on a node, a new one on trial perhaps, must not take each other's tables for orphans."""
    if site.state_dir == _USUAL:
        return f"{PREFIX}-"
    from hashlib import sha256  # with OpenSSL's library, which most sites' hooks then do without

    return f"{PREFIX}_{sha256(os.fsencode(site.state_dir)).hexdigest()[:8]}-"
