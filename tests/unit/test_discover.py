# SPDX-License-Identifier: Apache-2.0
"""Finding guests: candidates are tried until one is proven, and every way to fail has its own words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders import KEY, a_job, a_plan, a_shape, a_site
from tests.fakes.guest import FakeAddresses, FakeSession, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from vtorque import discover
from vtorque.backends.transport import KeyPair
from vtorque.boot import Started
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, GenerationClosed, GuestError, HypervisorError, TransportError
from vtorque.node import Node
from vtorque.state import JobState

PLAN = a_plan()
VM = PLAN.vms[0]
READY = f"ready {VM.uuid}\n".encode()


def refusing(error: TransportError) -> Callable[[], FakeSession]:
    def refuse() -> FakeSession:
        raise error

    return refuse


class Scene:
    """One guest, running, on a node of fakes."""

    def __init__(self, root: Path, *looks: tuple[str, ...], machines: dict[str, Any]) -> None:
        self.hypervisor = FakeHypervisor()
        tag = "<metadata><v:vtorque xmlns:v='https://vtorque.org/xmlns/domain/1' job='7.srv'/></metadata>"
        self.hypervisor.define(f"<domain><name>{VM.name}</name>{tag}</domain>", deadline=Deadline(9))
        self.hypervisor.start(VM.name, deadline=Deadline(9))
        self.addresses = FakeAddresses(*looks)
        self.transport = FakeTransport(machines)
        self.state = JobState(root, "7.srv")
        self.state.create()
        self.node = Node(
            site=a_site(state_dir=str(root)), shape=a_shape(), hypervisor=self.hypervisor,
            addresses=lambda: self.addresses, transport=self.transport, templates=root, announce="", qemu_ids=(0, 0),
        )

    def find(self, seconds: float = 0.05) -> Any:
        started = Started(vm=VM, host_key=KEY, probe=KeyPair(private="p", public="q"))
        (guest,) = discover.guests(
            [started], job=a_job(), user="ann", node=self.node, state=self.state, deadline=Deadline(seconds)
        )
        return guest


def test_a_guest_that_proves_itself_is_found_after_others_were_tried(tmp_path: Path) -> None:
    wrong = refusing(TransportError("the guest at 10.0.0.1 is not the one that was started"))
    machines = {"10.0.0.1": wrong, "10.0.0.2": lambda: FakeSession(READY)}
    scene = Scene(tmp_path, (), ("10.0.0.1",), ("10.0.0.1", "10.0.0.2"), machines=machines)
    assert scene.find(seconds=30).address == "10.0.0.2"
    assert scene.transport.tried == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]
    assert scene.addresses.closed


@pytest.mark.parametrize(
    ("looks", "machines", "error", "says"),
    [
        ((), {}, AddressError, r"guest vn1-1 got no address within 0 s"),
        (("10.0.0.1",), {}, TransportError, r"10\.0\.0\.1 does not answer SSH: Connection refused within"),
        (("10.0.0.1",), {"10.0.0.1": lambda: FakeSession(b"failed: cannot mount nfs:/home: timed out\n")},
         GuestError, r"guest vn1-1: cannot mount nfs:/home: timed out"),
        (("10.0.0.1",), {"10.0.0.1": lambda: FakeSession(b"")}, GuestError, "did not say how its set-up ended"),
        (("10.0.0.1",), {"10.0.0.1": lambda: FakeSession(None)}, GuestError, "did not finish its set-up"),
        (("10.0.0.1",), {"10.0.0.1": lambda: FakeSession(b"ready 0000\n")}, GuestError, "has the DMI UUID '0000', not"),
        (("10.0.0.1",), {"10.0.0.1": lambda: FakeSession(b"ready " + b"x" * 10**6)}, GuestError, "UUID 'x{40}', not"),
    ],
)
def test_every_way_to_fail_names_the_guest_and_the_reason(
    tmp_path: Path, looks: tuple[str, ...], machines: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Scene(tmp_path, looks, machines=machines).find()


def test_a_guest_that_stopped_is_not_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, (), machines={})
    scene.hypervisor.destroy(VM.name, deadline=Deadline(9))
    with pytest.raises(HypervisorError, match="guest vn1-1 stopped while it was booting"):
        scene.find(seconds=600)


def test_when_the_job_is_deleted_nobody_waits_any_longer(tmp_path: Path) -> None:
    scene = Scene(tmp_path, (), machines={})
    with scene.state.closing(deadline=Deadline(9)):
        pass
    with pytest.raises(GenerationClosed):
        scene.find(seconds=600)
