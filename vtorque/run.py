# SPDX-License-Identifier: Apache-2.0
"""Hand the job to its rank-0 guest: what the job's wrapper does with what root has left for it."""

import json
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from vtorque import files, markers, published, render
from vtorque.backends.batch.front import CORES
from vtorque.backends.transport.session import Session, Sink, Terminal, XServer
from vtorque.deadline import Deadline
from vtorque.errors import Blame, StateError, TransportError, VtorqueError
from vtorque.model import Peer
from vtorque.state import FAILED, READY

_KEPT = re.compile(r"/tmp/vtorque\.[A-Za-z0-9]{8}", re.ASCII)
_LIMIT = 1 << 20
_NODES_OWN = ("DISPLAY", "XAUTHORITY")


class ExitStatus(IntEnum):
    """What the job's wrapper exits with when it is not the script's own status.

    The numbers are those of sysexits.h, which few scripts use themselves.
    """

    REFUSED = 65
    NO_GUEST = 69
    BUG = 70
    LOST = 76


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """The job's guests, the one that runs the script first, and what the job is told of them."""

    peers: tuple[Peer, ...]
    vcpus: int
    environment: Mapping[str, str]


class NotStarted(VtorqueError):
    """The job has no guest; `status` is what its wrapper exits with."""

    def __init__(self, brief: str, status: ExitStatus) -> None:
        super().__init__(brief)
        self.status = status


def proven(state: Path, job: str, *, owner: int = 0) -> Guests:
    """What the prologue left for this job, believed only when it is root's or `owner`'s and of this boot.

    Raises NotStarted with the prologue's own reason.
    """
    failed = _marker(state / FAILED, owner)
    if failed is not None:
        user = failed.get("blame") == Blame.USER.value
        raise NotStarted(str(failed.get("reason")), ExitStatus.REFUSED if user else ExitStatus.NO_GUEST)
    ready = _marker(state / READY, owner)
    if ready is None:
        raise NotStarted("no guest was started for this job: its prologue did not end", ExitStatus.NO_GUEST)
    if ready["job"] != job or ready["boot_id"] != markers.boot_id():
        raise NotStarted(f"the guests on this node were started for job {ready['job']}", ExitStatus.NO_GUEST)
    peers = map(published.from_json, ready["guests"])
    return Guests(
        peers=tuple(sorted(peers, key=lambda peer: peer.rank)), vcpus=ready["vcpus"], environment=ready["environment"]
    )


def furnishing(guests: Guests, key: str) -> dict[str, str]:
    """The files by which a job's guests know one another, alike in all of them: path and text.

    `key` is the private half of the job's own key: it opens the job's guests and nothing else.
    """
    hosts = [f"{peer.address} {peer.hostname}\n" for peer in guests.peers]
    return {
        "/etc/hosts": "".join(["127.0.0.1 localhost\n", "::1 localhost\n", *hosts]),
        guests.environment["PBS_NODEFILE"]: "".join(
            f"{peer.hostname}\n" for peer in guests.peers for _ in range(guests.vcpus)
        ),
        render.KNOWN_HOSTS: "".join(
            f"{peer.hostname},{peer.address} {peer.host_key}\n" for peer in guests.peers
        ),
        render.JOB_KEY: key,
    }


def job_environment(
    environ: Mapping[str, str], batch: Mapping[str, str], exported: Collection[str], guests: Guests
) -> dict[str, str]:
    """The variables that go along: the `batch` system's own, and those the user exported with -v or -V.

    The display is the node's; the guest's sshd makes one of its own.
    """
    chosen = {name: value for name, value in environ.items() if name in exported and name not in _NODES_OWN}
    counted = {name: int(batch[name]) for name in CORES if batch.get(name, "").isdecimal()}
    fitting = {name: str(min(count, guests.vcpus)) for name, count in counted.items()}
    return {**chosen, **batch, **fitting, **guests.environment}


def order(
    *,
    environment: Mapping[str, str],
    directory: str,
    shell: str,
    command: Sequence[str],
    files: Mapping[str, str],
) -> bytes:
    """The standard input of the guest's `run-job`: a byte count, then that much shell text.

    It writes `files` first; without a command nothing else is done.
    """
    settings = {
        "VTORQUE_DIRECTORY": directory,
        "VTORQUE_SHELL": shell,
        "VTORQUE_COMMAND": shlex.join(command),
    }
    lines = [f"printf %s {shlex.quote(text)} >{shlex.quote(path)}\n" for path, text in files.items()]
    lines += [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
    lines += [
        f"export {name}={shlex.quote(value)}\n"
        for name, value in environment.items()
        if name.isidentifier() and name.isascii()
    ]
    # Values come from the process environment: bytes that are not UTF-8 go back as they were.
    text = os.fsencode("".join(lines))
    return b"%d\n%b" % (len(text), text)


def script(
    session: Session, text: bytes, *, stdout: Sink, stderr: Sink, display: XServer | None = None
) -> int:
    """Run what `order` made in a guest; the status of its shell, 0 to 255."""
    return session.run(
        f"exec {render.RUN_JOB}", stdin=text, stdout=stdout, stderr=stderr, deadline=None, display=display
    )


def on_terminal(
    session: Session, text: bytes, *, terminal: Terminal, display: XServer | None, deadline: Deadline
) -> int:
    """The same on a terminal of its own; without a command it is a login shell. Its exit status."""
    said: list[bytes] = []
    kept = session.run(
        f"exec {render.RUN_JOB} keep", stdin=text, stdout=said.append, stderr=said.append, deadline=deadline
    )
    name = b"".join(said).decode(errors="replace").strip()
    if kept != 0 or _KEPT.fullmatch(name) is None:
        raise TransportError(f"the guest could not prepare a terminal: {name[:200]}")
    return session.interact(f"exec {render.RUN_JOB} terminal {name}", terminal=terminal, display=display)


def _marker(path: Path, owner: int) -> dict[str, Any] | None:
    try:
        data = json.loads(files.read(path, limit=_LIMIT, owner=owner))
    except FileNotFoundError:
        return None
    if data.get("schema") != markers.SCHEMA:
        text = f"{path} was written by another version of vtorque, with schema {data.get('schema')}"
        raise StateError(text, hint=f"this one knows {markers.SCHEMA}; submit the job again")
    marker: dict[str, Any] = data
    return marker
