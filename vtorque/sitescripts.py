# SPDX-License-Identifier: Apache-2.0
"""The site's own scripts that guests run as root: read on the node, where only root may have written them."""

from pathlib import Path

from vtorque import files
from vtorque.errors import ConfigError, StateError

NAMES = ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel")
"""Those of rank 0, and with an ending those of all other ranks; as mom's hooks on nodes."""

LIMIT = 64 << 10
"""Bytes of one script: every guest's seed holds it."""


def read(directory: str) -> dict[str, str]:
    """The scripts of VM_SCRIPTS_DIR by name, none when it is empty.

    Raises ConfigError when one could have been written by anybody else, or cannot be run.
    """
    if not directory:
        return {}
    try:
        files.require_trusted(Path(directory))
        return {name: text for name in NAMES if (text := _script(Path(directory, name)))}
    except FileNotFoundError:
        raise ConfigError(f"VM_SCRIPTS_DIR: there is no {directory}") from None
    except ConfigError as error:
        raise ConfigError(f"VM_SCRIPTS_DIR: {error.brief}", hint=error.hint) from error
    except StateError as error:
        raise ConfigError(f"VM_SCRIPTS_DIR: {error.brief}") from error


def _script(path: Path) -> str:
    try:
        files.require_trusted(path)
        data = files.read(path, limit=LIMIT)
    except FileNotFoundError:
        return ""
    if not path.stat().st_mode & 0o100:
        raise ConfigError(f"{path} is not executable", hint=f"chmod +x {path}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text", hint="a script may start a program that is in the image") from None
