# SPDX-License-Identifier: Apache-2.0
"""Images that somebody crafted: a child without rights refuses them, and what it accepts opens nothing else."""

import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.imagecorpus import MIB, QCOW2, RAW, Qcow2, good
from vtorque import confined, imageformat, imageheader, imageprobe
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, ConfigError, DeadlineExceeded, ImageError

pytestmark = [pytest.mark.runs, pytest.mark.skipif(os.getuid() != 0, reason="root becomes nobody for it")]

LIMITS = confined.Limits(cpu_seconds=1, memory_mib=256, answer=4096)


@pytest.fixture
def pool() -> Iterator[Path]:
    """A directory that only root can change, up to the top."""
    path = Path(tempfile.mkdtemp(dir="/var/lib", prefix="vtorque-test-"))
    yield path
    shutil.rmtree(path)


def probe(path: Path, *, trusted: bool = False) -> imageprobe.Probed:
    return imageprobe.probe(path, deadline=Deadline(30), trusted=trusted)


def refusal(path: Path) -> str:
    """Why it is refused, in root's child and in a process of the user's own alike."""
    with pytest.raises(ImageError) as told:
        probe(path)
    with pytest.raises(ImageError) as seen:
        imageheader.inspect(path)
    assert told.value.brief == seen.value.brief and told.value.one_line().isprintable()
    return told.value.brief


def qemu(*words: str | Path) -> int:
    return subprocess.run(["qemu-img", *words], check=False, capture_output=True).returncode


@pytest.mark.parametrize("case", QCOW2)
def test_a_crafted_qcow2_is_refused_by_its_own_line(tmp_path: Path, case: str) -> None:
    image, why = QCOW2[case]
    image.write(tmp_path / "a.qcow2")
    assert refusal(tmp_path / "a.qcow2").startswith(f"image a.qcow2: {why}")


@pytest.mark.parametrize("case", RAW)
def test_what_qemu_would_take_for_another_format_is_not_raw(tmp_path: Path, case: str) -> None:
    start, why = RAW[case]
    path = tmp_path / "a.img"
    path.write_bytes(start)
    os.truncate(path, MIB // 2)
    assert refusal(path).startswith(f"image a.img: {why}")


@pytest.mark.parametrize(("end", "why"), [(b"conectix", "is VHD"), (b"koly", "is DMG"), (b"x", "whole number")])
def test_the_end_of_a_raw_disk_counts_as_well(tmp_path: Path, end: bytes, why: str) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1024) + (end if end == b"x" else end.ljust(512, b"\0")))
    assert why in refusal(path)


def test_there_are_sixty_of_them_and_none_is_there_twice() -> None:
    assert len(QCOW2) + len(RAW) >= 60 and len(good()) >= 8
    assert len({image for image, _ in QCOW2.values()}) == len(QCOW2)


