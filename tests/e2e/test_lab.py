# SPDX-License-Identifier: Apache-2.0
"""The lab itself: repeatable, repairable, and not for somebody else's things."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import traces
from tests.e2e.conftest import PREFIX, Lab, processes_of_the_lab, take_down
from tests.e2e.traces import STRANGER, Strangers
from vtorque import lab
from vtorque.backends.transport import keys
from vtorque.errors import RequestError, StateError
from vtorque.lab import nodes, parts, services

pytestmark = pytest.mark.e2e

NODES = ("vtn1", "vtn2")
SPY = """\
#!/bin/sh
libvirt=$(virsh -c qemu:///system hostname)
echo $(hostname -s) $0 $PBS_NODENUM $PBS_MSHOST $(id -un) $PWD $(ls {jobs}) $libvirt >>{log}
"""


def pids() -> dict[str, int]:
    return {path.stem: json.loads(path.read_text())["pid"] for path in parts.ROOT.glob("*.json")}


def up_again(found: Lab) -> None:
    """`lab up`; from now on it has the program as it is now."""
    lab.up(PREFIX, progress=print)
    found.watch()


def test_up_again_changes_nothing(the_lab: Lab) -> None:
    before = pids()
    up_again(the_lab)
    assert pids() == before and {"dnsmasq", "ganesha", "pbs_mom"} <= set(before)


def test_up_repairs_what_died(the_lab: Lab) -> None:
    subprocess.run(["/bin/kill", "-KILL", str(pids()["dnsmasq"])], check=True)
    while parts.Network().is_up():
        pass
    assert lab.status(PREFIX)[f"bridge {parts.BRIDGE}"] is False
    up_again(the_lab)
    assert all(lab.status(PREFIX).values())


def test_guests_that_come_and_go_do_not_change_the_labs_own_mac(the_lab: Lab) -> None:
    mac = Path("/sys/class/net", parts.BRIDGE, "address")
    before = mac.read_text()
    parts.do("ip", "link", "add", "vtlab-low", "address", "02:00:00:00:00:01", "type", "veth", "peer", "vtlab-low2")
    try:
        parts.do("ip", "link", "set", "vtlab-low", "master", parts.BRIDGE)
        assert mac.read_text() == before
    finally:
        parts.do("ip", "link", "delete", "vtlab-low")


def test_what_has_the_labs_names_and_is_not_the_labs_is_refused(the_lab: Lab) -> None:
    with pytest.raises(StateError, match="that is not the lab's"):
        parts.refuse_foreign(recorded=False)


def test_status_is_for_scripts_too(the_lab: Lab) -> None:
    done = subprocess.run([parts.PROGRAM / "scripts/vmgr", "lab", "status", "--json"], capture_output=True, check=True)
    assert set(json.loads(done.stdout).values()) == {True}


def test_a_lab_that_is_killed_under_its_job_is_taken_down_without_a_trace(the_lab: Lab, strangers: Strangers) -> None:
    assert strangers.leave() == []
    take_down()
    before = traces.of_the_kernel()
    try:
        lab.up(PREFIX, progress=print)
        the_lab.submit(the_lab.write("long.sh", "#!/bin/sh\ntouch up\nsleep 1000\n"))
        the_lab.appears("up")
        for pid in processes_of_the_lab():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        left = {name.split()[0] for name in set(traces.of_the_kernel()) - set(before)}
        assert left >= {"cgroup", "table"}, "nothing was left that somebody had to clear away"
        take_down()
        assert set(traces.of_the_kernel()) - set(before) == set()
    finally:
        lab.up(PREFIX, progress=print)
        strangers.come()
        the_lab.watch()


def test_control_groups_of_dead_guests_go_and_those_of_running_ones_stay() -> None:
    """Also of Slurm's, whose names say nothing of the lab."""
    hierarchy = Path("/sys/fs/cgroup/blkio")
    machine = (hierarchy if hierarchy.exists() else hierarchy.parent) / "machine"
    machine.mkdir(exist_ok=True)
    dead, alive = machine / "qemu-9-91of1.libvirt-qemu", machine / "qemu-8-81of1.libvirt-qemu"
    for group in (dead, dead / "emulator", alive, alive / "emulator", alive / "vcpu0"):
        group.mkdir()
    with subprocess.Popen(["/usr/bin/sleep", "1000"]) as process:
        try:
            (alive / "emulator/cgroup.procs").write_text(str(process.pid))
            nodes.remove_groups()
            assert (dead.exists(), (alive / "vcpu0").exists()) == (False, True)
        finally:
            process.kill()
            process.wait()
            nodes.remove_groups()
    assert not alive.exists()


def test_whatever_is_left_on_the_machine_is_told(the_lab: Lab) -> None:
    assert untold(the_lab, parts.ROOT / "log") == set()


def test_whatever_is_left_on_a_node_is_told(two_nodes: Lab) -> None:
    assert untold(two_nodes, *(nodes.DIRECTORY / node / "log" for node in NODES)) == set()


def untold(found: Lab, *logs: Path) -> set[str]:
    """What nobody tells of when something of every kind is left on every node."""
    notes = [path / "left" for path in logs]
    for path in notes:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(keys.make().private)
    files = [found.home / "roots-own", found.home / ".vtorque/left"]
    files[0].touch()
    assert found.as_user("sh", "-c", "mkdir -p .vtorque && touch .vtorque/left").returncode == 0
    things = Strangers("left")
    things.come()
    try:
        told = found.leftovers()
    finally:
        things.leave()
        for path in (*notes, *files):
            path.unlink()
    expected = {*(f"left: secret in {path}" for path in notes), *(f"left: file {path}" for path in files)}
    for view in found.views():
        on = f"left: {view.host}".strip()
        expected |= {f"{on} interface vtgleft", f"{on} table bridge left", f"left: file {view.disks}/0.left/notes.img"}
        if not any(line.startswith(f"{on} process ") and line.endswith("read left") for line in told):
            expected.add(f"{on} process")
    if len([line for line in told if line.endswith("/0.left_1of1.xml")]) != len(logs):
        expected.add("a domain's definition on each node")
    return expected - {*told}


@pytest.fixture
def seen(two_nodes: Lab, tmp_path: Path) -> Iterator[Path]:
    """What the hooks of a job note of themselves; root's only, and in order."""
    log = tmp_path / "seen"
    for node in NODES:
        for kind in ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel"):
            path = two_nodes.view(node).mom_priv / kind
            path.unlink()
            path.write_text(SPY.format(log=log, jobs=two_nodes.mom_priv / "jobs"))
            path.chmod(0o755)
    yield log
    services.Engine(NODES).up()


def test_each_node_has_a_name_a_network_and_a_libvirt_of_its_own(two_nodes: Lab) -> None:
    for number, node in enumerate(NODES, 2):
        assert two_nodes.on(node, "hostname", "-s") == node
        assert two_nodes.on(node, "virsh", "-c", "qemu:///system", "hostname") == node
        assert f"inet 10.99.0.{number}/24" in two_nodes.on(node, "ip", "address", "show", parts.BRIDGE)
        assert two_nodes.on(node, "ls", "/sys/class/net").split() == [
            "lo", "uplink", f"vtg{STRANGER}", parts.BRIDGE]
    mounts = {two_nodes.on(node, "readlink", "/proc/self/ns/mnt") for node in NODES}
    assert len(mounts) == len(NODES)


def test_what_a_node_has_for_itself_the_other_does_not_see(two_nodes: Lab) -> None:
    for path in (parts.STATE, parts.ROOT / "disks", parts.ROOT / "log", two_nodes.mom_priv / "jobs",
                 Path("/run/libvirt"), Path("/var/lib/libvirt"), Path("/etc/libvirt/qemu")):
        two_nodes.on("vtn1", "touch", f"{path}/of-vtn1")
        assert two_nodes.on("vtn2", "find", str(path), "-name", "of-vtn1") == ""
        assert not (path / "of-vtn1").exists()
        two_nodes.on("vtn1", "rm", f"{path}/of-vtn1")


def test_a_job_gets_both_nodes_and_runs_on_the_first(two_nodes: Lab) -> None:
    script = two_nodes.write("nodes.sh", '#!/bin/sh\nhostname -s\ncat "$PBS_NODEFILE"\n')
    for words, names in (("nodes=2", "vtn1 vtn1 vtn2"), ("nodes=vtn2+vtn1:ppn=2", "vtn2 vtn2 vtn1 vtn1")):
        job = two_nodes.as_user("qsub", "-l", words, script).stdout.decode().strip()
        ended = two_nodes.ended(job)
        assert (ended.exit_status, ended.out.decode().split()) == (0, names.split())


def test_hooks_run_on_their_own_nodes(two_nodes: Lab, seen: Path) -> None:
    mom = two_nodes.mom_priv
    job = two_nodes.as_user("qsub", "-l", "nodes=vtn2+vtn1", two_nodes.write("true.sh", "#!/bin/sh\n"))
    number = two_nodes.ended(job.stdout.decode().strip()).id
    assert [line.split() for line in seen.read_text().splitlines()] == [
        ["vtn1", f"{mom}/prologue.parallel", "1", "vtn2", "root", str(mom), "vtn1"],
        ["vtn2", f"{mom}/prologue", "0", "vtn2", "root", str(mom), f"{number}.SC", "vtn2"],
        ["vtn1", f"{mom}/epilogue.parallel", "1", "vtn2", "root", str(mom), f"{number}.JB", "vtn1"],
        ["vtn2", f"{mom}/epilogue", "0", "vtn2", "root", str(mom), f"{number}.JB", f"{number}.SC", "vtn2"],
    ]


def test_a_guest_of_another_job_is_out_of_reach(two_nodes: Lab) -> None:
    waits = two_nodes.write("waits.sh", (
        "#!/bin/bash\nip -4 -o addr show dev eth0 | awk '{ sub(\"/.*\", \"\", $4); print $4 }' >new\n"
        "mv new address\nsleep 1000\n"
    ))
    calls = two_nodes.write("calls.sh", '#!/bin/bash\ntimeout 5 bash -c "exec 3<>/dev/tcp/$1/22"\n')
    first = two_nodes.submit(waits, "-l", "nodes=vtn1")
    two_nodes.until(first, "running")
    while not (two_nodes.home / "address").exists():
        time.sleep(0.1)
    lists = [two_nodes.on(node, "virsh", "-c", "qemu:///system", "list", "--name") for node in NODES]
    assert lists[0].startswith(first) and lists[1] == ""
    record = two_nodes.view("vtn1").state / "jobs" / first
    assert {f"left: vtn1 domain {lists[0]}", f"left: directory {record}"} <= set(two_nodes.leftovers())
    address = (two_nodes.home / "address").read_text().strip()
    second = two_nodes.ended(two_nodes.submit(calls, "-l", "nodes=vtn2", "-F", address))
    two_nodes.as_user("qdel", first)
    two_nodes.ended(first)
    # Those of one job reach each other: test_cluster. Status 143 is what busybox says of a timeout.
    assert second.exit_status == 143, second.err


def test_a_lab_keeps_its_number_of_nodes(two_nodes: Lab) -> None:
    before = {path: path.read_text() for path in nodes.DIRECTORY.glob("*/*.json")}
    up_again(two_nodes)
    assert {path: path.read_text() for path in nodes.DIRECTORY.glob("*/*.json")} == before
    with pytest.raises(StateError, match="the lab has 2 nodes, not 1"):
        lab.up(PREFIX, number=1, progress=print)
    with pytest.raises(RequestError, match="cannot have 99 nodes"):
        lab.up(PREFIX, number=99, progress=print)
    with pytest.raises(RequestError, match="no node 'vtn3'"):
        two_nodes.on("vtn3", "true")


@pytest.mark.parametrize("gone", ["place.json", "keeper"])
def test_up_makes_a_node_anew_that_died_or_was_never_finished(
    two_nodes: Lab, strangers: Strangers, gone: str
) -> None:
    own = nodes.DIRECTORY / "vtn2"
    # Who is on a node goes with it.
    assert strangers.leave() == []
    if gone == "keeper":
        subprocess.run(["/bin/kill", "-KILL", str(json.loads((own / "keeper.json").read_text())["pid"])], check=True)
        while nodes.place("vtn2").is_there:
            pass
    else:
        (own / gone).unlink()
    assert [name for name, up in lab.status(PREFIX).items() if not up] == ["node vtn2"]
    lab.up(PREFIX, progress=print)
    strangers.come()
    two_nodes.watch()
    assert all(lab.status(PREFIX).values())
    assert two_nodes.on("vtn2", "virsh", "-c", "qemu:///system", "hostname") == "vtn2"
