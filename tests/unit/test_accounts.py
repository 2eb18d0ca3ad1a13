# SPDX-License-Identifier: Apache-2.0
"""Whose job it is: exactly one account, and only if a guest's passwd and group files can hold it."""

import grp
import os
import pwd
from pathlib import Path

import pytest

from vtorque import accounts
from vtorque.errors import ConfigError, RequestError

ANN = ("ann", "x", 2000, 2000, "Ann,,,joanna ann:bob", "/home/ann", "/bin/bash")


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[object, ...]]:
    """Accounts of a name service, by name; whatever somebody's directory holds."""
    known: dict[str, tuple[object, ...]] = {
        "ann": ANN, "joanna": ("joanna", "x", 2001, 2001, "ann", "/home/joanna", ""),
        "ann2": ("ann2", "x", 2002, 2002, "", "/home/ann2", "/bin/sh"),
    }
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd(known[name]))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [3000, gid])
    groups = {2000: "ann", 3000: 'x"\nroot:x:0:ann'}
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((groups[gid], "x", gid, [])))
    return known


@pytest.mark.usefixtures("users")
def test_a_user_is_found_by_his_whole_name_with_all_his_groups() -> None:
    ann = accounts.account("ann", min_uid=2000)
    assert (ann.name, ann.uid, ann.home, ann.shell) == ("ann", 2000, Path("/home/ann"), "/bin/bash")
    assert [(group.name, group.gid) for group in ann.groups] == [("ann", 2000), ("gid3000", 3000)]


@pytest.mark.usefixtures("users")
def test_a_group_that_nobody_knows_counts_by_its_number_and_no_shell_is_sh() -> None:
    joanna = accounts.account("joanna", min_uid=1000)
    assert (joanna.group.name, joanna.shell) == ("gid2001", "/bin/sh")


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize("name", ["an", "nn", "ANN", "ann ", "2000", "", "root"])
def test_nobody_else_is_taken_for_him(name: str) -> None:
    with pytest.raises(RequestError, match="is not known on this node"):
        accounts.account(name, min_uid=0)


@pytest.mark.usefixtures("users")
def test_system_accounts_have_no_guests() -> None:
    assert accounts.account("ann", min_uid=2000).uid == 2000
    with pytest.raises(RequestError, match="has uid 2000, guests are for uids from 2001 on"):
        accounts.account("ann", min_uid=2001)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        *((0, name, "cannot be used in a guest") for name in ("a:b", "a b", "a\nb", "-rf", "1a", "ä", "a" * 65)),
        *((5, home, "no usable home directory") for home in ("", "/", "home/ann", "/home/a:b", "/home/a\nroot::0:0")),
        *((6, shell, "no usable login shell") for shell in (
            "/x" * 17, "bash",
            "/bin/sh:", "/bin/sh\ntoor::0:0::/:/bin/sh", "/bin/sh -c id", "/bin/sh\0", "/" + "x" * 65,
        )),
    ],
)
def test_what_would_be_more_than_a_field_of_the_guests_passwd_is_refused(
    users: dict[str, tuple[object, ...]], place: int, value: str, says: str
) -> None:
    users["ann"] = (*ANN[:place], value, *ANN[place + 1:])
    with pytest.raises(RequestError, match=says):
        accounts.account("ann", min_uid=1000)


@pytest.mark.usefixtures("users")
def test_an_account_of_the_systems_is_known_by_its_numbers_or_is_the_sites_fault() -> None:
    assert accounts.user_ids("ann") == (2000, 2000) and accounts.primary_group("ann") == 2000
    assert accounts.primary_group("gone") == 0
    with pytest.raises(ConfigError, match="there is no user 'gone'"):
        accounts.user_ids("gone")


def test_the_program_is_an_account_of_the_node_and_not_root(users: dict[str, tuple[object, ...]]) -> None:
    with pytest.raises(ConfigError, match="there is no user 'vtorque' on this node"):
        accounts.program()
    for uid in (1, 990):
        users["vtorque"] = ("vtorque", "x", uid, 991, "", "/nonexistent", "")
        assert accounts.program() == (uid, 991)
    users["vtorque"] = ("vtorque", "x", 0, 991, "", "/root", "")
    with pytest.raises(ConfigError, match="user 'vtorque' is root"):
        accounts.program()
