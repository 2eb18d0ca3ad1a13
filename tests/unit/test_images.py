# SPDX-License-Identifier: Apache-2.0
"""The catalogue, and headers that must not make QEMU open anything else."""

import contextlib
import errno
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtorque import confined, imageheader, imageprobe, images
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, ImageError, RequestError
from vtorque.model import Image

SIZE = 1 << 20
VDI = b"\x7f\x10\xda\xbe"


def qcow2(
    *, version: int = 3, backing: int = 0, bits: int = 16, size: int = SIZE, crypt: int = 0, l1: int = 1,
    l1_offset: int = 0x30000, refcounts: int = 0x10000, features: int = 0, extensions: bytes = b"", header: int = 104,
) -> bytes:
    """A qcow2 header as QEMU writes it, with one thing changed; 256 KiB like a small image."""
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing, 0, bits, size, crypt, l1, l1_offset,
                       refcounts, 1, 0, 0)
    head += struct.pack(">QQQII", features, 0, 0, 4, header)
    return (head + extensions + struct.pack(">II", 0, 0)).ljust(256 << 10, b"\0")


EXTENSION = {name: struct.pack(">II8s", kind, 8, b"raw\0\0\0\0\0") for name, kind in
             {"data file": 0x44415441, "backing format": 0xE2792ACA, "unknown": 0x12345678}.items()}

REFUSED: dict[str, tuple[str, bytes]] = {
    "backing file": ("a.qcow2", qcow2(backing=0x200)),
    "external data file": ("a.qcow2", qcow2(features=4)),
    "data file named": ("a.qcow2", qcow2(extensions=EXTENSION["data file"])),
    "backing format named": ("a.qcow2", qcow2(extensions=EXTENSION["backing format"])),
    "dirty": ("a.qcow2", qcow2(features=1)),
    "corrupt": ("a.qcow2", qcow2(features=2)),
    "unknown feature": ("a.qcow2", qcow2(features=1 << 40)),
    "encrypted": ("a.qcow2", qcow2(crypt=1)),
    "luks": ("a.qcow2", qcow2(crypt=2)),
    "version 1": ("a.qcow2", qcow2(version=1)),
    "version 4": ("a.qcow2", qcow2(version=4)),
    "tiny clusters": ("a.qcow2", qcow2(bits=8)),
    "huge clusters": ("a.qcow2", qcow2(bits=22)),
    "no size": ("a.qcow2", qcow2(size=0)),
    "odd size": ("a.qcow2", qcow2(size=513)),
    "l1 outside": ("a.qcow2", qcow2(l1_offset=1 << 40)),
    "l1 enormous": ("a.qcow2", qcow2(l1=1 << 31)),
    "refcounts outside": ("a.qcow2", qcow2(refcounts=1 << 40)),
    "no refcounts": ("a.qcow2", qcow2(refcounts=0)),
    "header without an end": ("a.qcow2", qcow2(header=0xFFFFFF00)),
    "raw called qcow2": ("a.qcow2", b"\0" * 65536),
    "empty": ("a.qcow2", b""),
    "qcow2 called raw": ("a.img", qcow2()),
    "vmdk": ("a.img", b"KDMV".ljust(4096, b"\0")),
    "vmdk descriptor": ("a.img", b"# Disk DescriptorFile\nextent".ljust(4096, b"\0")),
    "vhdx": ("a.img", b"vhdxfile".ljust(4096, b"\0")),
    "vhd": ("a.img", b"conectix".ljust(4096, b"\0")),
    "vdi": ("a.img", b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + VDI.ljust(4096, b"\0")),
    "luks disk": ("a.img", b"LUKS\xba\xbe".ljust(4096, b"\0")),
    "qed": ("a.img", b"QED\0".ljust(4096, b"\0")),
    "parallels": ("a.img", b"WithoutFreeSpace".ljust(4096, b"\0")),
    "empty raw": ("a.img", b""),
    "odd raw": ("a.img", b"x" * 1000),
}


def put(directory: Path, name: str, data: bytes) -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_that_is_not_safe_is_refused(tmp_path: Path, case: str) -> None:
    name, data = REFUSED[case]
    with pytest.raises(ImageError, match=name):
        images.inspect(put(tmp_path, name, data))


