# SPDX-License-Identifier: Apache-2.0
"""What a user may add to his guests' cloud-config: only what cannot make him root in them.

Guests mount shares by NFS with sec=sys, so root in a guest is everybody there.
Packages are left out for that reason, too: some hand root to members of a
group, and a user brings his groups along.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from vtorque.errors import RequestError

KEYS = {
    "timezone": r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z][A-Za-z0-9_+-]{0,31}){0,2}",
    "locale": r"[A-Za-z]{1,8}(?:_[A-Z]{2})?(?:\.[A-Za-z0-9-]{1,16})?(?:@[a-z]{1,16})?",
}
"""The keys of cloud-config that users may set, and what their values look like."""

LIMIT = 4096

_TEXT = "tag:yaml.org,2002:str"


def read(text: bytes) -> str:
    """A user's YAML file as canonical JSON; RequestError that names line and key, and what is allowed."""
    import yaml  # hardly a job has need of it

    if len(text) > LIMIT:
        raise _wrong(f"the file has more than {LIMIT} bytes")
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise _wrong("aliases (*name) are not allowed", line=_line(event.start_mark))
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _wrong(f"not YAML: {error.problem}", line=_line(error.problem_mark)) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise _wrong(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise _wrong("not a cloud-config", hint="lines like timezone: Europe/Berlin")
    return json.dumps(_entries(root), sort_keys=True, separators=(",", ":"))


def check(data: Mapping[object, object]) -> None:
    """Refuse what users may not set (RequestError)."""
    for key, value in data.items():
        _check(key, value)


def _entries(root: Any) -> dict[str, str]:
    """What a mapping of YAML says, once each key is checked."""
    entries: dict[str, str] = {}
    for key, node in root.value:
        line = _line(key.start_mark)
        name = key.value if isinstance(key.value, str) else "a list or mapping"
        _check(name, node.value if node.tag == _TEXT else None, line=line)
        if name in entries:
            raise _wrong(f"{name} is there twice", line=line)
        entries[name] = node.value
    return entries


def _check(key: object, value: object, *, line: int = 0) -> None:
    pattern = KEYS.get(key) if isinstance(key, str) else None
    if pattern is None:
        hint = f"there are: {', '.join(KEYS)}"
        raise _wrong(f"{str(key)[:80]!r} is not a key that users may set", line=line, hint=hint)
    if not isinstance(value, str):
        raise _wrong(f"{key} cannot be anything but a text", line=line)
    if re.fullmatch(pattern, value, re.ASCII) is None:
        raise _wrong(f"{key} cannot be {value[:80]!r}", line=line)


def _line(mark: Any) -> int:
    return int(mark.line) + 1 if mark else 0


def _wrong(text: str, *, line: int = 0, hint: str = "") -> RequestError:
    return RequestError(f"-vm metadata=: {f'line {line}: ' if line else ''}{text}", hint=hint)
