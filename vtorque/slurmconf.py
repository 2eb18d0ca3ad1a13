# SPDX-License-Identifier: Apache-2.0
"""What a node reads in slurm.conf (slurm.conf(5)): settings of one value, not nodes and partitions."""

import re
from collections.abc import Mapping
from pathlib import Path

CACHED = Path("/run/slurm/conf/slurm.conf")
"""Where slurmd keeps the file that it got from the controller (configless Slurm)."""

_LIMIT = 1 << 20
_INCLUDES = 32
_INCLUDE = re.compile(r"^[ \t]*include[ \t]+(\S+)[ \t]*$", re.IGNORECASE | re.MULTILINE)
_COMMENT = re.compile(r"(?<!\\)#.*")
_CONTINUED = re.compile(r"\\[ \t]*\n")
_SETTING = re.compile(r"[ \t]*([A-Za-z][A-Za-z0-9]*)[ \t]*=[ \t]*(.*?)[ \t]*", re.ASCII)
# These begin lines of many settings, and come many times.
_RECORDS = frozenset(("nodename", "partitionname", "downnodes", "frontendname", "nodeset"))


def find(path: Path) -> Path:
    """The file at `path`, else slurmd's own copy of the controller's."""
    return path if path.exists() or not CACHED.exists() else CACHED


def read(path: Path) -> str:
    """The text of a slurm.conf, with that of the files it includes. Raises OSError."""
    text = _text(path)
    for _ in range(_INCLUDES):
        found = _INCLUDE.search(text)
        if found is None:
            break
        included = _text(path.parent / found[1])
        text = f"{text[:found.start()]}{included}{text[found.end():]}"
    return text


def parse(text: str) -> dict[str, str]:
    """Settings by their names in lower case, which is how Slurm compares them; the last of several counts."""
    settings = {}
    for line in _COMMENT.sub("", _CONTINUED.sub("", text)).splitlines():
        found = _SETTING.fullmatch(line)
        if found is not None and found[1].lower() not in _RECORDS:
            settings[found[1].lower()] = found[2].strip('"')
    return settings


def seconds(settings: Mapping[str, str], name: str) -> int | None:
    """A setting in whole seconds; nothing when it is missing, or without limit."""
    value = settings.get(name.lower(), "")
    # 65534 and 65535 are how Slurm prints and stores "no limit" in 16 bits (slurm.h: INFINITE16, NO_VAL16).
    return int(value) if value.isdecimal() and int(value) < 65534 else None


def flags(settings: Mapping[str, str], name: str) -> frozenset[str]:
    """A setting that is a list, in lower case."""
    return frozenset(each.strip().lower() for each in settings.get(name.lower(), "").split(",") if each.strip())


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_LIMIT)
