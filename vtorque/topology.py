# SPDX-License-Identifier: Apache-2.0
"""What this node has, and who its users are."""

import grp
import os
import pwd
import re
import socket
from pathlib import Path

import psutil

from vtorque.errors import ConfigError, RequestError
from vtorque.model import Account, Group, NodeShape

# Names go into a guest's passwd and group files, which know no quoting.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)


def node_shape() -> NodeShape:
    """CPUs that this process may run on (mom's own cpuset) and the node's whole memory, in MiB."""
    return NodeShape(
        name=socket.gethostname(),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        memory_mib=psutil.virtual_memory().total >> 20,
    )


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


def user_ids(user: str) -> tuple[int, int]:
    """Numeric user and group of a system account; ConfigError when there is none."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"QEMU_USER: there is no user {user!r} on this node") from None
    return entry.pw_uid, entry.pw_gid


def address_on(interface: str) -> str:
    """The node's first IPv4 address on an interface, or nothing."""
    addresses = psutil.net_if_addrs().get(interface, [])
    return next((each.address for each in addresses if each.family is socket.AF_INET), "")


def _group(gid: int) -> Group:
    try:
        name = grp.getgrgid(gid).gr_name
    except KeyError:
        name = ""
    # A group without a name, or with one that a group file cannot hold, still counts by its number.
    return Group(name=name if _NAME.fullmatch(name) else f"gid{gid}", gid=gid)
