# SPDX-License-Identifier: Apache-2.0
"""What the job's wrapper becomes on the node: the bridge between mom and the script in the guest."""

import contextlib
import json
import os
import pwd
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from vtorque import accounts, config, display, files, published, run, wakeups
from vtorque.backends.batch import front
from vtorque.backends.transport.kept import Kept, take
from vtorque.backends.transport.session import Session, Terminal
from vtorque.backends.transport.ssh import Ssh
from vtorque.backends.transport.sshsession import OutputLost
from vtorque.cli.prefix import PREFIX
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline, growing
from vtorque.display import Display
from vtorque.errors import DeadlineExceeded, RequestError, TransportError, VtorqueError
from vtorque.job import phases_name
from vtorque.model import Peer, job_id, job_key
from vtorque.run import ExitStatus, Guests, NotStarted
from vtorque.state import CONNECTION
from vtorque.submit import JobFile
from vtorque.wakeups import Changes

_JOB_FILE_LIMIT = 1 << 20
_LOST_LIMIT = 4096
# Guards of other nodes write over NFS, of which no kernel tells; its client asks the server
# whether a directory has changed after seconds only (nfs(5), acdirmin), so looking more often shows nothing.
_LONGEST_PAUSE_SECONDS = 2.0
_AT_ONCE = 16
# What a batch system or a user sends to a job. KILL needs no passing on: it ends
# this process, and the guest's side sees the connection close.
_PASSED_ON = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "CONT")


def main(argv: Sequence[str]) -> int:
    """`argv` is the request id and the script's own arguments; the job's exit status."""
    try:
        return _Bridge(argv[0], argv[1:]).run()
    except NotStarted as error:
        _say(error.brief)
        return error.status
    except TransportError as error:
        _say(error.one_line())
        return ExitStatus.LOST
    except RequestError as error:
        _say(error.one_line())
        return ExitStatus.REFUSED
    except VtorqueError as error:
        _say(error.one_line())
        return ExitStatus.NO_GUEST
    except Exception as error:  # noqa: BLE001
        _say(f"internal error: {error!r}")
        return ExitStatus.BUG


