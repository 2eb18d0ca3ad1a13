# SPDX-License-Identifier: Apache-2.0
"""`-vm` options: read from wherever they stand, the last one counts, and what is wrong is named with its place."""

from pathlib import Path

import pytest

from vtorque import vmoptions
from vtorque.errors import RequestError
from vtorque.vmoptions import COMMAND_LINE, Given, Source


def collected(*texts: str, origin: str = COMMAND_LINE) -> dict[str, str]:
    given = vmoptions.collect([Source(origin=origin, text=text) for text in texts])
    return {name: each.value for name, each in given.items()}


def test_keys_are_of_any_case_and_the_last_of_each_counts() -> None:
    assert collected(" IMG = a.qcow2 ,vcpus=2", "Vcpus=4") == {"img": "a.qcow2", "vcpus": "4"}
    given = vmoptions.collect([Source(origin="line 3", text="ram=8G"), Source(origin="line 4", text="arch=x86_64")])
    assert given == {"ram": Given(value="8G", origin="line 3"), "arch": Given(value="x86_64", origin="line 4")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vcpus", "-vm 'vcpus' is not key=value (like -vm vcpus=4,ram=8G)"),
        ("vcpus=", "-vm 'vcpus=' is not key=value (like -vm vcpus=4,ram=8G)"),
        ("vcpus= ", "-vm 'vcpus= ' is not key=value (like -vm vcpus=4,ram=8G)"),
        ("=4", "-vm '=4' is not key=value (like -vm vcpus=4,ram=8G)"),
        ("", "-vm '' is not key=value (like -vm vcpus=4,ram=8G)"),
        ("ram=8G,,", "-vm '' is not key=value (like -vm vcpus=4,ram=8G)"),
        ("x" * 100, f"-vm '{'x' * 80}' is not key=value (like -vm vcpus=4,ram=8G)"),
        ("img=a\x1bb", "-vm img='a\\x1bb': not printable UTF-8"),
        ("img=\x1b" + "x" * 100, f"-vm img='\\x1b{'x' * 79}': not printable UTF-8"),
        ("vm_prologue=caf\udce9.sh", "-vm vm_prologue='caf\\udce9.sh': not printable UTF-8"),
        ("vm_prologue=a\u00a0b.sh", "-vm vm_prologue='a\\xa0b.sh': not printable UTF-8"),
        ("mem=4G", "-vm 'mem' is not a key (did you mean ram?)"),
        ("memory=4G", "-vm 'memory' is not a key (did you mean ram?)"),
        ("cores=4", "-vm 'cores' is not a key (did you mean vcpus?)"),
        ("vcpu=4", "-vm 'vcpu' is not a key (did you mean vcpus?)"),
        ("zzz=4", f"-vm 'zzz' is not a key (there are: {', '.join(vmoptions.KEYS)})"),
        ("z" * 100 + "=4", f"-vm '{'z' * 80}' is not a key (there are: {', '.join(vmoptions.KEYS)})"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        collected(text)
    assert caught.value.one_line() == says


def test_where_it_stands_is_said_unless_it_is_the_command_line() -> None:
    with pytest.raises(RequestError, match=r"^job\.sh:3: -vm 'x' is not"):
        collected("x", origin="job.sh:3")


def test_the_users_own_file_has_lines_comments_and_blanks(tmp_path: Path) -> None:
    assert vmoptions.user_defaults(tmp_path) == []
    (tmp_path / ".vtorquerc").write_text("# mine\n\n img = a.qcow2 # always\nvcpus=\n=4\n")
    assert vmoptions.user_defaults(tmp_path) == [
        Source(origin="~/.vtorquerc:3", text="img=a.qcow2"), Source(origin="~/.vtorquerc:4", text="vcpus="),
        Source(origin="~/.vtorquerc:5", text="=4"),
    ]


def test_a_file_that_cannot_be_read_is_the_users_fault(tmp_path: Path) -> None:
    (tmp_path / ".vtorquerc").mkdir()
    with pytest.raises(RequestError, match="vtorquerc: Is a directory"):
        vmoptions.user_defaults(tmp_path)


def test_a_file_is_small(tmp_path: Path) -> None:
    (tmp_path / ".vtorquerc").write_bytes(b"#" * (64 << 10))
    assert vmoptions.user_defaults(tmp_path) == []
    (tmp_path / ".vtorquerc").write_bytes(b"#" * ((64 << 10) + 1))
    with pytest.raises(RequestError, match="has more than 64 KiB"):
        vmoptions.user_defaults(tmp_path)
