# SPDX-License-Identifier: Apache-2.0
"""The real scripts/*, linked into a mom_priv as an administrator would, under a mom that obeys Torque.

No guest is started here: this is about what the hooks do for jobs without one,
for bad requests, for a broken site, and about the site's own hooks.
"""

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import program
from tests.builders import a_request
from vtorque import request
from vtorque.mom.life import Life, Timing
from vtorque.mom.spool import Home, JobRecord

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="mom is root"),
]

USER = pwd.getpwnam("nobody")
HOOKS = ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel", "epilogue.precancel")
CONFIGURATION = """\
BATCH_SYSTEM: local
TORQUE_HOME: {root}/torque
VM_IMG_DIR: {root}/images
HYPERVISOR_TYPE: qemu
LIBVIRT_URI: test:///default
BRIDGE: lo
QEMU_USER: root
REQUEUE_LIMIT: 1
STATE_DIR: {root}/run
DISK_DIR: {root}/disks
LOG_DIR: {root}/log
"""


class Site:
    """An installation in a scratch directory that is root's all the way up, and a mom that uses it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = root / "vtorque"
        program.copy_to(self.prefix)
        (self.prefix / "etc").mkdir()
        self.configure(CONFIGURATION.format(root=root))
        self.home = Home(root / "torque")
        self.home.prepare()
        for hook in HOOKS:
            (self.home.mom_priv / hook).symlink_to(self.prefix / "scripts" / hook)
        self.user_home = root / "home"
        self.user_home.mkdir()
        os.chown(self.user_home, USER.pw_uid, USER.pw_gid)

    def configure(self, text: str) -> None:
        (self.prefix / "etc/vtorque.yaml").write_text(text)

    def original(self, kind: str, text: str, mode: int = 0o755) -> None:
        path = self.home.mom_priv / f"{kind}.orig"
        path.write_text(text)
        path.chmod(mode)

    def run(self, script: str = "#!/bin/sh\necho ran\n", other: str = "", **changes: Any) -> JobRecord:
        resources = {"nodes": "1"} | ({"other": other} if other else {})
        job = replace(
            JobRecord(
                id="5.srv", owner=USER.pw_name, group="nogroup", uid=USER.pw_uid, gid=USER.pw_gid,
                groups=(USER.pw_gid,), home=str(self.user_home), login_shell="/bin/sh", name="job",
                directory=str(self.user_home), hosts=("n1",), resources=resources,
                output_path=str(self.user_home / "job.o5"), error_path=str(self.user_home / "job.e5"),
            ),
            **changes,
        )
        path = self.home.script(job.id)
        path.write_text(script)
        path.chmod(0o700)
        os.chown(path, USER.pw_uid, USER.pw_gid)
        return Life(self.home, self.home.save(job), timing=Timing(kill_delay=0.2)).run()

    def output(self, letter: str) -> str:
        return (self.user_home / f"job.{letter}5").read_text()


@pytest.fixture
def site() -> Iterator[Site]:
    # Not below pytest's own directory: root trusts no path with a component that others may write.
    root = Path("/var/lib") / f"vtorque-test-{os.getpid()}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o755)
    yield Site(root)
    shutil.rmtree(root)


def wrapper(site: Site) -> str:
    """What vsub submits for a job whose directory is not there: the marker is looked at first."""
    return f'#!/bin/sh\nexec {site.prefix}/scripts/jobrun 0123456789abcdef "$@"\n'


def test_a_job_without_guests_runs_as_if_we_were_not_there(site: Site) -> None:
    ended = site.run("#!/bin/sh\necho ran; exit 4\n")
    assert (ended.exit_status, site.output("o"), site.output("e")) == (4, "ran\n", "")
    assert not (site.root / "run").exists() and not (site.root / "log").exists()


@pytest.mark.parametrize("other", ["", request.encode(a_request())])
def test_the_sites_own_hooks_run_with_moms_own_arguments(site: Site, other: str) -> None:
    spy = "#!/bin/sh\nfor word in \"$@\"; do echo \"{0}: $word\"; done\necho \"{0} in $(pwd), umask $(umask)\"\n" \
          "env | grep -c '^PBS_' | sed 's/^/{0} PBS: /'\n"
    for kind in ("prologue", "epilogue"):
        site.original(kind, spy.format(kind))
    site.run("#!/bin/sh\necho ran\n", other, name="my job")
    lines = site.output("o").splitlines()
    begin, end = lines[: lines.index("ran")], lines[lines.index("ran") + 1:]
    resources = f"nodes=1,other={other}" if other else "nodes=1"
    script = str(site.home.script("5.srv"))
    assert begin == [f"prologue: {word}" for word in (
        "5.srv", USER.pw_name, "nogroup", "my job", resources, "batch", "", script)
    ] + [f"prologue in {site.home.mom_priv}, umask 0077", "prologue PBS: 8"]
    assert len([line for line in end if line.startswith("epilogue: ")]) == 11
    assert f"epilogue in {site.home.mom_priv}, umask 0022" in end


@pytest.mark.parametrize("other", ["", request.encode(a_request())])
def test_a_site_prologue_that_aborts_aborts(site: Site, other: str) -> None:
    site.original("prologue", "#!/bin/sh\nexit 1\n")
    ended = site.run(other=other)
    assert ended.exit_status == -2
    assert not (site.root / "run/jobs").exists() or not list((site.root / "run/jobs").iterdir())


REFUSALS: dict[str, tuple[Callable[[Site], str], int, str]] = {
    "garbage": (lambda site: "vt1.garbage", 65, "the request is damaged"),
    "cut short": (lambda site: request.encode(a_request())[:60], 65, "the request"),
    "unknown image": (lambda site: request.encode(a_request()), 65, "image debian-12.qcow2 is not in the catalogue"),
    "too long": (lambda site: "vt1." + "A" * 2000, 65, "the job carries no request that this version understands"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_request_that_root_refuses_is_told_on_the_jobs_stderr(site: Site, case: str) -> None:
    other, status, says = REFUSALS[case]
    (site.root / "images").mkdir()
    site.configure(CONFIGURATION.format(root=site.root) + "MIN_UID: 1\n")
    ended = site.run(wrapper(site), other(site))
    assert ended.exit_status == status
    assert site.output("o") == ""
    assert site.output("e").count("\n") == 1 and says in site.output("e")
    assert not list((site.root / "run/jobs").glob("*"))


def test_an_image_that_is_not_roots_alone_is_the_sites_fault(site: Site) -> None:
    images = site.root / "images"
    images.mkdir()
    about = {"name": "debian-12.qcow2", "distro": "debian", "arch": "x86_64", "sha256": "", "description": ""}
    about |= {"schema": 1}  # type: ignore[dict-item]
    (images / "debian-12.qcow2.json").write_text(json.dumps(about))
    (images / "debian-12.qcow2").write_bytes(b"")
    images.chmod(0o777)
    site.configure(CONFIGURATION.format(root=site.root) + "MIN_UID: 1\n")
    assert site.run(wrapper(site), request.encode(a_request())).exit_status == 69
    assert "is writable by others (chmod go-w" in site.output("e")


@pytest.mark.parametrize("part", ["vtorque/cli/assembly.py", "templates-vm", "etc/vtorque.yaml", "scripts", "."])
def test_a_program_that_others_can_change_starts_nothing(site: Site, part: str) -> None:
    (site.prefix / part).chmod(0o777)
    ended = site.run(wrapper(site), request.encode(a_request()))
    assert ended.exit_status == 69
    assert "is writable by others" in site.output("e")
    assert not (site.root / "run").exists()


def unreadable(site: Site) -> list[str]:
    return [path.name for path in site.prefix.rglob("*.pyc") if not path.stat().st_mode & 0o004]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_nothing_is_compiled_that_users_could_not_read(site: Site, umask: int) -> None:
    for path in list(site.prefix.rglob("__pycache__")):
        shutil.rmtree(path)
    # Torque's umask for its hooks is 077.
    site.run(wrapper(site), request.encode(a_request()))
    subprocess.run([site.prefix / "scripts/vmgr", "--version"], umask=umask, check=True, stdout=subprocess.DEVNULL)
    assert not unreadable(site)
    # What this would see: the same program started in another way.
    code = f"import sys; sys.path.insert(0, '{site.prefix}'); import vtorque.errors"
    subprocess.run(["/usr/bin/python3", "-I", "-c", code], umask=0o077, check=True)
    assert bool(unreadable(site)) == (umask == 0o077)


def test_system_accounts_get_no_guests(site: Site) -> None:
    site.configure(CONFIGURATION.format(root=site.root) + "MIN_UID: 70000\n")
    assert site.run(wrapper(site), request.encode(a_request())).exit_status == 65
    assert "guests are for uids from 70000 on" in site.output("e")


def test_with_a_broken_configuration_the_sites_own_hooks_still_run(site: Site) -> None:
    site.original("prologue", "#!/bin/sh\necho site prologue\n")
    site.original("epilogue", "#!/bin/sh\necho site epilogue\n")
    site.configure("VM_IMG_DRI: /x\nTIMEOUT: soon\n")
    site.run("#!/bin/sh\necho ran\n")
    assert site.output("o") == "site prologue\nran\nsite epilogue\n"


def test_with_a_broken_configuration_a_site_prologue_that_aborts_aborts(site: Site) -> None:
    site.original("prologue", "#!/bin/sh\nexit 1\n")
    site.configure("TIMEOUT: soon\n")
    ended = site.run(wrapper(site), request.encode(a_request()))
    assert ended.exit_status == -2


def test_a_broken_configuration_ends_a_job_that_wants_guests_with_every_mistake(site: Site) -> None:
    site.configure("VM_IMG_DRI: /x\nTIMEOUT: soon\n")
    ended = site.run(wrapper(site), request.encode(a_request()))
    assert ended.exit_status == 69
    lines = set(site.output("e").splitlines())
    assert len(lines) == 2 and all(line.startswith("vtorque: ") and "vtorque.yaml:" in line for line in lines)
    assert "Traceback" not in site.output("e")


def test_a_poisoned_environment_does_not_reach_root(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = site.root / "trap"
    trap.mkdir()
    for name in ("sitecustomize", "json", "yaml", "jinja2"):
        (trap / f"{name}.py").write_text(f"open('{site.root}/sprung', 'w')\n")
    from vtorque.mom import rules

    monkeypatch.setattr(rules, "MOM_ENVIRONMENT", {
        **rules.MOM_ENVIRONMENT, "PYTHONPATH": str(trap), "PYTHONSTARTUP": str(trap / "json.py"), "IFS": "/",
        "PYTHONHOME": str(trap), "LD_PRELOAD": "", "TMPDIR": str(trap), "LIBVIRT_DEFAULT_URI": "none:///",
    })
    site.configure(CONFIGURATION.format(root=site.root) + "MIN_UID: 1\n")
    site.run(wrapper(site).replace("exec ", "unset PYTHONHOME PYTHONPATH IFS; exec "), "vt1.garbage")
    assert "the request is damaged" in site.output("e")
    assert not (site.root / "sprung").exists()
