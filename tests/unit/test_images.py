# SPDX-License-Identifier: Apache-2.0
"""The catalogue, and headers that must not make QEMU open anything else."""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from vtorque import images
from vtorque.errors import ImageError, RequestError

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


@pytest.mark.parametrize("data", [qcow2(), qcow2(version=2), qcow2(extensions=EXTENSION["unknown"]), qcow2(bits=21)])
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
