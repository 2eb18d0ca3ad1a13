# SPDX-License-Identifier: Apache-2.0
"""Frozen values, dataclasses and named tuples, as JSON and back: how a hook hands a guard her orders.

Whoever decodes says what he expects. Every value must be there, under its own
name and of exactly its annotated type; nothing else may be there.
"""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NewType, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

_Kind = TypeVar("_Kind")
_PLAIN = (str, int, float, bool, NoneType)
_AS_TEXT = (Path, UUID)


def encode(value: object) -> bytes:
    """A frozen value, and all that it holds, as JSON; TypeError when there is no way back."""
    return json.dumps(plain(value), allow_nan=False).encode()


def decode(kind: type[_Kind], data: bytes) -> _Kind:
    """What `encode` was given. Raises ValueError that names the first value that is not as it should be."""
    found: _Kind = _value(kind, json.loads(data), kind.__name__)
    return found


def plain(value: object) -> Any:
    """The same as a tree of mappings, lists, texts and numbers; TypeError."""
    names = _names(value)
    if names and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in names}
    if type(value) is tuple:
        return [plain(each) for each in value]
    if isinstance(value, _AS_TEXT):
        return str(value)
    if type(value) in _PLAIN:
        return value
    raise TypeError(f"a {type(value).__name__} has no place in orders")


def _names(value: Any) -> tuple[str, ...]:
    """The fields of a dataclass or a named tuple, or of one's type; none of anything else."""
    if is_dataclass(value):
        return tuple(field.name for field in fields(value))
    return tuple(getattr(value, "_fields", ()))


def _value(kind: Any, data: Any, where: str) -> Any:
    if isinstance(kind, NewType):
        return _value(kind.__supertype__, data, where)
    if _names(kind):
        return _object(kind, data, where)
    if get_origin(kind) is tuple and type(data) is list:
        return _tuple(get_args(kind), data, where)
    if get_origin(kind) is UnionType:
        (some,) = (each for each in get_args(kind) if each is not NoneType)
        return None if data is None else _value(some, data, where)
    if kind in _AS_TEXT and type(data) is str:
        return kind(data)
    if kind is float and type(data) is int:
        return float(data)
    if kind in _PLAIN and type(data) is kind:
        return data
    raise ValueError(f"{where} is a {type(data).__name__}, not a {getattr(kind, '__name__', kind)}")


def _object(kind: Any, data: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    if type(data) is not dict or data.keys() != hints.keys():
        raise ValueError(f"{where} has not the fields of {kind.__name__}")
    return kind(**{name: _value(hint, data[name], f"{where}.{name}") for name, hint in hints.items()})


def _tuple(kinds: tuple[Any, ...], data: list[Any], where: str) -> tuple[Any, ...]:
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(data)
    if len(kinds) != len(data):
        raise ValueError(f"{where} has {len(data)} values, not {len(kinds)}")
    places = [f"{where}[{index}]" for index in range(len(data))]
    return tuple(map(_value, kinds, data, places))
