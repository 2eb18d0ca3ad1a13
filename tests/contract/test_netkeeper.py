# SPDX-License-Identifier: Apache-2.0
"""Guests' network without root's rights: root's own child, who may set up networks and nothing else."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_plan, a_site
from vtorque import become
from vtorque.backends.address.apart import TableApart
from vtorque.backends.filter.apart import FilterApart
from vtorque.cli import rooted
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, CommandError, ConfigError
from vtorque.options import SiteConfig
from vtorque.servant import CAP_NET_ADMIN, NOBODY, Servant

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else"),
]

SITE = a_site(bridge="lo")
PLAN = a_plan()
_NOBODY = [str(NOBODY.uid)] * 4


def soon() -> Deadline:
    return Deadline(30.0)


def keeper_of(site: SiteConfig) -> Servant:
    """The child that root makes, which knows of the site what the program has told."""
    told = json.loads(json.dumps(vars(site)))
    return Servant("network", partial(rooted._network, told), identity=NOBODY, keeps=(CAP_NET_ADMIN,))


@contextlib.contextmanager
def started(site: SiteConfig = SITE) -> Iterator[Servant]:
    """What every hook has."""
    with contextlib.closing(FilterApart(keeper := keeper_of(site))):
        yield keeper


def number(keeper: Servant) -> int:
    return int(keeper.process.split()[0])


def status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}


class Curious:
    """Somebody who got the better of such a child, and tries what he may."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def tries(self, *, deadline: Deadline) -> dict[str, bool]:
        return {
            "read what is root's": may(self.file.read_bytes),
            "become root": may(lambda: os.setresuid(0, 0, 0)),
            "own what is root's": may(lambda: os.chown(self.file, NOBODY.uid, NOBODY.gid)),
            "signal what is root's": may(lambda: os.kill(os.getppid(), 0)),
            "set up a network": subprocess.run(
                ["/usr/sbin/nft", "--check", "-f", "-"], input=b"add table bridge vtorque-trial\n", check=False
            ).returncode == 0,
        }


def may(act: Callable[[], object]) -> bool:
    with contextlib.suppress(PermissionError):
        act()
        return True
    return False


