# SPDX-License-Identifier: Apache-2.0
"""Where the site's configuration is."""

from pathlib import Path

from vtorque import siteplace
from vtorque.errors import ConfigError


class NoConfiguration(ConfigError):
    """The site has not written one yet."""


def find(prefix: Path, *, root: Path = Path("/")) -> Path:
    """The configuration that belongs to the program at `prefix`, else that of the system below `root`.

    Raises NoConfiguration when there is neither, and ConfigError when it is not ours to see.
    """
    try:
        found = siteplace.look(str(prefix), str(root))
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}", hint="users have to read it") from None
    if found:
        return Path(found)
    own, system = siteplace.places(str(prefix), str(root))
    raise NoConfiguration(
        f"there is no configuration: neither {own} nor {system}",
        hint=f"copy {prefix}/contrib/vtorque.yaml to {system} and adapt it",
    )