@pytest.mark.parametrize("case", good())
def test_an_honest_qcow2_is_accepted_and_qemu_finds_nothing_wrong(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.qcow2"
    good()[case](path)
    told = subprocess.run(["qemu-img", "info", "-f", "qcow2", "--output=json", path], check=True, capture_output=True)
    assert probe(path).header.size == json.loads(told.stdout)["virtual-size"]
    assert qemu("check", "-q", "-f", "qcow2", path) == 0


def test_a_sparse_raw_disk_is_accepted_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.touch()
    os.truncate(path, 1 << 40)
    assert probe(path).header == imageheader.Header(format="raw", size=1 << 40)


def opened_by_qemu(path: Path, *words: str | Path) -> set[str]:
    """The files that `qemu-img` opens for a command on the image at `path`, which has to succeed."""
    argv = ["strace", "-f", "-e", "trace=open,openat", "-o", path.with_suffix(".log"), "qemu-img", *words]
    subprocess.run(argv, check=True, capture_output=True)
    return set(re.findall(r'"([^"]+)"', path.with_suffix(".log").read_text()))


def test_a_flipped_bit_never_crashes_it_and_qemu_opens_what_it_accepts_and_nothing_else(tmp_path: Path) -> None:
    """In this process, for the number of them; the child runs the same lines."""
    path, source, accepted, opened = tmp_path / "a.qcow2", random.Random(6), 0, 0
    Qcow2().write(path)
    whole, usual = path.read_bytes(), opened_by_qemu(path, "info", "-f", "qcow2", path)
    places = [*range(112), *range(1 << 16, (1 << 16) + 8), *range(3 << 16, (3 << 16) + 8)]
    with path.open("r+b", buffering=0) as file:
        for round_ in range(3000):
            flips = [source.choice(places) if round_ % 4 else source.randrange(1 << 16) for _ in range(1 + round_ % 3)]
            for where in flips:
                os.pwrite(file.fileno(), bytes([whole[where] ^ 1 << source.randrange(8)]), where)
            try:
                imageformat.look(file.fileno(), "qcow2")
                accepted += 1
                # Most that is accepted is a change to what nobody reads.
                if min(flips) < 112 and accepted % 4 == 0:
                    opened += 1
                    assert opened_by_qemu(path, "info", "-f", "qcow2", path) <= usual
            except imageformat.Refused:
                pass
            for where in flips:
                os.pwrite(file.fileno(), whole[where:where + 1], where)
    assert 500 < accepted < 2000 and opened > 20


@pytest.mark.parametrize("weakened", [False, True])
def test_qemu_opens_no_file_but_an_accepted_image(tmp_path: Path, weakened: bool) -> None:
    """The crafted ones would make it: what is refused only by this inspection is seen to open another file."""
    bait = tmp_path / "bait"
    bait.write_bytes(bytes(MIB))
    path = tmp_path / "a.qcow2"
    Qcow2(backing=0x200 if weakened else 0, backing_size=len(bytes(bait)), end=bytes(8)).write(path)
    with path.open("r+b") as file:
        file.seek(0x200)
        file.write(bytes(bait))
    # Without a format of its own the backing file's is guessed.
    opened = opened_by_qemu(path, "convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "out")
    assert (str(bait) in opened) is weakened
    if weakened:
        assert "has a backing file" in refusal(path)
    else:
        assert probe(path).header.size == MIB


def confined_run(pool: Path, script: str, *, seconds: float = 30) -> str:
    pool.chmod(0o755)
    path = pool / "script.py"
    path.write_text(script)
    with imageheader.opened(path) as (handle, _):
        return confined.run(path, handle=handle, limits=LIMITS, deadline=Deadline(seconds)).decode()


def test_the_child_has_no_rights_no_environment_and_limits(pool: Path) -> None:
    told = confined_run(pool, f"""
import os, resource
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(os.getresuid(), os.getgroups(), sorted(os.environ), os.getcwd(), os.listdir("/proc/self/fd")[:4])
print([status[key].strip("\\t\\n0") for key in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs")])
print([resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("CPU", "AS", "FSIZE", "NPROC", "NOFILE")])
for do in (os.fork, lambda: open("{pool}/written", "w"), lambda: os.write(os.open("/tmp", os.O_TMPFILE | 2), b"x")):
    try:
        do()
    except OSError as error:
        print(error.strerror)
""").splitlines()
    # The interpreter itself sets LC_CTYPE. The fourth descriptor is that of the directory that is listed.
    assert told[0] == "(65534, 65534, 65534) [] ['LC_CTYPE'] / ['0', '1', '2', '3']"
    assert told[1] == "['', '', '', '', '', '1']"
    assert told[2] == f"[(1, 1), ({256 << 20}, {256 << 20}), (0, 0), (0, 0), (16, 16)]"
    assert told[3:] == ["Resource temporarily unavailable", "Permission denied", "File too large"]


@pytest.mark.parametrize(("does", "why"), [
    ("while True: pass", "killed by signal"), ("x = bytes(1 << 30)", "exit status 1"),
    ("print('x' * 5000)", "more than"),
    ("raise SystemExit(3)", "exit status 3"), ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
])
def test_a_child_that_misbehaves_is_a_failure_and_not_an_answer(pool: Path, does: str, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        confined_run(pool, does)


def test_a_child_that_does_not_answer_is_not_waited_for(pool: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        confined_run(pool, "import time; time.sleep(60)", seconds=0.3)


@pytest.mark.parametrize("answer", [
    b"", b"[]", b"{}", b'{"size": 512}', b'{"format": "raw", "size": 513}', b'{"format": "raw", "size": -512}',
    b'{"format": "raw", "size": true}', b'{"format": "raw", "size": "512"}', b'{"format": "raw", "refused": "a\\nb"}',
    b'{"format": "raw", "refused": ""}', b'{"format": "vmdk", "size": 512}', b'{"format": "raw", "size": 1e99}',
    b'{"format": "raw", "size": 99999999999999999999}', b"\xff",
])
def test_an_answer_that_makes_no_sense_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    (tmp_path / "a.img").write_bytes(bytes(512))
    monkeypatch.setattr(confined, "run", lambda *words, **more: answer)
    with pytest.raises(ImageError, match=r"^image a\.img cannot be inspected$"):
        probe(tmp_path / "a.img")


def into_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def into_device(path: Path) -> None:
    path.unlink()
    os.mknod(path, 0o20644, os.makedev(1, 5))


class TestThePlace:
    """Only root can have put an image where root uses it, and what was looked at is what is used."""

    def image(self, pool: Path) -> Path:
        path = pool / "sub" / "a.qcow2"
        path.parent.mkdir(mode=0o755)
        Qcow2().write(path)
        return path

    @pytest.mark.parametrize(("spoil", "why"), [
        (lambda path: path.chmod(0o664), "writable by others"),
        (lambda path: path.chmod(0o646), "writable by others"),
        (lambda path: os.chown(path, 65534, -1), "belongs to uid 65534"),
        (lambda path: path.parent.chmod(0o775), "writable by others"),
        (lambda path: os.chown(path.parent, 65534, -1), "belongs to uid 65534"),
        (lambda path: path.parent.parent.chmod(0o757), "writable by others"),
        (lambda path: path.rename(path.with_name("b")).parent.joinpath("a.qcow2").symlink_to("b"), "symbolic link"),
        (lambda path: (path.parent.rename(path.parents[1] / "real"), path.parent.symlink_to("real")), "symbolic link"),
        (into_fifo, "not a regular file"), (into_device, "not a regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
        (lambda path: path.unlink(), "is missing"),
    ])
    def test_a_place_that_others_can_change_is_refused(self, pool: Path, spoil: object, why: str) -> None:
        path = self.image(pool)
        assert probe(path, trusted=True).header.size == MIB
        assert callable(spoil)
        spoil(path)
        with pytest.raises((ConfigError, ImageError), match=why):
            probe(path, trusted=True)

    def test_a_hard_link_to_somebody_elses_file_is_refused_and_one_to_roots_is_not(self, pool: Path) -> None:
        path = self.image(pool)
        twin = path.with_name("b.qcow2")
        os.link(path, twin)
        assert probe(twin, trusted=True).header.size == MIB
        os.chown(path, 65534, -1)
        with pytest.raises(ConfigError, match="belongs to uid 65534"):
            probe(twin, trusted=True)

    @pytest.mark.parametrize("change", [
        lambda path: path.write_bytes(path.read_bytes()),
        lambda path: (shutil.copy2(path, path.with_name("b")), path.with_name("b").replace(path)),
        lambda path: (path.rename(path.with_name("b")), path.symlink_to("b")),
        lambda path: os.truncate(path, 1 << 20),
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: path.unlink(),
    ])
    def test_an_image_that_changes_after_it_was_looked_at_is_not_used(self, pool: Path, change: object) -> None:
        path = self.image(pool)
        probed = probe(path, trusted=True)
        probed.require_same()
        assert callable(change)
        change(path)
        with pytest.raises(ImageError, match=r"changed since|is gone"):
            probed.require_same()
