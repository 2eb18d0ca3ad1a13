# SPDX-License-Identifier: Apache-2.0
"""Root, as the program asks it for what only root can do. What root makes of it: see `monitor`."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtorque import servant
from vtorque.deadline import Deadline
from vtorque.errors import StateError
from vtorque.kinds import Templates
from vtorque.servant import Asked, Caller

_SOON_SECONDS = 30.0


class RootSide:
    """Whoever acts for the program on this node; StateError when nobody does any more."""

    def __init__(self, root: Asked) -> None:
        self._root = root

    def templates(self) -> Templates:
        """The templates that guests are made by."""
        return tuple((str(name), str(text)) for name, text in self._ask("templates", deadline=Deadline(_SOON_SECONDS)))

    def scripts(self) -> Mapping[str, str]:
        """The site's own scripts for guests; ConfigError when one is not root's, or cannot be run."""
        return dict(self._ask("scripts", deadline=Deadline(_SOON_SECONDS)))

    def make_place(self, fs_type: str, *, deadline: Deadline) -> None:
        """Make the directory of this job's disks."""
        self._ask("make_place", fs_type, deadline=deadline)

    def leave_place(self, path: Path, *, deadline: Deadline) -> None:
        """Remove a job's directory, which has to be empty."""
        self._ask("leave_place", str(path), deadline=deadline)

    def listing(self, *, deadline: Deadline) -> dict[Path, dict[str, bool]]:
        """Directories of guests' files; of each what is in it, and whether that is a socket."""
        found: dict[str, list[str]] = self._ask("listing", deadline=deadline)
        return {
            Path(place): {entry.removesuffix("/"): entry.endswith("/") for entry in entries}
            for place, entries in found.items()
        }

    def create(self, path: Path, *, deadline: Deadline) -> int:
        """A descriptor of a new file of a guest's, to be closed by the caller."""
        return int(self._ask("create", str(path), deadline=deadline))

    def give(self, path: Path, *, deadline: Deadline) -> None:
        """Make a guest's file QEMU's."""
        self._ask("give", str(path), deadline=deadline)

    def make_standing(self) -> None:
        """Make the directory in which we note the node's standing, where a reboot leaves it alone."""
        self._ask("make_standing", deadline=Deadline(_SOON_SECONDS))

    def make_cache(self, path: Path, *, deadline: Deadline) -> None:
        """Make the cache of images at `path`, for us. ConfigError."""
        self._ask("make_cache", str(path), deadline=deadline)

    def remove(self, path: Path, *, deadline: Deadline) -> None:
        """Remove a guest's file; what is not there is a success."""
        self._ask("remove", str(path), deadline=deadline)

    def share(self, path: Path, *, deadline: Deadline) -> None:
        """Let the job's user read a file of ours, or connect to a socket."""
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._ask("share", deadline=deadline, handle=handle)
        finally:
            os.close(handle)

    def serve_share(self, path: Path, directory: Path, *, readonly: bool, log: int, deadline: Deadline) -> None:
        """Serve a directory to a guest as the job's user; RequestError, ConfigError, StateError."""
        self._ask("serve_share", str(path), str(directory), readonly, deadline=deadline, handle=log)

    def serve_disk(self, path: Path, disk: str, *, new_mib: int, holder: str, deadline: Deadline) -> str:
        """Serve the user's own disk to a guest as himself; what was said. RequestError, ConfigError."""
        return str(self._ask("serve_disk", str(path), disk, new_mib, holder, deadline=deadline))

    def end_server(self, path: Path, *, patience: float = 0.0, deadline: Deadline) -> None:
        """End what serves at the socket, which may finish for `patience` seconds, and remove that."""
        self._ask("end_server", str(path), patience, deadline=deadline)

    def end_keeper(self, process: str, *, deadline: Deadline) -> None:
        """End who keeps a connection."""
        self._ask("end_keeper", process, deadline=deadline)

    def start_domain(self, text: str, *, deadline: Deadline) -> None:
        """Start a guest."""
        self._ask("start_domain", text, deadline=deadline)

    def shutdown(self, name: str, *, deadline: Deadline) -> None:
        """Press a guest's power button, once."""
        self._ask("shutdown", name, deadline=deadline)

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        """Stop and forget a guest; whether there was one."""
        return bool(self._ask("destroy", name, deadline=deadline))

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        """Names of all guests, and the job each belongs to."""
        return dict(self._ask("domains", deadline=deadline))

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        """Whether a guest is there, as the hypervisor says."""
        return bool(self._ask("is_running", name, deadline=deadline))

    def process_of(self, name: str) -> int | None:
        """A pidfd of a guest's process, to be closed by the caller, if one is to be seen."""
        found = self._ask("process_of", name, deadline=Deadline(_SOON_SECONDS))
        return None if found is None else int(found)

    def console(self, path: Path) -> str:
        """The end of what a guest has printed."""
        return str(self._ask("console", str(path), deadline=Deadline(_SOON_SECONDS)))

    def connect(self, path: Path) -> socket.socket | None:
        """A guest's channel, if there is one."""
        found = self._ask("connect", str(path), deadline=Deadline(_SOON_SECONDS))
        return None if found is None else socket.socket(fileno=int(found))

    def mapped(self, guests: int, number: int, *, deadline: Deadline) -> str:
        """What the site's own script prints for guest `number` of so many. AddressError, ConfigError."""
        return str(self._ask("mapped", guests, number, deadline=deadline))

    def knows(self, key: str) -> bool:
        """Whether mom knows the job."""
        return bool(self._ask("knows", key, deadline=Deadline(_SOON_SECONDS)))

    def has_script(self, path: Path) -> bool:
        """Whether a job's script is there, in mom's own directory."""
        return bool(self._ask("has_script", str(path), deadline=Deadline(_SOON_SECONDS)))

    def watch(self) -> int:
        """A descriptor of inotify's, to be closed by the caller, which tells when mom's jobs change."""
        return int(self._ask("watch", deadline=Deadline(_SOON_SECONDS)))

    def inspect(self, image: int, deadline: Deadline) -> str:
        """What a child that is nobody says of the image behind a descriptor. CommandError."""
        return str(self._ask("inspect", deadline=deadline, handle=image))

    def downloader(self) -> Caller:
        """Who is nobody, and downloads what he is asked for until nobody asks."""
        handle = int(self._ask("downloader", deadline=Deadline(_SOON_SECONDS)))
        return Caller("the download", socket.socket(fileno=handle))

    def tell_prometheus(self, text: str) -> None:
        """Put what is to be measured of this node where the site wants it."""
        self._ask("tell_prometheus", text, deadline=Deadline(_SOON_SECONDS))

    def launch(self, orders: bytes, place: int, *, talks: bool) -> None:
        """Start a guard of this job, who takes over the descriptor of her place."""
        self._ask("launch", orders.decode(), talks, deadline=Deadline(_SOON_SECONDS), handle=place)

    def note(self, about: Mapping[str, object]) -> None:
        """A line of the audit log."""
        self._ask("note", dict(about), deadline=Deadline(_SOON_SECONDS))

    def _ask(self, verb: str, *words: object, deadline: Deadline, handle: int | None = None) -> Any:
        try:
            return self._root.ask(verb, *words, deadline=deadline, handle=handle)
        except servant.Gone as error:
            raise StateError("what is root for this hook has ended", details=str(error)) from error
