# SPDX-License-Identifier: Apache-2.0
"""A glance at the simplest lines of the site's configuration.

A job without guests must not pay for reading YAML: what vsub needs to become
qsub stands in plain lines nearly always.
"""

import re
from collections.abc import Collection
from pathlib import Path

_LIMIT = 256 * 1024
# What YAML and we read the same way: a key at the beginning of a line, a plain word, a comment.
_PLAIN = re.compile(r"([A-Z_0-9]+):[ \t]+([A-Za-z0-9./][A-Za-z0-9._/+-]*)[ \t]*(?:[ \t]#.*)?", re.ASCII)


def glance(path: Path, names: Collection[str]) -> dict[str, str] | None:
    """The values of the options `names` that the file sets, or nothing when that takes a YAML parser."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text()[:_LIMIT].splitlines()
    except (OSError, UnicodeError):
        return None
    for line in lines:
        name = line.partition(":")[0].strip(" \t'\"?")
        if name not in names:
            continue
        plain = _PLAIN.fullmatch(line)
        if plain is None or name in found:
            return None
        found[name] = plain[2]
    return found
