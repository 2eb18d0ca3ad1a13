# SPDX-License-Identifier: Apache-2.0
"""Bad input and failures on real guests: one line, the documented status, nothing left behind."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SCRIPTS, TINY, Lab
from vtorque import accounts
from vtorque.backends.transport import keys
from vtorque.lab import parts, services
from vtorque.lab.parts import Network

pytestmark = pytest.mark.e2e

Change = Callable[..., None]
REFUSED, NO_GUEST = 65, 69


@pytest.fixture
def script(the_lab: Lab) -> str:
    return the_lab.write("job.sh", "#!/bin/bash\necho ran\n")


@pytest.mark.parametrize(
    ("vm", "says"),
    [
        ("img=tiny.qcow2,vcpu=2", "did you mean vcpus?"),
        ("img=tiny.qcow2,ram=lots", "'lots' is not a size"),
        ("img=tyni.qcow2", "did you mean tiny.qcow2?"),
        ("img=../../etc/passwd", "must be the name of a .qcow2 or .img file"),
        ("img=tiny.qcow2,vms_per_node=0", "must be 1 to 256"),
    ],
)
def test_vsub_refuses_what_is_wrong_and_leaves_nothing(the_lab: Lab, script: str, vm: str, says: str) -> None:
    done = the_lab.as_user("vsub", "-vm", vm, script)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_more_memory_than_the_node_offers_is_said_on_the_jobs_stderr(the_lab: Lab, script: str) -> None:
    ended = the_lab.ended(the_lab.submit(script, vm="img=tiny.qcow2,ram=9T"))
    assert ended.exit_status == REFUSED
    assert ended.out == b""
    assert "1 guest of 9437184 MiB need" in ended.err.decode() and "offers" in ended.err.decode()


def test_more_cores_than_any_node_has_are_refused_at_submission(the_lab: Lab, script: str, setting: Change) -> None:
    done = the_lab.as_user("vsub", "-vm", "img=tiny.qcow2,vcpus=64", script)
    assert (done.returncode, done.stdout) == (190, b""), "by the batch system, which is asked for them"
    setting(NODE_CORE_COUNT=2)
    done = the_lab.as_user("vsub", "-vm", "img=tiny.qcow2,vcpus=64", script)
    assert done.returncode == 2 and b"64 cores are needed on a node" in done.stderr
    assert not list(the_lab.home.glob(".vtorque/*"))


def test_an_nfs_server_that_is_down_is_named(the_lab: Lab, script: str) -> None:
    shares = services.Shares()
    shares.down()
    try:
        ended = the_lab.ended(the_lab.submit(script))
    finally:
        shares.up()
    assert ended.exit_status == NO_GUEST
    assert f"cannot mount {parts.ADDRESS}:/home/{parts.USER}" in ended.err.decode()


@pytest.fixture
def no_dhcp(the_lab: Lab) -> Iterator[None]:
    network = Network()
    network.stop_dhcp()
    yield
    network.up()


def test_a_guest_that_never_gets_an_address(the_lab: Lab, script: str, setting: Change, no_dhcp: None) -> None:
    setting(TIMEOUT=8)
    ended = the_lab.ended(the_lab.submit(script))
    assert ended.exit_status == NO_GUEST
    assert "got no address within 8 s" in ended.err.decode()


def test_a_guest_with_another_host_key_is_not_believed(the_lab: Lab, script: str, setting: Change) -> None:
    """A set-up script that replaces the key root made, before sshd reads it, makes an impostor."""
    templates = parts.ROOT / "other-templates"
    templates.mkdir(exist_ok=True)
    original = (parts.PROGRAM / "templates-vm/guest-setup.sh").read_text()
    swap = f"printf '%s' '{keys.make().private}' >/etc/ssh/ssh_host_ed25519_key\n"
    (templates / "guest-setup.sh").write_text(original.replace("set -u\n", f"set -u\n{swap}"))
    setting(TEMPLATE_DIR=templates, TIMEOUT=40)
    ended = the_lab.ended(the_lab.submit(script))
    shutil.rmtree(templates)
    assert ended.exit_status == NO_GUEST
    assert "is not the one that was started: its SSH host key is SHA256:" in ended.err.decode()


def test_libvirt_refusing_the_domain(the_lab: Lab, script: str, setting: Change) -> None:
    setting(BRIDGE="vtnosuch0", NETWORK_FILTER="false", REQUEUE_LIMIT=1)
    ended = the_lab.ended(the_lab.submit(script))
    assert ended.exit_status == NO_GUEST
    assert "cannot start guest" in ended.err.decode() and "vtnosuch0" in ended.err.decode()


def test_a_guest_that_dies_while_it_boots(the_lab: Lab, script: str) -> None:
    job = the_lab.submit(script)
    the_lab.until(job, "started")
    _kill_qemu()
    ended = the_lab.ended(job)
    assert ended.exit_status == NO_GUEST
    assert "stopped while it was booting" in ended.err.decode()


def test_a_guest_that_dies_under_its_job(the_lab: Lab) -> None:
    job = the_lab.submit(the_lab.write("long.sh", "#!/bin/bash\ntouch up\nsleep 1000\n"))
    the_lab.appears("up")
    _kill_qemu()
    ended = the_lab.ended(job)
    assert ended.exit_status == 76
    assert "lost the connection to the guest" in ended.err.decode()


def test_a_guest_that_panics_ends_its_job_with_its_rank_and_node(
    the_lab: Lab, setting: Change, scripts: Change
) -> None:
    crash = "until [ -e /tmp/panic ]; do sleep 0.2; done; echo c >/proc/sysrq-trigger"
    scripts(**{"prologue.parallel": f"({crash}) >/dev/null 2>&1 &"})
    # It is not its silence that tells.
    setting(VM_SCRIPTS_DIR=SCRIPTS, GUEST_TIMEOUT=600)
    script = "#!/bin/sh\nssh -n $(tail -n 1 $PBS_NODEFILE) touch /tmp/panic; sleep 1000\n"
    ended = the_lab.run(script, vm=f"{TINY},vms_per_node=2")
    assert ended.exit_status == 76
    assert "of rank 1 on node " in ended.err.decode() and "it has stopped" in ended.err.decode()


def _kill_qemu() -> None:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(b"/usr/bin/qemu-system"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue


def test_a_job_that_is_deleted_during_its_prologue(the_lab: Lab, script: str) -> None:
    job = the_lab.submit(script)
    the_lab.until(job, "started")
    the_lab.as_user("qdel", job)
    ended = the_lab.ended(job)
    assert ended.out == b""


def test_a_node_fault_is_tried_again_before_the_user_is_told(the_lab: Lab, script: str, setting: Change) -> None:
    setting(BRIDGE="vtnosuch0", NETWORK_FILTER="false", REQUEUE_LIMIT=2)
    ended = the_lab.ended(the_lab.submit(script))
    assert ended.exit_status == NO_GUEST
    assert ended.err.decode().count("cannot start guest") == 2


def test_an_epilogue_that_nobody_needs_is_quiet(the_lab: Lab, script: str) -> None:
    """Twice in sequence, and for a job whose prologue never ran."""
    job = the_lab.submit(script, vm=TINY)
    request = str(the_lab.state(job)["resources"]["other"])  # type: ignore[index]
    the_lab.ended(job)
    epilogue = the_lab.mom_priv / "epilogue"
    for number in (job, job, "999.lab"):
        limits = f"nodes=1,other={request}"
        arguments = [number, parts.USER, parts.USER, "job.sh", "0", limits, "", "batch", "", "0", ""]
        done = subprocess.run([epilogue, *arguments], capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_job_that_nobody_sends_an_epilogue_for_is_swept(the_lab: Lab, script: str) -> None:
    """Mom forgets jobs without an epilogue (mom_comm.c:3960-3984): the next start on the node cleans up."""
    orphan = parts.STATE / "jobs/77.lab"
    the_lab.ended(the_lab.submit(script))
    (parts.ROOT / "disks/77.lab").mkdir()
    (parts.ROOT / "disks/77.lab/77.lab_1of1.qcow2").touch()
    orphan.mkdir()
    (orphan / "lock").touch()
    (orphan / "ledger").write_text(
        f'["take", "directory", "{parts.ROOT}/disks/77.lab"]\n'
        f'["take", "file", "{parts.ROOT}/disks/77.lab/77.lab_1of1.qcow2"]\n'
    )
    for path in (orphan, *orphan.iterdir()):
        os.chown(path, *accounts.program())
    vmgr = parts.PROGRAM / "scripts/vmgr"
    listed = subprocess.run([vmgr, "sweep", "--dry-run"], capture_output=True, check=True)
    assert listed.stdout == b"77.lab\n" and orphan.exists()
    assert the_lab.ended(the_lab.submit(script)).exit_status == 0
    assert not orphan.exists()
