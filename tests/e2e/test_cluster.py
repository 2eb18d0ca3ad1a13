# SPDX-License-Identifier: Apache-2.0
"""Jobs on several nodes, each with a network, a mount namespace and a libvirt of its own."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Lab
from vtorque import guestnames
from vtorque.lab import parts

pytestmark = pytest.mark.e2e

VM = f"{TINY},vms_per_node=2"
RANKS = range(4)
NODES = ("vtn1", "vtn2")
VIRSH = ("virsh", "-q", "-c", "qemu:///system")


def test_a_job_over_two_nodes_with_two_guests_each(two_nodes: Lab) -> None:
    lab = two_nodes
    job = lab.submit(lab.write("mpi.sh", """\
#!/bin/bash
for guest in $(uniq "$PBS_NODEFILE"); do
    ssh "$guest" 'cat /sys/class/dmi/id/product_uuid; hostname' || exit 9
done
echo "$PBS_NP $PBS_NUM_PPN $PBS_VMS_PN"
ssh "$(tail -n 1 "$PBS_NODEFILE")" ssh "$(head -n 1 "$PBS_NODEFILE")" hostname
touch ran
sleep 1000
"""), "-l", "nodes=2:ppn=2", vm=VM)
    lab.appears("ran")
    names = NODES
    shown = json.loads(lab.on(names[0], str(parts.PROGRAM / "scripts/vmgr"), "ps", "--json"))
    assert [(each["rank"], each["node"]) for each in shown] == [
        (rank, names[rank // 2]) for rank in RANKS
    ]
    for node in names:
        for name in lab.on(node, *VIRSH, "list", "--name").split():
            rank = names.index(node) * 2 + int(name.partition("_")[2].partition("of")[0]) - 1
            pins = [line.split()[-1] for line in lab.on(node, *VIRSH, "vcpupin", name).splitlines() if line]
            assert shown[rank]["cpus"] == ",".join(pins) == ",".join(_pins_of_threads(lab, node, name))
    lab.as_user("qdel", job)
    ended = lab.ended(job)
    out = ended.out.decode().split("\n")
    assert out[:8:2] == [str(guestnames.guest_uuid(job, rank)) for rank in RANKS], ended.err
    assert out[1:8:2] == [f"v{names[rank // 2]}-{rank % 2 + 1}" for rank in RANKS]
    assert out[8] == "4 2 2"
    assert out[9] == f"v{names[0]}-1", "and back again"


def _pins_of_threads(lab: Lab, node: str, name: str) -> list[str]:
    """What the kernel says of the threads that are the vCPUs of a domain."""
    tasks = Path("/proc", lab.on(node, "cat", f"/run/libvirt/qemu/{name}.pid"), "task").glob("*")
    vcpus = sorted((task / "comm").read_text() + "/" + task.name for task in tasks)
    return [
        re.findall(r"^Cpus_allowed_list:\t(.*)$", Path("/proc", each.rpartition("/")[2], "status").read_text(), re.M)[0]
        for each in vcpus if each.startswith("CPU ")
    ]


def test_a_guest_that_stops_during_the_job_ends_it_with_its_rank_and_node(two_nodes: Lab) -> None:
    lab = two_nodes
    job = lab.submit(lab.write("long.sh", "#!/bin/sh\ntouch up\nsleep 1000\n"), "-l", "nodes=2", vm=TINY)
    lab.appears("up")
    sister = NODES[1]
    lab.on(sister, *VIRSH, "destroy", f"{job}_1of1")
    ended = lab.ended(job)
    assert ended.exit_status == 76
    assert f"vtorque: lost guest v{sister}-1 of rank 1 on node {sister}: it has stopped" in ended.err.decode()


def test_a_node_that_is_gone_ends_the_job_with_the_rank_and_node_that_fell_silent(two_nodes: Lab) -> None:
    lab = two_nodes
    job = lab.submit(lab.write("long.sh", "#!/bin/sh\ntouch up\nsleep 1000\n"), "-l", "nodes=2", vm=TINY)
    lab.appears("up")
    gone = NODES[1]
    uplink = f"{parts.BRIDGE}-{gone.removeprefix('vtn')}"
    subprocess.run(["ip", "link", "set", uplink, "down"], check=True)
    try:
        ended = lab.ended(job)
    finally:
        subprocess.run(["ip", "link", "set", uplink, "up"], check=True)
    assert ended.exit_status == 76
    assert f"vtorque: lost guest v{gone}-1 of rank 1 on node {gone}: no answer for 20 s" in ended.err.decode()


def test_a_sister_that_cannot_start_is_named_and_everything_is_given_back(two_nodes: Lab) -> None:
    lab = two_nodes
    sister = NODES[1]
    # The image is there for the mother superior only: her sister's own pool is empty.
    lab.on(sister, "mount", "-t", "tmpfs", "none", str(parts.IMAGES))
    try:
        ended = lab.run("#!/bin/sh\necho never\n", "-l", "nodes=2", vm=TINY)
    finally:
        lab.on(sister, "umount", str(parts.IMAGES))
    assert (ended.exit_status, ended.out) == (65, b"")
    assert f"node {sister}: image tiny.qcow2 is not in the catalogue" in ended.err.decode()


def test_a_job_that_is_deleted_while_its_guests_boot_leaves_nothing_on_any_node(two_nodes: Lab) -> None:
    lab = two_nodes
    job = lab.submit(lab.write("never.sh", "#!/bin/sh\necho never\n"), "-l", "nodes=2", vm=VM)
    lab.until(job, "started")
    lab.as_user("qdel", job)
    assert lab.ended(job).out == b""
    # A sister's guard may have to find out by herself.
    end = time.monotonic() + 60
    while (left := lab.leftovers()) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == []
