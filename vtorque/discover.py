# SPDX-License-Identifier: Apache-2.0
"""Find each guest's address, and believe it only when the guest proves its SSH host key."""

import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vtorque import accounting, guestnet, keeping, logs, wakeups
from vtorque.announcement import Announcement
from vtorque.backends.transport import Proven, Prover
from vtorque.boot import Started
from vtorque.deadline import Deadline, growing
from vtorque.errors import (
    AddressError,
    DeadlineExceeded,
    GuestError,
    HypervisorError,
    RequestError,
    TransportError,
    VtorqueError,
    WrongHostKey,
    printable,
)
from vtorque.kinds import SHUTDOWN
from vtorque.model import Account, Guest, Job, Resource, VmPlan
from vtorque.node import Node
from vtorque.state import JobState
from vtorque.wakeups import Changes, Wakeup

log = logging.getLogger(__name__)

# How late a guest may be noticed that does not announce itself. More often, the attempts at one
# that is still booting would take what it boots with: each costs it a refused connection.
_LONGEST_PAUSE_SECONDS = 0.25
_STATUS_LIMIT = 4096
_TOLD = 3


def guests(
    started: Sequence[Started], *, job: Job, account: Account, node: Node, state: JobState, deadline: Deadline
) -> tuple[Guest, ...]:
    """Wait until every guest of `account` is proven and says that it is ready; a connection to rank 0 is kept for him.

    Raises, naming the guest: AddressError, TransportError, GuestError,
    HypervisorError when it stopped, RequestError when it refuses what the user
    brought, GenerationClosed when the job was deleted.
    """
    limit = deadline.within(node.site.timeout)

    def one(guest: Started) -> Guest:
        with logs.about(job=job.id, guest=guest.vm.name), logs.step("wait for the guest"):
            return _await(
                guest, changes, prover, account=account, node=node, guests=len(started), state=state, deadline=limit
            )

    with (
        node.transport.prover() as prover,
        node.hypervisor.changes() as ends,
        contextlib.closing(Changes(state.path)) as record,
        ThreadPoolExecutor(max_workers=len(started), thread_name_prefix="discover") as pool,
    ):
        # One of the threads hears each of them; the others look after their next pause.
        changes = (ends, record)
        return tuple(pool.map(one, started))


class _Search:
    """One guest's candidates, tried one after the other: what each cost, and why it is not the guest's."""

    def __init__(
        self, guest: Started, word: Announcement, prover: Prover, *,
        account: Account, node: Node, state: JobState, deadline: Deadline,
    ) -> None:
        self._guest = guest
        self._word = word
        self._prover = prover
        self._account = account
        self._node = node
        self._state = state
        self._deadline = deadline
        self._spent: dict[str, float] = {}
        self._troubles: dict[str, TransportError] = {}
        self._pauses = growing(longest=_LONGEST_PAUSE_SECONDS)
        self._noted: set[str] = set()
        self._kept = False

    def attempt(self, candidates: Sequence[str]) -> Guest | None:
        """Try what is new, or else what got the least time so far: an address that hangs delays no other for long."""
        if candidates:
            self._note("first-packet")
        self._hear()
        new = [each for each in candidates if each not in self._spent]
        for address in new or sorted(candidates, key=lambda each: self._spent[each])[:1]:
            before = self._deadline.remaining
            try:
                return self._prove(address)
            except TransportError as error:
                log.debug("%s", error.brief)
                # Who showed a key of his own is somebody else, whatever he says next.
                if not isinstance(self._troubles.get(address), WrongHostKey):
                    self._troubles[address] = error
            except DeadlineExceeded as error:
                # That of one attempt. At the end of the whole wait it says nothing about the address.
                if address not in self._troubles or not self._deadline.expired:
                    self._troubles[address] = TransportError(f"the guest at {address} is too slow: {error.brief}")
            cost = max(_LONGEST_PAUSE_SECONDS, before - self._deadline.remaining)
            self._spent[address] = self._spent.get(address, 0.0) + cost
        return None

    def pause(self) -> float:
        """Seconds until it is worth while to look again, if nothing happens before."""
        return min(next(self._pauses), self._deadline.remaining)

    def trouble(self, seconds: float) -> VtorqueError:
        """Why the guest was not found in this time: every address that was tried, with what is there."""
        vm, console = self._guest.vm, _console(self._guest.vm, self._node)
        if not self._troubles:
            return AddressError(
                f"guest {vm.hostname} got no address within {seconds:.0f} s", details=console,
                hint=f"is there a DHCP server for {vm.mac} on bridge {self._node.site.bridge}?",
            )
        briefs = [error.brief for error in self._troubles.values()]
        more = f"; and {len(briefs) - _TOLD} other addresses" if len(briefs) > _TOLD else ""
        text = "; ".join(briefs[:_TOLD]) + more
        return TransportError(f"guest {vm.hostname} was not proven within {seconds:.0f} s: {text}", details=console)

    def _hear(self) -> None:
        """Its word may have come during an attempt that was made without it."""
        wakeups.wait(0, self._word)
        if self._word.heard:
            self._note("announced", word=accounting.GUEST)

    def _note(self, phase: str, *, word: str = "") -> None:
        """A phase that is reached once; after each of them a guest that listens is soon to be expected."""
        if phase not in self._noted:
            self._noted.add(phase)
            self._pauses = growing(longest=_LONGEST_PAUSE_SECONDS)
            self._node.journal.note(phase, rank=self._guest.vm.rank, word=word)

    def _prove(self, address: str) -> Guest:
        guest = self._prover.open(
            address,
            user=self._account.name,
            key=self._guest.probe.private,
            host_key=self._guest.host_key,
            deadline=self._deadline.within(self._node.site.ssh_timeout),
        )
        vm, journal = self._guest.vm, self._node.journal
        found = Guest(vm=vm, address=address, host_key=self._guest.host_key)
        with contextlib.closing(guest):
            self._hear()
            journal.note("ssh", rank=vm.rank)
            if vm.rank == 0 and not self._kept:
                # Now, because the guest has time for it while it is being set up.
                self._kept = True
                keeping.keep(
                    found, self._prover, root=self._node.root, state=self._state, deadline=self._deadline
                )
            _await_setup(vm, guest, self._node, self._deadline)
            journal.note("cloud-init", rank=vm.rank, word=accounting.GUEST)
        return found


