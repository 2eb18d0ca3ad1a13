# SPDX-License-Identifier: Apache-2.0
"""A kernel that starts without a boot loader, and an initramfs with no more than the root disk needs."""

import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import sh

from vtorque.errors import ImageError

ROOT_MODULES = ("virtio_pci", "virtio_blk")

_ELF = b"\x7fELF"
_BUSYBOX = Path("/bin/busybox")
_INIT = """\
#!/bin/busybox sh
busybox=/bin/busybox
$busybox mount -t devtmpfs dev /dev
while read -r module; do $busybox insmod "/modules/$module.ko"; done </modules/order
tries=0
while [ ! -b /dev/vda1 ] && [ $tries -lt 200 ]; do
    $busybox sleep 0.05
    tries=$((tries + 1))
done
$busybox mount -t ext4 -o rw,noatime /dev/vda1 /root
$busybox mount --move /dev /root/dev
exec $busybox switch_root /root /sbin/init
"""


def version(root: Path) -> str:
    """The version of the one kernel that is installed in a root directory."""
    found = sorted(path.name for path in (root / "lib/modules").iterdir())
    if len(found) != 1:
        raise ImageError(f"{len(found)} kernels are installed, not 1")
    return found[0]


def extract(compressed: Path, target: Path) -> None:
    """The ELF image within a bzImage: QEMU starts it directly (PVH), and the guest unpacks nothing."""
    data = compressed.read_bytes()
    decoders: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
        (b"\xfd7zXZ\0", lambda part: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(part)),
        (b"\x1f\x8b\x08", lambda part: zlib.decompressobj(31).decompress(part)),
        (b"]\0\0\0", lambda part: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(part)),
        (b"\x28\xb5\x2f\xfd", lambda part: _unpacked("zstd", part)),
        (b"\x02\x21\x4c\x18", lambda part: _unpacked("lz4", part)),
    )
    for magic, decode in decoders:
        start = data.find(magic)
        while start != -1:
            try:
                image = decode(data[start:])
            except (lzma.LZMAError, zlib.error):
                image = b""
            if image.startswith(_ELF):
                target.write_bytes(image)
                return
            start = data.find(magic, start + 1)
    raise ImageError(f"no kernel was found in {compressed.name}")


def initrd(root: Path, version: str, target: Path) -> None:
    """An initramfs that finds /dev/vda1 and becomes its init."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        tree = Path(scratch)
        for name in ("bin", "dev", "root", "modules"):
            (tree / name).mkdir()
        shutil.copy(_BUSYBOX, tree / "bin/busybox")
        copy_modules(root, version, ROOT_MODULES, tree / "modules")
        (tree / "init").write_text(_INIT)
        (tree / "init").chmod(0o755)
        archive(tree, target)


def copy_modules(root: Path, version: str, names: Sequence[str], target: Path) -> None:
    """Copy kernel modules with all they depend on, and `order`, the list in which to load them.

    Modules that are built in are left out.
    """
    directory = root / "lib/modules" / version
    if not (directory / "modules.dep").exists():
        sh.depmod("-b", str(root), version)
    needs: dict[str, list[Path]] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        # modules.dep(5) names what has to be loaded first last.
        needs[Path(module).stem] = [Path(other) for other in (*reversed(others.split()), module)]
    order = list(dict.fromkeys(path for name in names for path in needs.get(name, [])))
    for path in order:
        shutil.copy(directory / path, target / path.name)
    (target / "order").write_text("".join(f"{path.stem}\n" for path in order))


def archive(tree: Path, target: Path) -> None:
    """The tree as a cpio archive that a kernel unpacks into its root file system."""
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    with target.open("wb") as out:
        sh.cpio("-o", "-H", "newc", "--quiet", "-R", "0:0", _in="".join(f"{name}\n" for name in names),
                _out=out, _cwd=str(tree))


def _unpacked(tool: str, part: bytes) -> bytes:
    # The payload is followed by other things, about which the tools complain after having unpacked it.
    command = sh.Command(tool)("-dcq", _in=part, _ok_code=[0, 1], _tty_out=False)
    unpacked: bytes = command.stdout
    return unpacked
