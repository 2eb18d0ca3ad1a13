# SPDX-License-Identifier: Apache-2.0
"""The site's own scripts for guests: whose they are, and which guest gets which."""

from pathlib import Path

import pytest

from vtorque import files, guestscripts, sitescripts
from vtorque.errors import ConfigError


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of scripts that is taken for root's own."""
    trusted = files.require_trusted
    monkeypatch.setattr(files, "require_trusted", lambda path: trusted(path) if path.name == "epilogue" else None)
    for name in ("prologue", "prologue.parallel", "other"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n# {name}\n")
        path.chmod(0o755)
    return tmp_path


def test_those_that_are_there_are_read_by_name(directory: Path) -> None:
    found = sitescripts.read(str(directory))
    assert found == {name: f"#!/bin/sh\n# {name}\n" for name in ("prologue", "prologue.parallel")}
    assert list(guestscripts.of_rank(found, 0)) == ["prologue"]
    assert list(guestscripts.of_rank(found, 3)) == ["prologue.parallel"]
    assert sitescripts.read("") == {}


def test_what_others_may_write_is_refused(directory: Path) -> None:
    (directory / "epilogue").write_text("#!/bin/sh\n")
    (directory / "epilogue").chmod(0o777)
    with pytest.raises(ConfigError, match=r"^VM_SCRIPTS_DIR: .*epilogue is writable by others"):
        sitescripts.read(str(directory))


@pytest.mark.parametrize(("data", "mode", "says"), [
    (b"#!/bin/sh\n", 0o644, "is not executable"), (b"\x7fELF\xff", 0o755, "is not text"),
    (b"#" * ((64 << 10) + 1), 0o755, "is larger than 65536 bytes"),
])
def test_what_cannot_be_carried_or_run_is_named(directory: Path, data: bytes, mode: int, says: str) -> None:
    (directory / "prologue").write_bytes(data)
    (directory / "prologue").chmod(mode)
    with pytest.raises(ConfigError, match=f"VM_SCRIPTS_DIR: .*prologue {says}"):
        sitescripts.read(str(directory))


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"VM_SCRIPTS_DIR: there is no .*absent"):
        sitescripts.read(str(tmp_path / "absent"))
