# SPDX-License-Identifier: Apache-2.0
"""The leak inventory: everything a job could leave on a machine, or change there, by name.

Taken before and after; what is only in the second was left, what is only in
the first or looks different was somebody else's, and was touched.
"""

import contextlib
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vtorque.backends.filter import Filter
from vtorque.backends.hypervisor import Domains
from vtorque.deadline import Deadline

Inventory = Mapping[str, str]
"""What there is, by kind and name; and how it looks."""

TAPS = "vtg"

NODES_OWN = ("service.json",)
"""Files in which a node keeps what it knows of itself, whatever jobs come and go."""

_DIGESTED = 1 << 24
_LOOK_SECONDS = 60.0
_SHOWN = 160


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node as the process `pid` sees it. All its processes, mounts and interfaces count where it is `alone`."""

    pid: int
    alone: bool = True


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Where to look. All below `places` counts, and what is root's below `homes`.

    But no path that is like one of `stays`, where `*` is some of a name and `**` some of a path.

    `domains` and `tables` are asked if given, and of each of `nodes` its packet filter, taps, mounts, cgroups and
    leases. Processes count that have one of the `words` in their command line or are one of `users`, unless they are
    `daemons`. `secrets` are bytes that no file of all these places and none of these processes may hold.
    """

    places: Collection[Path] = ()
    homes: Collection[Path] = ()
    stays: Collection[str] = ()
    domains: Domains | None = None
    tables: Filter | None = None
    nodes: Collection[Node] = ()
    words: Collection[bytes] = ()
    users: Collection[int] = ()
    daemons: Collection[int] = ()
    secrets: Collection[bytes] = ()
    descriptors: bool = True

    def take(self) -> dict[str, str]:
        """What there is now."""
        return dict(self._all())

    def _all(self) -> Iterator[tuple[str, str]]:
        numbered: dict[str, Path] = {}
        for place in self.places:
            yield from self._files(place, numbered)
        for home in self.homes:
            yield from self._files(home, numbered, roots=True)
        yield from _locks(numbered)
        deadline = Deadline(_LOOK_SECONDS)
        if self.domains is not None:
            yield from ((f"domain {name}", job) for name, job in self.domains.domains(deadline=deadline).items())
        if self.tables is not None:
            yield from ((f"table {name}", "") for name in self.tables.tables(deadline=deadline))
        if self.words or self.users or any(node.alone for node in self.nodes):
            yield from self._processes()
        if self.descriptors:
            yield from ((f"descriptor of {target}", "") for target in _descriptors())
        for node in self.nodes:
            yield from _kernels(node, (*self.places, *self.homes))

    def _files(self, place: Path, numbered: dict[str, Path], *, roots: bool = False) -> Iterator[tuple[str, str]]:
        stays = re.compile("|".join(map(_pattern, self.stays)) or "$.")
        for path in _below(place):
            if path.name in NODES_OWN:
                continue
            with contextlib.suppress(FileNotFoundError):
                about = path.lstat()
                content = b""
                is_staying = stays.fullmatch(str(path)) is not None
                if stat.S_ISLNK(about.st_mode):
                    content = bytes(path.readlink())
                elif stat.S_ISREG(about.st_mode) and about.st_size <= _DIGESTED and (self.secrets or not is_staying):
                    content = path.read_bytes()
                numbered[f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"] = path
                if not is_staying and not (roots and about.st_uid):
                    kind = "directory" if stat.S_ISDIR(about.st_mode) else "file"
                    yield f"{kind} {path}", _look(about, content)
                yield from ((f"secret in {path}", secret.decode()) for secret in self.secrets if secret in content)

    def _processes(self) -> Iterator[tuple[str, str]]:
        own = {os.getpid(), os.getppid()}
        inside = {_mounts_of(node.pid) for node in self.nodes if node.alone} - {""}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                argv = (entry / "cmdline").read_bytes()
                if not argv or int(entry.name) in own or not self._counts(entry, argv, inside):
                    continue
                if int(entry.name) not in self.daemons:
                    # The 22nd field is when it began: a number that came back is another process.
                    begun = (entry / "stat").read_bytes().rpartition(b")")[2].split()[19].decode()
                    said = argv.replace(b"\0", b" ").decode(errors="replace")
                    yield f"process {entry.name} {said[:_SHOWN].strip()}", begun
                said_of_it = argv + (entry / "environ").read_bytes()
                yield from ((f"secret in process {entry.name}", "") for secret in self.secrets if secret in said_of_it)

    def _counts(self, process: Path, argv: bytes, inside: Collection[str]) -> bool:
        return (
            any(word in argv for word in self.words) or process.stat().st_uid in self.users
            or (bool(inside) and _mounts_of(int(process.name)) in inside)
        )


def differences(before: Inventory, after: Inventory) -> list[str]:
    """What was left, taken away or changed, each in one line."""
    left = [f"left: {name}" for name in after if name not in before]
    gone = [f"gone: {name}" for name in before if name not in after]
    other = [
        f"changed: {name}: {look} is {after[name]}" for name, look in before.items()
        if name in after and after[name] != look
    ]
    return sorted(left + gone + other)


def _pattern(text: str) -> str:
    """The expression for a path."""
    return re.escape(text).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")


def _below(place: Path) -> Iterator[Path]:
    """All that is there, though some of it go meanwhile."""
    yield place
    for directory, names, others in os.walk(place):
        yield from (Path(directory, name) for name in (*names, *others))


def _look(about: os.stat_result, content: bytes) -> str:
    what = f" {hashlib.sha256(content).hexdigest()[:16] if content else about.st_size}"
    return f"{stat.filemode(about.st_mode)} {about.st_uid}:{about.st_gid}{'' if stat.S_ISDIR(about.st_mode) else what}"


def _locks(numbered: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Whatever process holds them: proc(5) tells of a file's device and inode."""
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        # One that waits has an arrow before its kind.
        if words[1] != "->" and (path := numbered.get(words[5])) is not None:
            yield f"lock on {path}", words[1]


def _descriptors() -> Iterator[str]:
    """What we hold open ourselves, numbered where there are several alike; locks are held by descriptors."""
    return _numbered(
        target for link in sorted(Path("/proc/self/fd").iterdir())
        if not (target := _link(link).partition(":[")[0]).startswith("/proc/") and target
    )


def _kernels(node: Node, below: Collection[Path]) -> Iterator[tuple[str, str]]:
    """What no file and no process shows of a node; unless it is alone only mounts `below` these, and guests' taps."""
    of = Path("/proc", str(node.pid))
    interfaces = [line.partition(":")[0].strip() for line in (of / "net/dev").read_text().splitlines()[2:]]
    yield from ((f"interface {name}", "") for name in interfaces if node.alone or name.startswith(TAPS))
    mounts = _numbered(
        f"{words[4]} of {' '.join(words[words.index('-') + 1:][:2])}"
        for words in map(str.split, (of / "mountinfo").read_text().splitlines())
        if node.alone or any(Path(words[4]).is_relative_to(place) for place in below)
    )
    yield from ((f"mount {each}", "") for each in mounts)
    groups = of / "root/sys/fs/cgroup"
    for place in (*groups.glob("machine*/*"), *groups.glob("*/machine*/*")):
        if place.is_dir():
            yield f"cgroup {place.name}", ""
    for place in (of / "root/var/lib/libvirt/dnsmasq").glob("*.status"):
        yield f"leases {place.name}", hashlib.sha256(place.read_bytes()).hexdigest()[:16]
    listing = ["/usr/bin/nsenter", f"--net={of}/ns/net", "/usr/sbin/nft", "-s", "list", "ruleset"]
    rules = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    for table in re.split(r"^(?=table )", rules, flags=re.MULTILINE)[1:]:
        yield table.partition(" {")[0], hashlib.sha256(table.encode()).hexdigest()[:16]


def _mounts_of(pid: int) -> str:
    """The mount namespace of a process."""
    return _link(Path("/proc", str(pid), "ns/mnt"))


def _link(path: Path) -> str:
    with contextlib.suppress(OSError):
        return str(path.readlink())
    return ""


def _numbered(names: Iterable[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield f"{name} ({seen[name]})"
