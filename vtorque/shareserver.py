# SPDX-License-Identifier: Apache-2.0
"""Becomes the server of one share. A script that root starts for each, alone with the standard library.

It makes a user namespace in which there is nobody but the job's user and his
groups, becomes him, shuts out writing if it has to, and becomes virtiofsd.
Whatever a guest says then, the host does it as that user or not at all.

Root's side sends the order as a line of JSON, hears `unshared`, writes the
maps of numbers, and says so with another line.
"""

import ctypes
import json
import os
import sys
from typing import Any

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAP_AMBIENT = 38, 22, 47
_CAP_AMBIENT_RAISE, _SECCOMP_MODE_FILTER = 2, 2
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_CAPABILITY_VERSION = 0x20080522
# setgid, setuid, setpcap, sys_admin: what virtiofsd's own sandbox takes, within the namespace only.
_CAPABILITIES = (6, 7, 8, 21)

# virtiofsd of QEMU gives up all supplementary groups, and does nothing else if it cannot. With them
# gone the user could not reach his groups' files; so it is told that they are.
_KEEP_GROUPS = (
    (0x20, 0, 0, 4),           # load the architecture
    (0x15, 0, 3, 0xC000003E),  # x86_64, else allow
    (0x20, 0, 0, 0),           # load the number of the system call
    (0x15, 0, 1, 116),         # setgroups, else allow
    (0x06, 0, 0, 0x00050000),  # return 0 without doing it
    (0x06, 0, 0, 0x7FFF0000),  # allow
)

_libc = ctypes.CDLL(None, use_errno=True)


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def main() -> None:
    """Serve what the order on standard input says; the reason on standard error when that cannot be."""
    order = json.loads(sys.stdin.readline())
    try:
        _do("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        # Still root: a namespace that belonged to the user would be his to enter and to trace.
        _do("user namespace", _libc.unshare(_CLONE_NEWUSER))
        os.write(1, b"unshared\n")
        if not sys.stdin.readline():
            sys.exit(1)
        _become(order["uid"], order["gid"], order["groups"])
        _confine(order["directory"], readonly=order["readonly"])
        _keep_capabilities()
        if order["keep_groups"]:
            _filter()
    except OSError as error:
        sys.exit(f"{error.strerror}: {error.filename}")
    _serve(order["argv"])


def _become(uid: int, gid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or sorted(os.getgroups()) != sorted(groups):
        sys.exit("the ids were not taken on")
    os.umask(0o022)


def _confine(directory: str, *, readonly: bool) -> None:
    """A mount of the directory in which no file has a special meaning; everything as the user, from here on."""
    os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    _do("mount namespace", _libc.unshare(_CLONE_NEWNS))
    path = os.fsencode(directory)
    _do("/", _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    _do(directory, _libc.mount(path, path, None, ctypes.c_ulong(_MS_BIND | _MS_REC), None))
    wanted = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if readonly else 0)
    attributes = (ctypes.c_uint64 * 4)(wanted, 0, 0, 0)
    _do(directory, _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_long(_AT_FDCWD), path, ctypes.c_long(_AT_RECURSIVE),
        ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)),
    ))


def _keep_capabilities() -> None:
    mask = sum(1 << number for number in _CAPABILITIES)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _do("capabilities", _libc.capset(ctypes.byref(header), ctypes.byref(data)))
    for number in _CAPABILITIES:
        _do("ambient capability", _libc.prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_RAISE, number, 0, 0))


def _filter() -> None:
    code = (_Instruction * len(_KEEP_GROUPS))(*(_Instruction(*each) for each in _KEEP_GROUPS))
    program = _Program(len(_KEEP_GROUPS), code)
    _do("seccomp", _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _serve(argv: list[str]) -> Any:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


def _do(what: str, status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    main()
