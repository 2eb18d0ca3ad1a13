# SPDX-License-Identifier: Apache-2.0
"""The entries of the site's configuration, read by a YAML parser."""

import re
from pathlib import Path

import yaml

from vtorque.errors import ConfigError
from vtorque.sitelines import Entry

# The file is a mapping of options, and an option may hold a list.
_DEPTH_LIMIT = 2
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def entries(path: Path, text: str) -> list[Entry]:
    """Every option as the file has it; ConfigError when the file has no such form."""
    try:
        _require_plain(path, text)
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = "quote a value that begins with *" if "alias" in (error.context or "") else ""
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}", hint=hint) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.reason}") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:{root.start_mark.line + 1}: the file must hold lines like OPTION: value")
    found = []
    for key, node in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or _CONTROL.search(key.value):
            raise ConfigError(f"{path}:{line}: the name of an option must be a single word")
        found.append(_entry(line, str(key.value), node))
    return found


def _entry(line: int, key: str, node: yaml.Node) -> Entry:
    if isinstance(node, yaml.ScalarNode):
        return Entry(line=line, key=key, text=str(node.value), is_quoted=bool(node.style))
    if isinstance(node, yaml.SequenceNode):
        return Entry(line=line, key=key, words=tuple(str(each.value) for each in node.value))
    return Entry(line=line, key=key)


def _require_plain(path: Path, text: str) -> None:
    """Refuse what hides where a value comes from, before anything is built of it."""
    depth = 0
    line = 1
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else line
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        what = ""
        if getattr(event, "anchor", None):
            what = "anchors and aliases (&name, *name) are not allowed"
        elif getattr(event, "tag", None):
            what = "tags (!name) are not allowed"
        elif depth > _DEPTH_LIMIT:
            what = "a list holds plain words only"
        if what:
            raise ConfigError(f"{path}:{line}: {what}")
