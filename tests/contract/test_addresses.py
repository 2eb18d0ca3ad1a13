# SPDX-License-Identifier: Apache-2.0
"""Address books against the real thing: the site's programs, the arp command, a kernel's neighbour table."""

import contextlib
import ctypes
import io
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import paramiko
import pytest

from tests.builders import a_plan, a_request, a_site
from tests.fakes.node import Here, a_monitor
from vtorque import proc
from vtorque.backends.address.arp import ArpTable
from vtorque.backends.address.mapping import MappingScript
from vtorque.backends.address.neighbour import Neighbours
from vtorque.backends.transport import keys
from vtorque.backends.transport.ssh import Ssh
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, ConfigError, DeadlineExceeded, WrongHostKey
from vtorque.rootside import RootSide

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="root's own programs, and a network namespace"),
]

ROOT = Path(__file__).resolve().parents[2]
MAC, LIAR = "52:54:00:12:34:56", "52:54:00:00:00:01"
VMS = tuple(replace(vm, mac=MAC) for vm in a_plan(request=a_request(vms_per_node=3)).vms)
VM = VMS[0]
ARP = Path("/usr/sbin/arp")
CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def a_script(directory: Path, body: str, *, mode: int = 0o755) -> Path:
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(mode)
    return path


def mapping(
    script: Path, *, node: str = "n1.cluster.org", guests: int = 3, seconds: float = 30.0
) -> MappingScript:
    """The site's script, which root runs: it may be for nobody else."""
    root = RootSide(Here(a_monitor(a_site(ip_to_mac_script=str(script)), node=node)))
    return MappingScript(script, root=root, guests=guests, deadline=Deadline(seconds))


def ask(script: Path, seconds: float = 30.0, slot: int = 0) -> tuple[str, ...]:
    with contextlib.closing(mapping(script, seconds=seconds)) as book:
        return book.candidates(VMS[slot])


def refused(script: Path, seconds: float = 30.0) -> str:
    with pytest.raises(AddressError) as caught:
        ask(script, seconds)
    assert "\n" not in caught.value.one_line()
    return caught.value.brief


