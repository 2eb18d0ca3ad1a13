# SPDX-License-Identifier: Apache-2.0
"""Users and groups, as this node's name service knows them."""

import grp
import os
import pwd
import re
from pathlib import Path

from vtorque.errors import ConfigError, RequestError
from vtorque.identity import Account, Group

PROGRAM = "vtorque"
"""The account that all is done as on a node that needs no right of root's."""

# Names and shells go into a guest's passwd and group files, which know no quoting.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_SHELL = re.compile(r"(?:/[A-Za-z0-9_.+-]{1,64}){0,16}", re.ASCII)


def account(user: str, *, min_uid: int) -> Account:
    """The user with all his groups; RequestError when he may not run jobs in guests."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise RequestError(f"user {user!r} is not known on this node") from None
    if entry.pw_uid < min_uid:
        raise RequestError(f"user {user!r} has uid {entry.pw_uid}, guests are for uids from {min_uid} on")
    if _NAME.fullmatch(entry.pw_name) is None:
        raise RequestError(f"user name {user!r} cannot be used in a guest")
    home = Path(entry.pw_dir)
    if not home.is_absolute() or home == Path("/") or any(c in entry.pw_dir for c in ":\n"):
        raise RequestError(f"user {user!r} has no usable home directory: {entry.pw_dir!r}")
    # At many sites users set it themselves, in a directory service that takes anything.
    if _SHELL.fullmatch(entry.pw_shell) is None:
        raise RequestError(f"user {user!r} has no usable login shell: {entry.pw_shell[:80]!r}")
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        group=_group(entry.pw_gid),
        groups=tuple(_group(gid) for gid in sorted(os.getgrouplist(user, entry.pw_gid))),
        home=home,
        shell=entry.pw_shell or "/bin/sh",
    )


def primary_group(user: str) -> int:
    """The numeric primary group of the user, or root's when there is no such user."""
    try:
        return pwd.getpwnam(user).pw_gid
    except KeyError:
        return 0


def program() -> tuple[int, int]:
    """Numeric user and group of the account that all is done as that needs no right of root's; ConfigError."""
    try:
        entry = pwd.getpwnam(PROGRAM)
    except KeyError:
        raise ConfigError(f"there is no user {PROGRAM!r} on this node", hint="contrib/make-account makes one") from None
    if entry.pw_uid == 0:
        raise ConfigError(f"user {PROGRAM!r} is root")
    return entry.pw_uid, entry.pw_gid


def user_ids(user: str) -> tuple[int, int]:
    """Numeric user and group of a system account; ConfigError when there is none."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"QEMU_USER: there is no user {user!r} on this node") from None
    return entry.pw_uid, entry.pw_gid


def _group(gid: int) -> Group:
    try:
        name = grp.getgrgid(gid).gr_name
    except KeyError:
        name = ""
    # A group without a name, or with one that a group file cannot hold, still counts by its number.
    return Group(name=name if _NAME.fullmatch(name) else f"gid{gid}", gid=gid)
