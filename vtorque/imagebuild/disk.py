# SPDX-License-Identifier: Apache-2.0
"""A root directory as a disk that boots by itself, written without mounting anything."""

import shutil
import struct
from pathlib import Path

import sh

_SECTOR = 512
_FIRST_SECTOR = 2048
# On a disk with GPT a partition holds GRUB's core, and the root begins behind it.
_ROOT_SECTOR = 8192
_SIZE_MIB, _ROOM_MIB = 2048, 768
BOOT_IMAGE = Path("/usr/lib/grub/i386-pc/boot.img")
"""What a PC's firmware starts."""

_BOOT_CODE = 440
# boot/i386/pc/boot.S and diskboot.S of GRUB 2.06: where each finds the next, as a sector of the disk.
_NEXT, _REST = 0x5C, 0x1F4
_MODULES = ("biosdisk", "ext2", "linux", "normal", "configfile")
_GPT = f"""\
label: gpt
disk14 : start={_FIRST_SECTOR}, size={_ROOT_SECTOR - _FIRST_SECTOR}, type=21686148-6449-6E6F-744E-656564454649
disk1 : start={_ROOT_SECTOR}, type=L
"""


def make(root: Path, image: Path, *, version: str, initrd: Path, cmdline: str) -> None:
    """Write `root` to the qcow2 `image`: one partition, GRUB before it, the small initramfs in /boot."""
    shutil.copy(initrd, root / "boot/initrd-small")
    _configure_grub(root, f"linux /boot/vmlinuz-{version} {cmdline}\ninitrd /boot/initrd-small\n")
    raw = _write(root, image, _FIRST_SECTOR, f"{_FIRST_SECTOR},,83,*\n",
                 "-O", "^metadata_csum_seed,^has_journal", "-m", "0", "-L", "root")
    _install_grub(raw, _core(image, "(hd0,msdos1)", "part_msdos"), sector=1)
    _convert(raw, image)


def make_stock(root: Path, image: Path, *, version: str, uuid: str, cmdline: str) -> None:
    """The same in the layout of a distribution: GPT with a partition for GRUB, the distribution's own initramfs."""
    _configure_grub(root, f"search --no-floppy --fs-uuid --set=root {uuid}\n"
                          f"linux /boot/vmlinuz-{version} {cmdline}\ninitrd /boot/initrd.img-{version}\n")
    raw = _write(root, image, _ROOT_SECTOR, _GPT, "-U", uuid)
    _install_grub(raw, _core(image, "(hd0,gpt1)", "part_gpt", "search", "gzio"), sector=_FIRST_SECTOR)
    _convert(raw, image)


def _configure_grub(root: Path, text: str) -> None:
    grub = root / "boot/grub"
    grub.mkdir(exist_ok=True)
    (grub / "grub.cfg").write_text(f"set timeout=0\n{text}boot\n")


def _write(root: Path, image: Path, first: int, table: str, *options: str) -> Path:
    """A raw disk with this partition table, and from the sector `first` on the root as ext4."""
    raw, size_mib = image.with_suffix(".raw"), max(_SIZE_MIB, _used_mib(root) * 9 // 8 + _ROOM_MIB)
    with raw.open("wb") as file:
        # A GPT is there once more at the end.
        file.truncate((size_mib + 1 << 20) + first * _SECTOR)
    sh.sfdisk("-q", str(raw), _in=table)
    sh.Command("mke2fs")(
        "-q", "-t", "ext4", *options, "-E", f"offset={first * _SECTOR},lazy_itable_init=1", "-d", str(root),
        str(raw), f"{size_mib << 10}k",
    )
    return raw


def _convert(raw: Path, image: Path) -> None:
    sh.Command("qemu-img")("convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    raw.unlink()


def _used_mib(root: Path) -> int:
    """What the files of a directory take; an ext4 of the same files takes some more."""
    return sum(path.lstat().st_blocks for path in root.rglob("*")) * _SECTOR >> 20


def _core(image: Path, device: str, *modules: str) -> bytes:
    path = image.with_suffix(".core")
    sh.Command("grub-mkimage")(
        "-O", "i386-pc", "-o", str(path), "-p", f"{device}/boot/grub", *_MODULES, *modules
    )
    core = path.read_bytes()
    path.unlink()
    return core


def _install_grub(raw: Path, core: bytes, *, sector: int) -> None:
    """Boot code into the first sector, GRUB's core from `sector` on, before the root."""
    boot, rest = bytearray(BOOT_IMAGE.read_bytes()[:_BOOT_CODE]), bytearray(core)
    struct.pack_into("<Q", boot, _NEXT, sector)
    struct.pack_into("<Q", rest, _REST, sector + 1)
    with raw.open("r+b") as file:
        file.write(boot)
        file.seek(sector * _SECTOR)
        file.write(rest)
