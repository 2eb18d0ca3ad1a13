# SPDX-License-Identifier: Apache-2.0
"""Which packages an image is built with, and when it is built at all; a stand-in installs them."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from vtorque import imagebuild, images
from vtorque.errors import ImageError, RequestError
from vtorque.imagebuild import disk, stock
from vtorque.model import Image

pytestmark = pytest.mark.runs

NAME = "debian-12.qcow2"
OWN = imagebuild.RECIPES["debian-12"].packages
STOCK_NAME = "debian-12-stock.qcow2"
STOCK = imagebuild.STOCK["debian-12"].packages
# What the real one does about a package that there is not.
MMDEBSTRAP = """\
#!/bin/sh
printf '%s\\n' "$INITRD" "$@" >"$0.words"
printf '%s\\n' 'Building dependency tree...' 'E: Unable to locate package no-such' 'E: mmdebstrap failed to run' >&2
exit 25
"""


class Builder:
    """Builds into a catalogue of its own, as far as a mirror would be needed."""

    def __init__(self, root: Path) -> None:
        self.pool, self._called = root / "pool", root / "mmdebstrap.words"
        self.said: list[str] = []

    def build(self, *packages: str, name: str = "", force: bool = False, as_stock: bool = False) -> Image:
        return imagebuild.build(
            "debian-12", self.pool, progress=self.said.append, packages=packages, name=name, force=force,
            as_stock=as_stock,
        )

    def installs(self, *packages: str, name: str = "", force: bool = False, as_stock: bool = False) -> list[str]:
        """What a build asks for beyond the recipe's own packages."""
        self._called.unlink(missing_ok=True)
        called = name or (STOCK_NAME if as_stock else NAME)
        with pytest.raises(ImageError, match=f"^cannot build {called}: E: Unable to locate package no-such$"):
            self.build(*packages, name=name, force=force, as_stock=as_stock)
        initrd, *given = self._called.read_text().splitlines()
        assert initrd == ("" if as_stock else "No"), "whether the kernel's package makes an initramfs"
        (words,) = [word for word in given if word.startswith("--include=")]
        own, asked = STOCK if as_stock else OWN, words.removeprefix("--include=").split(",")
        assert tuple(asked[:len(own)]) == own
        return asked[len(own):]

    def has(self, name: str = NAME, *, packages: str | None = None, as_stock: bool = False) -> None:
        """Put an image there that was built with these packages, or came from elsewhere."""
        made = self.pool.parent / "disk"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", made, "1M"], check=True)
        entry = {"name": name, "distro": "debian", "arch": "x86_64", "description": ""}
        entry |= {} if packages is None else {"packages": packages}
        kernel = made.with_name(Path(name).with_suffix(".vmlinux").name)
        kernel.write_bytes(b"")
        parts = {name: made} if as_stock else {name: made, kernel.name: kernel}
        images.publish(self.pool, entry | ({} if as_stock else {"kernel": kernel.name}), parts)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    program = tmp_path / "mmdebstrap"
    program.write_text(MMDEBSTRAP)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    return Builder(tmp_path)


def test_packages_are_installed_beside_the_recipes_own_each_once(builder: Builder) -> None:
    assert builder.installs() == []
    assert builder.installs("openmpi-bin", "g++", "openmpi-bin") == ["g++", "openmpi-bin"]
    assert not list(builder.pool.iterdir()), "a build that fails leaves nothing"


def test_an_image_with_just_these_packages_is_not_built_again(builder: Builder) -> None:
    builder.has(packages="g++ openmpi-bin")
    assert builder.build("openmpi-bin", "g++").path == builder.pool / NAME
    assert builder.said == [f"{NAME} is there"]


@pytest.mark.parametrize("packages", [(), ("openmpi-bin",), ("g++", "openmpi-bin", "python3")])
def test_one_with_others_is(builder: Builder, packages: Iterable[str]) -> None:
    builder.has(packages="g++ openmpi-bin")
    assert builder.installs(*packages) == list(packages)


