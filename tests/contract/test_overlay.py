# SPDX-License-Identifier: Apache-2.0
"""Overlays as QEMU's own tools see them, beside those that qemu-img makes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vtorque import overlay

pytestmark = pytest.mark.runs

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def info(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(qemu_img("info", "-U", "--output=json", path))
    return {name: found.get(name) for name in (
        "virtual-size", "format", "cluster-size", "backing-filename", "backing-filename-format", "dirty-flag",
    )} | {"compat": found["format-specific"]["data"]["compat"]}


def qemu_img(*words: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.PIPE).stdout


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
    overlay.write(tmp_path / "ours", base=base, base_format=form, size=size)
    assert info(tmp_path / "ours") == info(tmp_path / "theirs")
    qemu_img("check", "-q", tmp_path / "ours")


def test_what_is_written_stays_in_the_overlay(tmp_path: Path) -> None:
    base = a_base(tmp_path, "raw", 600 * MIB)
    ours = tmp_path / "ours"
    overlay.write(ours, base=base, base_format="raw", size=900 * MIB)
    for word in ("write -P 7 0 65536", "write -P 8 850M 65536", "read -P 7 0 65536", "read -P 8 850M 65536"):
        said = subprocess.run(["qemu-io", "-c", word, ours], check=True, stdout=subprocess.PIPE).stdout
        assert b"failed" not in said
    qemu_img("check", "-q", ours)
    assert base.read_bytes()[:8] == b"content\0"


def test_it_takes_the_place_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "ours").touch()
    with pytest.raises(FileExistsError):
        overlay.write(tmp_path / "ours", base=tmp_path, base_format="raw", size=MIB)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        overlay.write(tmp_path / "link", base=tmp_path, base_format="raw", size=MIB)


def test_it_takes_no_room_and_is_nobody_elses(tmp_path: Path) -> None:
    overlay.write(tmp_path / "ours", base=a_base(tmp_path, "raw", MIB), base_format="raw", size=MIB)
    about = (tmp_path / "ours").stat()
    assert about.st_mode & 0o777 == 0o600
    assert about.st_blocks * 512 < 64 << 10
