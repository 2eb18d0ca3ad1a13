# SPDX-License-Identifier: Apache-2.0
"""Machines that look like this one and can be changed at will: an overlay over `/` in namespaces of their own."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

_BEGIN = """\
set -e
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
echo ready
exec sleep infinity
"""
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class NoOverlay(Exception):
    """The kernel, or the file system that `/` is on, does not do it."""


class Machine:
    """One of them: nothing that is done in it is seen outside, or is left when it ends."""

    def __init__(self, keeper: "subprocess.Popen[bytes]") -> None:
        # Its child is the first process of the namespaces.
        (self.pid,) = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        self._mnt = Path(f"/proc/{self.pid}/root/mnt")

    def argv(self, *words: str | Path) -> list[str]:
        """What runs a command in it."""
        enter = ["/usr/bin/nsenter", "--target", self.pid, "--mount", "--net", "--pid", "--uts", "--root", "--wd"]
        return [*enter, "/usr/sbin/chroot", "/mnt/root", "/usr/bin/env", "-i", f"PATH={_PATH}", *map(str, words)]

    def run(self, *words: str | Path, status: int | None = 0) -> str:
        """A command's output, both kinds; its exit status has to be `status`, unless that is None."""
        done = subprocess.run(self.argv(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
        assert status is None or done.returncode == status, done.stdout
        return done.stdout

    def path(self, name: str) -> Path:
        """A file of it as seen from here; an absolute link leads astray."""
        return self._mnt / "root" / name.lstrip("/")

    def put(self, name: str, text: str, *, mode: int = 0o644) -> Path:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def changed(self) -> set[str]:
        """The files and links that are there now and not as on this machine."""
        upper = self._mnt / "upper"
        return {f"/{path.relative_to(upper)}" for path in upper.rglob("*") if path.is_symlink() or not path.is_dir()}


@contextlib.contextmanager
def machine(*, beside: Machine | None = None) -> Iterator[Machine]:
    """One, for as long as it is wanted, on a network of its own or on that of another.

    Raises NoOverlay where `/` cannot be overlaid.
    """
    network = ["/usr/bin/nsenter", "--target", beside.pid, "--net"] if beside else []
    spaces = ["--mount", "--propagation", "private", "--uts", "--pid", "--fork", "--kill-child"]
    unshare = [*network, "/usr/bin/unshare", *([] if beside else ["--net"]), *spaces]
    keeper = subprocess.Popen([*unshare, "/bin/sh", "-c", _BEGIN], stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    try:
        if keeper.stdout.readline() != b"ready\n":
            raise NoOverlay("no overlayfs over /")
        yield Machine(keeper)
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()
