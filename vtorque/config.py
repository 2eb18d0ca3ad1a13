# SPDX-License-Identifier: Apache-2.0
"""The site's configuration file: read once, checked whole, every error reported at once."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vtorque import files, limits, sitelines, units
from vtorque.errors import ConfigError, StateError
from vtorque.optionforms import FORMS, INERT, Option, fits
from vtorque.options import ALIASES, LIMITS, OPTIONS, SiteConfig
from vtorque.sitefile import NoConfiguration, find
from vtorque.sitelines import Entry

__all__ = ["Loaded", "NoConfiguration", "Note", "SiteConfig", "find", "load", "load_whole"]

_SIZE_LIMIT = 256 * 1024
_LONGEST_VALUE = 1024
_MOST = 1 << 31
_MOST_MIB = 16 << 20
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_NULLS = ("", "~", "null", "Null", "NULL")
# No leading zero: to YAML 1.1 it makes the number octal.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}", re.ASCII)
_CONTROL = r"[\x00-\x1f\x7f]"


class Note(NamedTuple):
    """Something an administrator should know of a file that is not wrong."""

    line: int
    key: str
    text: str


class Loaded(NamedTuple):
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


def load_whole(path: Path, *, trusted_owner: int | None) -> Loaded:
    """The same, with all that is known of the file: notes on options that have no effect any more, and lines."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    problems: list[tuple[int, str, str]] = []
    notes: list[Note] = []
    for entry in _entries(path, _read(path, trusted_owner)):
        line, key = entry.line, entry.key
        name = ALIASES.get(key, key)
        try:
            if name in lines:
                raise _Problem(f"sets {name} again, after line {lines[name]}")
            lines[name] = line
            option = _known(name)
            values[option.name] = _value(option, entry)
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


def _entries(path: Path, text: str) -> list[Entry]:
    """Every option as the file has it; ConfigError when the file has no such form."""
    found = sitelines.entries(text)
    if found is None:
        from vtorque import siteyaml

        found = siteyaml.entries(path, text)
    return found


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


def _known(name: str) -> Option:
    if name in OPTIONS:
        return OPTIONS[name]
    import difflib  # for whoever mistyped something only

    near = difflib.get_close_matches(name.upper(), [*OPTIONS, *ALIASES], n=1)
    raise _Problem(f"is not an option{f'; did you mean {near[0]}?' if near else ''}")


def _value(option: Option, entry: Entry) -> object:
    kind = option.metadata.get("kind", "")
    if kind in ("list", "limits"):
        return _limits(entry) if kind == "limits" else _list(entry)
    if entry.text is None:
        raise _Problem("must be a single value")
    if kind == "size":
        return _size(option, entry.text)
    if option.type is bool:
        return _boolean(entry.text, entry)
    if option.type is int:
        return _number(option, entry.text, entry)
    is_null = entry.text in _NULLS and not entry.is_quoted
    return _text(option, "" if is_null else entry.text, kind)


def _list(entry: Entry) -> tuple[str, ...]:
    if entry.text is not None:
        return tuple(entry.text.split())
    if entry.words is None:
        raise _Problem("must be a list of words")
    return entry.words


def _limits(entry: Entry) -> tuple[str, ...]:
    if entry.words is None:
        raise _Problem('must be a list, like ["students max_vcpus=4 max_ram=8G"]')
    for text in entry.words:
        try:
            limits.parse(text)
        except ValueError as error:
            raise _Problem(str(error)) from None
    return entry.words


def _boolean(text: str, entry: Entry) -> bool:
    if text.lower() not in _BOOLEANS or entry.is_quoted:
        raise _Problem(f"must be true or false, not {_shown(text, entry)}")
    return _BOOLEANS[text.lower()]


def _number(option: Option, text: str, entry: Entry) -> int:
    if _NUMBER.fullmatch(text) is None or entry.is_quoted:
        raise _Problem(f"must be a whole number, not {_shown(text, entry)}")
    return _in_range(option, int(text))


def _size(option: Option, text: str) -> int:
    try:
        return _in_range(option, units.mebibytes(text[:_LONGEST_VALUE]))
    except ValueError as error:
        raise _Problem(str(error)) from None


def _in_range(option: Option, value: int) -> int:
    most = _MOST_MIB if option.metadata.get("kind") == "size" else _MOST
    low, high = option.metadata.get("low", 0), option.metadata.get("high", most)
    if not low <= value <= high:
        unit = option.metadata.get("unit", "")
        raise _Problem(f"must be {low} to {high}{unit and f' {unit}'}, not {value}")
    return value


def _text(option: Option, text: str, kind: str) -> str:
    if kind == "switch":
        text = str(_BOOLEANS.get(text.lower(), text)).lower()
    choices = option.metadata.get("choices")
    if choices and text not in choices:
        raise _Problem(f"must be {' or '.join(choices)}, not {text[:80]!r}")
    if len(text) > _LONGEST_VALUE or re.search(_CONTROL, text):
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
    if kind in FORMS and not fits(kind, text):
        raise _Problem(f"must be {FORMS[kind][1]}, not {text[:80]!r}")
    return text


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise _Problem(f"must be a regular expression: {error}") from None
    return text


def _shown(text: str, entry: Entry) -> str:
    return f"the text {text[:80]!r}" if entry.is_quoted else repr(text[:80])
