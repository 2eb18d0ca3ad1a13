# SPDX-License-Identifier: Apache-2.0
"""Real guests in the lab: the boot of the image that we build, beside the distribution's own layout of it."""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import budgets, report
from vtorque import bootphases, catalogue, imagebuild, lab
from vtorque.bootphases import Span
from vtorque.errors import RequestError
from vtorque.lab import parts

ROOT = Path(__file__).resolve().parents[2]
_RECIPE = "debian-12"
_IMAGES = {"ours": "bench-ours.qcow2", "stock": "bench-stock.qcow2"}
_BOOT = "boot"
_SECONDS = 600


def measure(out: Path, *, rounds: int, strict: bool) -> int:
    """Build both images, boot them in turn, report; the exit status."""
    boots: dict[str, list[list[Span]]] = {name: [] for name in _IMAGES}
    with _images(), _lab():
        for _ in range(rounds):
            for name, image in _IMAGES.items():
                boots[name].append(_boot(image))
    values = {"boot.ratio": statistics.median(map(_ratio, boots["ours"], boots["stock"]))}
    found = {"values": values, "boots": {name: [[each._asdict() for each in boot] for boot in every]
                                         for name, every in boots.items()}}
    out.mkdir(parents=True, exist_ok=True)
    (out / "boot.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, image in _IMAGES.items():
        medians = bootphases.medians(boots[name])
        sys.stdout.write(f"{image}: {rounds} boot{'s' * (rounds > 1)}, medians\n{bootphases.table(medians)}\n")
    sys.stdout.write(report.table(values))
    failures = budgets.failures(values, strict=strict)
    sys.stderr.writelines(f"bench: {failure}\n" for failure in failures)
    return 1 if failures else 0


def _ratio(ours: list[Span], stock: list[Span]) -> float:
    mine, theirs = (next(span.took for span in boot if span.name == _BOOT) for boot in (ours, stock))
    return mine / theirs


def _boot(image: str) -> list[Span]:
    """One boot in one job of the lab's user."""
    command = [str(parts.PROGRAM / "scripts/vmgr"), "bench", "boot", image, "-n", "1", "--json", "--user", parts.USER]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=_SECONDS)
    return [Span(**each) for each in json.loads(done.stdout)["medians"]]


@contextlib.contextmanager
def _images() -> Iterator[None]:
    """Both, built now whatever is there, and gone afterwards."""
    with contextlib.ExitStack() as stack:
        for name, image in _IMAGES.items():
            stack.callback(_forget, image)
            imagebuild.build(_RECIPE, parts.IMAGES, name=image, as_stock=name == "stock", force=True, progress=_say)
        yield


def _forget(image: str) -> None:
    with contextlib.suppress(RequestError):
        catalogue.delete(parts.IMAGES, image, disks=[], force=True)


@contextlib.contextmanager
def _lab() -> Iterator[None]:
    """The lab, and afterwards none where none was."""
    was_up = lab.size()
    lab.up(ROOT, progress=_say)
    try:
        yield
    finally:
        if not was_up:
            lab.down(ROOT, progress=_say)


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")
