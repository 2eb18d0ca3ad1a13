# SPDX-License-Identifier: Apache-2.0
"""Find each guest's address, and believe it only when the guest proves its SSH host key."""

import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vtorque import files, logs
from vtorque.backends.address import AddressBook
from vtorque.backends.transport import Session
from vtorque.boot import Started
from vtorque.deadline import Deadline
from vtorque.errors import (
    AddressError,
    DeadlineExceeded,
    GuestError,
    HypervisorError,
    TransportError,
    VtorqueError,
)
from vtorque.model import Guest, Job, VmPlan
from vtorque.node import Node
from vtorque.state import JobState

log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.25
_STATUS_LIMIT = 4096
_CONSOLE_LIMIT = 4 << 20
_CONSOLE_LINES = 20


def guests(
    started: Sequence[Started], *, job: Job, user: str, node: Node, state: JobState, deadline: Deadline
) -> tuple[Guest, ...]:
    """Wait until every guest is proven and says that it is ready.

    Raises, naming the guest: AddressError, TransportError, GuestError,
    HypervisorError when it stopped, GenerationClosed when the job was deleted.
    """
    limit = deadline.within(node.site.timeout)

    def one(guest: Started) -> Guest:
        with logs.about(job=job.id, guest=guest.vm.name), logs.step("wait for the guest"):
            return _await(guest, user=user, node=node, state=state, deadline=limit)

    with ThreadPoolExecutor(max_workers=len(started), thread_name_prefix="discover") as pool:
        return tuple(pool.map(one, started))


def _await(guest: Started, *, user: str, node: Node, state: JobState, deadline: Deadline) -> Guest:
    vm = guest.vm
    waited = deadline.remaining
    trouble: VtorqueError = AddressError(
        f"guest {vm.hostname} got no address",
        hint=f"is there a DHCP server for {vm.mac} on bridge {node.site.bridge}?",
    )
    with contextlib.closing(node.addresses()) as book:
        try:
            while True:
                deadline.require(f"waiting for guest {vm.hostname}")
                with state.act(deadline=deadline):
                    _check_alive(vm, node, deadline)
                found = _try_candidates(guest, book, user=user, node=node, deadline=deadline)
                if isinstance(found, Guest):
                    return found
                trouble = found or trouble
                book.wait(min(_WAIT_SECONDS, deadline.remaining))
        except DeadlineExceeded as error:
            raise type(trouble)(
                f"{trouble.brief} within {waited:.0f} s", hint=trouble.hint, details=_console(vm)
            ) from error


def _try_candidates(
    guest: Started, book: AddressBook, *, user: str, node: Node, deadline: Deadline
) -> Guest | TransportError | None:
    """The guest when one address is proven, else why the last one is not, else nothing."""
    trouble = None
    for address in book.candidates(guest.vm):
        try:
            session = node.transport.open(
                address,
                user=user,
                key=guest.probe.private,
                host_key=guest.host_key,
                deadline=deadline.within(node.site.ssh_timeout),
            )
        except TransportError as error:
            log.debug("%s", error.brief)
            trouble = error
            continue
        except DeadlineExceeded as error:
            # That of one attempt; the whole wait has its own.
            trouble = TransportError(f"the guest at {address} is too slow: {error.brief}")
            continue
        with contextlib.closing(session):
            _await_setup(guest.vm, session, deadline)
        return Guest(vm=guest.vm, address=address, host_key=guest.host_key)
    return trouble


def _await_setup(vm: VmPlan, session: Session, deadline: Deadline) -> None:
    """The guest's own word on its set-up: a hint that may fail the start, never a proof."""
    said = bytearray()

    def listen(data: bytes) -> None:
        said.extend(data[: _STATUS_LIMIT - len(said)])

    try:
        session.run("await-setup", stdin=b"", stdout=listen, stderr=lambda data: None, deadline=deadline)
    except DeadlineExceeded:
        raise GuestError(f"guest {vm.hostname} did not finish its set-up", details=_console(vm)) from None
    word, _, rest = said.decode(errors="backslashreplace").strip().partition(" ")
    if word != "ready":
        raise GuestError(f"guest {vm.hostname}: {rest or 'did not say how its set-up ended'}")
    if rest.lower() != str(vm.uuid):
        raise GuestError(f"guest {vm.hostname} has the DMI UUID {rest[:40]!r}, not {vm.uuid}")


def _check_alive(vm: VmPlan, node: Node, deadline: Deadline) -> None:
    if not node.hypervisor.is_running(vm.name, deadline=deadline):
        raise HypervisorError(f"guest {vm.hostname} stopped while it was booting", details=_console(vm))


def _console(vm: VmPlan) -> str:
    """The end of the guest's console, for root's log."""
    try:
        text = files.read(vm.console, limit=_CONSOLE_LIMIT)
    except (OSError, VtorqueError):
        return "no console output"
    return "\n".join(text.decode(errors="backslashreplace").splitlines()[-_CONSOLE_LINES:])
