# SPDX-License-Identifier: Apache-2.0
"""The `-vm` options: what they are called, where they may stand, and which of them counts."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vtorque.errors import RequestError

KEYS = {
    "img": "an image of the catalogue: vmgr show images",
    "ram": "memory of each guest: a number with K, M, G or T (plain: MiB), or auto",
    "distro": "debian ubuntu redhat centos osv; the image's own if not given",
    "arch": "x86_64",
    "vcpus": "virtual CPUs of each guest, or auto: what -l asks for",
    "vcpu_pinning": "true, false, auto, or a file with a line of host CPUs for each guest",
    "vms_per_node": "guests on each node",
    "vm_prologue": "a script to run in every guest before the job",
    "vm_epilogue": "a script to run in every guest after the job",
    "vrdma": "virtual RDMA: true or false",
    "unclot": "UNCLOT, in OSv guests: true or false",
    "unclot_shmem": "shared memory of UNCLOT: a size",
    "iocm": "IO core manager: true or false",
    "iocm_min_cores": "cores for IOcm, at least",
    "iocm_max_cores": "cores for IOcm, at most",
    "fs_type": "where the guests' own disks lie: sharedfs or ramdisk",
    "disk_size": "size of each guest's own disk, its root file system grows with it; the image's own if not given",
    "disk": "an .img or .qcow2 file of yours that rank 0 finds at /data; PATH:20G makes one if need be",
    "metadata": "a .yaml file for cloud-init: timezone, locale",
}
"""Every key, and what it is for."""

USER_FILE = ".vtorquerc"
COMMAND_LINE = "command line"

# What other programs call it.
_MEANT = {"mem": "ram", "memory": "ram", "cores": "vcpus", "cpus": "vcpus", "ncpus": "vcpus", "image": "img"}
_FILE_LIMIT = 64 << 10


class Source(NamedTuple):
    """A text of `key=value,…` and where it stands."""

    origin: str
    text: str


class Given(NamedTuple):
    """A value as the user wrote it, and where."""

    value: str
    origin: str


def collect(sources: Sequence[Source]) -> dict[str, Given]:
    """Keys in any case, the last one of each wins; RequestError that names what is wrong, or not a key."""
    given: dict[str, Given] = {}
    for source in sources:
        for part in source.text.split(","):
            key, equals, value = part.partition("=")
            name = key.strip().lower()
            if not (name and equals and value.strip()):
                raise wrong(source, f"{part[:80]!r} is not key=value", hint="like -vm vcpus=4,ram=8G")
            if not value.isprintable():
                raise wrong(source, f"{name}={value[:80]!r}: not printable UTF-8")
            if name not in KEYS:
                import difflib  # for whoever mistyped something only

                near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, KEYS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(KEYS)}"
                raise wrong(source, f"{name[:80]!r} is not a key", hint=hint)
            given[name] = Given(value=value.strip(), origin=source.origin)
    return given


def user_defaults(home: Path) -> list[Source]:
    """The lines of `~/.vtorquerc`: `key = value`, comments with #. None when there is no such file."""
    path = home / USER_FILE
    try:
        text = contents(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    sources = []
    for number, line in enumerate(text.decode(errors="backslashreplace").splitlines(), 1):
        key, equals, value = line.partition("#")[0].partition("=")
        if key.strip() or equals:
            sources.append(Source(origin=f"~/{USER_FILE}:{number}", text=f"{key.strip()}{equals}{value.strip()}"))
    return sources


def expanded(path: str) -> Path:
    """A path in which the shell left a tilde, behind a comma or in a file."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def contents(path: Path) -> bytes:
    """A small file of the user's; OSError, also when it is not small."""
    with path.open("rb") as file:
        data = file.read(_FILE_LIMIT + 1)
    if len(data) > _FILE_LIMIT:
        raise OSError(0, f"has more than {_FILE_LIMIT >> 10} KiB", str(path))
    return data


def wrong(source: Source, text: str, *, hint: str = "") -> RequestError:
    """An error in front of which stands where it is, unless it is the command line."""
    before = "" if source.origin == COMMAND_LINE else f"{source.origin}: "
    return RequestError(f"{before}-vm {text}", hint=hint)