class _Bridge:
    """One job between mom and its guests."""

    def __init__(self, request_id: str, arguments: Sequence[str]) -> None:
        self._directory = Path(pwd.getpwuid(os.getuid()).pw_dir, ".vtorque", request_id)
        self._arguments = arguments
        self._site: SiteConfig = config.load(config.find(PREFIX), trusted_owner=0)
        self._batch = front.by_name(self._site.batch_system).job_environment(os.environ)
        self._job = job_id(self._batch.get("PBS_JOBID", ""))
        self._state = Path(self._site.state_dir) / "jobs" / job_key(self._job)
        self._guests: Guests = run.proven(self._state, self._job, owner=accounts.program()[0])
        try:
            self._about = JobFile.parse(files.read(self._directory / "job.json", limit=_JOB_FILE_LIMIT))
            self._key = files.read(self._directory / "key", limit=_JOB_FILE_LIMIT, owner=os.getuid()).decode()
        except FileNotFoundError as error:
            raise RequestError(f"{error.filename} is gone", hint="submit the job again") from None
        self._lost = ""

    def run(self) -> int:
        """The script between the user's own prologue and epilogue; its exit status."""
        shown = display.find(os.environ) if self._about.x11 else None
        self._furnish()
        with self._connected(self._guests.peers[0], take(self._state / CONNECTION)) as session:
            _pass_signals_on(session)
            threading.Thread(target=self._watch, args=(session,), daemon=True).start()
            try:
                if status := self._everywhere("vm_prologue", session):
                    return status
                self._note("running")
                status = self._script(session, shown)
                self._note("ended")
                self._everywhere("vm_epilogue", session)
            except TransportError:
                if self._lost:
                    raise TransportError(self._lost) from None
                raise
        return status

    def _furnish(self) -> None:
        """Tell all guests but rank 0, which is told with the script, of one another."""

        def one(peer: Peer) -> None:
            with self._connected(peer) as session:
                status = run.script(session, self._order([], peer), stdout=_writer(1), stderr=_writer(2))
            if status:
                raise TransportError(f"guest {peer.hostname} on node {peer.node} does not take the job's files")

        if others := self._guests.peers[1:]:
            with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
                list(pool.map(one, others))

    def _watch(self, session: Session) -> None:
        """End the job when a guard says that a guest was lost; each says it in a file of her own."""
        with contextlib.closing(Changes(self._directory)) as changes:
            for pause in growing(longest=_LONGEST_PAUSE_SECONDS):
                # A home that cannot be read may be again.
                with contextlib.suppress(OSError, VtorqueError):
                    for path in self._directory.glob(published.LOST):
                        self._lost = files.read(path, limit=_LOST_LIMIT).decode(errors="replace").strip()
                        session.close()
                        return
                wakeups.wait(pause, changes)

    def _script(self, session: Session, shown: Display | None) -> int:
        about = self._about
        script = [str(self._directory / "script" / about.script), *self._arguments] if about.script else []
        text = self._order(script, self._guests.peers[0])
        if not about.interactive:
            return _run(session, text, display=shown)
        with _raw_terminal() as terminal:
            signal.signal(signal.SIGWINCH, lambda number, frame: session.resize())
            deadline = Deadline(self._site.timeout)
            return run.on_terminal(session, text, terminal=terminal, display=shown, deadline=deadline)

    def _everywhere(self, name: str, first: Session) -> int:
        """Run the user's script of that name in every guest, rank 0 first; the first status that is not 0."""
        script = self._directory / name
        if not script.exists():
            return 0
        for peer in self._guests.peers:
            with contextlib.ExitStack() as stack:
                session = first if peer.rank == 0 else stack.enter_context(self._connected(peer))
                text = self._order([str(script)], peer)
                status = _run(session, text)
            if status:
                _say(f"{name} ended with status {status} in guest {peer.hostname}")
                return status
        return 0

    def _order(self, command: Sequence[str], peer: Peer) -> bytes:
        environment = run.job_environment(os.environ, self._batch, self._about.exported, self._guests)
        return run.order(
            environment={**environment, "VTORQUE_RANK": str(peer.rank)},
            directory=_here(),
            shell=self._about.shell,
            command=command,
            files=run.furnishing(self._guests, self._key),
        )

    @contextlib.contextmanager
    def _connected(self, peer: Peer, kept: Kept | None = None) -> Iterator[Session]:
        """Logged in there, over the connection that root's hook has had proven and kept if it is still good."""
        user, deadline = pwd.getpwuid(os.getuid()).pw_name, Deadline(self._site.timeout)
        login = partial(Ssh().open, peer.address, user=user, key=self._key, host_key=peer.host_key)
        session = None
        if kept is not None:
            with contextlib.suppress(TransportError, DeadlineExceeded):
                session = login(kept=kept, deadline=deadline.within(self._site.ssh_timeout))
        session = session or login(deadline=deadline)
        try:
            yield session
        finally:
            session.close()

    def _note(self, phase: str) -> None:
        line = json.dumps({"time": round(time.time(), 3), "phase": phase})
        name = phases_name(job_key(self._job), self._about.elements)
        # A home that is full is no reason not to run the job.
        with contextlib.suppress(OSError), (self._directory / name).open("a") as file:
            file.write(line + "\n")


def _run(session: Session, text: bytes, *, display: Display | None = None) -> int:
    try:
        return run.script(session, text, stdout=_writer(1), stderr=_writer(2), display=display)
    except OutputLost as error:
        # As on bare metal a script with nowhere to print to goes on; but it did not go well.
        _say(error.one_line())
        return error.status or ExitStatus.LOST


def _here() -> str:
    """Where the job is to start, by the name that its shell has for it: the guest may have only the link to it."""
    name = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.samefile(name, "."):  # noqa: PTH121
            return name
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return "."  # of which there is nothing else to say: it was deleted


def _pass_signals_on(session: Session) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        session.send(f"{signal.Signals(number).name.removeprefix('SIG')}\n".encode())

    for name in _PASSED_ON:
        signal.signal(getattr(signal, f"SIG{name}"), pass_on)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[Terminal]:
    """Ours, handed over: what is typed means something to the guest's terminal only."""
    # A signal here ends the session, and the guest hangs up; keys arrive as characters.
    for name in _PASSED_ON:
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_DFL)
    before = termios.tcgetattr(0) if os.isatty(0) else None
    if before is not None:
        # What was typed while the guest was booting stays: the shell is going to read it.
        tty.setraw(0, termios.TCSADRAIN)
    try:
        yield Terminal(
            term=os.environ.get("TERM", "dumb"), size=_size, read=lambda: os.read(0, 1 << 16), write=_writer(1),
        )
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def _size() -> tuple[int, int]:
    try:
        return os.get_terminal_size(0)
    except OSError:
        return 80, 24


def _writer(handle: int) -> Callable[[bytes], Any]:
    return lambda data: files.write_all(handle, data)


def _say(message: str) -> None:
    for line in message.splitlines():
        print(f"vtorque: {line}", file=sys.stderr, flush=True)
