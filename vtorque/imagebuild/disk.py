# SPDX-License-Identifier: Apache-2.0
"""A root directory as a disk that boots by itself, written without mounting anything."""

import shutil
from pathlib import Path

import sh

_SECTOR = 512
_FIRST_SECTOR = 2048
_SIZE_MIB, _ROOM_MIB = 2048, 768
_GRUB = Path("/usr/lib/grub/i386-pc")
_BOOT_CODE = 440
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile")


def make(root: Path, image: Path, *, version: str, initrd: Path, cmdline: str) -> None:
    """Write `root` to the qcow2 `image`: one partition, GRUB before it, the small initramfs in /boot."""
    shutil.copy(initrd, root / "boot/initrd-small")
    grub = root / "boot/grub"
    grub.mkdir(exist_ok=True)
    (grub / "grub.cfg").write_text(
        f"set timeout=0\nlinux /boot/vmlinuz-{version} {cmdline}\ninitrd /boot/initrd-small\nboot\n"
    )
    raw, size_mib = image.with_suffix(".raw"), max(_SIZE_MIB, _used_mib(root) * 9 // 8 + _ROOM_MIB)
    with raw.open("wb") as file:
        file.truncate((size_mib << 20) + _FIRST_SECTOR * _SECTOR)
    sh.sfdisk("-q", str(raw), _in=f"{_FIRST_SECTOR},,83,*\n")
    sh.Command("mke2fs")(
        "-q", "-t", "ext4", "-O", "^metadata_csum_seed,^has_journal", "-m", "0", "-L", "root",
        "-E", f"offset={_FIRST_SECTOR * _SECTOR},lazy_itable_init=1", "-d", str(root),
        str(raw), f"{size_mib << 10}k",
    )
    _install_grub(raw, image.with_suffix(".core"))
    sh.Command("qemu-img")("convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    raw.unlink()


def _used_mib(root: Path) -> int:
    """What the files of a directory take; an ext4 of the same files takes some more."""
    return sum(path.lstat().st_blocks for path in root.rglob("*")) * _SECTOR >> 20


def _install_grub(raw: Path, core: Path) -> None:
    """Boot code into the first sector, GRUB's core into the gap before the partition."""
    sh.Command("grub-mkimage")(
        "-O", "i386-pc", "-o", str(core), "-p", "(hd0,msdos1)/boot/grub", *_MODULES
    )
    with raw.open("r+b") as file:
        file.write((_GRUB / "boot.img").read_bytes()[:_BOOT_CODE])
        file.seek(_SECTOR)
        file.write(core.read_bytes())
    core.unlink()