def test_nor_does_an_image_count_that_is_forced_damaged_of_another_name_or_from_elsewhere(builder: Builder) -> None:
    builder.has(packages="")
    assert builder.build().name == NAME
    builder.installs(force=True)
    builder.installs(name="debian-12-mpi.qcow2")
    (builder.pool / NAME).write_bytes(b"damaged")
    builder.installs()
    builder.has("other.qcow2")
    builder.installs(name="other.qcow2")


def test_the_layout_of_the_distribution_is_another_image(builder: Builder) -> None:
    assert builder.installs("g++", as_stock=True) == ["g++"]
    builder.has(packages="")
    assert builder.installs(as_stock=True) == []
    builder.installs(as_stock=True, name=NAME)
    builder.has(STOCK_NAME, packages="", as_stock=True)
    assert builder.build(as_stock=True).name == STOCK_NAME
    builder.installs(name=STOCK_NAME)


def sector(image: Path, number: int) -> bytes:
    with image.open("rb") as file:
        file.seek(number * 512)
        return file.read(512)


@pytest.mark.parametrize(("layout", "core", "root"), [("ours", 1, 2048), ("stock", 2048, 8192)])
def test_boot_code_finds_its_core_and_the_core_its_rest(tmp_path: Path, layout: str, core: int, root: int) -> None:
    tree, image, raw = tmp_path / "tree", tmp_path / "a.qcow2", tmp_path / "raw"
    (tree / "boot").mkdir(parents=True)
    (tmp_path / "initrd").write_bytes(b"")
    if layout == "stock":
        disk.make_stock(tree, image, version="6.1", uuid=stock.ROOT_UUID, cmdline=stock.RECIPE.cmdline)
    else:
        disk.make(tree, image, version="6.1", initrd=tmp_path / "initrd", cmdline="quiet")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    boot = sector(raw, 0)
    assert boot[-2:] == b"\x55\xaa"
    assert int.from_bytes(boot[0x5C:0x64], "little") == core
    assert int.from_bytes(sector(raw, core)[0x1F4:0x1FC], "little") == core + 1
    assert b"GRUB" in boot and sector(raw, core).strip(b"\0")
    superblock = sector(raw, root + 2)
    assert superblock[56:58] == b"\x53\xef", "ext4, where the partition table says"
    table = subprocess.run(["sfdisk", "-d", raw], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert f"label: {'gpt' if layout == 'stock' else 'dos'}" in table
    assert f"raw1 : start={root:>12}," in table
    if layout == "stock":
        assert superblock[104:120].hex() == stock.ROOT_UUID.replace("-", "")
        assert re.search(r"raw14 : start= +2048, size= +6144, type=21686148-6449-6E6F-744E-656564454649", table)


@pytest.mark.parametrize(
    "word", ["", "-o=x", "a", "openssh-server-", "Vim", "a,b", "a b", "?installed", "a=1", "a/sid", "ä0"]
)
def test_what_is_no_package_is_refused(builder: Builder, word: str) -> None:
    with pytest.raises(RequestError, match="is not the name of a Debian package"):
        builder.build("openmpi-bin", word)


def test_all_that_is_missing_is_said_at_once(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    present = shutil.which
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in ("cpio", "zstd") else present(tool))
    monkeypatch.setattr(disk, "BOOT_IMAGE", builder.pool / "boot.img")
    with pytest.raises(ImageError) as refusal:
        builder.build()
    assert refusal.value.one_line() == (
        f"missing: cpio, zstd, {builder.pool}/boot.img (apt-get install cpio zstd grub-pc-bin)"
    )


@pytest.mark.parametrize("name", ["../a.qcow2", "a.qcow2@2", "a", "a.img"])
def test_what_is_no_name_of_a_qcow2_is_refused(builder: Builder, name: str) -> None:
    with pytest.raises(RequestError):
        builder.build(name=name)


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(builder: Builder) -> None:
    with pytest.raises(RequestError) as refusal:
        imagebuild.build("debian-11", builder.pool, progress=print)
    assert refusal.value.one_line() == "there is no recipe 'debian-11' (there are: debian-12)"
