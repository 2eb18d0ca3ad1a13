# SPDX-License-Identifier: Apache-2.0
"""Numbers as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtorque import units


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("2048", 2048), ("512M", 512), ("512m", 512), ("15G", 15360), ("2T", 2 << 20), ("1048576K", 1024),
        ("1K", 1), ("1025K", 2), ("0", 0), (" 8 GB ", 8192), ("8GiB", 8192), ("8gib", 8192),
    ],
)
def test_a_size_has_a_unit_or_is_mib_and_is_rounded_up(text: str, mib: int) -> None:
    assert units.mebibytes(text) == mib


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.5G", "8B", "8iB", "8X", "8GG", "1e3", "٨G", "8G 8G", "9" * 13, "0x10"]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.mebibytes(text)


def test_a_refusal_shows_no_more_than_the_beginning() -> None:
    for read in (units.mebibytes, units.seconds, units.cpu_list):
        with pytest.raises(ValueError, match=f"^'{'x' * 40}' is not"):
            read("x" * 5000)


@given(st.integers(0, 1 << 36))
@settings(max_examples=200, derandomize=True)
def test_a_size_survives_being_written_down(mib: int) -> None:
    assert units.mebibytes(units.size(mib)) == mib


def test_a_size_is_written_as_short_as_it_can_be_exactly() -> None:
    assert [units.size(mib) for mib in (0, 512, 1024, 1536, 24576)] == ["0M", "512M", "1G", "1536M", "24G"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("1:30", 90), ("02:00:00", 7200), ("0:0:1", 1), ("100:00:00", 360000), ("9" * 9, 10**9 - 1),
    ],
)
def test_a_time_is_read_as_torque_writes_it(text: str, seconds: int) -> None:
    assert units.seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1:2:3:4", "1:", ":30", "-5", "1h", "1.5", "٣", "1000000:0:0", "1000000:0", "9" * 10]
)
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        units.seconds(text)


@given(st.integers(0, 10**9))
@settings(max_examples=200, derandomize=True)
def test_a_time_survives_being_written_down(seconds: int) -> None:
    assert units.seconds(units.duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("2-5,8", (2, 3, 4, 5, 8)), ("3,1,1-2\n", (1, 2, 3)), ("7-7", (7,))]
)
def test_a_cpu_list_is_read_as_the_kernel_writes_it(text: str, cpus: tuple[int, ...]) -> None:
    assert units.cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1-2-3", "0-3:2/4"])
def test_what_is_not_a_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of CPUs"):
        units.cpu_list(text)


@given(st.sets(st.integers(0, 300), min_size=1))
@settings(max_examples=200, derandomize=True)
def test_cpus_survive_being_written_down(cpus: set[int]) -> None:
    assert units.cpu_list(units.cpu_list_text(cpus)) == tuple(sorted(cpus))


def test_neighbouring_cpus_are_written_as_a_range() -> None:
    assert units.cpu_list_text([8, 2, 3, 4]) == "2-4,8"
    assert units.cpu_list_text([1, 3, 4, 5, 9, 10]) == "1,3-5,9-10"
    assert units.cpu_list_text([]) == ""