def test_who_keeps_the_network_has_one_right_and_no_way_to_another() -> None:
    with started() as keeper:
        assert keeper.ask("tables", deadline=soon()) is not None
        told = status(number(keeper))
    one = [f"{1 << CAP_NET_ADMIN:016x}"]
    assert [told[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [one] * 4
    assert (told["Uid"], told["Gid"], told["Groups"], told["NoNewPrivs"]) == (_NOBODY, _NOBODY, [], ["1"])


def test_where_root_has_no_such_right_that_is_said() -> None:
    """As in a container."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.contract import test_netkeeper as t\n"
        "with t.started() as keeper:\n"
        "    try:\n"
        "        t.FilterApart(keeper).tables(deadline=t.soon())\n"
        "    except t.CommandError as error:\n"
        "        print(error.brief)\n"
        "    print(t.status(t.number(keeper))['CapPrm'])\n"
    )
    without = ("/usr/bin/setpriv", "--bounding-set=-net_admin")
    words = [*without, sys.executable, "-c", program, str(Path(__file__).resolve().parents[2])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told = "the kernel does not tell the tables of the network filter: [Errno 1] Operation not permitted"
    assert (done.stdout.splitlines(), done.stderr) == ([told, "['0000000000000000']"], "")


class Kernel:
    """One in which a call fails."""

    def __init__(self, failing: str) -> None:
        self.failing = failing

    def capget(self, version: object, held: Any) -> int:
        held[:] = b"\xff" * len(held)
        return 0

    def capset(self, version: object, wanted: bytes) -> int:
        return -(self.failing == "capset")

    def prctl(self, *words: int) -> int:
        return -(self.failing == "prctl")


@pytest.mark.parametrize("failing", ["capset", "prctl"])
def test_a_child_that_cannot_drop_its_rights_does_nothing(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    keep = become._keep
    keep((CAP_NET_ADMIN,), Kernel(""))
    with pytest.raises(PermissionError, match="the capabilities were not dropped"):
        keep((CAP_NET_ADMIN,), Kernel(failing))
    monkeypatch.setattr(become, "_keep", lambda capabilities, libc: keep(capabilities, Kernel(failing)))
    with started() as keeper, pytest.raises(CommandError, match="who sets the network filter for us has gone"):
        FilterApart(keeper).tables(deadline=soon())


@pytest.mark.parametrize("keeps", [(), (CAP_NET_ADMIN,)])
def test_somebody_who_got_the_better_of_it_can_set_up_networks_and_no_more(
    tmp_path: Path, keeps: tuple[int, ...]
) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o600)
    child = Servant("network", partial(Curious, file), identity=NOBODY, keeps=keeps)
    tried = child.ask("tries", deadline=soon())
    child.dismiss()
    assert [what for what, worked in tried.items() if worked] == (["set up a network"] if keeps else [])
    root = Servant("network", partial(Curious, file), identity=None)
    assert all(root.ask("tries", deadline=soon()).values()), "what can be tried can succeed"
    root.dismiss()


def test_a_jobs_rules_come_from_there_and_are_in_force() -> None:
    done = elsewhere("""
around = t.FilterApart(keeper)
rules = around.rules(t.PLAN, {}, soon)
assert around.tables(deadline=soon) == []
around.load(rules, deadline=soon)
assert around.tables(deadline=soon) == ["vtorque-7.srv"]
assert not around.renew("vtorque-7.srv", rules, deadline=soon)
run("nft", "flush", "chain", "bridge", "vtorque-7.srv", "leaving")
assert around.renew("vtorque-7.srv", rules, deadline=soon)
assert b"chain leaving" in run("nft", "list", "table", "bridge", "vtorque-7.srv")
run("nft", "add", "table", "bridge", "site")
run("nft", "add", "table", "ip", "vtorque-8.srv")
assert around.tables(deadline=soon) == ["vtorque-7.srv"], "of this family, and ours"
around.remove("vtorque-7.srv", deadline=soon)
around.remove("vtorque-7.srv", deadline=soon)
assert around.tables(deadline=soon) == []
""")
    assert "cannot resolve nobody.invalid for the network filter: there is no such host" in done


def test_a_guests_addresses_come_from_there_as_the_kernel_learns_them() -> None:
    elsewhere("""
vm, book = t.PLAN.vms[0], t.TableApart(keeper, deadline=soon)
assert book.candidates(vm) == ()
run("ip", "neighbour", "replace", "10.0.0.5", "lladdr", vm.mac, "dev", "br0", "nud", "reachable")
while not book.candidates(vm):
    book.wait(soon.require("hear of it"))
assert book.candidates(vm) == ("10.0.0.5",)
run("ip", "neighbour", "del", "10.0.0.5", "dev", "br0")
while book.candidates(vm):
    book.wait(soon.require("hear of it"))
book.close()
""")


def elsewhere(body: str) -> str:
    """What root logs when this is run on a node with nothing but a bridge."""
    script = f"""
import logging, subprocess, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests.contract import test_netkeeper as t
logging.basicConfig(level=logging.WARNING)
def run(*words):
    return subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
run("ip", "link", "add", "br0", "type", "bridge")
run("ip", "link", "set", "br0", "up")
run("ip", "address", "add", "10.0.0.254/24", "dev", "br0")
soon = t.soon()
keeper = t.keeper_of(t.a_site(bridge="br0", vm_nfs_home="nobody.invalid:/home"))
{body}
keeper.dismiss()
"""
    done = subprocess.run(
        ["/usr/bin/unshare", "--net", sys.executable, "-c", script], capture_output=True, text=True, check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_one_that_is_killed_is_named_to_whoever_needs_it() -> None:
    with started() as keeper, contextlib.closing(TableApart(keeper, deadline=soon())) as book:
        around, (first, second) = FilterApart(keeper), (a_plan().vms[0], a_plan(job=PLAN.job).vms[0])
        assert book.candidates(first) == ()
        os.kill(number(keeper), signal.SIGKILL)
        with pytest.raises(AddressError, match="who reads the table of neighbours for us has gone"):
            book.wait(30.0)
        with pytest.raises(CommandError, match="who sets the network filter for us has gone"):
            around.tables(deadline=soon())
        with (
            contextlib.closing(TableApart(keeper, deadline=soon())) as late,
            pytest.raises(AddressError, match="who reads the table of neighbours for us has gone"),
        ):
            late.candidates(second)


def test_what_a_node_lacks_is_said_as_before() -> None:
    with (
        started(a_site(bridge="vtnosuch0")) as keeper,
        contextlib.closing(TableApart(keeper, deadline=soon())) as book,
    ):
        with pytest.raises(AddressError, match="there is no bridge 'vtnosuch0' on this node") as caught:
            book.candidates(PLAN.vms[0])
        assert caught.value.hint == "see BRIDGE in the configuration"
        with pytest.raises(ConfigError, match="NETWORK_FILTER: bridge vtnosuch0 has no address"):
            FilterApart(keeper).rules(PLAN, {}, soon())


def test_root_loads_nothing_that_reads_or_writes_rules(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vtorque import guard, lifecycle\n"
        "from vtorque.cli import assembly, hooked, pbshook, pbsverbs, pelog\n"
        "from tests.builders import a_plan, a_site\n"
        "from tests.contract.test_netkeeper import FilterApart, keeper_of, soon\n"
        "others = ('vtorque.netfilter', 'vtorque.netkeeper', 'vtorque.surroundings', 'vtorque.backends.filter.nft')\n"
        "for name in [name for name in sys.modules if name.startswith(others)]:\n"
        "    del sys.modules[name]\n"
        "FilterApart(keeper := keeper_of(a_site(bridge='lo', share='virtiofs'))).rules(a_plan(), {}, soon())\n"
        "keeper.dismiss()\n"
        "print([name for name in sys.modules if name.startswith(others)])\n"
    )
    words = [sys.executable, "-c", program, str(Path(__file__).resolve().parents[2])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_it_says_nothing_to_where_roots_log_was(tmp_path: Path) -> None:
    """Its number may be that of something else by then."""
    class Noisy:
        def say(self, *, deadline: Deadline) -> None:
            logging.getLogger().critical("to whom?")

    log = logging.FileHandler(tmp_path / "log")
    logging.getLogger().addHandler(log)
    try:
        child = Servant("network", Noisy, identity=None)
        child.ask("say", deadline=soon())
        child.dismiss()
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
    assert (tmp_path / "log").read_text() == ""
