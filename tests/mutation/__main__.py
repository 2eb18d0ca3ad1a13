# SPDX-License-Identifier: Apache-2.0
"""`make mutation`: how many wrong validators the tests notice, and those that they do not. `MODULES="units orders"`.

Each mutant is loaded in place of the module in a fork of this process, which
runs that module's own unit tests to the first failure. One that takes too
long counts as noticed.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import hypothesis
import jinja2
import pytest
import yaml

from tests.mutation import mutants
from tests.mutation.mutants import Mutant

assert hypothesis and jinja2 and yaml, "what tests load is loaded once, before the forks"

ROOT = Path(__file__).resolve().parents[2]
AIM_PERCENT = 90
_SECONDS = 60
# Ours are loaded after the fork.
_EARLY = ("vtorque", "tests.builders", "tests.unit")

VALIDATORS = {
    "units": ("test_units", "test_request"),
    "orders": ("test_orders",),
    "metadata": ("test_metadata", "test_request"),
    "vmoptions": ("test_vmoptions", "test_resolve"),
    "request": ("test_request",),
    "optionforms": ("test_optionforms",),
    "domaincheck": ("test_render", "test_hostile_values", "test_domainshape"),
    "domainshape": ("test_domainshape", "test_domainpolicy"),
    "cloudcheck": ("test_render", "test_hostile_values"),
    "planning": ("test_planning",),
    "published": ("test_published",),
    "accounts": ("test_accounts",),
    "domainpolicy": ("test_domainpolicy", "test_monitor"),
    "monitor": ("test_monitor",),
    "guestfiles": ("test_monitor",),
    "settings": ("test_settings",),
    "names": ("test_names",),
}
"""Modules that say no, and the unit tests of each."""


def main(argv: Sequence[str]) -> int:
    """1 when fewer are noticed than should be."""
    parser = argparse.ArgumentParser(prog="make mutation")
    parser.add_argument("modules", nargs="*", choices=[*VALIDATORS, []], help="all by default")
    chosen = parser.parse_args(argv).modules or list(VALIDATORS)
    noticed = made = 0
    for name in chosen:
        found, tried = _tried(name)
        noticed, made = noticed + found, made + tried
        _tell(name, found, tried)
    _tell("all", noticed, made)
    return int(100 * noticed < AIM_PERCENT * made)


def _tell(name: str, noticed: int, made: int) -> None:
    sys.stdout.write(f"{name:<12} {noticed:>4} of {made:>4} {100 * noticed / made:>5.1f} %\n")
    sys.stdout.flush()


def _tried(name: str) -> tuple[int, int]:
    """How many mutants of a module are noticed, and how many there are; those that are not are shown at once."""
    source = (ROOT / "vtorque" / f"{name}.py").read_text()
    every = list(mutants.of(source))
    with tempfile.TemporaryDirectory() as place:
        survives = partial(_survives, name, Path(place))
        if not survives(Mutant(0, "nothing", source)):
            sys.exit(f"the tests of {name} fail without any mutant")
        noticed = 0
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for mutant, survived in zip(every, pool.map(survives, every), strict=True):
                if survived:
                    sys.stdout.write(f"    vtorque/{name}.py:{mutant.line}: {mutant.wrong}\n")
                    sys.stdout.flush()
                noticed += not survived
    return noticed, len(every)


def _survives(name: str, place: Path, mutant: Mutant) -> bool:
    """Whether all tests pass with it."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(_SECONDS)
            status = _tested(name, place, mutant.text)
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _tested(name: str, place: Path, text: str) -> int:
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        for handle in (1, 2):
            os.dup2(nothing.fileno(), handle)
    for loaded in [each for each in sys.modules if each.startswith(_EARLY)]:
        del sys.modules[loaded]
    sys.meta_path.insert(0, _Instead(f"vtorque.{name}", text))
    files = [ROOT / "tests/unit" / f"{test}.py" for test in VALIDATORS[name]]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    return int(pytest.main([*options, f"--basetemp={place}/{os.getpid()}", *map(str, files)]))


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads another text for one module."""

    def __init__(self, module: str, text: str) -> None:
        self._module = module
        self._text = text

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self, origin=name) if name == self._module else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._text, self._module, "exec"), vars(module))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
