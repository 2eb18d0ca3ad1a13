# SPDX-License-Identifier: Apache-2.0
"""What root does for the program, which is an account of its own, and what of it root refuses.

Root keeps guests' files, starts guests whose documents it has looked at, and acts as the user of the one job
that it was started for. It decides nothing else, and reads nothing that a user sent.
"""

import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtorque import (
    audit,
    confined,
    diskserving,
    domainpolicy,
    files,
    names,
    proc,
    serving,
    sitecommand,
    sitescripts,
    wakeups,
)
from vtorque.backends.hypervisor import Domains
from vtorque.backends.hypervisor.pulse import find
from vtorque.deadline import Deadline
from vtorque.guestfiles import KEY, GuestFiles, refused
from vtorque.identity import Bound as Bound
from vtorque.kinds import Templates
from vtorque.proc import Identity
from vtorque.servant import NOBODY, Handle
from vtorque.settings import Settings

_METRICS_LIMIT = 1 << 20
_ELEMENT = re.compile(r"^([0-9]+)-([0-9]*)", re.ASCII)


class Monitor(GuestFiles):
    """One hook's, guard's or command's; all that is said to it comes from the program and is not believed."""

    def __init__(
        self, site: Settings, program: Identity, *, load: Callable[[], Domains], templates: Templates,
        qemu: tuple[int, int], node: str, bound: Bound | None, downloads: Callable[[], int],
        launch: Callable[[Bound, bytes, int, bool], None] | None = None,
    ) -> None:
        super().__init__(site, qemu=qemu, bound=bound)
        self._program = program
        self._load, self._templates = load, templates
        self._node, self._launch, self._downloads = node, launch, downloads
        self._tagged: set[str] = set()
        self._lock = threading.Lock()
        self._loaded: Domains | None = None

    def templates(self, *, deadline: Deadline) -> list[list[str]]:
        """Names and texts of templates, of which a site's own may be for root's eyes only."""
        return [list(each) for each in self._templates]

    def scripts(self, *, deadline: Deadline) -> dict[str, str]:
        """The site's own scripts for guests. ConfigError."""
        return sitescripts.read(self._site.vm_scripts_dir)

    def make_standing(self, *, deadline: Deadline) -> None:
        """Make the directory in which the node's standing is noted, beside the disks, for the program."""
        self._make_own(names.standing(self._site), mode=0o700)

    def make_cache(self, path: str, *, deadline: Deadline) -> None:
        """Make one of the caches of images, for the program. ConfigError."""
        if Path(path) not in names.caches(self._site):
            raise refused(f"making {path}")
        self._make_own(Path(path), mode=0o711)

    def share(self, *, deadline: Deadline, handle: int) -> None:
        """Let the job's user read a file of the program's, or connect to a socket of its."""
        about = os.fstat(handle)
        if about.st_uid != self._program.uid:
            raise refused("giving away what is not the program's")
        if stat.S_ISSOCK(about.st_mode):
            files.give_handle(handle, uid=self._account.uid)
        elif stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
            files.give_handle(handle, gid=self._job.group)
        else:
            raise refused("giving away what is neither a file nor a socket")

    def serve_share(
        self, path: str, directory: str, readonly: bool, *, deadline: Deadline, handle: int
    ) -> None:
        """Serve a directory to a guest of this job as its user, at the socket `path`; what is said goes to `handle`."""
        serving.start(
            Path(directory), self._served_at(path), readonly=readonly, account=self._account, owner=self._owner,
            log=handle, deadline=deadline,
        )

    def serve_disk(self, path: str, disk: str, new_mib: int, holder: str, *, deadline: Deadline) -> str:
        """Serve the user's own disk to a guest of this job as its user, at the socket `path`; what was said."""
        at, account = self._served_at(path), self._account
        said = diskserving.start(
            disk, new_mib, at, account=account, owner=self._owner, holder=holder, deadline=deadline
        )
        return said.decode(errors="backslashreplace")

    def end_server(self, path: str, patience: float, *, deadline: Deadline) -> None:
        """End what serves at a socket of a guest's, and remove that."""
        serving.end(names.guest_file(Path(path), self._site), patience=patience, deadline=deadline)

    def end_keeper(self, process: str, *, deadline: Deadline) -> None:
        """End a process that is nobody's."""
        proc.end(process, uid=NOBODY.uid, deadline=deadline)

    def start_domain(self, text: str, *, deadline: Deadline) -> None:
        """Start a guest of this job; ConfigError when its document is not one that templates make of such."""
        domainpolicy.require(
            text, key=self._job.key, account=self._account, site=self._site, templates=self._templates
        )
        self._domains.create(text, deadline=deadline)

    def shutdown(self, name: str, *, deadline: Deadline) -> None:
        """Press a guest's power button."""
        if self._is_ours(name, deadline):
            self._domains.shutdown(name, deadline=deadline)

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        """Stop and forget a guest; whether there was one."""
        return self._is_ours(name, deadline) and self._domains.destroy(name, deadline=deadline)

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        """Names of all guests, and the job each belongs to."""
        found = self._domains.domains(deadline=deadline)
        self._tagged |= found.keys()
        return found

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        """Whether there is such a domain, and it runs."""
        return self._domains.is_running(name, deadline=deadline)

    def process_of(self, name: str, *, deadline: Deadline) -> Handle | None:
        """A pidfd of a guest's own process, if one is to be seen."""
        found = find(name) if names.owner_of(f"{name}.pid") else None
        return None if found is None else Handle(found)

    def mapped(self, guests: int, number: int, *, deadline: Deadline) -> str:
        """What the site's own script, which may be for root alone, prints for a guest of this node."""
        argv = (self._site.ip_to_mac_script, self._node.partition(".")[0], str(int(guests)), str(int(number)))
        return sitecommand.ask("IP_TO_MAC_SCRIPT", argv, deadline=deadline).decode(errors="backslashreplace")

    def knows(self, key: str, *, deadline: Deadline) -> bool:
        """Whether mom still knows a job: she keeps its script and her record of it while she does."""
        if KEY.fullmatch(key) is None:
            raise refused(f"looking for {key[:80]!r}")
        jobs = names.jobs(self._site)
        # OpenPBS leaves the brackets of an array's element in its files' names (start_exec.c).
        forms = (key, _ELEMENT.sub(r"\1[\2]", key))
        return any((jobs / f"{form}.{ending}").exists() for form in forms for ending in ("SC", "JB"))

    def has_script(self, path: str, *, deadline: Deadline) -> bool:
        """Whether a job's script is where mom has put it."""
        if Path(path).suffix != ".SC":
            raise refused(f"looking for {path[:80]!r}")
        return Path(path).exists()

    def watch(self, *, deadline: Deadline) -> Handle:
        """What tells when mom begins to know a job, or knows it no more."""
        return Handle(wakeups.Changes(names.jobs(self._site)).fileno())

    def inspect(self, *, deadline: Deadline, handle: int) -> str:
        """What a child that is nobody says of an image."""
        return confined.look_at_image(handle, deadline=deadline).decode(errors="replace")

    def downloader(self, *, deadline: Deadline) -> Handle:
        """The socket at which a child that is nobody is asked to download."""
        return Handle(self._downloads())

    def tell_prometheus(self, text: str, *, deadline: Deadline) -> None:
        """Put what is to be measured of this node where the site wants it."""
        if self._site.prometheus_file and len(text) < _METRICS_LIMIT:
            files.replace(Path(self._site.prometheus_file), text.encode(), mode=0o644)

    def launch(self, orders: str, talks: bool, *, deadline: Deadline, handle: int) -> None:
        """Start a guard of this job, who `talks` to guests; `handle` is its place."""
        if self._launch is None or not self._account:
            raise refused("starting a guard")
        self._launch(self._job, orders.encode(), handle, bool(talks))

    def note(self, about: Mapping[str, Any], *, deadline: Deadline) -> None:
        """A line of the audit log that the program has to say."""
        audit.write({str(name): value for name, value in about.items()})

    @property
    def _domains(self) -> Domains:
        """The hypervisor's library takes time and memory, and not every hook needs it."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _make_own(self, path: Path, *, mode: int) -> None:
        files.require_private(path, owner=self._program.uid)
        files.hand_over(path, mode=mode, uid=self._program.uid, gid=self._program.gid)

    def _is_ours(self, name: str, deadline: Deadline) -> bool:
        """Whether there is a domain of that name with our tag; others' are not touched."""
        return name in self._tagged or name in self.domains(deadline=deadline)
