# SPDX-License-Identifier: Apache-2.0
"""What root puts together for a hook, a guard or a sweep: the program, which is an account of its own, and its family.

The program comes first. It reads the configuration, which is root's, and says what root has to go by; until
then it has read nothing of a user's, and after that it is believed no more. Whoever else is anybody but root is
forked before there is a thread.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vtorque import accounts, audit, become, confined, files, logs, names, proc, servant, settings
from vtorque.backends.hypervisor import Domains
from vtorque.backends.transport import PORT
from vtorque.cli.prefix import PREFIX
from vtorque.errors import ConfigError, InternalError, RequestError, printable
from vtorque.identity import Account, job_id, job_key
from vtorque.kinds import Templates
from vtorque.monitor import Bound, Monitor
from vtorque.proc import Identity
from vtorque.servant import CAP_NET_ADMIN, NOBODY, Servant
from vtorque.settings import Settings

log = logging.getLogger(__name__)

_LARGEST_SEED, _LARGEST_TEMPLATE, _LARGEST_WORD = 16 << 20, 1 << 20, 1 << 20
_SETTLE_SECONDS = 60.0
_OWN = {"jobs": 0o711, "guards": 0o700, "attempts": 0o700, "admission": 0o700, "slurm": 0o700, "node": 0o700}
"""What is the program's in STATE_DIR, and who else may pass through."""


class Refused(ConfigError):
    """What is wrong with the configuration; and what the batch system gives a hook all the same, in seconds."""

    def __init__(self, brief: str, *, hint: str, seconds: float | None) -> None:
        super().__init__(brief, hint=hint)
        self.seconds = seconds


class Wanted(NamedTuple):
    """Whom a program needs: it `starts` guests, or `talks` to them."""

    starts: bool = False
    talks: bool = False


