# SPDX-License-Identifier: Apache-2.0
"""Root's log, when its disk takes nothing any more."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import a_site
from vtorque import logs, names
from vtorque.cli import rooted


@pytest.fixture
def own() -> Iterator[logging.Logger]:
    """The root logger as a hook has it: with the handler only that `setup` gives it."""
    root, other = logging.getLogger(), logging.getLogger("paramiko")
    before = root.handlers, root.level, other.level
    root.handlers = []
    yield root
    for handler in root.handlers:
        with contextlib.suppress(OSError):
            handler.close()
    root.handlers = before[0]
    root.setLevel(before[1])
    other.setLevel(before[2])


def a_record(*words: str) -> logging.LogRecord:
    return logging.LogRecord("hook", logging.ERROR, "", 0, "%d guests", words, None)


@pytest.mark.parametrize(("path", "words", "said"), [
    ("/dev/full", (), ""), ("/dev/null", ("no number",), "TypeError"),
])
def test_a_full_disk_is_no_traceback_on_the_jobs_stderr_and_a_mistake_of_ours_is(
    own: logging.Logger, capfd: pytest.CaptureFixture[str], path: str, words: tuple[str, ...], said: str
) -> None:
    logs.setup(Path(path))
    own.handlers[-1].handle(a_record(*words))
    assert bool(said) == bool(err := capfd.readouterr().err) and said in err


def test_without_a_directory_for_them_there_are_no_logs(own: logging.Logger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, is_there in (("file/log", False), ("log", True)):
        site = a_site(log_dir=str(tmp_path / place), audit_log="none")
        rooted._open_logs(site, "prologue")
        own.error("said")
        assert names.log(site).exists() is is_there
