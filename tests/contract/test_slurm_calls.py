# SPDX-License-Identifier: Apache-2.0
"""The real scripts/slurm/* called as slurmd never should: each bad call is one line, and drains no node.

No daemon is started here; test_slurm.py has them.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import a_request
from tests.contract.test_hooks import CONFIGURATION, USER, Site
from vtorque import request

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="slurmd is root"),
]

PLACE = Path("/var/lib") / f"vtorque-calls-{os.getpid()}"
ENVIRONMENT = {
    "SLURM_JOB_COMMENT": request.encode(a_request()), "SLURM_JOB_ID": "5", "SLURM_JOBID": "5",
    "SLURM_JOB_USER": USER.pw_name, "SLURM_JOB_UID": str(USER.pw_uid), "SLURM_JOB_GID": str(USER.pw_gid),
    "SLURM_NODELIST": "n1", "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_CPUS_PER_NODE": "1",
    "SLURM_CONF": f"{PLACE}/slurm.conf",
}
CONTEXT = {"prolog": "prolog_slurmd", "epilog": "epilog_slurmd"}
BAD: dict[str, tuple[str, str | bytes | None]] = {
    "no id": ("SLURM_JOB_ID", None), "an empty id": ("SLURM_JOB_ID", ""), "a path": ("SLURM_JOB_ID", "../../etc"),
    "bytes for an id": ("SLURM_JOB_ID", b"5\xff"), "no user": ("SLURM_JOB_USER", None),
    "an option for a user": ("SLURM_JOB_USER", "-rf"), "bytes for a user": ("SLURM_JOB_USER", b"\xff\xfe"),
    "a node list that is none": ("SLURM_NODELIST", "n[1-"), "nodes without this one": ("SLURM_NODELIST", "n[2-3]"),
}


@pytest.fixture(scope="module")
def hooks() -> Iterator[Path]:
    PLACE.mkdir(mode=0o755)
    site = Site(PLACE)
    text = CONFIGURATION.format(root=PLACE).replace("BATCH_SYSTEM: local", "BATCH_SYSTEM: slurm")
    site.configure(f"{text}MIN_UID: 1\nSLURM_CONF: {PLACE}/slurm.conf\n")
    (PLACE / "images").mkdir()
    (PLACE / "slurm.conf").write_text("PrologEpilogTimeout=7\n")
    directory = PLACE / "hooks"
    directory.mkdir()
    for name in CONTEXT:
        (directory / name).symlink_to(site.prefix / "scripts/slurm" / name)
    yield directory
    subprocess.run(["/usr/bin/rm", "-r", PLACE], check=True)


def call(hook: Path, **changes: str | bytes | None) -> tuple[int, list[str]]:
    """Its status and what it says."""
    environ = {**ENVIRONMENT, "SLURM_SCRIPT_CONTEXT": CONTEXT[hook.name], **changes}
    done = subprocess.run(
        [hook], env={name: value for name, value in environ.items() if value is not None}, stdin=subprocess.DEVNULL,
        capture_output=True, start_new_session=True, check=False, cwd="/",
    )
    assert done.stdout == b""
    return done.returncode, done.stderr.decode().splitlines()


@pytest.mark.parametrize(("name", "case"), [
    *(("prolog", case) for case in BAD), ("epilog", "no id"), ("epilog", "bytes for a user"),
    ("epilog", "a node list that is none"),
])
def test_a_bad_value_is_one_line_and_drains_no_node(hooks: Path, name: str, case: str) -> None:
    variable, value = BAD[case]
    status, said = call(hooks / name, **{variable: value})
    assert status == 0
    # An Epilog ends whatever there is of a job, and needs no list of nodes for it.
    assert len(said) == (0 if name == "epilog" and variable == "SLURM_NODELIST" else 1), said
    assert all(line.startswith("vtorque: ") for line in said)
    assert not list((PLACE / "run").glob("jobs/*"))


@pytest.mark.parametrize("name", CONTEXT)
@pytest.mark.parametrize("guests", [False, True], ids=["without guests", "with guests"])
@pytest.mark.parametrize("text, mode, ends, says", [
    ("#!/bin/sh\nexit 1\n", 0o644, (1, 3), "is not executable (chmod 755"),
    ("#!/bin/sh\nexit 4\n", 0o755, (4,), ""),
    ("#!/bin/sh\nkill -SEGV $$\n", 0o755, (11,), "was killed by signal 11"),
])
def test_a_hook_of_the_sites_own_that_fails_ends_ours_as_it_would_end_alone(
    hooks: Path, name: str, guests: bool, text: str, mode: int, ends: tuple[int, ...], says: str
) -> None:
    original = hooks / f"{name}.orig"
    original.write_text(text)
    original.chmod(mode)
    try:
        status, said = call(hooks / name, **({} if guests else {"SLURM_JOB_COMMENT": "no request"}))
    finally:
        original.unlink()
    assert abs(status) in ends
    own = [line for line in said if str(original) in line]
    assert len(own) == (1 if says and (guests or mode == 0o644) else 0) and all(says in line for line in own), said


def test_a_hook_of_the_sites_own_that_hangs_is_killed_before_slurmd_kills_ours(hooks: Path) -> None:
    original = hooks / "prolog.orig"
    original.write_text(f"#!/bin/sh\necho $$ >{PLACE}/pid\nsleep 1000\n")
    original.chmod(0o755)
    status, said = call(hooks / "prolog")
    original.unlink()
    assert status != 0 and f"vtorque: {original} did not end in time" in said
    assert not Path("/proc", (PLACE / "pid").read_text().strip()).exists()


def test_a_batch_system_that_is_none_is_named_and_starts_nothing(hooks: Path) -> None:
    settings = PLACE / "vtorque/etc/vtorque.yaml"
    before = settings.read_text()
    settings.write_text(before.replace("BATCH_SYSTEM: slurm", "BATCH_SYSTEM: lsf"))
    try:
        status, said = call(hooks / "prolog")
    finally:
        settings.write_text(before)
    assert (status, len(said)) == (0, 1)
    assert "BATCH_SYSTEM: must be torque or openpbs or slurm or local, not 'lsf'" in said[0]
