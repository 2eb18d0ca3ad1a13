# SPDX-License-Identifier: Apache-2.0
"""`vmgr bench boot`: what an image's boot costs, by real jobs of whoever asks."""

import argparse
import contextlib
import json
import os
import pwd
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vtorque import bootphases, proc
from vtorque.bootphases import Span
from vtorque.cli.prefix import PREFIX
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, RequestError
from vtorque.job import phases_name

_BOOTS, _MOST = 3, 100
_NAME = "vtorque-boot"
_SOON_SECONDS = 10.0
_OUTPUT_LIMIT = 1 << 20


def add(areas: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `bench`."""
    verbs = areas.add_parser("bench", help="what an image costs").add_subparsers(required=True, metavar="boot")
    boot = verbs.add_parser("boot", help="how long each part of a guest's boot takes: real jobs, one after the other")
    boot.add_argument("name", metavar="IMAGE", help="NAME or NAME@N, as for -vm img=")
    boot.add_argument("-n", type=int, default=_BOOTS, metavar="N", help=f"how many jobs, {_BOOTS} if not given")
    boot.add_argument("--qsub", default="", metavar="OPTIONS", help="more for vsub: --qsub='-q short -A physics'")
    boot.add_argument("--json", action="store_true", help="for scripts: medians and every boot, in seconds")
    boot.add_argument("--user", default="", metavar="NAME", help="whose jobs (root only)")
    boot.set_defaults(act=_boot)


def _boot(arguments: argparse.Namespace) -> int:
    """Boot an image in real jobs of one guest, one after the other, and show where the time of their start goes.

    With --json an object: `image`, `medians` and, one list for each job,
    `boots`; a part has `name`, `began` and `ended`, seconds since the guest was
    started, and `word`: whether root says so, or only the guest.
    """
    if not 1 <= arguments.n <= _MOST:
        raise RequestError(f"-n {arguments.n} is not 1 to {_MOST}")
    if arguments.user or os.geteuid() == 0:
        return _as_user(arguments)
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    try:
        options = shlex.split(arguments.qsub)
    except ValueError as error:
        raise RequestError(f"--qsub: {error}") from None
    boots = []
    with tempfile.TemporaryDirectory(prefix=".vtorque-bench-", dir=home) as scratch:
        for number in range(arguments.n):
            place = Path(scratch, str(number))
            place.mkdir()
            boots.append(_one(arguments.name, options, place, home=home))
    medians = bootphases.medians(boots)
    if arguments.json:
        found = {"image": arguments.name, "medians": [each._asdict() for each in medians],
                 "boots": [[each._asdict() for each in boot] for boot in boots]}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        how_many = f"{arguments.n} boot{'s' * (arguments.n > 1)}"
        sys.stdout.write(f"{arguments.name}: {how_many}, medians\n{bootphases.table(medians)}")
    return 0


def _as_user(arguments: argparse.Namespace) -> int:
    """Become the user, as a login would: batch systems take no jobs of root's."""
    if os.geteuid() != 0:
        raise RequestError("--user is for root only")
    if not arguments.user:
        raise RequestError("root submits no jobs", hint="--user NAME")
    try:
        pwd.getpwnam(arguments.user)
    except (KeyError, ValueError):
        raise RequestError(f"there is no user {arguments.user[:80]!r}") from None
    words = [str(PREFIX / "scripts/vmgr"), "bench", "boot", arguments.name, "-n", str(arguments.n),
             *(["--json"] if arguments.json else []), f"--qsub={arguments.qsub}"]
    runuser = "/usr/sbin/runuser"
    os.execv(runuser, [runuser, "-l", arguments.user, "-c", shlex.join(words)])


def _one(image: str, options: Sequence[str], place: Path, *, home: Path) -> list[Span]:
    """One job from its submission to its end; the parts of its guest's boot."""
    script, output, noted = place / "script", place / "output", place / "phases"
    script.write_bytes(bootphases.SCRIPT)
    words = [str(PREFIX / "scripts/vsub"), "--wait", "-N", _NAME, "-j", "oe", "-o", str(output), *options,
             "-vm", f"img={image},vms_per_node=1"]
    with script.open("rb") as file:
        child = proc.spawn(words, stdin=file.fileno(), stdout=proc.PIPE, stderr=2, env=dict(os.environ), cwd=place,
                           session=False)
    assert child.stdout is not None
    with child.stdout as printed:
        try:
            job = printed.readline().decode(errors="replace").strip()
            if job:
                _keep(home / ".vtorque" / job / phases_name("", 1), noted)
            status = child.wait()
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
                child.wait()
    if not job:
        raise CommandError(f"no job on image {image[:80]} could be submitted")
    text = _delivered(output)
    if status:
        last = (text.strip().splitlines() or ["it said nothing"])[-1]
        raise CommandError(f"job {job} on image {image[:80]} ended with status {status}: {last[:200]!r}")
    found = bootphases.spans(bootphases.phases(noted.read_bytes()), bootphases.facts(text))
    if not found:
        raise CommandError(f"job {job} left no record of its phases")
    return found


def _keep(record: Path, kept: Path) -> None:
    """Another name for the job's record: the directory that it is in goes with the job, what is added to it stays."""
    for _ in Deadline(_SOON_SECONDS).ticks(doing="find the job's record"):
        with contextlib.suppress(FileNotFoundError):
            kept.hardlink_to(record.resolve())
            return


def _delivered(output: Path) -> str:
    """What the job printed; a batch system may bring it a little after the job's end."""
    for _ in Deadline(_SOON_SECONDS).ticks(doing="wait for the job's output"):
        with contextlib.suppress(FileNotFoundError), output.open("rb") as file:
            return file.read(_OUTPUT_LIMIT).decode(errors="replace")
    return ""
