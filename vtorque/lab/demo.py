# SPDX-License-Identifier: Apache-2.0
"""One real job in one real guest, and proof that nothing of it is left."""

import contextlib
import os
import pwd
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vtorque import guestnames, proc
from vtorque.backends.filter import PREFIX
from vtorque.backends.filter.nft import PROGRAM
from vtorque.backends.hypervisor.libvirt import Libvirt
from vtorque.deadline import Deadline
from vtorque.errors import CommandError
from vtorque.lab import parts
from vtorque.lab.nodes import View, command

RECIPE = "debian-12"
IMAGE = f"{RECIPE}.qcow2"
"""What the job runs in, and how it is built."""

_LOOK_SECONDS = 60.0


def run(script: Path, nodes: Sequence[View], *, progress: Callable[[str], None]) -> int:
    """Submit `script` as the lab's user, show its output, check what is left; the job's exit status.

    Raises CommandError when the job did not run in its guest, or left something.
    """
    user = pwd.getpwnam(parts.USER)
    before = leftovers(nodes)
    progress(f"submitting {script.name} as {parts.USER}")
    status, printed = as_user([str(parts.PROGRAM / "scripts/vsub"), "--wait", "-vm", f"img={IMAGE}",
                               str(script)])
    job = printed.decode().strip()
    sys.stdout.write(f"{job}\n")
    output = ""
    for letter in "oe":
        for path in sorted(Path(user.pw_dir).glob(f"*.{letter}{job.partition('.')[0]}")):
            output += path.read_text()
    sys.stdout.write(output)
    _check_guest(job, output)
    written = Path(user.pw_dir) / "hello-from-guest.txt"
    progress(f"{written} belongs to {written.owner()}: {written.read_text().strip()}")
    progress(f"the job's exit status is {status}")
    left = leftovers(nodes) - before
    if left:
        raise CommandError(f"the job left behind: {', '.join(sorted(left))}")
    progress("nothing is left: no domain, qemu, overlay, seed, state, key or job directory")
    return status


def as_user(argv: list[str]) -> tuple[int, bytes]:
    """Run a command as the lab's user in his home; its status and standard output."""
    user = pwd.getpwnam(parts.USER)
    groups = tuple(os.getgrouplist(parts.USER, user.pw_gid))
    path = f"{parts.PROGRAM}/scripts:{parts.PROGRAM}/scripts/local:/usr/bin:/bin"
    child = proc.spawn(
        argv, stdin=proc.DEVNULL, stdout=proc.PIPE, stderr=2, cwd=Path(user.pw_dir),
        env={"PATH": path, "HOME": user.pw_dir, "USER": parts.USER, "LOGNAME": parts.USER,
             "SHELL": user.pw_shell, "LANG": "C.UTF-8"},
        identity=proc.Identity(uid=user.pw_uid, gid=user.pw_gid, groups=groups), umask=0o022,
    )
    printed, _ = child.communicate()
    return child.returncode, printed


def leftovers(nodes: Sequence[View]) -> set[str]:
    """Everything a job could leave on these nodes, by name."""
    found = set()
    places = [Path(pwd.getpwnam(parts.USER).pw_dir) / ".vtorque", parts.ROOT / "torque/spool"]
    for node in nodes:
        with contextlib.closing(Libvirt(node.uri)) as hypervisor:
            found |= {f"domain {name}" for name in hypervisor.domains(deadline=Deadline(_LOOK_SECONDS))}
        found |= {f"{node.host} {line}".strip() for line in _tables(node)}
        places += [node.state / "jobs", node.state / "seeds", node.state / "attempts", node.disks,
                   node.mom_priv / "jobs"]
    for place in places:
        found |= {str(path) for path in place.glob("*")}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].startswith(b"/usr/bin/qemu-system"):
            found.add(f"qemu process {entry.name}")
    return found


def _tables(node: View) -> list[str]:
    """Tables of rules that jobs have on a node, each as `table bridge NAME`."""
    if not PROGRAM.exists():
        return []
    argv = [str(PROGRAM), "list", "tables", "bridge"]
    told = proc.run(command(node.host, argv) if node.host else argv, deadline=Deadline(_LOOK_SECONDS)).stdout
    return [line for line in told.decode().splitlines() if line.startswith(f"table bridge {PREFIX}")]


def _check_guest(job: str, output: str) -> None:
    """The UUID that the guest itself reads from its firmware must be the planned one."""
    seen = re.search(r"DMI UUID ([0-9a-f-]{36})", output)
    planned = str(guestnames.guest_uuid(job, 0))
    if seen is None or seen[1] != planned:
        raise CommandError(f"job {job} did not run in the guest {planned}")