class Program:
    """The program, as root sees it; ConfigError when it cannot begin. `live` is its life, at its end of a socket.

    `seconds` are what the batch system gives a hook, `None` where it is none of its.
    """

    def __init__(self, live: Callable[[socket.socket], int], *, step: str) -> None:
        self._step = step
        self._identity = Identity(*accounts.program(), groups=())
        self._pid, self._orders = become.fork_as(self._identity, live, dies_with_us=True)
        try:
            told = self._settled()
            self._everything: Mapping[str, Any] = dict(told["site"])
            self.site: Settings = settings.understood(self._everything)
            self.seconds: float | None = told["seconds"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.dismiss()
            raise InternalError("the program does not begin", details=repr(error)) from error
        _open_logs(self.site, step)

    def run(
        self, wanted: Wanted, *, job: tuple[str, str] | None = None,
        launch: Callable[[Bound, bytes, int, bool], None] | None = None, patience: float | None = None,
    ) -> int:
        """Be root for it, for nobody but the `job`, its id and its user, as long as it lives; its status.

        After so many seconds of `patience`, if there is an end to it, it is killed: others of its account can stop it.
        """
        site = self.site
        bound = None if job is None else _bound(*job, min_uid=site.min_uid)
        qemu = accounts.user_ids(site.qemu_user)
        prepare(site, self._identity)
        texts = read_templates(PREFIX / "templates-vm", Path(site.template_dir)) if wanted.starts else ()
        # A child that closed what it has not opened might close what it opens later.
        _close_logs()
        network = partial(_network, self._everything)
        known_to = {"network": Servant("network", network, identity=NOBODY, keeps=(CAP_NET_ADMIN,))}
        if wanted.talks:
            known_to["speaker"] = Servant("SSH", _speaker, identity=NOBODY)
        if wanted.starts:
            known_to["planner"] = Servant("planner", partial(_planner, self._everything, texts), identity=NOBODY)
        clerk = _clerk(bound)
        _open_logs(site, self._step)
        sockets = {name: each.orders for name, each in known_to.items()} | ({"clerk": clerk[1]} if clerk else {})
        processes = {name: each.process for name, each in known_to.items()}
        self._introduce(sockets, processes)
        monitor = Monitor(
            site, self._identity, load=partial(_domains, site), templates=texts, qemu=qemu,
            node=os.uname().nodename, bound=bound, launch=launch, downloads=_downloads,
        )
        with self._orders, _ended(self._pid, patience):
            servant.serve(monitor, self._orders)
            # Not waited for as long as the timer may still kill it: its number would be somebody else's.
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        pid, self._pid = self._pid, 0
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if clerk:
            _let_go(clerk[0])
        return status

    def dismiss(self) -> None:
        """Let it go, whatever it is doing, if it has not ended."""
        self._orders.close()
        pid, self._pid = self._pid, 0
        if pid:
            _let_go(pid, waits=True)

    def _settled(self) -> dict[str, Any]:
        """The program's first word, which is of root's own configuration."""
        self._orders.settimeout(_SETTLE_SECONDS)
        with self._orders.makefile("rb") as words:
            told: dict[str, Any] = json.loads(words.readline(_LARGEST_WORD))
        self._orders.settimeout(None)
        told["seconds"] = None if told["seconds"] is None else float(told["seconds"])
        if told["failed"]:
            self.dismiss()
            lines = map(printable, str(told["failed"]).splitlines())
            raise Refused("\n".join(lines), hint=printable(str(told["hint"])), seconds=told["seconds"])
        return told

    def _introduce(self, sockets: Mapping[str, socket.socket], processes: Mapping[str, str]) -> None:
        """Tell the program whom it may ask. They end when nobody asks them any more, and root does not."""
        word = json.dumps({"asked": list(sockets), "processes": dict(processes)}).encode() + b"\n"
        socket.send_fds(self._orders, [word], [each.fileno() for each in sockets.values()])
        for each in sockets.values():
            each.close()


def prepare(site: Settings, program: Identity) -> None:
    """See that there is what the program has for itself on this node; ConfigError when STATE_DIR is not root's."""
    root = Path(site.state_dir)
    files.directory(root, mode=0o711)
    files.require_private(root)
    places = {root / name: mode for name, mode in _OWN.items()}
    places[names.accounting(site)] = 0o750
    with contextlib.suppress(OSError):
        # A version before this one had the node's standing there, which an upgrade must not forget.
        before = Path(site.disk_dir, "service.json")
        if before.exists():
            files.directory(names.standing(site), mode=0o700)
            before.rename(names.standing(site) / before.name)
    # What an administrator's command, or a version before this one, has made; else they are made when they are needed.
    places |= {path: 0o700 for path in (names.standing(site), *names.caches(site)) if path.exists()}
    for path, mode in places.items():
        try:
            files.require_private(path, owner=program.uid)
            files.hand_over(path, mode=mode, uid=program.uid, gid=program.gid)
        except (OSError, ConfigError) as error:
            # What is missing is missed by whoever needs it, who then says so.
            log.warning("%s cannot be the program's: %s", path, error)
    with contextlib.suppress(OSError):
        # As such a version has made it, for root alone, there would be no log.
        files.give(Path(site.log_dir), mode=stat.S_IMODE(Path(site.log_dir).stat().st_mode) | 0o011)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(names.log(site), flags, 0o640)
        os.fchown(handle, program.uid, program.gid)
        os.close(handle)


def _open_logs(site: Settings, step: str) -> None:
    with contextlib.suppress(OSError):
        files.directory(Path(site.log_dir), mode=0o711)
    logs.setup(names.log(site), verbose=site.debug_default)
    audit.setup(site.audit_log, Path(site.log_dir), step=step)


def _close_logs() -> None:
    logs.setup(None)
    audit.setup("none", Path(), step="")


def read_templates(*directories: Path) -> Templates:
    """All templates below `directories`, of one name that of the last; what is no text is none.

    A site may have other things there, and an editor's.
    """
    found = {}
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            with contextlib.suppress(FileNotFoundError, UnicodeError):
                if path.is_file() and path.stat().st_size <= _LARGEST_TEMPLATE:
                    found[str(path.relative_to(directory))] = path.read_text(encoding="utf-8")
    return tuple(found.items())


def _bound(job: str, user: str, *, min_uid: int) -> Bound:
    identity, account = job_id(job), None
    # What is wrong with him the program tells who has to know.
    with contextlib.suppress(RequestError):
        account = accounts.account(user, min_uid=min_uid)
    return Bound(id=identity, key=job_key(identity), user=user, account=account, group=accounts.primary_group(user))


@contextlib.contextmanager
def _ended(pid: int, seconds: float | None) -> Iterator[None]:
    """Kill a child of ours, whom nobody may wait for meanwhile, when it takes so long."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(max(0.0, seconds), os.kill, (pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _clerk(bound: Bound | None) -> tuple[int, socket.socket] | None:
    """A child that has become the job's user, and the socket at which it is told what to do in his home."""
    if bound is None or bound.account is None:
        return None
    account: Account = bound.account
    identity = Identity(uid=account.uid, gid=account.group.gid, groups=tuple(group.gid for group in account.groups))

    def work(orders: socket.socket) -> None:
        from vtorque.userclerk import Clerk

        Clerk(account.home).serve(orders)

    return become.fork_as(identity, work)


def _let_go(pid: int, *, waits: bool = False) -> None:
    """Kill a child, be it stopped; who does not wait leaves one that hangs in the kernel to that."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0 if waits else os.WNOHANG)


def _domains(site: Settings) -> Domains:
    from vtorque.backends.hypervisor.libvirt import Libvirt

    return Libvirt(site.libvirt_uri)


def _network(told: Mapping[str, Any]) -> object:
    from vtorque.netkeeper import NetKeeper

    return NetKeeper.of_site(told)


def _planner(told: Mapping[str, Any], texts: Templates) -> object:
    from vtorque.planner import Planner

    # A seed is all that it has to write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_SEED, _LARGEST_SEED))
    return Planner.of_site(told, texts)


def _downloads() -> int:
    """A socket at which a new child that is nobody is asked to download: by now there are threads, it begins anew."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [*confined.powerless(), sys.executable, "-IS", str(PREFIX / "scripts" / "hook"), "downloader"]
        proc.detach(proc.spawn(
            argv, stdin=theirs.fileno(), stdout=proc.DEVNULL, stderr=proc.DEVNULL, env=proc.CLEAN_ENV, cwd=Path("/")
        ))
        return ours.detach()


def _speaker() -> object:
    from vtorque.backends.transport.speaker import Speaker

    return Speaker(PORT)
