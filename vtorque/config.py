# SPDX-License-Identifier: Apache-2.0
"""The site's configuration file: read once, checked whole, every error reported at once."""

import difflib
import re
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

import yaml

from vtorque import files, units
from vtorque.errors import ConfigError, StateError
from vtorque.options import ALIASES, INERT, OPTIONS, SiteConfig

__all__ = ["Note", "SiteConfig", "find", "load", "load_noted"]

_SYSTEM = Path("/etc/vtorque/vtorque.yaml")
_SIZE_LIMIT = 256 * 1024
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SHARE = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,253}:/[^\s,'\"\\]{0,1023}", re.ASCII)
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){0,2}", re.ASCII)
_PLAIN = re.compile(r"[^\x00-\x1f\x7f]{0,1024}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something an administrator should know of a file that is not wrong."""

    line: int
    key: str
    text: str


class _Problem(Exception):
    """A value that is not allowed; the text says what is."""


def find(prefix: Path) -> Path:
    """The configuration that belongs to the program at `prefix`, else the system's own."""
    own = prefix / "etc" / "vtorque.yaml"
    for path in (own, _SYSTEM):
        if path.is_file():
            return path
    raise ConfigError(
        f"there is no configuration: neither {own} nor {_SYSTEM}",
        hint=f"copy {prefix}/contrib/vtorque.yaml to {_SYSTEM} and adapt it",
    )


def load(path: Path, *, trusted_owner: int | None) -> SiteConfig:
    """The site's settings; ConfigError with one line for each error, each with file, line and key.

    With `trusted_owner` (a uid) the file and every directory above it must be
    writable by that user or root only: root acts on what it says.
    """
    return load_noted(path, trusted_owner=trusted_owner)[0]


def load_noted(path: Path, *, trusted_owner: int | None) -> tuple[SiteConfig, tuple[Note, ...]]:
    """The same, with notes on options that have no effect any more."""
    if trusted_owner is not None:
        files.require_trusted(path, owner=trusted_owner)
    try:
        data = files.read(path, limit=_SIZE_LIMIT)
        pairs = _pairs(path, data.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration {path}") from None
    except (StateError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    values: dict[str, object] = {}
    problems: list[str] = []
    notes: list[Note] = []
    for written, node in pairs:
        line, key = written.start_mark.line + 1, str(written.value)
        name = ALIASES.get(key, key)
        try:
            if name.lower() in values:
                raise _Problem("is set twice")
            option = _known(name)
            values[name.lower()] = _value(option, node)
            if INERT in option.metadata:
                notes.append(Note(line=line, key=key, text=f"has no effect: {option.metadata[INERT]}"))
        except _Problem as problem:
            problems.append(f"{path}:{line}: {key}: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))
    return SiteConfig(**values), tuple(notes)  # type: ignore[arg-type]


def _pairs(path: Path, text: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values with their places in the file; anchors would hide what is written where."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ConfigError(f"{path}: aliases (*name) are not allowed")
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:1: the file must hold lines of the form OPTION: value")
    pairs: list[tuple[yaml.ScalarNode, yaml.Node]] = root.value
    return pairs


def _known(name: str) -> "Field[Any]":
    if name in OPTIONS:
        return OPTIONS[name]
    near = difflib.get_close_matches(name.upper(), OPTIONS, n=1)
    raise _Problem(f"is not an option{f'; did you mean {near[0]}?' if near else ''}")


def _value(option: "Field[Any]", node: yaml.Node) -> object:
    kind = option.metadata.get("kind", "")
    if kind == "list":
        return _list(node)
    if not isinstance(node, yaml.ScalarNode):
        raise _Problem("must be a single value")
    text = str(node.value)
    if option.type is bool:
        return _boolean(text, node)
    if option.type is int:
        return _number(option, text, kind)
    if node.tag == "tag:yaml.org,2002:null" and not node.style:
        text = ""
    return _text(option, text, kind)


def _list(node: yaml.Node) -> tuple[str, ...]:
    if isinstance(node, yaml.ScalarNode):
        return tuple(str(node.value).split())
    if not isinstance(node, yaml.SequenceNode) or not all(isinstance(n, yaml.ScalarNode) for n in node.value):
        raise _Problem("must be a list of words")
    return tuple(str(each.value) for each in node.value)


def _boolean(text: str, node: yaml.ScalarNode) -> bool:
    if text.lower() not in _BOOLEANS or node.style:
        raise _Problem(f"must be true or false, not {text!r}")
    return _BOOLEANS[text.lower()]


def _number(option: "Field[Any]", text: str, kind: str) -> int:
    if kind == "size":
        try:
            return units.mebibytes(text)
        except ValueError as error:
            raise _Problem(str(error)) from None
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise _Problem(f"must be a whole number, not {text!r}")
    low, high = option.metadata.get("low", 0), option.metadata.get("high", 1 << 31)
    if not low <= int(text) <= high:
        raise _Problem(f"must be {low} to {high}, not {text}")
    return int(text)


def _text(option: "Field[Any]", text: str, kind: str) -> str:
    choices = option.metadata.get("choices")
    if choices and text not in choices:
        raise _Problem(f"must be {' or '.join(choices)}, not {text!r}")
    if _PLAIN.fullmatch(text) is None:
        raise _Problem("must be one line of at most 1024 characters")
    match kind:
        case "path" if not text.startswith("/") or ".." in Path(text).parts:
            raise _Problem(f"must be an absolute path, not {text!r}")
        case "share" if text and _SHARE.fullmatch(text) is None:
            raise _Problem(f"must be empty or server:/export, not {text!r}")
        case "mac" if _MAC.fullmatch(text) is None or int(text[:2], 16) & 1:
            raise _Problem(f"must be 1 to 3 octets of a unicast address, like 52:54:00, not {text!r}")
        case "regex":
            return _regex(text)
    return text


def _regex(text: str) -> str:
    """The manual writes a lone `*` for all hosts, which is no regular expression."""
    if text == "*":
        return ".*"
    try:
        re.compile(text)
    except re.error as error:
        raise _Problem(f"is not a regular expression: {error}") from None
    return text
