# SPDX-License-Identifier: Apache-2.0
"""A job's output and exit status are those of the same script without `-vm`."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.contract import jobscripts
from tests.contract.fidelity import both_ways

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="namespaces, and a mom's rights"),
]

KINDS = jobscripts.kinds()
# As of status, standard output and standard error, with and without a guest.
Both = tuple[list[Any], list[Any]]


def different(found: dict[str, Both]) -> dict[str, Both]:
    return {name: each for name, each in found.items() if each[0] != each[1]}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    return both_ways(tmp_path_factory.mktemp("ours") / "ended.json")


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"otherwise"}))
def test_a_script_says_and_ends_the_same_in_a_guest(ended: dict[str, Both], kind: str) -> None:
    assert different({name: ended[name] for name in KINDS[kind]}) == {}


def test_an_exit_status_is_the_scripts(ended: dict[str, Both]) -> None:
    found = {name: ended[name][1][0] for name in KINDS["statuses"]}
    assert found == {name: int(name.removeprefix("exit ")) for name in found}


def test_every_signal_ends_the_script_or_does_not(ended: dict[str, Both]) -> None:
    """signal(7): those that are ignored, that stop (nobody stops an orphaned group by a terminal's), or end."""
    harmless = {17, 18, 19, 20, 21, 22, 23, 28}
    expected = {number: 5 if number in harmless else 128 + number for number in range(1, 65)}
    assert {number: ended[f"signal {number}"][1][0] for number in expected} == expected


def test_all_of_a_lot_of_output_arrives(ended: dict[str, Both]) -> None:
    (status, (out, _, one), (err, _, other)) = ended["much"][1]
    assert (status, out, err) == (0, 10 << 20, 10 << 20)
    assert one != other


def test_a_script_that_kills_its_login_shell_ends_with_another_number(ended: dict[str, Both]) -> None:
    """Mom sees a signal; what comes out of a guest is an exit status."""
    bare, guest = ended["kills its shell"]
    assert (bare[0], guest[0]) == (256 + 15, 128 + 15)
    assert bare[1:] == guest[1:]


def test_what_a_profile_prints_comes_twice(ended: dict[str, Both]) -> None:
    """The node's login shell reads it as well, before the wrapper can begin."""
    bare, guest = ended["profile that prints"]
    assert (bare[1][1], guest[1][1]) == ("hello\nend\n", "hello\nhello\nend\n")
    assert bare[0] == guest[0]


def test_a_directory_that_was_deleted_is_no_reason_not_to_run(ended: dict[str, Both]) -> None:
    bare, guest = ended["directory that is gone"]
    assert bare[:2] == guest[:2]


@pytest.mark.parametrize(("weakened", "kinds", "noticed"), [
    ("run-job.sh", ("inputs", "interpreters"), {
        "blocked and ignored signals", "kind of input", "dos line ends", "empty", "python",
    }),
    ("sshd.conf", ("inputs",), set(jobscripts.inputs())),
])
def test_a_guest_that_does_otherwise_is_noticed(
    tmp_path: Path, weakened: str, kinds: tuple[str, ...], noticed: set[str]
) -> None:
    only = [f"--only={kind}" for kind in kinds]
    assert different(both_ways(tmp_path / "ended.json", f"--weakened={weakened}", *only)).keys() >= noticed
