# SPDX-License-Identifier: Apache-2.0
"""The site's configuration file: read once, checked whole, every error reported at once."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

import yaml

from vtorque import files, limits, units
from vtorque.errors import ConfigError, StateError
from vtorque.optionforms import FORMS, INERT
from vtorque.options import ALIASES, LIMITS, OPTIONS, SiteConfig
from vtorque.sitefile import find

__all__ = ["FORMS", "Loaded", "Note", "SiteConfig", "find", "load", "load_noted", "load_whole"]

_SIZE_LIMIT = 256 * 1024
_LONGEST_VALUE = 1024
_MOST = 1 << 31
_MOST_MIB = 16 << 20
# The file is a mapping of options, and an option may hold a list.
_DEPTH_LIMIT = 2
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
# No leading zero: to YAML 1.1 it makes the number octal.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something an administrator should know of a file that is not wrong."""

    line: int
    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The site's settings, notes on the file, and the line of each option that it sets."""

    site: SiteConfig
    notes: tuple[Note, ...]
    lines: Mapping[str, int]


class _Problem(Exception):
    """A value that is not allowed; the text says what is."""


def load(path: Path, *, trusted_owner: int | None) -> SiteConfig:
    """The site's settings; ConfigError with one line for each error, each with file, line and key.

    With `trusted_owner` (a uid) the file and every directory above it must be
    writable by that user or root only: root acts on what it says.
    """
    return load_whole(path, trusted_owner=trusted_owner).site


def load_noted(path: Path, *, trusted_owner: int | None) -> tuple[SiteConfig, tuple[Note, ...]]:
    """The same, with notes on options that have no effect any more."""
    loaded = load_whole(path, trusted_owner=trusted_owner)
    return loaded.site, loaded.notes


