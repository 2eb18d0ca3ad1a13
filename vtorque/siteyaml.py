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
        context = error.context or ""
        # What has no colon is noticed where the next line has one.
        mark = error.context_mark if "simple key" in context else error.problem_mark
        line = mark.line + 1 if mark else 1
        hint = "quote a value that begins with *" if "alias" in context else ""
        if slip := re.fullmatch(r"(\w+)\s*=\s*(.*)", "".join(text.split("\n")[line - 1:line])):
            hint = f"{slip[1]}: {slip[2]}"
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}", hint=hint) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{path}:{text.count(chr(10), 0, error.position) + 1}: not YAML: {error.reason}") from error
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
    words = tuple(str(each.value) for each in node.value) if isinstance(node, yaml.SequenceNode) else None
    return Entry(line=line, key=key, words=words)


def _require_plain(path: Path, text: str) -> None:
    """Refuse what hides where a value comes from, before anything is built of it."""
    depth, line = 0, 1
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else line
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        what = (
            "anchors and aliases (&name, *name) are not allowed" if getattr(event, "anchor", None)
            else "tags (!name) are not allowed" if getattr(event, "tag", None)
            else "a list holds plain words only" if depth > _DEPTH_LIMIT else ""
        )
        if what:
            raise ConfigError(f"{path}:{line}: {what}")
