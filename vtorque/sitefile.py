# SPDX-License-Identifier: Apache-2.0
"""Where the site's configuration is."""

from pathlib import Path

from vtorque.errors import ConfigError

_SYSTEM = "etc/vtorque/vtorque.yaml"


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
