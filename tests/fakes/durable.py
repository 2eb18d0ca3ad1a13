# SPDX-License-Identifier: Apache-2.0
"""A hypervisor and a packet filter that outlive whoever talks to them, as libvirtd and the kernel do."""

import contextlib
import json
import os
from collections.abc import Callable, ItemsView, Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Generic, TypeVar

from tests.fakes.filter import FakeFilter
from tests.fakes.hypervisor import FakeHypervisor, _Domain

Value = TypeVar("Value")


class Shelf(MutableMapping[str, Value], Generic[Value]):
    """A dictionary of which every entry is a file: there as a whole, or not at all."""

    def __init__(self, path: Path, *, load: Callable[[str], Value], dump: Callable[[Value], str]) -> None:
        path.mkdir(exist_ok=True)
        self._path = path
        self._load = load
        self._dump = dump

    def __getitem__(self, name: str) -> Value:
        try:
            with (self._path / name).open() as file:
                return self._load(file.read())
        except FileNotFoundError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Value) -> None:
        fresh = self._path / f".{name}.{os.getpid()}"
        with fresh.open("w") as file:
            file.write(self._dump(value))
        fresh.rename(self._path / name)

    def __delitem__(self, name: str) -> None:
        try:
            (self._path / name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.name for path in self._path.iterdir() if not path.name.startswith(".")))

    def items(self) -> ItemsView[str, Value]:
        """What is there now, without what others take away while we look."""
        found = {}
        for name in self:
            with contextlib.suppress(KeyError):
                found[name] = self[name]
        return found.items()

    def __len__(self) -> int:
        return sum(1 for _ in self)


class DurableHypervisor(FakeHypervisor):
    """Domains below a directory."""

    def __init__(self, path: Path, *, fail_at: int = 0) -> None:
        super().__init__(fail_at=fail_at)
        self._domains = Shelf(path, load=_domain, dump=_text)


class DurableFilter(FakeFilter):
    """Tables below a directory."""

    def __init__(self, path: Path, *, fails: bool = False) -> None:
        super().__init__(fails=fails)
        self.loaded = Shelf(path, load=json.loads, dump=json.dumps)


def _domain(text: str) -> _Domain:
    return _Domain(**json.loads(text))


def _text(domain: _Domain) -> str:
    return json.dumps(asdict(domain))
