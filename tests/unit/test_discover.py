# SPDX-License-Identifier: Apache-2.0
"""Finding guests: candidates are tried until one is proven, and every way to fail has its own words."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import KEY, a_job, a_plan, a_request, a_site, an_account
from tests.fakes.filter import FakeFilter
from tests.fakes.guest import FakeAddresses, FakeSession, FakeTransport
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.node import a_node
from vtorque import discover, names, published
from vtorque.backends.transport import KeyPair
from vtorque.boot import Started
from vtorque.deadline import Deadline
from vtorque.errors import (
    AddressError,
    Blame,
    DeadlineExceeded,
    GenerationClosed,
    GuestError,
    HypervisorError,
    RequestError,
    TransportError,
    VtorqueError,
    WrongHostKey,
)
from vtorque.kinds import KEEPER, SHUTDOWN
from vtorque.model import Resource, VmPlan
from vtorque.state import JobState

PLAN = a_plan()
VM = PLAN.vms[0]
READY = f"ready {VM.uuid}\n".encode()


def refusing(error: TransportError) -> Callable[[], FakeSession]:
    def refuse() -> FakeSession:
        raise error

    return refuse


def impostor(address: str) -> Callable[[], FakeSession]:
    return refusing(TransportError(f"the guest at {address} is not the one that was started: its key is SHA256:bad"))


def losing() -> FakeSession:
    """A guest that is proven and lost before it has said that it is ready."""

    class Lost(FakeSession):
        def ask(self, command: str, *, limit: int, deadline: Deadline) -> bytes:
            raise TransportError("lost the connection to the guest at 10.0.0.1")

    return Lost(b"")


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def hanging(self, seconds: float) -> Callable[[], FakeSession]:
        def hang() -> FakeSession:
            self.now += seconds
            raise DeadlineExceeded("out of time: talk SSH with it")

        return hang


class Scene:
    """One guest, running, on a node of fakes."""

    def __init__(self, root: Path, *looks: tuple[str, ...], machines: dict[str, Any]) -> None:
        self.hypervisor = FakeHypervisor()
        tag = "<metadata><v:vtorque xmlns:v='https://vtorque.org/xmlns/domain/1' job='7.srv'/></metadata>"
        self.hypervisor.create(f"<domain><name>{VM.name}</name>{tag}</domain>", deadline=Deadline(9))
        self.addresses = FakeAddresses(*looks)
        self.transport = FakeTransport(machines)
        self.filter = FakeFilter()
        self.state = JobState(root, "7.srv")
        self.state.create()
        site = a_site(state_dir=str(root))
        (self.vm,) = a_plan(site=site).vms
        self.node = a_node(
            site, hypervisor=self.hypervisor, transport=self.transport, filter=self.filter,
            addresses=lambda guests, deadline: self.addresses,
        )
        self.filter.loaded[names.table("7.srv", self.node.site)] = []

    def find(self, seconds: float = 0.05, clock: Clock | None = None) -> Any:
        deadline = Deadline(seconds, clock=lambda: clock.now, sleep=clock.sleep) if clock else Deadline(seconds)
        started = Started(vm=self.vm, host_key=KEY, probe=KeyPair(private="p", public="q"))
        (guest,) = discover.guests(
            [started], job=a_job(), account=an_account(), node=self.node, state=self.state, deadline=deadline
        )
        return guest


def test_a_guest_that_proves_itself_is_found_after_others_were_tried(tmp_path: Path) -> None:
    wrong = refusing(TransportError("the guest at 10.0.0.1 is not the one that was started"))
    machines = {"10.0.0.1": wrong, "10.0.0.2": lambda: FakeSession(READY)}
    scene = Scene(tmp_path, (), ("10.0.0.1",), ("10.0.0.1", "10.0.0.2"), machines=machines)
    assert scene.find(seconds=30).address == "10.0.0.2"
    assert scene.transport.tried == ["10.0.0.1", "10.0.0.2"]
    assert scene.addresses.closed


def test_who_showed_another_key_is_named_so_whatever_he_does_next(tmp_path: Path) -> None:
    tries = iter([WrongHostKey("the guest at 10.0.0.1 is not the one that was started")])

    def impostor() -> FakeSession:
        raise next(tries, TransportError("no SSH with the guest at 10.0.0.1"))

    scene = Scene(tmp_path, ("10.0.0.1",), machines={"10.0.0.1": impostor})
    with pytest.raises(TransportError, match="is not the one that was started"):
        scene.find(seconds=2)
    assert len(scene.transport.tried) > 1


@pytest.mark.parametrize(
    ("looks", "machines", "error", "says"),
    [
        ((), {}, AddressError, r"guest vn1-1 got no address within 0 s"),
        (("10.0.0.1",), {}, TransportError, r"guest vn1-1 .* within 1 s: .* 10\.0\.0\.1 does not answer SSH"),
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
    # Only who waits in vain is let run out of time, and not before he has looked: a busy machine cuts nobody short.
    seconds = 30 if error is GuestError else 0.05 if error is AddressError else 1
    with pytest.raises(error, match=says):
        Scene(tmp_path, looks, machines=machines).find(seconds)


@pytest.mark.parametrize(("word", "error"), [("failed:", GuestError), ("refused:", RequestError)])
def test_a_guests_own_words_are_one_line_that_no_terminal_obeys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, error: type[VtorqueError]
) -> None:
    """They reach the job's standard error, an administrator's terminal, and other nodes."""
    says = f"{word} a\x1b[2J\nvtorque: all is well\r\u202e\x9b2J".encode()

    def reason(place: str) -> str:
        with pytest.raises(error) as caught:
            Scene(tmp_path / place, ("10.0.0.1",), machines={"10.0.0.1": lambda: FakeSession(says)}).find(30)
        return caught.value.one_line()

    told = reason("ours")
    assert told.isprintable() and "a?[2J vtorque: all is well" in told
    monkeypatch.setattr(discover, "printable", lambda text: text)
    assert not reason("weaker").isprintable()


def test_whose_fault_it_was_arrives_whatever_the_words_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else any user could have other nodes taken out for faults of his own."""
    def arrives() -> tuple[Blame, str]:
        text = published.failure_text("n2", "his metadata\n\x1b[2J", Blame.USER)
        try:
            published.read(text, job="7.srv", node_index=1, request=a_request())
        except VtorqueError as error:
            return error.blame, error.brief
        return Blame.BUG, ""

    assert arrives() == (Blame.USER, "node n2: his metadata ?[2J")
    monkeypatch.setattr(published, "printable", lambda text: text)
    assert arrives() == (Blame.USER, "what node 1 published is not its guests")


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


