# SPDX-License-Identifier: Apache-2.0
"""A user's own cloud-config, as he has written it."""

import json
from typing import Any

from vtorque.metadata import check_entry, wrong

LIMIT = 4096

_TEXT = "tag:yaml.org,2002:str"


def read(text: bytes) -> str:
    """A user's YAML file as canonical JSON; RequestError that names line and key, and what is allowed."""
    import yaml  # hardly a job has need of it

    if len(text) > LIMIT:
        raise wrong(f"the file has more than {LIMIT} bytes")
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise wrong("aliases (*name) are not allowed", line=_line(event.start_mark))
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise wrong(f"not YAML: {error.problem}", line=_line(error.problem_mark)) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise wrong(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise wrong("not a cloud-config", hint="lines like timezone: Europe/Berlin")
    return json.dumps(_entries(root), sort_keys=True, separators=(",", ":"))


def _entries(root: Any) -> dict[str, str]:
    """What a mapping of YAML says, once each key is checked."""
    entries: dict[str, str] = {}
    for key, node in root.value:
        line = _line(key.start_mark)
        name = key.value if isinstance(key.value, str) else "a list or mapping"
        check_entry(name, node.value if node.tag == _TEXT else None, line=line)
        if name in entries:
            raise wrong(f"{name} is there twice", line=line)
        entries[name] = node.value
    return entries


def _line(mark: Any) -> int:
    return int(mark.line) + 1 if mark else 0