@pytest.mark.parametrize(
    "data", [qcow2(), qcow2(version=2), qcow2(extensions=EXTENSION["unknown"]), qcow2(bits=9, l1=32)]
)
def test_an_ordinary_qcow2_is_accepted(tmp_path: Path, data: bytes) -> None:
    assert images.inspect(put(tmp_path, "a.qcow2", data)) == images.Header(format="qcow2", size=SIZE)


def test_a_raw_disk_is_what_its_name_says(tmp_path: Path) -> None:
    assert images.inspect(put(tmp_path, "a.img", b"\xeb\x63" * 512)).format == "raw"


def test_no_cut_short_header_passes(tmp_path: Path) -> None:
    for length in range(112):
        with pytest.raises(ImageError):
            images.inspect(put(tmp_path, "a.qcow2", qcow2()[:length]))


def test_no_flipped_bit_makes_an_unsafe_header_pass_or_crashes(tmp_path: Path) -> None:
    source = random.Random(1)
    for _ in range(2000):
        data = bytearray(qcow2())
        for _ in range(source.randint(1, 4)):
            data[source.randrange(112)] ^= 1 << source.randrange(8)
        path = put(tmp_path, "a.qcow2", bytes(data[:4096]).ljust(256 << 10, b"\0"))
        try:
            images.inspect(path)
        except ImageError:
            continue
        backing, features = struct.unpack_from(">Q", data, 8)[0], struct.unpack_from(">Q", data, 72)[0]
        version = struct.unpack_from(">I", data, 4)[0]
        assert backing == 0 and (version == 2 or features == 0)


@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "missing"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:


    path = tmp_path / "a.qcow2"
    match kind:
        case "link":
            path.symlink_to(put(tmp_path, "real.qcow2", qcow2()))
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(ImageError):
        images.inspect(path)


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "name": "a.qcow2", "distro": "debian", "arch": "x86_64", "sha256": "0" * 64, "description": "x",
        **changes,
    }


def catalogue(directory: Path, data: object) -> Path:
    (directory / "a.qcow2.json").write_text(json.dumps(data))
    return directory


def test_an_entry_names_the_parts_beside_it(tmp_path: Path) -> None:
    image = images.find(catalogue(tmp_path, entry(kernel="k", initrd="i", cmdline="quiet")), "a.qcow2")
    assert (image.path, image.kernel, image.initrd) == (tmp_path / "a.qcow2", tmp_path / "k", tmp_path / "i")


@pytest.mark.parametrize(
    "data",
    [[], "x", {}, entry(schema=2), entry(name="b.qcow2"), entry(extra=1), entry(sha256=5), entry(kernel="../k"),
     entry(kernel="/etc/passwd"), {**entry(), "kernel": ""}],
)
def test_a_broken_entry_is_the_sites_fault(tmp_path: Path, data: object) -> None:
    with pytest.raises(ImageError, match=r"catalogue entry of a\.qcow2"):
        images.find(catalogue(tmp_path, data), "a.qcow2")


def test_an_image_by_url_is_no_file_here_and_another_url_is_another_revision(tmp_path: Path) -> None:
    about = {"name": "a.qcow2", "distro": "debian", "arch": "x86_64", "description": "x", "sha256": "0" * 64}
    kernel = put(tmp_path, "kernel", b"k")
    image = images.publish(
        tmp_path, {**about, "url": "https://host/a.qcow2", "kernel": "k.bin"}, {"k.bin": kernel}
    )
    assert (image.url, image.sha256, image.kernel) == ("https://host/a.qcow2", "0" * 64, tmp_path / "k.bin")
    found = images.revision(tmp_path, "a.qcow2")
    assert "file" not in found.entry and list(found.parts()) == [tmp_path / "k.bin"]
    images.require_trusted(image)
    images.publish(tmp_path, {**about, "url": "https://other/a.qcow2"}, {})
    images.publish(tmp_path, {**about, "url": "https://other/a.qcow2"}, {})
    assert [each.image.url for each in images.revisions(tmp_path, "a.qcow2")] == [
        "https://host/a.qcow2", "https://other/a.qcow2"]
    assert seen(tmp_path, publish(tmp_path, b"1").name)[1] == b"1"
    assert not images.find(tmp_path, "a.qcow2").url and images.find(tmp_path, "a.qcow2@2").url


