# SPDX-License-Identifier: Apache-2.0
"""Becomes the server of a user's own disk. A script that root starts as that user.

The user's rights are all it has: it opens his image, makes it when that is
asked for and it is not there, locks it, notes beside it for whom, and becomes
qemu-nbd. The lock belongs to the open file, which qemu-nbd inherits: it lasts
exactly as long as the server. The note only explains it.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any

QEMU_NBD = Path("/usr/bin/qemu-nbd")
_QEMU_IMG = "/usr/bin/qemu-img"
_PR_SET_NO_NEW_PRIVS = 38
# sd_listen_fds(3): the first descriptor that is handed over.
_FIRST_SOCKET = 3
_ABOVE = 10
# struct flock, for byte 0. QEMU locks bytes from 100 on (block/file-posix.c), which keeps a guest of somebody
# else's away, but not another qemu-nbd.
_FLOCK = "hhqqi4x"
_LOCK = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_NOTE_LIMIT = 300
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def note_of(path: Path) -> Path:
    """The file beside an image that says who has it, or had it."""
    return path.with_name(f"{path.name}.owner")


def holder(path: Path) -> str:
    """Who has the image now, in the words of his server; empty when nobody has it, or that cannot be known."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | _FLAGS)
        try:
            found = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _LOCK)
        finally:
            os.close(handle)
        if struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK:
            return _noted(path)
    return ""


def main() -> None:
    """Serve what the order on standard input says; the reason on standard error when that cannot be."""
    order = json.load(sys.stdin)
    if ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        sys.exit("no_new_privs was refused")
    path = Path(order["path"])
    try:
        handle = _opened(path, new_mib=order["new_mib"])
        if not _locked(handle):
            sys.exit(f"is in use by {_noted(path)}")
        _note(path, order["holder"], stat.S_IMODE(os.fstat(handle).st_mode))
        if os.fstat(handle).st_size == 0:
            _make(path, handle, order["new_mib"])
    except OSError as error:
        sys.exit(str(error.strerror))
    _serve(path, order["format"], order["socket"])


def _opened(path: Path, *, new_mib: int) -> int:
    """A descriptor that a program we become inherits, out of the way of those that it expects."""
    try:
        handle = os.open(path, os.O_RDWR | _FLAGS | (os.O_CREAT if new_mib else 0), 0o600)
    except FileNotFoundError:
        sys.exit("there is no such file")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        sys.exit("is not a regular file")
    return int(fcntl.fcntl(handle, fcntl.F_DUPFD, _ABOVE))


def _locked(handle: int) -> bool:
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _LOCK)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _noted(path: Path) -> str:
    """What the note says, if it is one: whoever may write to the directory may have written it."""
    with contextlib.suppress(OSError, UnicodeError):
        handle = os.open(note_of(path), os.O_RDONLY | _FLAGS)
        try:
            text = os.read(handle, _NOTE_LIMIT).decode("ascii").strip()
        finally:
            os.close(handle)
        if text and text.isprintable():
            return text
    return "another program"


def _note(path: Path, text: str, mode: int) -> None:
    """Say who has the image to whoever may read it. Without a note the lock is the same."""
    with contextlib.suppress(OSError):
        handle = os.open(note_of(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        try:
            os.write(handle, f"{text}\n".encode())
            os.fchmod(handle, mode & 0o666)
        finally:
            os.close(handle)


def _make(path: Path, handle: int, new_mib: int) -> None:
    """An image of that size that takes no room yet, in the file that we have locked."""
    if not new_mib:
        sys.exit("is empty")
    if path.suffix == ".img":
        os.truncate(handle, new_mib << 20)
    elif os.spawnv(os.P_WAIT, _QEMU_IMG, ["qemu-img", "create", "-q", "-f", "qcow2", str(path), f"{new_mib}M"]):
        sys.exit(1)


def _serve(path: Path, image_format: str, listener: int) -> Any:
    from vtorque import imageheader
    from vtorque.errors import ImageError

    try:
        imageheader.inspect(path)
    except ImageError as error:
        sys.exit(error.brief.removeprefix(f"image {path.name}: "))
    os.dup2(listener, _FIRST_SOCKET)
    os.putenv("LISTEN_FDS", "1")
    os.putenv("LISTEN_PID", str(os.getpid()))
    # It ends when its one client has gone, and says that it is ready by forking.
    os.execv(QEMU_NBD, [QEMU_NBD.name, "--fork", "--discard=unmap", f"--format={image_format}", str(path)])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
