# SPDX-License-Identifier: Apache-2.0
"""`vmgr install -w`: real ssh, and pdsh where there is one, to nodes with file trees of their own."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.machines import Machine, NoOverlay, machine

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="it installs what is root's"),
]

ROOT = Path(__file__).resolve().parents[2]
NODES = ("n1", "n2", "n3")
MOM_PRIV = "var/spool/torque/mom_priv"
SSHD = """\
ListenAddress {address}
HostKey /etc/ssh/test_key
AuthorizedKeysFile /etc/ssh/test_key.pub
PermitRootLogin yes
PidFile none
StrictModes no
UsePAM no
UseDNS no
"""
CLIENT = """\
Host n*
  IdentityFile /root/.ssh/test_key
  UserKnownHostsFile /root/.ssh/test_known
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Machine, dict[str, Machine]]]:
    """Where an administrator is, and three nodes on one network: n2 has no mom, and nobody answers at n3."""
    with contextlib.ExitStack() as stack:
        try:
            hub = stack.enter_context(machine())
        except NoOverlay as error:
            pytest.skip(str(error))
        nodes = {name: stack.enter_context(machine(beside=hub)) for name in NODES}
        hub.run("mkdir", "-p", "/root/.ssh")
        hub.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/test_key")
        key, public = (hub.path(f"root/.ssh/test_key{end}").read_text() for end in ("", ".pub"))
        hub.put("root/.ssh/config", CLIENT)
        hub.put("root/.ssh/test_known", "".join(f"{name} {public}" for name in NODES))
        hub.put("etc/hosts", "".join(f"127.0.1.{place} {name}\n" for place, name in enumerate(NODES, start=1)))
        for place, (name, node) in enumerate(nodes.items(), start=1):
            node.put("etc/ssh/test_key", key, mode=0o600)
            node.put("etc/ssh/test_key.pub", public)
            node.put("etc/ssh/test_config", SSHD.format(address=f"127.0.1.{place}"))
            node.put("etc/vtorque/vtorque.yaml", "BATCH_SYSTEM: torque\n")
            # What this machine's own root has there would say things between.
            node.put("root/.bashrc", "")
            node.run("mkdir", "/run/sshd")
            if name != "n2":
                node.put(f"{MOM_PRIV}/config", "$prologalarm 300\n")
                node.put(f"{MOM_PRIV}/prologue", f"#!/bin/sh\necho {name}\n", mode=0o755)
            if name != "n3":
                node.run("/usr/sbin/sshd", "-f", "/etc/ssh/test_config")
        for each in (hub, *nodes.values()):
            for name in ("vtorque", "scripts", "templates", "templates-vm", "contrib", "doc/man"):
                shutil.copytree(ROOT / name, each.path(f"opt/vtorque/{name}"),
                                ignore=shutil.ignore_patterns("__pycache__"))
            each.run("chmod", "-R", "go-w", "/opt/vtorque")
        yield hub, nodes


@pytest.mark.parametrize("over", [
    "ssh", pytest.param("pdsh", marks=pytest.mark.skipif(not shutil.which("pdsh"), reason="there is no pdsh here")),
])
def test_each_node_says_what_came_of_it_and_why_it_failed(
    cluster: tuple[Machine, dict[str, Machine]], over: str
) -> None:
    hub, nodes = cluster
    if over == "ssh" and shutil.which("pdsh"):
        hub.path("usr/bin/pdsh").unlink()
    elif over == "pdsh":
        shutil.copy("/usr/bin/pdsh", hub.path("usr/bin/pdsh"))
    vmgr = ("/opt/vtorque/scripts/vmgr",)
    nodes["n1"].run("userdel", "vtorque", status=None)
    lines = hub.run(*vmgr, "install", "--system", "torque", "-w", "n[1-3]", status=1).splitlines()
    assert lines[0].startswith("n1  ok          installed, ") and lines[0].endswith(" changes made")
    assert lines[1] == f"n2  failed 1    vmgr: there is no /{MOM_PRIV} (set TORQUE_HOME)"
    assert lines[2].startswith("n3  failed 255  ") and lines[2].endswith("port 22: Connection refused")
    assert lines[3:] == ["3 nodes, 2 failed: n[2-3]"]
    assert nodes["n1"].run("id", "-un", "vtorque") == "vtorque\n", "it is made there"
    hooks = {name: node.path(f"{MOM_PRIV}/prologue") for name, node in nodes.items()}
    assert str(hooks["n1"].readlink()) == "/opt/vtorque/scripts/prologue"
    assert not os.path.lexists(hooks["n2"]) and hooks["n3"].is_file() and not hooks["n3"].is_symlink()
    assert hub.run(*vmgr, "install", "-w", "n1") == "n1  ok          nothing to do\n1 nodes, 0 failed\n"
    hub.run(*vmgr, "uninstall", "-w", "n1,n2")
    assert hooks["n1"].read_text() == "#!/bin/sh\necho n1\n"
