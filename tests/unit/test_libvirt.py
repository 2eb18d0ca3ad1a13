# SPDX-License-Identifier: Apache-2.0
"""What becomes of libvirt's answers when the daemon is lost, hangs, or sees its domains end meanwhile."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest

from vtorque.backends.hypervisor import Usage
from vtorque.backends.hypervisor.inspector import Inspector
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, HypervisorError


def failure(code: int) -> Exception:
    error: Exception = libvirt.libvirtError("told to fail")
    error.err = (code, 0, "told to fail", 2)  # type: ignore[attr-defined]
    return error


GONE = failure(libvirt.VIR_ERR_NO_DOMAIN)
LOST = failure(libvirt.VIR_ERR_RPC)


class Domain:
    """A domain that may end between two questions."""

    def __init__(self, *, ends: bool = False) -> None:
        self._ends = ends

    def state(self) -> list[int]:
        return [self._answer(libvirt.VIR_DOMAIN_RUNNING), 0]

    def info(self) -> list[int]:
        return [self._answer(libvirt.VIR_DOMAIN_PAUSED), 0, 64 << 10, 1, 1_500_000_000]

    def destroyFlags(self, flags: int) -> None:  # noqa: N802
        """Says that it is done."""

    undefineFlags = destroyFlags  # noqa: N815

    def _answer(self, answer: int) -> int:
        if self._ends:
            raise GONE
        return answer


class Connection:
    """A connection with at most one domain; it says of itself `alive`, or raises that."""

    def __init__(self, *, domain: Domain | Exception = GONE, alive: bool | Exception = True) -> None:
        self._domain, self._alive = domain, alive

    def lookupByName(self, name: str) -> Domain:  # noqa: N802
        if isinstance(self._domain, Exception):
            raise self._domain
        return self._domain

    def isAlive(self) -> bool:  # noqa: N802
        if isinstance(self._alive, Exception):
            raise self._alive
        return self._alive


Connect = Callable[..., Inspector]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """A command's side, with the verbs of hooks and more, of a libvirtd that gives these connections in turn."""

    def give(*connections: Connection | Exception) -> Inspector:
        left = list(connections)

        def opened(uri: str) -> Any:
            found = left.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(libvirt, "open", opened)
        return Inspector("test:///default")

    yield give


@pytest.mark.parametrize("first", [
    Connection(domain=LOST, alive=False), Connection(domain=LOST, alive=LOST), failure(libvirt.VIR_ERR_NO_CONNECT),
], ids=["closed", "broken", "never made"])
def test_a_lost_connection_is_made_anew_once(connect: Connect, first: Connection | Exception) -> None:
    assert connect(first, Connection(domain=Domain())).is_running("a", deadline=Deadline(5))
    with pytest.raises(HypervisorError, match="cannot look at guest a: told to fail"):
        connect(first, Connection(domain=LOST)).is_running("a", deadline=Deadline(5))


@pytest.mark.parametrize("error", [LOST, failure(libvirt.VIR_ERR_OPERATION_FAILED)])
def test_a_connection_that_is_well_is_not_made_anew(connect: Connect, error: Exception) -> None:
    with pytest.raises(HypervisorError, match="cannot destroy guest a: told to fail"):
        connect(Connection(domain=error)).destroy("a", deadline=Deadline(5))


def test_a_daemon_that_hangs_is_left_at_the_deadline(connect: Connect) -> None:
    asked = threading.Event()

    class Hanging(Connection):
        def lookupByName(self, name: str) -> Domain:  # noqa: N802
            asked.wait(5)
            raise GONE

    with pytest.raises(DeadlineExceeded, match="libvirt did not answer in time: look at guest a"):
        connect(Hanging()).is_running("a", deadline=Deadline(0.02))
    asked.set()


def test_a_domain_that_was_destroyed_and_is_still_there_is_no_success(connect: Connect) -> None:
    with pytest.raises(HypervisorError, match="guest a is still there after it was destroyed"):
        connect(Connection(domain=Domain())).destroy("a", deadline=Deadline(5))


@pytest.mark.parametrize(("connection", "running", "usage"), [
    (Connection(domain=Domain()), True, Usage(state="paused", cpu_seconds=1.5, memory_mib=64)),
    (Connection(domain=Domain(ends=True)), False, None),
    (Connection(), False, None),
], ids=["there", "ends meanwhile", "not there"])
def test_what_a_domain_does_is_told_as_long_as_there_is_one(
    connect: Connect, connection: Connection, running: bool, usage: Usage | None
) -> None:
    found = connect(connection)
    assert found.is_running("a", deadline=Deadline(5)) is running
    assert found.usage("a", deadline=Deadline(5)) == usage
