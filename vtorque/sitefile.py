# SPDX-License-Identifier: Apache-2.0
"""Where the site's configuration is, and a glance at its simplest lines.

A job without guests must not pay for reading YAML: what vsub needs to become
qsub stands in plain lines nearly always.
"""

import re
from collections.abc import Collection
from pathlib import Path

from vtorque.errors import ConfigError

_SYSTEM = "etc/vtorque/vtorque.yaml"
_LIMIT = 256 * 1024
# What YAML and we read the same way: a key at the beginning of a line, a plain word, a comment.
_PLAIN = re.compile(r"([A-Z_0-9]+):[ \t]+([A-Za-z0-9./][A-Za-z0-9._/+-]*)[ \t]*(?:[ \t]#.*)?", re.ASCII)


class NoConfiguration(ConfigError):
    """The site has not written one yet."""


def find(prefix: Path, *, root: Path = Path("/")) -> Path:
    """The configuration that belongs to the program at `prefix`, else that of the system below `root`.

    Raises NoConfiguration when there is neither, and ConfigError when it is not ours to see.
    """
    own, system = prefix / "etc" / "vtorque.yaml", root / _SYSTEM
    for path in (own, system):
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}", hint="users have to read it") from None
    raise NoConfiguration(
        f"there is no configuration: neither {own} nor {system}",
        hint=f"copy {prefix}/contrib/vtorque.yaml to {system} and adapt it",
    )


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
