# SPDX-License-Identifier: Apache-2.0
"""The Ansible role, by a real ansible-playbook where there is one: once changes everything, twice nothing."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.machines import Machine, NoOverlay, machine

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="what it installs is root's"),
    pytest.mark.skipif(not shutil.which("ansible-playbook"), reason="there is no ansible-core here"),
]

ROOT = Path(__file__).resolve().parents[2]
HOOK = "var/spool/torque/mom_priv/prologue"
PLAY = """\
- hosts: localhost
  connection: local
  gather_facts: false
  roles:
    - {role: vtorque, vtorque_system: torque}
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        try:
            node = stack.enter_context(machine())
        except NoOverlay as error:
            pytest.skip(str(error))
        subprocess.run([ROOT / "contrib/make-deb", tmp_path], check=True, capture_output=True)
        (package,) = tmp_path.glob("*.deb")
        node.put("var/spool/torque/mom_priv/config", "$prologalarm 300\n")
        node.put(HOOK, "#!/bin/sh\necho site\n", mode=0o755)
        node.put("root/site/play.yml", PLAY)
        node.put("root/site/vtorque.yaml", "BATCH_SYSTEM: torque\n")
        shutil.copy(package, node.path("root/site/vtorque.deb"))
        shutil.copytree(ROOT / "contrib/ansible/roles", node.path("root/site/roles"))
        yield node


def play(node: Machine, *words: str) -> tuple[dict[str, int], str]:
    """Its recap, and all that it said."""
    said = node.run("HOME=/root", "LC_ALL=C.UTF-8", "ansible-playbook", "-i", "localhost,", "/root/site/play.yml",
                    *words, status=None)
    recap = said.rpartition("PLAY RECAP")[2]
    return {name: int(number) for name, number in re.findall(r"(\w+)=([0-9]+)", recap)}, said


def test_the_second_time_nothing_is_changed_and_absent_puts_everything_back(node: Machine) -> None:
    hook = node.path(HOOK)
    recap, said = play(node)
    assert recap["changed"] > 0, said
    assert str(hook.readlink()) == "/usr/lib/vtorque/scripts/prologue"
    # A node without libvirt's daemon is broken each time.
    assert recap["failed"] == 1 and "Look after this node's health" in said.rpartition("TASK")[2], said
    recap, said = play(node)
    assert (recap["changed"], recap["failed"]) == (0, 1), said
    assert "Look after this node's health" in said.rpartition("TASK")[2], said
    absent = ("-e", "vtorque_state=absent")
    assert play(node, "--check", *absent)[0]["changed"] > 0
    assert hook.is_symlink()
    recap, said = play(node, *absent)
    assert recap["failed"] == 0, said
    assert hook.read_text() == "#!/bin/sh\necho site\n" and not node.path("usr/lib/vtorque").exists()
    assert not node.path("var/cache/vtorque.deb").exists()
    assert node.path("etc/vtorque/vtorque.yaml").read_text() == "BATCH_SYSTEM: torque\n"
    assert play(node, *absent)[0]["changed"] == 0
