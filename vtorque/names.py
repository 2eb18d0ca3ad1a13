# SPDX-License-Identifier: Apache-2.0
"""What a job's things are called on a node, so that whoever ends it finds them without the plan they came from."""

import contextlib
import os
from pathlib import Path

from vtorque import files
from vtorque.backends.filter import PREFIX
from vtorque.errors import ConfigError
from vtorque.options import OPTIONS, SiteConfig

FILTER = "filter"
"""The kind of a job's table in the ledger; its name is the table's."""


def places(site: SiteConfig) -> dict[str, Path]:
    """Where jobs have directories with their guests' overlays, by fs_type."""
    return {"sharedfs": Path(site.disk_dir), "ramdisk": Path(site.ramdisk_dir, "jobs")}


def directories(site: SiteConfig, key: str) -> dict[str, Path]:
    """Where job `key` has them, for whoever looks for what it has left: nowhere that is not root's alone."""
    found = {}
    for fs_type, place in places(site).items():
        with contextlib.suppress(ConfigError, OSError):
            files.require_private(place)
            found[fs_type] = place / key
    return found


def table(key: str, site: SiteConfig) -> str:
    """The table of a job's guests; a job's key consists of what nft takes in a name."""
    return f"{_prefix(site)}{key}"


def key(table: str, site: SiteConfig) -> str:
    """The job that a table belongs to, empty when it is no job of this installation's."""
    return table.removeprefix(_prefix(site)) if table.startswith(_prefix(site)) else ""


def _prefix(site: SiteConfig) -> str:
    """Two installations on a node, a new one on trial perhaps, must not take each other's tables for orphans."""
    if site.state_dir == OPTIONS["STATE_DIR"].default:
        return f"{PREFIX}-"
    from hashlib import sha256  # with OpenSSL's library, which most sites' hooks then do without

    return f"{PREFIX}_{sha256(os.fsencode(site.state_dir)).hexdigest()[:8]}-"
