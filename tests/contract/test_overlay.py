# SPDX-License-Identifier: Apache-2.0
"""Overlays as QEMU's own tools see them, beside those that qemu-img makes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_site
from tests.fakes.node import Here, a_monitor, bound_to
from vtorque import files, overlay
from vtorque.deadline import Deadline
from vtorque.rootside import RootSide

pytestmark = pytest.mark.runs

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
JOB = a_job()


def soon() -> Deadline:
    return Deadline(30)


def info(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(qemu_img("info", "-U", "--output=json", path))
    return {name: found.get(name) for name in (
        "virtual-size", "format", "cluster-size", "backing-filename", "backing-filename-format", "dirty-flag",
    )} | {"compat": found["format-specific"]["data"]["compat"]}


def qemu_img(*words: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.PIPE).stdout


def write(path: Path, *, base: Path, base_format: str, size: int) -> None:
    """As root has it made: in a file that is new."""
    with files.created(path, mode=0o600) as handle:
        overlay.write(handle, base=base, base_format=base_format, size=size)


def a_base(directory: Path, form: str, size: int) -> Path:
    path = directory / f"base.{form}"
    if form == "raw":
        with path.open("xb") as file:
            file.write(b"content")
            file.truncate(size)
    else:
        qemu_img("create", "-q", "-f", form, path, str(size))
    return path


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("size", [MIB, 512 * MIB, 512 * MIB + 512, 10 * GIB, 5 * TIB, MIB + 1])
def test_it_is_what_qemu_img_would_have_made(tmp_path: Path, form: str, size: int) -> None:
    base = a_base(tmp_path, form, size)
    qemu_img("create", "-q", "-f", "qcow2", "-F", form, "-b", base, tmp_path / "theirs")
    write(tmp_path / "ours", base=base, base_format=form, size=size)
    assert info(tmp_path / "ours") == info(tmp_path / "theirs")
    qemu_img("check", "-q", tmp_path / "ours")


def test_what_is_written_stays_in_the_overlay(tmp_path: Path) -> None:
    base = a_base(tmp_path, "raw", 600 * MIB)
    ours = tmp_path / "ours"
    write(ours, base=base, base_format="raw", size=900 * MIB)
    for word in ("write -P 7 0 65536", "write -P 8 850M 65536", "read -P 7 0 65536", "read -P 8 850M 65536"):
        said = subprocess.run(["qemu-io", "-c", word, ours], check=True, stdout=subprocess.PIPE).stdout
        assert b"failed" not in said
    qemu_img("check", "-q", ours)
    assert base.read_bytes()[:8] == b"content\0"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the job's overlays are."""
    place = tmp_path / "disks" / JOB.key
    rootside(tmp_path).make_place("sharedfs", deadline=soon())
    assert place.is_dir()
    return place


def rootside(directory: Path) -> RootSide:
    """Root, who makes the files that overlays are written to."""
    site = a_site(state_dir=str(directory / "state"), disk_dir=str(directory / "disks"))
    return RootSide(Here(a_monitor(site, bound=bound_to(JOB))))


def test_it_takes_the_place_of_nothing(tmp_path: Path, place: Path) -> None:
    there, link = place / f"{JOB.key}_1of2.qcow2", place / f"{JOB.key}_2of2.qcow2"
    there.touch()
    link.symlink_to(tmp_path / "elsewhere")
    for path in (there, link):
        with pytest.raises(FileExistsError):
            rootside(tmp_path).create(path, deadline=soon())
    assert not (tmp_path / "elsewhere").exists()


def test_it_takes_no_room_and_is_nobody_elses(tmp_path: Path, place: Path) -> None:
    ours = place / f"{JOB.key}_1of1.qcow2"
    handle = rootside(tmp_path).create(ours, deadline=soon())
    try:
        overlay.write(handle, base=a_base(tmp_path, "raw", MIB), base_format="raw", size=MIB)
    finally:
        os.close(handle)
    about = ours.stat()
    assert about.st_mode & 0o777 == 0o600
    assert about.st_blocks * 512 < 64 << 10