def test_an_image_that_is_not_there_is_the_users_fault_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refusal:
        images.find(catalogue(tmp_path, entry()), "b.qcow2")
    assert refusal.value.one_line() == "image b.qcow2 is not in the catalogue (did you mean a.qcow2?)"


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/passwd", ".hidden", "-x", "a\n", "x" * 300, "ä"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="not the name of an image"):
        images.find(tmp_path, name)


def test_publishing_puts_the_entry_last_and_fills_in_digests(tmp_path: Path) -> None:
    source = put(tmp_path, "source", qcow2())
    kernel = put(tmp_path, "kernel-source", b"k")
    about = {key: value for key, value in entry(kernel="k").items() if key not in ("schema", "sha256")}
    image = images.publish(tmp_path / "pool", about, {"a.qcow2": source, "k": kernel})
    assert image.sha256 == images.digest(image.path)
    assert images.names(tmp_path / "pool") == ["a.qcow2"]
    assert image.path.stat().st_mode & 0o777 == 0o644


def publish(directory: Path, disk: bytes, *, kernel: bytes | None = None, **about: Any) -> Image:
    """Publish `a.qcow2`, a whole header with `disk` at its end."""
    staging = directory / ".staging"
    staging.mkdir(exist_ok=True)
    words = {"name": "a.qcow2", "distro": "debian", "arch": "x86_64", "description": "x", **about}
    sources = {words["name"]: put(staging, "disk", qcow2() + disk)}
    if kernel is not None:
        sources["k.bin"] = put(staging, "kernel", kernel)
        words["kernel"] = "k.bin"
    try:
        return images.publish(directory, words, sources)
    finally:
        shutil.rmtree(staging)


def seen(directory: Path, name: str) -> tuple[str, bytes, bytes]:
    """Name, end of the disk, and kernel of an image, as readers find them."""
    image = images.find(directory, name)
    return image.name, image.path.read_bytes()[256 << 10:], image.kernel.read_bytes() if image.kernel else b""


def test_another_disk_of_the_same_name_is_a_new_revision_and_the_old_one_stays(tmp_path: Path) -> None:
    for number in (b"1", b"2", b"3"):
        publish(tmp_path, number, kernel=b"k" + number)
    assert seen(tmp_path, "a.qcow2") == ("a.qcow2", b"3", b"k3")
    for number in (b"1", b"2", b"3"):
        name = f"a.qcow2@{number.decode()}"
        assert seen(tmp_path, name) == (name, number, b"k" + number)
    assert images.find(tmp_path, "a.qcow2@2").path.name == "a@2.qcow2"
    assert [each.image.name for each in images.revisions(tmp_path, "a.qcow2")] == [f"a.qcow2@{n}" for n in (1, 2, 3)]
    assert images.names(tmp_path) == ["a.qcow2"]
    assert (tmp_path / "a.qcow2.json").read_bytes() == (tmp_path / "a.qcow2@3.json").read_bytes()


@pytest.mark.parametrize("change", [{"kernel": b"other"}, {"cmdline": "single"}, {"kernel": None}])
def test_another_kernel_or_command_line_is_a_new_revision_too(tmp_path: Path, change: dict[str, Any]) -> None:
    publish(tmp_path, b"1", kernel=b"k")
    publish(tmp_path, b"1", **{"kernel": b"k", **change})
    assert len(images.revisions(tmp_path, "a.qcow2")) == 2


def test_the_same_again_only_describes_it_anew_and_mends_what_is_damaged(tmp_path: Path) -> None:
    publish(tmp_path, b"0")
    path = publish(tmp_path, b"1", kernel=b"k").path
    path.write_bytes(b"damaged")
    publish(tmp_path, b"1", kernel=b"k", description="words", distro="ubuntu")
    assert images.find(tmp_path, "a.qcow2@2").description == images.find(tmp_path, "a.qcow2").description == "words"
    assert images.find(tmp_path, "a.qcow2").distro == "ubuntu"
    assert seen(tmp_path, "a.qcow2")[1:] == (b"1", b"k")
    publish(tmp_path, b"1", kernel=b"k", description="")
    assert images.find(tmp_path, "a.qcow2").description == "words"
    assert len(images.revisions(tmp_path, "a.qcow2")) == 2