def _await(
    guest: Started, changes: Sequence[Wakeup], prover: Prover, *,
    account: Account, node: Node, guests: int, state: JobState, deadline: Deadline,
) -> Guest:
    vm = guest.vm
    waited = deadline.remaining
    with (
        contextlib.closing(node.addresses(guests, deadline)) as book,
        contextlib.closing(_announcement(vm, node)) as word,
    ):
        search = _Search(guest, word, prover, account=account, node=node, state=state, deadline=deadline)
        try:
            while True:
                deadline.require(f"waiting for guest {vm.hostname}")
                with state.act(deadline=deadline):
                    _check_alive(vm, node, deadline)
                found = search.attempt(book.candidates(vm))
                if found is not None:
                    guestnet.pin(vm, found.address, node=node, state=state, deadline=deadline)
                    if guest.ends_cleanly:
                        with state.taking(Resource(kind=SHUTDOWN, name=vm.name), deadline=deadline):
                            pass
                    return found
                book.wait(search.pause(), word, *changes)
        except DeadlineExceeded as error:
            raise search.trouble(waited) from error


def _await_setup(vm: VmPlan, guest: Proven, node: Node, deadline: Deadline) -> None:
    """The guest's own word on its set-up: a hint that may fail the start, never a proof."""
    try:
        said = guest.ask("await-setup", limit=_STATUS_LIMIT, deadline=deadline)
    except DeadlineExceeded:
        raise GuestError(f"guest {vm.hostname} did not finish its set-up", details=_console(vm, node)) from None
    word, _, rest = printable(said.decode(errors="backslashreplace")).partition(" ")
    if word == "refused:":
        raise RequestError(rest)
    if word != "ready":
        reason = rest or "did not say how its set-up ended"
        raise GuestError(f"guest {vm.hostname}: {reason}", details=_console(vm, node))
    if rest.lower() != str(vm.uuid):
        raise GuestError(f"guest {vm.hostname} has the DMI UUID {rest[:40]!r}, not {vm.uuid}")


def _check_alive(vm: VmPlan, node: Node, deadline: Deadline) -> None:
    if not node.hypervisor.is_running(vm.name, deadline=deadline):
        raise HypervisorError(f"guest {vm.hostname} stopped while it was booting", details=_console(vm, node))


def _announcement(vm: VmPlan, node: Node) -> Announcement:
    return Announcement(None if vm.channel is None else node.root.connect(vm.channel))


def _console(vm: VmPlan, node: Node) -> str:
    """The end of the guest's console, for the log."""
    try:
        return node.root.console(vm.console)
    except VtorqueError:
        return "no console output"
