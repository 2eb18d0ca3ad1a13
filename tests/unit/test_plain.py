# SPDX-License-Identifier: Apache-2.0
"""What vsub hands to qsub at once is never a job that wants guests."""

from pathlib import Path

import pytest

from tests.contract import corpus
from vtorque import qsub
from vtorque.cli import plain
from vtorque.errors import RequestError

GUESTS = (
    b"#!/bin/sh\n#PBS -vm vcpus=1\n", b'#PBS -"v"m vcpus=1\n', b"#PBS -v\\m vcpus=1\n", b"#VM vcpus=2\n",
    b"#PBS -N x -vm img=a\n",
)


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "job.sh"
    path.write_text("#!/bin/sh\n#PBS -N x -l nodes=2\necho\n")
    return str(path)


@pytest.mark.parametrize(
    "words", [[], ["-N", "a"], ["-l", "nodes=1", "-V"], ["-Na", "-h", "-V"], ["-v", "A=1,vm=2"], ["-lnodes=1", "x"]]
)
def test_an_ordinary_job_is(words: list[str], script: str) -> None:
    assert plain.is_plain([*words, script])


@pytest.mark.parametrize(
    "words", [["-vm", "vcpus=1"], ["-vm=vcpus=1"], ["--wait"], ["--batch", "slurm"], ["-gf"], ["-N"], ["-h"]]
)
def test_what_may_be_ours_or_another_options_value_is_not(words: list[str], script: str) -> None:
    assert not plain.is_plain([*words, script])


def test_a_script_that_comes_from_standard_input_or_not_at_all_is_not(tmp_path: Path, script: str) -> None:
    for words in ([], ["-N", "x"], ["-"], [str(tmp_path)], [str(tmp_path / "absent")], [script, "-"], [script, "-z"]):
        assert not plain.is_plain(words)


@pytest.mark.parametrize("text", GUESTS)
def test_a_script_that_asks_for_guests_is_not(tmp_path: Path, script: str, text: bytes) -> None:
    asking = tmp_path / "asking.sh"
    asking.write_bytes(text)
    assert not plain.is_plain([str(asking)])
    assert not plain.is_plain([str(asking), script]), "what follows a script may be its arguments"


def test_what_is_is_no_job_in_guests_to_the_grammar_either(script: str) -> None:
    for words in [*corpus.LINES, *corpus.VM_LINES, *corpus.OPENPBS_LINES]:
        for more in ([], ["-vm", "vcpus=1"]):
            line = [*map(str, words), *more, script]
            if plain.is_plain(line):
                try:
                    parsed = qsub.parse(line, qsub.GRAMMARS["torque"])
                except RequestError:
                    continue
                assert not parsed.vm and not parsed.ours and parsed.generate is None


@pytest.mark.parametrize("text", [
    "A: [x]\n", "A: 1\nA: 1\n", "A:x\n", "A: x#y\n", "A: x y\n", "A: -x\n", "A: #x\n", "A:\n", "A: 'x'\n", "? A\n: 1\n",
    "A:\n  1\n", "A: 1\n\"A\": 2\n", b"\xff\n", None,
])
def test_a_setting_that_takes_a_parser_is_left_to_it(tmp_path: Path, text: str | bytes | None) -> None:
    path = tmp_path / "vtorque.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert plain.glance(str(path), ("A",)) is None


def test_a_plain_setting_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "vtorque.yaml"
    path.write_text("# of the site\nB: [x]\nA: /usr/bin/qsub  # the real one\n")
    assert plain.glance(str(path), ("A", "C")) == {"A": "/usr/bin/qsub"}
