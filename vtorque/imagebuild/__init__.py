# SPDX-License-Identifier: Apache-2.0
"""Build guest images from a distribution's own packages: no loop device, no KVM, no root shell in between."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vtorque import images
from vtorque.errors import ImageError, RequestError
from vtorque.imagebuild import debian, disk, kernel
from vtorque.model import Image

RECIPES = {"debian-12": debian.RECIPE}
"""What can be built, by name."""

_TOOLS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "sfdisk": "fdisk", "grub-mkimage": "grub-common",
    "qemu-img": "qemu-utils", "cpio": "cpio", "busybox": "busybox-static", "depmod": "kmod",
    "zstd": "zstd", "lz4": "lz4",
}


def build(name: str, directory: Path, *, progress: Callable[[str], None], force: bool = False) -> Image:
    """Build the recipe `name` into the catalogue at `directory`, unless it is there and intact.

    Raises RequestError for an unknown name, ImageError when a tool is missing or fails.
    """
    if name not in RECIPES:
        raise RequestError(f"there is no recipe {name!r}", hint=f"there are: {', '.join(RECIPES)}")
    file_name = f"{name}.qcow2"
    if not force and (present := _intact(directory, file_name)):
        progress(f"{file_name} is there")
        return present
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise ImageError(f"{tool} is missing", hint=f"apt-get install {package}")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as scratch:
        return _build(name, directory, Path(scratch), progress)


def _build(name: str, directory: Path, scratch: Path, progress: Callable[[str], None]) -> Image:
    recipe = RECIPES[name]
    root = scratch / "root"
    progress("installing packages into a new root")
    debian.bootstrap(recipe, root)
    progress("preparing it for cloud-init")
    debian.tune(root)
    version = kernel.version(root)
    progress(f"extracting kernel {version}")
    vmlinux, initrd = scratch / f"{name}.vmlinux", scratch / f"{name}.initrd"
    kernel.extract(root / "boot" / f"vmlinuz-{version}", vmlinux)
    kernel.initrd(root, version, initrd)
    progress("making the disk")
    image = scratch / f"{name}.qcow2"
    disk.make(root, image, version=version, initrd=initrd, cmdline=recipe.cmdline)
    progress("checking it in")
    entry = {
        "name": image.name,
        "distro": recipe.distro,
        "arch": "x86_64",
        "description": f"{recipe.description}, kernel {version}",
        "kernel": vmlinux.name,
        "initrd": initrd.name,
        "cmdline": recipe.cmdline,
    }
    return images.publish(directory, entry, {path.name: path for path in (image, vmlinux, initrd)})


def _intact(directory: Path, name: str) -> Image | None:
    try:
        image = images.find(directory, name)
        images.inspect(image.path)
    except (ImageError, RequestError):
        return None
    parts = (image.path, image.kernel, image.initrd)
    return image if all(part is None or part.is_file() for part in parts) else None