class TestMappingScript:
    def test_it_is_called_once_for_each_guest_with_the_manuals_arguments(self, tmp_path: Path) -> None:
        calls = tmp_path / "calls"
        script = a_script(tmp_path, f'echo "$# $*" >>{calls}; echo 10.0.0.$3')
        book = mapping(script)
        looks = [book.candidates(vm) for vm in (*VMS, *VMS)]
        assert looks == [("10.0.0.1",), ("10.0.0.2",), ("10.0.0.3",)] * 2
        assert calls.read_text().splitlines() == ["3 n1 3 1", "3 n1 3 2", "3 n1 3 3"]

    def test_it_sees_nothing_of_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_PRELOAD_OF_A_USER", "x")
        seen = tmp_path / "seen"
        ask(a_script(tmp_path, f"env >{seen}; pwd >>{seen}; cat >>{seen}; echo 10.0.0.1"))
        own = {"PWD=/", "/", "SHLVL=0", "_=/usr/bin/env", "OLDPWD=/"}
        assert set(seen.read_text().splitlines()) - own == {f"{k}={v}" for k, v in proc.CLEAN_ENV.items()}

    @pytest.mark.parametrize(
        ("says", "address"),
        [("10.0.0.5", "10.0.0.5"), (r"\n  10.0.0.5\t \n\n", "10.0.0.5"), ("FD00:0::5", "fd00::5")],
    )
    def test_one_address_of_either_kind_is_taken(self, tmp_path: Path, says: str, address: str) -> None:
        assert ask(a_script(tmp_path, f"printf '{says}'")) == (address,)

    @pytest.mark.parametrize(
        "says",
        ["", r"\n", "10.0.0.5 10.0.0.6", r"10.0.0.5\n10.0.0.6\n", MAC, f"{MAC} 10.0.0.5", "10.0.0.256",
         "10.0.0.5/24", "fe80::5", "127.0.0.1", r"\377\000\033", "none"],
    )
    def test_anything_else_is_shown_in_one_line(self, tmp_path: Path, says: str) -> None:
        script = a_script(tmp_path, f"printf '{says}'")
        text = refused(script)
        assert text.startswith(f"guest vn1-1: IP_TO_MAC_SCRIPT {script} printed '")
        assert text.endswith("', not one address of a guest, IPv4 or IPv6")
        assert text.isprintable()

    def test_not_all_of_much_output_is_shown(self, tmp_path: Path) -> None:
        assert f" printed '{'x' * 80}', not" in refused(a_script(tmp_path, "printf %05000d 0 | tr 0 x"))

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("echo 10.0.0.5; echo ' no such node' >&2; echo >&2; exit 3", "failed with exit status 3: no such node"),
            ("exit 255", "failed with exit status 255: no message"),
            ("kill -9 $$", "was killed by signal 9: no message"),
        ],
    )
    def test_a_failure_is_told_with_the_status_and_the_first_line(self, tmp_path: Path, body: str, says: str) -> None:
        script = a_script(tmp_path, body)
        assert refused(script) == f"guest vn1-1: IP_TO_MAC_SCRIPT {script} {says}"

    def test_one_that_hangs_is_killed_with_all_that_it_started(self, tmp_path: Path) -> None:
        pid = tmp_path / "pid"
        script = a_script(tmp_path, f"trap '' TERM; sleep 600 & echo $! >{pid}; wait")
        assert refused(script, 1.2) == f"guest vn1-1: IP_TO_MAC_SCRIPT {script} did not end within 1 s"
        for _ in Deadline(20).ticks(doing="see it gone"):
            if not is_running(int(pid.read_text())):
                break

    def test_what_cannot_be_run_is_named(self, tmp_path: Path) -> None:
        script = a_script(tmp_path, "", mode=0o644)
        assert refused(script) == f"guest vn1-1: IP_TO_MAC_SCRIPT: cannot run {script}: Permission denied"
        script.write_text("echo 10.0.0.5\n")
        script.chmod(0o755)
        assert refused(script) == f"guest vn1-1: IP_TO_MAC_SCRIPT: cannot run {script}: Exec format error"
        script.unlink()
        assert refused(script) == f"guest vn1-1: IP_TO_MAC_SCRIPT {script}: No such file or directory"

    def test_what_others_could_have_changed_is_not_run(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        script = a_script(tmp_path, f"touch {ran}; echo 10.0.0.5")
        link = tmp_path / "link"
        link.symlink_to(script)
        script.chmod(0o775)
        with pytest.raises(ConfigError, match=f"IP_TO_MAC_SCRIPT: {script} is writable by others"):
            ask(script)
        with pytest.raises(ConfigError, match=f"IP_TO_MAC_SCRIPT: {link} is a symbolic link"):
            ask(link)
        script.chmod(0o755)
        os.chown(script, 12345, -1)
        with pytest.raises(ConfigError, match=f"IP_TO_MAC_SCRIPT: {script} belongs to uid 12345"):
            ask(script)
        assert not ran.exists()

    def test_the_example_gives_every_guest_of_a_node_an_address(self, tmp_path: Path) -> None:
        script = Path(shutil.copy(ROOT / "contrib/ip-mapping.sh", tmp_path))
        book = mapping(script, node="node017.cluster.org")
        assert [book.candidates(vm) for vm in VMS] == [("10.77.17.1",), ("10.77.17.2",), ("10.77.17.3",)]
        for node in ("login", "node255", "node"):
            with pytest.raises(AddressError, match=f"exit status 1: no addresses for guests of {node}"):
                mapping(script, node=node).candidates(VM)
        with pytest.raises(AddressError, match="exit status 1: 100 guests on node17, addresses for 99"):
            mapping(script, node="node17", guests=100).candidates(replace(VM, slot=99))


class TestArpCommand:
    def test_it_is_asked_in_growing_intervals_and_not_more_often_than_waited_for(self, tmp_path: Path) -> None:
        calls = tmp_path / "calls"
        line = f"? (10.0.0.5) at {MAC} [ether] on br0"
        program = a_script(tmp_path, f"echo \"$*\" >>{calls}; echo '{line}'")
        clock = [0.0]

        def sleep(seconds: float) -> None:
            clock[0] += seconds

        deadline = Deadline(120, clock=lambda: clock[0], sleep=sleep)
        book = ArpTable(program, bridge="br0", deadline=deadline)
        looks: list[float] = []
        while clock[0] < 20:
            assert book.candidates(VM) == ("10.0.0.5",)
            made = calls.read_text().splitlines()
            looks += [clock[0]] * (len(made) - len(looks))
            book.wait(0.25)
        pauses = [later - former for former, later in pairwise(looks)]
        assert pauses[0] == pytest.approx(0.1)
        assert pauses == sorted(pauses, key=lambda pause: round(pause, 6))
        assert pauses[-1] == pytest.approx(1.0)
        assert set(made) == {"-an"}

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("echo 'arp: no such option' >&2; exit 4", "failed with exit status 4: arp: no such option"),
            ("exec sleep 600", "did not end within 1 s"),
        ],
    )
    def test_one_that_fails_or_hangs_is_told_in_one_line(self, tmp_path: Path, body: str, says: str) -> None:
        program = a_script(tmp_path, body)
        with pytest.raises(AddressError) as caught:
            ArpTable(program, bridge="br0", deadline=Deadline(1.2)).candidates(VM)
        assert caught.value.one_line() == f"ARP_BIN {program} {says}"

    def test_at_the_end_of_the_whole_wait_nobody_blames_the_program(self, tmp_path: Path) -> None:
        with pytest.raises(DeadlineExceeded):
            ArpTable(a_script(tmp_path, "exec sleep 600"), bridge="br0", deadline=Deadline(0.3)).candidates(VM)

    def test_what_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(AddressError, match=f"ARP_BIN {tmp_path}/arp: No such file or directory"):
            ArpTable(tmp_path / "arp", bridge="br0", deadline=Deadline(5)).candidates(VM)