def test_an_entry_of_before_there_were_revisions_is_the_first(tmp_path: Path) -> None:
    put(tmp_path, "a.qcow2", qcow2() + b"old")
    catalogue(tmp_path, entry())
    assert seen(tmp_path, "a.qcow2@1") == ("a.qcow2@1", b"old", b"")
    publish(tmp_path, b"new")
    assert seen(tmp_path, "a.qcow2@1")[1] == b"old" and seen(tmp_path, "a.qcow2")[1] == b"new"


def test_a_broken_entry_is_followed_by_a_new_revision(tmp_path: Path) -> None:
    catalogue(tmp_path, [])
    publish(tmp_path, b"new")
    assert images.revision(tmp_path, "a.qcow2").number == 2


def test_a_revision_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    publish(tmp_path, b"1")
    for name in ("a.qcow2@2", "a.qcow2@0", "a.qcow2@01"):
        with pytest.raises(RequestError, match="not in the catalogue") as refusal:
            images.find(tmp_path, name)
        assert refusal.value.hint == "there are: a.qcow2, a.qcow2@1"


def test_images_do_not_take_each_others_kernels(tmp_path: Path) -> None:
    publish(tmp_path, b"1", kernel=b"k")
    with pytest.raises(ImageError, match=r"k\.bin belongs to image a\.qcow2"):
        publish(tmp_path, b"1", kernel=b"other", name="b.qcow2")
    assert seen(tmp_path, "a.qcow2")[2] == b"k" and images.names(tmp_path) == ["a.qcow2"]


