# SPDX-License-Identifier: Apache-2.0
"""`vmgr image verify`: what is wrong with images, one line each."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtorque import catalogue, images, imageverify
from vtorque.errors import ConfigError, ImageError, printable
from vtorque.images import Revision

_WRONG, _UNREAD = 1, 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `vmgr image verify` understands."""
    parser.epilog = f"Exit status {_WRONG}: something is wrong; {_UNREAD}: nothing is, but not all was looked into."
    parser.add_argument("name", nargs="?", help="one image or NAME@N; all, and what belongs to none, if not given")
    parser.add_argument("--json", action="store_true", help="for scripts")


def verify(directory: Path, name: str | None, *, share: str, as_json: bool) -> int:
    """Verify an image or all, for guests with SHARE `share`; the exit status."""
    reports = [_report(found, share) for found in _revisions(directory, name)]
    lost = [] if name else [str(path) for path in catalogue.unreferenced(directory)]
    if as_json:
        sys.stdout.write(json.dumps({"images": reports, "unreferenced": lost}, indent=1) + "\n")
    else:
        for report in reports:
            _show(report)
        for path in lost:
            why = "unfinished or being written" if Path(path).name.startswith(".") else "belongs to no image"
            sys.stdout.write(f"{printable(path)}: {why}\n")
    if any(report["error"] or report["problems"] for report in reports):
        return _WRONG
    return _UNREAD if any(report["unread"] for report in reports) else 0


def _revisions(directory: Path, name: str | None) -> Iterator[Revision | ImageError]:
    """What there is to verify; an entry that is broken as the error that says so."""
    for each in [name] if name else images.names(directory):
        try:
            yield from [images.revision(directory, each)] if name else images.revisions(directory, each)
        except ImageError as error:
            yield error


def _report(found: Revision | ImageError, share: str) -> dict[str, Any]:
    report: dict[str, Any] = {"image": "", "text": "", "error": "", "unread": "", "problems": [], "notes": []}
    if isinstance(found, ImageError):
        return report | {"error": found.one_line()}
    report["image"] = f"{found.image.name.partition('@')[0]}@{found.number}"
    try:
        verdict = imageverify.verify(found, share=share)
    except (ImageError, ConfigError) as error:
        return report | {"error": error.one_line()}
    notes = [each for each in verdict.contents.findings if each not in verdict.problems]
    return report | {
        "text": verdict.text(), "unread": verdict.contents.unread,
        "problems": [asdict(each) for each in verdict.problems], "notes": [asdict(each) for each in notes],
    }


def _show(report: dict[str, Any]) -> None:
    if report["error"]:
        sys.stderr.writelines(f"vmgr: {printable(line)}\n" for line in report["error"].splitlines())
        return
    sys.stdout.write(f"{report['image']}: {printable(report['text'])}\n")
    if report["unread"] and report["unread"] != report["text"]:
        sys.stdout.write(f"{report['image']}: not looked into: {printable(report['unread'])}\n")
    for each in report["problems"]:
        sys.stderr.write(f"vmgr: {report['image']}: {printable(each['what'])} ({printable(each['hint'])})\n")
    for each in report["notes"]:
        limited = "" if each["kind"] == "rights" else f": not for SHARE: {each['kind']}"
        sys.stdout.write(f"{report['image']}: {printable(each['what'])}{limited}\n")
