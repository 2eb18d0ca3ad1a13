# SPDX-License-Identifier: Apache-2.0
"""Takes the place of `scripts/hook`: the real hooks, over guests that cost nothing.

Domains are files of a directory, and every guest's address is the one sshd of the
bench: what is left is our own cost, the SSH handshake of each guest included.
"""

import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

BEGUN = "VTORQUE_BENCH_BEGUN"
"""Variable with the monotonic time at which the hook was called, when its phases are wanted."""

ROOTS_PHASES = (
    ("fork the children", "vtorque.become", "fork_as"),
)
PHASES = (
    ("read the configuration", "vtorque.cli.assembly", "site"),
    ("sweep", "vtorque.lifecycle", "sweep"),
    ("find and inspect the image", "vtorque.imageentry", "find"),
    ("plan", "vtorque.planning", "Planning.plan"),
    ("make keys", "vtorque.backends.transport.apart", "Apart.make_key"),
    ("write seed and domain document", "vtorque.planning", "Planning.write"),
    ("overlay", "vtorque.imageprobe", "make_overlay"),
    ("start the guest", "vtorque.rootside", "RootSide.start_domain"),
    ("log in and prove it", "vtorque.discover", "_Search.attempt"),
    ("publish the ready marker", "vtorque.state", "JobState.publish"),
)
"""What the program does, which is a child of the hook's."""

Spans = list[tuple[str, float, float]]


def main(root: Path, argv: list[str]) -> int:
    """Be `scripts/hook` of the installation in the world at `root`."""
    before = time.monotonic()
    called = float(os.environ[BEGUN]) if BEGUN in os.environ else None
    from vtorque.cli import pelog

    stand_in(root, vars(pelog), "_program", "_guarding", called=called)
    spans: Spans = []
    if called is not None:
        spans += [("shell and interpreter", called, before), ("import", before, time.monotonic())]
        _time_phases(spans, ROOTS_PHASES)
    status = pelog.main(argv)
    if called is not None:
        _keep(root / "told/spans.root.json", spans, called)
    return status


def stand_in(root: Path, members: dict[str, Any], *lives: str, called: float | None = None) -> None:
    """Give root guests that cost nothing; and the program, too, whose lives begin in those of the members."""
    _stand_in_for_root(root)
    # What the program only has to read is root's.
    key = (root / "key").read_text(), (root / "key.pub").read_text()
    for name in lives:
        members[name] = _living(root, key, called, members[name])


def _living(
    root: Path, key: tuple[str, str], called: float | None, live: Callable[..., int]
) -> Callable[..., int]:
    """The program's life, over guests that cost nothing: it is its own that loads what it needs."""
    def living(*told: Any) -> int:
        begun = time.monotonic()
        from vtorque.cli import hooked as hooked

        spans: Spans = []
        if called is not None:
            from vtorque import lifecycle as lifecycle

            spans.append(("import the program", begun, time.monotonic()))
        _stand_in(root, key)
        if called is None:
            return live(*told)
        _time_phases(spans, PHASES)
        try:
            return live(*told)
        finally:
            _keep(root / "told/spans.json", spans, called)

    return living


def _keep(path: Path, spans: Spans, called: float) -> None:
    path.write_text(json.dumps([(name, begin - called, end - called) for name, begin, end in spans]))


def _stand_in_for_root(root: Path) -> None:
    from tests.fakes.durable import DurableHypervisor
    from vtorque import monitor
    from vtorque.cli import rooted

    saved = root / "domains"

    def domains(site: object) -> Any:
        """With what it costs to load the library that the hooks would have."""
        importlib.import_module("libvirt")
        return DurableHypervisor(saved)

    def beats(name: str) -> int | None:
        """Nobody runs here; who is in the list does."""
        return os.pidfd_open(1) if (saved / name).exists() else None

    vars(rooted).update(_domains=domains)
    vars(monitor).update(find=beats)


def _stand_in(root: Path, pair: tuple[str, str]) -> None:
    from tests.fakes.guest import FakeAddresses
    from vtorque import topology
    from vtorque.backends.transport import KeyPair
    from vtorque.backends.transport.apart import Apart
    from vtorque.cli import assembly
    from vtorque.shape import NodeShape

    told, key = root / "told", KeyPair(private=pair[0], public=pair[1])
    shape = topology.node_shape

    class Farm(Apart):
        def make_key(self) -> KeyPair:
            super().make_key()
            return key

    class Addresses(FakeAddresses):
        def candidates(self, vm: Any) -> tuple[str, ...]:
            return () if (told / "silent").exists() else (f"127.0.1.{vm.slot + 1}",)

        def wait(self, seconds: float, *also: object) -> None:
            if not (told / "waiting").exists():
                # Whole at once; and each guest's thread comes here.
                fresh = told / f"waiting.{threading.get_native_id()}"
                fresh.write_text(str(os.getpid()))
                fresh.rename(told / "waiting")
            time.sleep(seconds)

    def large() -> NodeShape:
        return replace(shape(), cpus=tuple(range(64)), cores=(), numa=(), memory_mib=1 << 18)

    vars(topology).update(node_shape=large)
    vars(assembly).update(Apart=Farm, _addresses=lambda *words: Addresses())


def _time_phases(spans: Spans, phases: Sequence[tuple[str, str, str]]) -> None:
    for label, module, name in phases:
        # Some are loaded by those who need them only.
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, _timed(label, getattr(owner, last), spans))


def _timed(label: str, work: Callable[..., Any], spans: Spans) -> Callable[..., Any]:
    def timed(*words: Any, **named: Any) -> Any:
        begun = time.monotonic()
        try:
            return work(*words, **named)
        finally:
            spans.append((label, begun, time.monotonic()))

    return timed
