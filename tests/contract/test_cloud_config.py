# SPDX-License-Identifier: Apache-2.0
"""What guests are told, before those who have to understand it: cloud-init's own checker, and a shell."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import a_plan, a_request, a_site, some_keys
from vtorque import metadatafile, render

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
DOCUMENTS = sorted(
    path.name for family in ("debian", "redhat") for path in GOLDEN.glob(f"{family}-*.user-data.yaml")
)
TEMPLATES = ROOT / "templates-vm"


@pytest.fixture(scope="session")
def cloud_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of Debian's cloud-init, unpacked: a machine that has it installed runs it when it boots."""
    directory = tmp_path_factory.mktemp("cloud-init")
    subprocess.run(["apt-get", "download", "-qq", "cloud-init"], cwd=directory, check=True, timeout=120)
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, directory], check=True, timeout=60)
    return directory / "usr/lib/python3/dist-packages"


def judged(cloud_init: Path, document: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloudinit.cmd.main", "schema", "--config-file", document],
        env={**os.environ, "PYTHONPATH": str(cloud_init)}, capture_output=True, text=True, timeout=60,
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_cloud_init_finds_nothing_wrong(name: str, cloud_init: Path) -> None:
    verdict = judged(cloud_init, GOLDEN / name)
    assert verdict.returncode == 0, verdict.stderr
    assert "Valid cloud-config" in verdict.stdout
    assert "deprecat" not in (verdict.stdout + verdict.stderr).lower()


def user_data(distro: str, **changes: Any) -> str:
    text = metadatafile.read(b"timezone: Europe/Berlin\nlocale: de_DE.UTF-8\n")
    plan = a_plan(request=a_request(distro=distro, metadata=text))
    return render.guest(
        plan, plan.vms[0], site=a_site(**changes), keys=some_keys(), announce="10.0.0.1", templates=TEMPLATES
    ).user_data


@pytest.mark.parametrize("distro", ["debian", "ubuntu", "redhat", "centos"])
def test_nor_with_a_users_own_part(distro: str, tmp_path: Path, cloud_init: Path) -> None:
    document = tmp_path / "user-data"
    document.write_text(user_data(distro))
    verdict = judged(cloud_init, document)
    assert verdict.returncode == 0, verdict.stderr


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("users: [[]]", "users: []", "users: [] is too short"),
        ('mode: "off"', "mode: sometimes", "growpart.mode"),
        ("package_upgrade: true", 'package_upgrade: "often"', "package_upgrade"),
        ('packages: ["gdb"', "packages: [5", "packages.0"),
        ("servers: ", "server: ", "ntp"),
        ("#cloud-config", "#cloud-conf", "cloud-config"),
    ],
)
@pytest.mark.parametrize("family", ["debian", "redhat"])
def test_it_does_find_what_is_wrong(
    family: str, was: str, becomes: str, says: str, tmp_path: Path, cloud_init: Path
) -> None:
    text = (GOLDEN / f"{family}-told.user-data.yaml").read_text()
    assert was in text
    document = tmp_path / "user-data"
    document.write_text(text.replace(was, becomes))
    verdict = judged(cloud_init, document)
    assert verdict.returncode == 1
    assert says in verdict.stderr


@pytest.mark.parametrize("distro", ["debian", "redhat"])
@pytest.mark.parametrize("status", ["ready 1234\n", "failed: cannot mount nfs:/ws\n"])
def test_a_guest_says_ready_after_its_packages_and_failed_at_once(distro: str, status: str, tmp_path: Path) -> None:
    data = yaml.safe_load(user_data(distro, security_updates=True))
    told = tmp_path / "status"
    told.write_text(status)

    def run(command: list[str]) -> None:
        words = [word.replace("/run/vtorque", str(tmp_path)) for word in command]
        subprocess.run(words, check=True, timeout=60)

    run(data["bootcmd"][-1])
    assert told.exists() == status.startswith("failed")
    run(data["runcmd"][-1])
    assert told.read_text() == status


@pytest.mark.parametrize("before", ["file", "link", "nothing"])
def test_a_guests_name_servers_replace_whatever_was_there(before: str, tmp_path: Path) -> None:
    (command, _) = yaml.safe_load(user_data("debian", name_server="10.0.0.1", domain="a.b"))["bootcmd"]
    conf, stub = tmp_path / "resolv.conf", tmp_path / "stub"
    stub.write_text("nameserver 127.0.0.53\n")
    if before == "link":
        conf.symlink_to(stub)
    elif before == "file":
        conf.write_text("")
    subprocess.run([word.replace("/etc", str(tmp_path)) for word in command], check=True, timeout=60)
    assert conf.read_text() == "nameserver 10.0.0.1\nsearch a.b\n"
    assert stub.read_text() == "nameserver 127.0.0.53\n"