def load_whole(path: Path, *, trusted_owner: int | None) -> Loaded:
    """The same, with all that is known of the file."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    problems: list[tuple[int, str, str]] = []
    notes: list[Note] = []
    for line, key, node in _entries(path, _read(path, trusted_owner)):
        name = ALIASES.get(key, key)
        try:
            if name in lines:
                raise _Problem(f"sets {name} again, after line {lines[name]}")
            lines[name] = line
            option = _known(name)
            values[option.name] = _value(option, node)
        except _Problem as problem:
            problems.append((line, key, str(problem)))
            continue
        if INERT in option.metadata:
            notes.append(Note(line=line, key=key, text=f"has no effect: {option.metadata[INERT]}"))
    site = SiteConfig(**values)
    problems += _beyond_limits(site, values, lines)
    problems += _half_mapped(site, values, lines)
    if problems:
        raise ConfigError("\n".join(f"{path}:{line}: {key}: {text}" for line, key, text in sorted(problems)))
    return Loaded(site=site, notes=tuple(notes), lines=lines)


def _read(path: Path, trusted_owner: int | None) -> str:
    try:
        if trusted_owner is not None:
            files.require_trusted(path.absolute(), owner=trusted_owner)
        data = files.read(path, limit=_SIZE_LIMIT)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration {path}") from None
    except StateError as error:
        raise ConfigError(error.brief) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from error


def _entries(path: Path, text: str) -> list[tuple[int, str, yaml.Node]]:
    """Line, key and value of every option; ConfigError when the file has no such form."""
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
    entries = []
    for key, node in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or _CONTROL.search(key.value):
            raise ConfigError(f"{path}:{line}: the name of an option must be a single word")
        entries.append((line, str(key.value), node))
    return entries


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


def _beyond_limits(
    site: SiteConfig, values: Mapping[str, Any], lines: Mapping[str, int]
) -> Iterator[tuple[int, str, str]]:
    """Defaults that no job could be given; a value that is wrong in itself is not reported twice."""
    for limit, default in LIMITS:
        given = [name for name in (limit, default) if name.upper() in lines]
        if not given or any(name not in values for name in given):
            continue
        most, usual = getattr(site, limit), getattr(site, default)
        if 0 < most < usual:
            line = max(lines[name.upper()] for name in given)
            yield line, limit.upper(), f"must be 0 or at least {default.upper()}, which is {usual}"


def _half_mapped(
    site: SiteConfig, values: Mapping[str, Any], lines: Mapping[str, int]
) -> Iterator[tuple[int, str, str]]:
    """A script that nothing calls, or a call of no script."""
    switch, script = "CUSTOM_IP_MAPPING", "IP_TO_MAC_SCRIPT"
    if any(name in lines and name.lower() not in values for name in (switch, script)):
        return
    if site.custom_ip_mapping and not site.ip_to_mac_script:
        yield lines[switch], switch, f"needs {script}"
    elif site.ip_to_mac_script and not site.custom_ip_mapping:
        yield lines[script], script, f"needs {switch}: true"


def _known(name: str) -> "Field[Any]":
    if name in OPTIONS:
        return OPTIONS[name]
    near = difflib.get_close_matches(name.upper(), [*OPTIONS, *ALIASES], n=1)
    raise _Problem(f"is not an option{f'; did you mean {near[0]}?' if near else ''}")


def _value(option: "Field[Any]", node: yaml.Node) -> object:
    kind = option.metadata.get("kind", "")
    if kind in ("list", "limits"):
        return _limits(node) if kind == "limits" else _list(node)
    if not isinstance(node, yaml.ScalarNode):
        raise _Problem("must be a single value")
    text = str(node.value)
    if kind == "size":
        return _size(option, text)
    if option.type is bool:
        return _boolean(text, node)
    if option.type is int:
        return _number(option, text, node)
    if node.tag == "tag:yaml.org,2002:null" and not node.style:
        text = ""
    return _text(option, text, kind)


def _list(node: yaml.Node) -> tuple[str, ...]:
    if isinstance(node, yaml.ScalarNode):
        return tuple(str(node.value).split())
    if not isinstance(node, yaml.SequenceNode):
        raise _Problem("must be a list of words")
    return tuple(str(each.value) for each in node.value)


def _limits(node: yaml.Node) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise _Problem('must be a list, like ["students max_vcpus=4 max_ram=8G"]')
    texts = tuple(str(each.value) for each in node.value)
    for text in texts:
        try:
            limits.parse(text)
        except ValueError as error:
            raise _Problem(str(error)) from None
    return texts


def _boolean(text: str, node: yaml.ScalarNode) -> bool:
    if text.lower() not in _BOOLEANS or node.style:
        raise _Problem(f"must be true or false, not {_shown(text, node)}")
    return _BOOLEANS[text.lower()]


def _number(option: "Field[Any]", text: str, node: yaml.ScalarNode) -> int:
    if _NUMBER.fullmatch(text) is None or node.style:
        raise _Problem(f"must be a whole number, not {_shown(text, node)}")
    return _in_range(option, int(text))


def _size(option: "Field[Any]", text: str) -> int:
    try:
        return _in_range(option, units.mebibytes(text[:_LONGEST_VALUE]))
    except ValueError as error:
        raise _Problem(str(error)) from None


def _in_range(option: "Field[Any]", value: int) -> int:
    most = _MOST_MIB if option.metadata.get("kind") == "size" else _MOST
    low, high = option.metadata.get("low", 0), option.metadata.get("high", most)
    if not low <= value <= high:
        unit = option.metadata.get("unit", "")
        raise _Problem(f"must be {low} to {high}{unit and f' {unit}'}, not {value}")
    return value


def _text(option: "Field[Any]", text: str, kind: str) -> str:
    if kind == "switch":
        text = str(_BOOLEANS.get(text.lower(), text)).lower()
    choices = option.metadata.get("choices")
    if choices and text not in choices:
        raise _Problem(f"must be {' or '.join(choices)}, not {text[:80]!r}")
    if len(text) > _LONGEST_VALUE or _CONTROL.search(text):
        raise _Problem(f"must be one line of at most {_LONGEST_VALUE} characters")
    if not text:
        if option.default and kind not in ("share", "dir"):
            raise _Problem("must not be empty")
        return ""
    match kind:
        case "path" | "dir" if not text.startswith("/") or ".." in Path(text).parts:
            raise _Problem(f"must be an absolute path without .., not {text!r}")
        case "hosts" if text == "*":
            return ".*"
        case "hosts" | "regex":
            return _regex(text)
    if kind in FORMS and FORMS[kind][0].fullmatch(text) is None:
        raise _Problem(f"must be {FORMS[kind][1]}, not {text[:80]!r}")
    return text


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise _Problem(f"must be a regular expression: {error}") from None
    return text


def _shown(text: str, node: yaml.ScalarNode) -> str:
    return f"the text {text[:80]!r}" if node.style else repr(text[:80])