class Network:
    """A node with a bridge and a guest on it, each in a network namespace of its own."""

    def __init__(self, key: str) -> None:
        self.node, self.guest = f"vt-node-{key}", f"vt-guest-{key}"

    def make(self) -> None:
        for name in (self.node, self.guest):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", self.node, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", self.node, "link", "add", "tap0", "type", "veth", "peer", "name", "eth0", "netns", self.guest)
        run("ip", "-n", self.guest, "link", "set", "eth0", "address", MAC, "up")
        run("ip", "-n", self.node, "link", "set", "tap0", "master", "br0", "up")
        run("ip", "-n", self.node, "link", "set", "br0", "up")
        for name, device, last in ((self.node, "br0", 1), (self.guest, "eth0", 5)):
            run("ip", "-n", name, "address", "add", f"10.77.0.{last}/24", "dev", device)
            run("ip", "-n", name, "address", "add", f"fd77::{last}/64", "dev", device, "nodad")

    def remove(self) -> None:
        for name in (self.guest, self.node):
            subprocess.run(["ip", "netns", "del", name], check=False)

    def neighbour(self, *words: str) -> None:
        run("ip", "-n", self.node, "neighbour", *words)

    def speak(self, address: str) -> None:
        """One packet of the guest's to the node, as its set-up sends it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def send() -> None:
            with socket.socket(family, socket.SOCK_DGRAM) as packets:
                packets.sendto(b"here", (address, 9))

        inside(self.guest, send)


def run(*words: str, text: str = "") -> None:
    subprocess.run(words, check=True, input=text.encode(), timeout=60)


def inside(namespace: str, do: Callable[[], T]) -> T:
    """What `do` gives in a thread that has gone into a network namespace; sockets made there stay there."""

    def work() -> T:
        with Path("/run/netns", namespace).open() as handle:
            assert ctypes.CDLL(None).setns(handle.fileno(), CLONE_NEWNET) == 0
        return do()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(str(os.getpid()))
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture
def book(network: Network) -> Iterator[Neighbours]:
    with contextlib.closing(inside(network.node, lambda: Neighbours("br0"))) as opened:
        yield opened


def becomes(book: Neighbours, *expected: str, seconds: float = 20.0) -> bool:
    """Whether, waiting as the kernel tells, these come to be the candidates, in any order."""
    deadline = Deadline(seconds)
    while set(book.candidates(MAC)) != set(expected) and not deadline.expired:
        book.wait(deadline.remaining)
    return set(book.candidates(MAC)) == set(expected)


class TestNeighbourTable:
    def test_a_guest_is_seen_as_soon_as_it_speaks_on_either_protocol(self, network: Network, book: Neighbours) -> None:
        assert book.candidates(MAC) == ()
        network.speak("10.77.0.1")
        assert becomes(book, "10.77.0.5")
        network.speak("fd77::1")
        assert becomes(book, "10.77.0.5", "fd77::5")

    def test_what_was_there_before_is_known_from_the_start(self, network: Network) -> None:
        network.speak("10.77.0.1")
        network.neighbour("add", "10.77.0.9", "lladdr", LIAR, "dev", "br0")
        with contextlib.closing(inside(network.node, lambda: Neighbours("br0"))) as late:
            assert becomes(late, "10.77.0.5")

    def test_an_address_that_changes_or_goes_is_followed(self, network: Network, book: Neighbours) -> None:
        network.speak("10.77.0.1")
        assert becomes(book, "10.77.0.5")
        run("ip", "-n", network.guest, "address", "del", "10.77.0.5/24", "dev", "eth0")
        run("ip", "-n", network.guest, "address", "add", "10.77.0.6/24", "dev", "eth0")
        network.speak("10.77.0.1")
        assert becomes(book, "10.77.0.5", "10.77.0.6")
        network.neighbour("del", "10.77.0.5", "dev", "br0")
        assert becomes(book, "10.77.0.6")

    def test_an_address_that_another_machine_takes_is_no_candidate_any_more(
        self, network: Network, book: Neighbours
    ) -> None:
        network.speak("10.77.0.1")
        assert becomes(book, "10.77.0.5")
        network.neighbour("replace", "10.77.0.5", "lladdr", LIAR, "dev", "br0", "nud", "reachable")
        assert becomes(book)

    def test_those_just_talked_to_come_before_stale_ones(self, network: Network, book: Neighbours) -> None:
        for address, state in (("10.77.0.7", "stale"), ("fd77::7", "reachable"), ("10.77.0.8", "reachable")):
            network.neighbour("replace", address, "lladdr", MAC.upper(), "dev", "br0", "nud", state)
        assert becomes(book, "10.77.0.7", "10.77.0.8", "fd77::7")
        assert book.candidates(MAC) == ("10.77.0.8", "fd77::7", "10.77.0.7")

    def test_what_happens_elsewhere_wakes_nobody(self, network: Network, book: Neighbours) -> None:
        run("ip", "-n", network.node, "link", "add", "other", "type", "bridge")
        run("ip", "-n", network.node, "link", "set", "other", "up")
        network.neighbour("replace", "10.78.0.5", "lladdr", MAC, "dev", "other", "nud", "permanent")
        began = time.monotonic()
        book.wait(0.6)
        assert time.monotonic() - began >= 0.6
        assert book.candidates(MAC) == ()

    def test_messages_that_were_lost_are_made_good(self, network: Network, book: Neighbours) -> None:
        changes = (f"neighbour replace 10.77.0.9 lladdr {mac} dev br0 nud permanent\n" for mac in (MAC, LIAR) * 2000)
        last = f"neighbour replace 10.77.0.10 lladdr {MAC} dev br0 nud permanent\n"
        run("ip", "-n", network.node, "-batch", "-", text="".join(changes) + last)
        assert becomes(book, "10.77.0.10")

    @pytest.mark.skipif(not ARP.exists(), reason="net-tools are not installed")
    def test_the_arp_command_tells_the_same(self, network: Network) -> None:
        def look(mac: str) -> tuple[str, ...]:
            with contextlib.closing(ArpTable(ARP, bridge="br0", deadline=Deadline(30))) as table:
                return table.candidates(replace(VM, mac=mac))

        assert inside(network.node, lambda: look(MAC)) == ()
        network.speak("10.77.0.1")
        network.neighbour("add", "10.77.0.9", "lladdr", LIAR, "dev", "br0", "nud", "permanent")
        network.neighbour("add", "10.77.0.7", "lladdr", LIAR, "dev", "br0", "nud", "stale")
        assert inside(network.node, lambda: look(MAC.upper())) == ("10.77.0.5",)
        assert sorted(inside(network.node, lambda: look(LIAR))) == ["10.77.0.7", "10.77.0.9"]


class TestProofOverIpv6:
    def test_a_guest_proves_itself_at_an_ipv6_address_and_an_impostor_does_not(self, network: Network) -> None:
        host, other, user = keys.make(), keys.make(), keys.make()
        listener = inside(network.guest, lambda: socket.create_server(("fd77::5", 2222), family=socket.AF_INET6))
        with listener, ThreadPoolExecutor(1) as pool:
            for expected, error in ((host.public, None), (other.public, WrongHostKey)):
                answer = pool.submit(serve_once, listener, host.private)

                def log_in(key: str = expected) -> None:
                    Ssh(2222).open(
                        "fd77::5", user="ann", key=user.private, host_key=key, deadline=Deadline(30)
                    ).close()

                with pytest.raises(error, match="at fd77::5 is not the one") if error else contextlib.nullcontext():
                    inside(network.node, log_in)
                answer.result(30).close()


class AnyUser(paramiko.ServerInterface):  # type: ignore[misc]
    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"


def serve_once(listener: socket.socket, key: str) -> paramiko.Transport:
    connection, _ = listener.accept()
    transport = paramiko.Transport(connection)
    transport.add_server_key(paramiko.Ed25519Key(file_obj=io.StringIO(key)))
    transport.start_server(server=AnyUser(), event=threading.Event())
    return transport