def test_a_reader_sees_the_old_or_the_new_wherever_publishing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops at the first, second, … rename, as a crash would; then goes on."""
    real = os.rename
    for stop in range(6):
        directory = tmp_path / str(stop)
        directory.mkdir()
        publish(directory, b"1", kernel=b"k1")
        left = [stop]

        def rename(source: Any, target: Any, left: list[int] = left, **more: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            real(source, target, **more)

        with monkeypatch.context() as crash:
            crash.setattr(os, "rename", rename)
            crash.setattr(os, "replace", rename)
            with contextlib.suppress(KeyboardInterrupt):
                publish(directory, b"2", kernel=b"k2")
        assert seen(directory, "a.qcow2")[1:] in ((b"1", b"k1"), (b"2", b"k2"))
        assert seen(directory, "a.qcow2@1")[1:] == (b"1", b"k1")
        publish(directory, b"2", kernel=b"k2")
        assert seen(directory, "a.qcow2")[1:] == seen(directory, "a.qcow2@2")[1:] == (b"2", b"k2")


@pytest.mark.parametrize(
    "changes", [{"revision": 0}, {"revision": "1"}, {"revision": True}, {"file": "../a.qcow2"}, {"file": "a.img"}]
)
def test_a_revision_is_a_number_and_its_file_lies_beside_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="catalogue entry"):
        images.find(catalogue(tmp_path, entry(**changes)), "a.qcow2")


def test_an_entry_or_a_part_that_is_a_link_is_refused(tmp_path: Path) -> None:
    image = publish(tmp_path, b"1")
    for path in (image.path, tmp_path / "a.qcow2.json"):
        aside = path.rename(tmp_path / "aside")
        path.symlink_to(aside)
        with pytest.raises(ConfigError, match="symbolic link"):
            images.require_trusted(image)
        with pytest.raises(ImageError, match="symbolic link"):
            images.digest(path)
        path.unlink()
        aside.rename(path)
    image.path.unlink()
    with pytest.raises(ImageError, match="is missing"):
        images.require_trusted(image)


def test_an_overlay_names_what_it_is_on(tmp_path: Path) -> None:
    name = b"/pool/a.qcow2"
    data = bytearray(qcow2(backing=0x200))
    data[16:20], data[0x200:0x200 + len(name)] = struct.pack(">I", len(name)), name
    assert imageheader.backing_file(put(tmp_path, "o.qcow2", bytes(data))) == "/pool/a.qcow2"
    assert imageheader.backing_file(put(tmp_path, "o.qcow2", qcow2())) == ""
    assert imageheader.backing_file(put(tmp_path, "o.qcow2", b"short")) == ""


def test_a_copy_has_the_same_bytes_and_holes_for_zeros(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(b"head")
        file.write(bytes(4 << 20))
        file.seek(8 << 20)
        file.write(b"tail" + bytes(1000))
        file.truncate((9 << 20) + 17)
    imageheader.copy(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20


def test_a_revision_is_found_though_the_newest_is_broken(tmp_path: Path) -> None:
    publish(tmp_path, b"1")
    catalogue(tmp_path, [])
    assert seen(tmp_path, "a.qcow2@1") == ("a.qcow2@1", b"1", b"")


@pytest.mark.parametrize(("spoil", "why"), [
    (lambda path: path.write_text(json.dumps(entry(revision=3))), "it is of another revision"),
    (lambda path: path.symlink_to("a.qcow2.json"), "a link|symbolic link|Too many levels"),
    (lambda path: path.write_bytes(b" " * (1 << 20)), "larger|more than"),
], ids=["of another", "a link", "too long"])
def test_the_entry_of_a_revision_is_checked_as_well(tmp_path: Path, spoil: Callable[[Path], None], why: str) -> None:
    publish(tmp_path, b"1")
    spoil(tmp_path / "a.qcow2@2.json")
    with pytest.raises(ImageError, match=why):
        images.find(tmp_path, "a.qcow2@2")


def test_a_catalogue_that_is_no_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read the image directory .*/pool: Not a directory"):
        images.names(put(tmp_path, "pool", b""))


def test_an_image_that_was_not_trusted_is_not_after_another_disk_either(tmp_path: Path) -> None:
    publish(tmp_path, b"1", trusted=False)
    assert not publish(tmp_path, b"2").trusted
    assert publish(tmp_path, b"3", trusted=True).trusted


@pytest.mark.parametrize("name", ["a.qcow2@2", "../a"])
def test_what_names_no_image_as_a_whole_is_not_published(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="is not the name of an image"):
        publish(tmp_path, b"1", name=name)


def test_only_one_changes_a_catalogue_at_a_time(tmp_path: Path) -> None:
    with images.locked(tmp_path), pytest.raises(ImageError, match="another command is writing"), \
            images.locked(tmp_path, wait=False):
        pass
    with images.locked(tmp_path, wait=False):
        pass


def test_a_seal_can_be_broken_and_broken_again(tmp_path: Path) -> None:
    images.seal(tmp_path, "0" * 64, sealed=True)
    there = list((tmp_path / images.SEALED).iterdir())
    for _ in range(2):
        images.seal(tmp_path, "0" * 64, sealed=False)
    assert len(there) == 1 and list((tmp_path / images.SEALED).iterdir()) == []


@pytest.mark.parametrize("change", [
    lambda path: os.truncate(path, 1), lambda path: os.utime(path, ns=(0, 0)),
], ids=["cut short", "written to"])
def test_what_changes_while_it_is_copied_is_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    source = put(tmp_path, "source", b"x" * (3 << 20))
    look = os.pread

    def changing(handle: int, size: int, position: int) -> bytes:
        if position:
            change(source)
        return look(handle, size, position)

    monkeypatch.setattr(os, "pread", changing)
    with pytest.raises(ImageError, match="changed while it was copied"):
        imageheader.copy(source, tmp_path / "copy")


def test_a_file_system_that_cannot_find_data_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, position: int, how: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lseek", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        imageheader.copy(put(tmp_path, "source", b"x"), tmp_path / "copy")


def test_an_image_that_changes_while_it_is_inspected_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "a.qcow2", qcow2())

    def changing(script: Path, **told: object) -> bytes:
        os.utime(path, ns=(0, 0))
        return json.dumps({"format": "qcow2", "size": SIZE}).encode()

    monkeypatch.setattr(confined, "run", changing)
    with pytest.raises(ImageError, match="changed while it was inspected"):
        imageprobe.probe(path, deadline=Deadline(5))
