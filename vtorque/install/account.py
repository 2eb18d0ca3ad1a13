# SPDX-License-Identifier: Apache-2.0
"""The account that the program runs as: made where it is missing. It stays: what jobs have left is its."""

import grp
import pwd
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from vtorque import accounts
from vtorque.accounts import PROGRAM
from vtorque.install.parts import Setup
from vtorque.install.tree import ROOT, inside

_PASSWD = Path("/etc/passwd")
# contrib/make-account, which is for what runs before there is Python, has the same words.
_LIKE = ("--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", PROGRAM)


def making() -> tuple[str, ...]:
    """The command that makes it on this node; none when the name service knows it. ConfigError when that is root."""
    if not _is_known(pwd.getpwnam):
        return _useradd(*(("--gid", PROGRAM) if _is_known(grp.getgrnam) else ("--user-group",)))
    accounts.program()
    return ()


def first(setup: Setup, root: Path) -> tuple[tuple[str, ...], ...]:
    """What has to be run before there are hooks; in an image of a node, below another `root`, nothing is."""
    command = making() if root == ROOT and not setup.front_end else ()
    return (command,) if command else ()


def notes(setup: Setup, root: Path) -> Iterator[str]:
    """What is left to whoever makes an image of a node."""
    if root == ROOT or setup.front_end:
        return
    passwd = inside(root, _PASSWD)
    known = passwd.read_text(errors="replace").splitlines() if passwd.is_file() else []
    if not any(line.startswith(f"{PROGRAM}:") for line in known):
        command = shlex.join(_useradd("--root", str(root), "--user-group"))
        yield f"{root} has no user {PROGRAM}, and unless a directory service will, no job gets guests: {command}"


def left(root: Path, *, front_end: bool) -> Iterator[str]:
    """What is not as it was before, when all else is."""
    if root == ROOT and not front_end and _is_known(pwd.getpwnam):
        yield f"the user {PROGRAM} stays, as logs and accounting are its; userdel {PROGRAM} when they are gone"


def _useradd(*words: str) -> tuple[str, ...]:
    return "useradd", "--system", *words, *_LIKE


def _is_known(ask: Callable[[str], object]) -> bool:
    try:
        ask(PROGRAM)
    except KeyError:
        return False
    return True