@pytest.mark.parametrize("order", [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")])
def test_of_two_that_claim_to_be_the_guest_the_proven_one_wins(tmp_path: Path, order: tuple[str, ...]) -> None:
    machines = {"10.0.0.1": impostor("10.0.0.1"), "10.0.0.2": lambda: FakeSession(READY)}
    assert Scene(tmp_path, order, machines=machines).find(seconds=30).address == "10.0.0.2"


def test_a_stale_address_is_told_with_the_key_that_was_found_there(tmp_path: Path) -> None:
    machines = {"10.0.0.1": impostor("10.0.0.1")}
    with pytest.raises(TransportError) as caught:
        Scene(tmp_path, ("10.0.0.1",), ("10.0.0.1", "10.0.0.2"), ("10.0.0.2",), machines=machines).find()
    assert caught.value.brief == (
        "guest vn1-1 was not proven within 0 s: the guest at 10.0.0.1 is not the one that was started: "
        "its key is SHA256:bad; the guest at 10.0.0.2 does not answer SSH: Connection refused"
    )


def test_many_addresses_make_no_endless_line(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"10\.0\.0\.2 [^;]*; and 6 other addresses$"):
        Scene(tmp_path, tuple(f"10.0.0.{last}" for last in range(9)), machines={}).find()


def test_an_address_that_changes_or_goes_while_the_guest_boots_is_no_end(tmp_path: Path) -> None:
    machines = {"10.0.0.9": lambda: FakeSession(READY)}
    scene = Scene(tmp_path, ("10.0.0.1",), (), ("10.0.0.1",), ("10.0.0.9",), machines=machines)
    assert scene.find(seconds=30).address == "10.0.0.9"


def test_a_guest_that_is_lost_while_it_is_set_up_is_tried_again(tmp_path: Path) -> None:
    answers: list[Callable[[], FakeSession]] = [losing, losing, lambda: FakeSession(READY)]
    scene = Scene(tmp_path, ("10.0.0.1",), machines={"10.0.0.1": lambda: answers.pop(0)()})
    assert scene.find(seconds=30).address == "10.0.0.1"
    assert len(scene.transport.tried) == 3


def test_an_address_that_hangs_holds_up_the_right_one_only_once(tmp_path: Path) -> None:
    clock = Clock()
    refusals = [refusing(TransportError("not yet"))] * 10
    machines = {
        "10.0.0.1": clock.hanging(5.0), "10.0.0.2": lambda: refusals.pop()() if refusals else FakeSession(READY),
    }
    scene = Scene(tmp_path, ("10.0.0.1", "10.0.0.2"), machines=machines)
    assert scene.find(seconds=120, clock=clock).address == "10.0.0.2"
    assert scene.transport.tried == ["10.0.0.1", *["10.0.0.2"] * 11]


def test_an_address_that_was_slow_gets_its_turn_again_beside_one_that_refuses(tmp_path: Path) -> None:
    clock = Clock()
    answers: list[Callable[[], FakeSession]] = [clock.hanging(5.0), lambda: FakeSession(READY)]
    scene = Scene(tmp_path, ("10.0.0.1", "10.0.0.2"), machines={"10.0.0.1": lambda: answers.pop(0)()})
    assert scene.find(seconds=120, clock=clock).address == "10.0.0.1"
    assert len(scene.transport.tried) <= 25


def test_an_attempt_cut_short_by_the_end_does_not_hide_what_is_known_of_the_address(tmp_path: Path) -> None:
    clock = Clock()
    answers = [impostor("10.0.0.1"), clock.hanging(5.0)]
    scene = Scene(tmp_path, ("10.0.0.1",), machines={"10.0.0.1": lambda: answers.pop(0)()})
    with pytest.raises(TransportError, match=r"within 3 s: .*SHA256:bad$"):
        scene.find(seconds=3, clock=clock)


def test_a_source_that_is_broken_ends_the_wait_at_once(tmp_path: Path) -> None:
    class Broken(FakeAddresses):
        def candidates(self, vm: VmPlan) -> tuple[str, ...]:
            raise AddressError("guest vn1-1: IP_TO_MAC_SCRIPT /s failed with exit status 3: no such node")

    scene = Scene(tmp_path, (), machines={})
    scene.addresses = Broken()
    with pytest.raises(AddressError, match="exit status 3: no such node"):
        scene.find(seconds=600)
    assert scene.addresses.closed


@pytest.mark.parametrize("ends_cleanly", [True, False])
def test_a_guest_that_has_something_to_do_at_its_end_is_noted_once_it_is_proven(
    tmp_path: Path, ends_cleanly: bool
) -> None:
    scene = Scene(tmp_path, ("10.0.0.1",), machines={"10.0.0.1": lambda: FakeSession(READY)})
    started = Started(vm=scene.vm, host_key=KEY, probe=KeyPair(private="p", public="q"), ends_cleanly=ends_cleanly)
    assert scene.state.held() == []
    discover.guests(
        [started], job=a_job(), account=an_account(), node=scene.node, state=scene.state, deadline=Deadline(60)
    )
    noted = [Resource(kind=SHUTDOWN, name=VM.name)]
    assert [each for each in scene.state.held() if each.kind == SHUTDOWN] == (noted if ends_cleanly else [])


def test_what_the_user_brought_and_the_guest_refuses_is_his_fault(tmp_path: Path) -> None:
    says = FakeSession(b"refused: -vm disk=/home/ann/a.img: holds no file system\n")
    scene = Scene(tmp_path, ("10.0.0.1",), machines={"10.0.0.1": lambda: says})
    with pytest.raises(RequestError, match=r"^-vm disk=/home/ann/a.img: holds no file system$"):
        scene.find(seconds=30)


def test_a_book_is_told_how_many_guests_there_are(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("10.0.0.1",), machines={"10.0.0.1": lambda: FakeSession(READY)})
    told = []

    def book(guests: int, deadline: Deadline) -> FakeAddresses:
        told.append((guests, deadline.remaining <= scene.node.site.timeout))
        return scene.addresses

    node = replace(scene.node, addresses=book)
    started = Started(vm=scene.vm, host_key=KEY, probe=KeyPair(private="p", public="q"))
    discover.guests(
        [started] * 3, job=a_job(), account=an_account(), node=node, state=scene.state, deadline=Deadline(600)
    )
    assert told == [(3, True)] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_connection_to_rank_0_is_kept(tmp_path: Path, rank: int) -> None:
    """Once, however often the guest is lost before it has said that it is ready."""
    answers: Iterator[Callable[[], FakeSession]] = iter([losing, lambda: FakeSession(READY)])
    scene = Scene(tmp_path, ("10.0.0.1",), machines={"10.0.0.1": lambda: next(answers)()})
    started = Started(vm=replace(scene.vm, rank=rank), host_key=KEY, probe=KeyPair(private="p", public="q"))
    discover.guests(
        [started], job=a_job(), account=an_account(), node=scene.node, state=scene.state, deadline=Deadline(60)
    )
    assert len(scene.transport.tried) == 2
    assert scene.transport.kept == (["10.0.0.1"] if rank == 0 else [])
    keeper = Resource(kind=KEEPER, name=scene.transport.process)
    assert scene.state.held() == ([keeper] if rank == 0 else [])
