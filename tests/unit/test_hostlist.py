# SPDX-License-Identifier: Apache-2.0
"""Slurm's host lists: every form, and nothing but host names, and not too many."""

import pytest

from vtorque import hostlist


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", "n1"),
        ("b1,n[9-11]", "b1 n9 n10 n11"),
        ("cn[001-003,7]", "cn001 cn002 cn003 cn7"),
        ("cn[098-101]", "cn098 cn099 cn100 cn101"),
        ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("cn[1-2]-ib", "cn1-ib cn2-ib"),
        ("a[1,3],b,c[2]d", "a1 a3 b c2d"),
        ("node-1.example.org", "node-1.example.org"),
        ("n[3-2]", ""),
    ],
)
def test_a_list_stands_for_its_names_in_order(text: str, names: str) -> None:
    assert list(hostlist.expand(text)) == names.split()


@pytest.mark.parametrize(
    "text",
    ["", ",", "n1,", "n[", "n]", "n[]", "n[1", "n[1-]", "n[a-b]", "n[1-2-3]", "n[[1]]", "n1 n2", "-n1", "n1\n",
     "$(id)", "n[1-2]/..", "ä1", "n[٣]", "n[0000000001]", "n" * 300, "n" + "[1]" * 5000],
)
def test_what_is_no_list_of_host_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host list"):
        hostlist.expand(text)


@pytest.mark.parametrize("text", ["n[0-65536]", "n[1-999999999]", "a[1-1000]b[1-1000]", "n," * 70000])
def test_a_list_that_stands_for_too_many_is_refused_before_it_is_made(text: str) -> None:
    with pytest.raises(ValueError, match="more than 65536"):
        hostlist.expand(text)
