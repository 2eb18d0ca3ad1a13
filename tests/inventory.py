# SPDX-License-Identifier: Apache-2.0
"""The leak inventory: everything a job could leave on a machine, or change there, by name.

Taken before and after; what is only in the second was left, what is only in
the first or looks different was somebody else's, and was touched.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtorque.backends.filter import Filter
from vtorque.backends.hypervisor import Hypervisor
from vtorque.deadline import Deadline

Inventory = Mapping[str, str]
"""What there is, by kind and name; and how it looks."""

TAPS = "vtg"
HELPERS = (b"qemu-system", b"qemu-nbd", b"virtiofsd", b"dnsmasq", b"shareserver.py", b"diskserver.py", b"scripts/hook")
"""Words by which the programs are known that work for a job's guests."""

NODES_OWN = ("service.json",)
"""Files in which a node keeps what it knows of itself, whatever jobs come and go."""

_DIGESTED = 1 << 20
_LOOK_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Where to look. All below `places` counts, and what is root's below `homes`.

    `domains` and `tables` are asked if given; processes count that have one of
    the `words` in their command line. `machine` adds what all jobs of a machine share: taps,
    mounts, cgroups, leases, helpers of any job. `secrets` are bytes that no file of
    `places` and none of these processes may hold.
    """

    places: Collection[Path] = ()
    homes: Collection[Path] = ()
    domains: Hypervisor | None = None
    tables: Filter | None = None
    words: Sequence[bytes] = ()
    secrets: Sequence[bytes] = ()
    machine: bool = False

    def take(self) -> dict[str, str]:
        """What there is now."""
        return dict(self._all())

    def _all(self) -> Iterator[tuple[str, str]]:
        for place in self.places:
            yield from _files(place, self.secrets)
        for home in self.homes:
            yield from ((name, look) for name, look in _files(home, ()) if " 0:" in look)
        deadline = Deadline(_LOOK_SECONDS)
        if self.domains is not None:
            yield from ((f"domain {name}", job) for name, job in self.domains.domains(deadline=deadline).items())
        if self.tables is not None:
            yield from ((f"table {name}", "") for name in self.tables.tables(deadline=deadline))
        if words := (*self.words, *(HELPERS if self.machine else ())):
            yield from _processes(words, self.secrets)
        yield from ((f"descriptor of {target}", "") for target in _descriptors())
        if self.machine:
            yield from _of_the_machine()


def differences(before: Inventory, after: Inventory) -> list[str]:
    """What was left, taken away or changed, each in one line."""
    left = [f"left: {name}" for name in after if name not in before]
    gone = [f"gone: {name}" for name in before if name not in after]
    other = [
        f"changed: {name}: {look} is {after[name]}" for name, look in before.items()
        if name in after and after[name] != look
    ]
    return sorted(left + gone + other)


def _files(place: Path, secrets: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    for path in sorted([place, *place.rglob("*")]):
        if path.name in NODES_OWN:
            continue
        with contextlib.suppress(FileNotFoundError):
            about = path.lstat()
            content = b""
            if stat.S_ISREG(about.st_mode) and about.st_size <= _DIGESTED:
                content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16] if content else about.st_size
            kind = "directory" if path.is_dir() else "file"
            size = "" if kind == "directory" else f" {digest}"
            yield f"{kind} {path}", f"{stat.filemode(about.st_mode)} {about.st_uid}:{about.st_gid}{size}"
            yield from ((f"secret in {path}", secret.decode()) for secret in secrets if secret in content)


def _processes(words: Sequence[bytes], secrets: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    own = {os.getpid(), os.getppid()}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes()
            if int(entry.name) in own or not argv:
                continue
            if any(word in argv for word in words):
                # The 22nd field is when it began: a number that came back is another process.
                begun = (entry / "stat").read_bytes().rpartition(b")")[2].split()[19].decode()
                yield f"process {entry.name} {argv.split(bytes(1))[0].decode(errors='replace')}", begun
            said = argv + (entry / "environ").read_bytes()
            yield from ((f"secret in process {entry.name}", "") for secret in secrets if secret in said)


def _descriptors() -> Iterator[str]:
    """What we hold open ourselves, numbered where there are several alike; locks are held by descriptors."""
    seen: dict[str, int] = {}
    for link in sorted(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            target = str(link.readlink()).partition(":[")[0]
            if not target.startswith("/proc/"):
                seen[target] = seen.get(target, 0) + 1
                yield f"{target} ({seen[target]})"


def _of_the_machine() -> Iterator[tuple[str, str]]:
    for tap in Path("/sys/class/net").glob(f"{TAPS}*"):
        yield f"tap {tap.name}", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield f"mount {line.split()[4]}", " ".join(line.split()[2:4])
    for place in Path("/sys/fs/cgroup").glob("**/machine*/*"):
        if place.is_dir():
            yield f"cgroup {place}", ""
    for place in Path("/var/lib/libvirt/dnsmasq").glob("*.status"):
        yield f"leases {place}", hashlib.sha256(place.read_bytes()).hexdigest()[:16]
