# SPDX-License-Identifier: Apache-2.0
"""Build guest images from a distribution's own packages: no loop device, no KVM, no root shell in between."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import sh

from vtorque import images
from vtorque.errors import ImageError, RequestError
from vtorque.imagebuild import debian, disk, kernel, stock
from vtorque.model import Image

RECIPES = {"debian-12": debian.RECIPE}
"""What can be built, by name."""
STOCK = {"debian-12": stock.RECIPE}
"""The same distributions as their own cloud images lay them out: slow, and what ours are measured by."""

_TOOLS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "sfdisk": "fdisk", "grub-mkimage": "grub-common",
    "qemu-img": "qemu-utils", "cpio": "cpio", "busybox": "busybox-static", "depmod": "kmod",
    "zstd": "zstd", "lz4": "lz4",
}
# A hyphen at the end would make apt remove the package (Debian policy, 5.6.1; apt-get(8), install).
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,126}[a-z0-9+]", re.ASCII)


def build(
    recipe: str, directory: Path, *, progress: Callable[[str], None], packages: Iterable[str] = (), name: str = "",
    force: bool = False, as_stock: bool = False,
) -> Image:
    """Build a recipe, with more Debian `packages`, into the catalogue at `directory`; called like it if not `name`.

    With `as_stock` it is laid out as the distribution's own cloud image. Nothing is
    done when it is there, intact, and was built like this with just these packages.
    Raises RequestError for an unknown recipe, or what is no name of an image or a
    package; ImageError when a tool is missing or fails.
    """
    if recipe not in RECIPES:
        raise RequestError(f"there is no recipe {recipe!r}", hint=f"there are: {', '.join(RECIPES)}")
    wanted = (STOCK if as_stock else RECIPES)[recipe]
    name = name or f"{recipe}{'-stock' if as_stock else ''}.qcow2"
    images.require_name(name)
    if not name.endswith(".qcow2"):
        raise RequestError(f"image {name} is built as qcow2", hint="--name NAME.qcow2")
    more = tuple(sorted(set(packages)))
    if wrong := [each for each in more if _PACKAGE.fullmatch(each) is None]:
        raise RequestError(f"{wrong[0][:80]!r} is not the name of a Debian package", hint="like openmpi-bin")
    found = None if force else present(directory, name)
    if found and found.entry.get("packages") == " ".join(more) and (found.image.kernel is None) == as_stock:
        progress(f"{name} is there")
        return found.image
    missing = {tool: package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if not disk.BOOT_IMAGE.is_file():
        missing[str(disk.BOOT_IMAGE)] = "grub-pc-bin"
    if missing:
        raise ImageError(f"missing: {', '.join(missing)}", hint=f"apt-get install {' '.join(missing.values())}")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as scratch:
        try:
            return _build(replace(wanted, more=more), name, directory, Path(scratch), progress)
        except sh.ErrorReturnCode as error:
            text = error.stderr.decode(errors="backslashreplace").strip()
            lines = text.splitlines() or [f"{error.full_cmd.split()[0]} failed"]
            # apt says what is wrong, then everybody that it failed.
            why = next((line for line in lines if line.startswith("E: ")), lines[-1])
            raise ImageError(f"cannot build {name}: {why}", details=text) from error


def present(directory: Path, name: str) -> images.Revision | None:
    """The image of that name, if it is there, its header is accepted, and none of its files is missing."""
    try:
        found = images.revision(directory, name)
        images.inspect(found.image.path)
    except (ImageError, RequestError):
        return None
    return found if all(part.is_file() for part in found.parts()) else None


def _build(
    recipe: debian.Recipe, name: str, directory: Path, scratch: Path, progress: Callable[[str], None]
) -> Image:
    root, image = scratch / "root", scratch / name
    progress("installing packages into a new root")
    debian.bootstrap(recipe, root)
    progress("preparing it for cloud-init")
    make = _stock if recipe.own_initrd else _quick
    version = kernel.version(root)
    beside = make(recipe, root, image, version, progress)
    progress("checking it in")
    entry = {
        "name": name,
        "distro": recipe.distro,
        "arch": "x86_64",
        "description": f"{recipe.description}, {', '.join((*recipe.more, f'kernel {version}'))}",
        "packages": " ".join(recipe.more),
        **{key: path.name for key, path in beside.items()},
        **({"cmdline": recipe.cmdline} if beside else {}),
    }
    return images.publish(directory, entry, {path.name: path for path in (image, *beside.values())})


def _quick(
    recipe: debian.Recipe, root: Path, image: Path, version: str, progress: Callable[[str], None]
) -> dict[str, Path]:
    """Make the disk; the kernel and the initramfs with which a guest is started directly."""
    debian.tune(root)
    vmlinux, initrd = image.with_suffix(".vmlinux"), image.with_suffix(".initrd")
    progress(f"extracting kernel {version}")
    kernel.extract(root / "boot" / f"vmlinuz-{version}", vmlinux)
    kernel.initrd(root, version, initrd)
    progress("making the disk")
    disk.make(root, image, version=version, initrd=initrd, cmdline=recipe.cmdline)
    return {"kernel": vmlinux, "initrd": initrd}


def _stock(
    recipe: debian.Recipe, root: Path, image: Path, version: str, progress: Callable[[str], None]
) -> dict[str, Path]:
    stock.tune(root)
    progress("making the disk")
    disk.make_stock(root, image, version=version, uuid=stock.ROOT_UUID, cmdline=recipe.cmdline)
    return {}
