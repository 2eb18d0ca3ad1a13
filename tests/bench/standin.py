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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

BEGUN = "VTORQUE_BENCH_BEGUN"
"""Variable with the monotonic time at which the hook was called, when its phases are wanted."""

PHASES = (
    ("read the configuration", "vtorque.cli.assembly", "site"),
    ("become the user's side", "vtorque.demand", "UserSide"),
    ("sweep", "vtorque.lifecycle", "sweep"),
    ("find and inspect the image", "vtorque.imageentry", "find"),
    ("plan", "vtorque.planning", "Planning.plan"),
    ("make keys", "vtorque.backends.transport.apart", "Apart.make_key"),
    ("write seed and domain document", "vtorque.planning", "Planning.write"),
    ("overlay", "vtorque.imageprobe", "make_overlay"),
    ("start the guest", "vtorque.backends.hypervisor.aside", "Aside.create"),
    ("log in and prove it", "vtorque.discover", "_Search.attempt"),
    ("publish the ready marker", "vtorque.state", "JobState.publish"),
)


def main(root: Path, argv: list[str]) -> int:
    """Be `scripts/hook` of the installation in the world at `root`."""
    before = time.monotonic()
    spans = [("shell and interpreter", float(os.environ[BEGUN]), before)] if BEGUN in os.environ else []
    from vtorque.cli import pelog

    _stand_in(root)
    if spans:
        from vtorque import lifecycle as lifecycle

        spans.append(("import", before, time.monotonic()))
        _time_phases(spans)
    status = pelog.main(argv)
    if spans:
        (root / "spans.json").write_text(json.dumps([(name, a - spans[0][1], b - spans[0][1]) for name, a, b in spans]))
    return status


def _stand_in(root: Path) -> None:
    from tests.fakes.durable import DurableHypervisor
    from tests.fakes.guest import FakeAddresses
    from vtorque import topology
    from vtorque.backends.hypervisor.pulse import Pulses
    from vtorque.backends.transport import KeyPair
    from vtorque.backends.transport.apart import Apart
    from vtorque.cli import assembly
    from vtorque.shape import NodeShape

    saved = root / "domains"
    key = KeyPair(private=(root / "key").read_text(), public=(root / "key.pub").read_text())
    shape = topology.node_shape

    def domains(site: object) -> Any:
        """With what it costs to load the library that the hooks would have."""
        importlib.import_module("libvirt")
        return DurableHypervisor(saved)

    class Beats(Pulses):
        """Nobody runs here; who is in the list does."""

        def find(self, name: str) -> int | None:
            return os.pidfd_open(1) if (saved / name).exists() else None

    class Farm(Apart):
        def make_key(self) -> KeyPair:
            super().make_key()
            return key

    class Addresses(FakeAddresses):
        def candidates(self, vm: Any) -> tuple[str, ...]:
            return () if (root / "silent").exists() else (f"127.0.1.{vm.slot + 1}",)

        def wait(self, seconds: float, *also: object) -> None:
            if not (root / "waiting").exists():
                # Whole at once; and each guest's thread comes here.
                fresh = root / f"waiting.{threading.get_native_id()}"
                fresh.write_text(str(os.getpid()))
                fresh.rename(root / "waiting")
            time.sleep(seconds)

    def large() -> NodeShape:
        return replace(shape(), cpus=tuple(range(64)), cores=(), numa=(), memory_mib=1 << 18)

    vars(topology).update(node_shape=large)
    vars(assembly).update(_domains=domains, Pulses=Beats, Apart=Farm, _addresses=lambda *words: Addresses())


def _time_phases(spans: list[tuple[str, float, float]]) -> None:
    for label, module, name in PHASES:
        # Some are loaded by those who need them only.
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, _timed(label, getattr(owner, last), spans))


def _timed(label: str, work: Callable[..., Any], spans: list[tuple[str, float, float]]) -> Callable[..., Any]:
    def timed(*words: Any, **named: Any) -> Any:
        begun = time.monotonic()
        try:
            return work(*words, **named)
        finally:
            spans.append((label, begun, time.monotonic()))

    return timed
