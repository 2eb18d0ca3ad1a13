# SPDX-License-Identifier: Apache-2.0
"""What a node keeps of images: who is given up, who stays, and where a job's image comes from."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.builders import a_plan, a_site, an_image
from vtorque import files, imagecache, orders
from vtorque.deadline import Deadline
from vtorque.errors import Blame, ConfigError, ImageError, RequestError
from vtorque.imagecache import Cache
from vtorque.state import JobState

MIB = 1 << 20


def kept(directory: Path, digit: str, *, mib: int = 1, age: int = 0, ending: str = ".qcow2") -> Path:
    """A file of the cache that takes room, last used `age` seconds after a long time ago."""
    path = directory / f"{digit * 64}{ending}"
    path.write_bytes(os.urandom(mib * MIB))
    os.utime(path, (1000 + age, 1000 + age))
    return path


def planned_on(path: Path, root: Path, key: str) -> JobState:
    """A job whose guests' overlays are on this image."""
    record = JobState(root, key)
    record.create()
    record.save_plan(orders.plain(a_plan(image=an_image(path=path))))
    return record


def a_cache(directory: Path, mib: int) -> Cache:
    return Cache(directory, mib * MIB, state=directory / "state")


def test_a_job_that_ends_meanwhile_hides_no_other_jobs_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (kept(tmp_path, digit) for digit in "abc")
    for key, used in (("1.srv", first), ("2.srv", second), ("3.srv", third)):
        planned_on(used, tmp_path, key)
    read = files.read

    def ends(path: Path, *, limit: int) -> bytes:
        if path.parent.name == "2.srv":
            shutil.rmtree(path.parent)
        return read(path, limit=limit)

    monkeypatch.setattr(files, "read", ends)
    assert imagecache._used(tmp_path) == {first, third}


@pytest.mark.parametrize("plan", ['{"image": {"pa', "[]", '{"schema": 9, "disk": "x"}', '{"image": "x"}'])
def test_a_plan_that_tells_of_no_image_hides_no_other_jobs_image(tmp_path: Path, plan: str) -> None:
    used = kept(tmp_path, "a")
    for key in ("1.srv", "2.srv"):
        record = planned_on(used, tmp_path, key)
        if key == "1.srv":
            (record.path / "plan.json").write_text(plan)
    assert imagecache._used(tmp_path) == {used}


def left(directory: Path) -> str:
    """The digits of the images that are left."""
    return "".join(sorted(path.name[0] for path in directory.glob("*.qcow2")))


def test_those_used_longest_ago_are_given_up_and_no_more_than_needed(tmp_path: Path) -> None:
    for age, digit in enumerate("3124"):
        kept(tmp_path, digit, age=age)
    a_cache(tmp_path, 5).make_room(tmp_path / "new.qcow2", 3 * MIB)
    assert left(tmp_path) == "24"
    a_cache(tmp_path, 5).make_room(tmp_path / "new.qcow2", 3 * MIB)
    assert left(tmp_path) == "24", "there is room already"


def test_an_image_under_a_guest_and_one_that_is_locked_stay(tmp_path: Path) -> None:
    used, locked, idle = (kept(tmp_path, digit, age=age) for age, digit in enumerate("abc"))
    planned_on(used, tmp_path / "state", "7.srv")
    with locked.with_name(f"{locked.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(ImageError) as refusal:
            a_cache(tmp_path, 3).make_room(tmp_path / "new.qcow2", 2 * MIB)
    assert left(tmp_path) == "ab" and not idle.exists()
    assert "takes 2 MiB" in refusal.value.brief and "3 MiB, others have 2 MiB" in refusal.value.brief
    assert refusal.value.blame is Blame.NODE
    a_cache(tmp_path, 3).make_room(tmp_path / "new.qcow2", 2 * MIB)
    assert left(tmp_path) == "a" and not list(tmp_path.glob("b*.lock"))


def test_what_can_never_fit_costs_no_other_image(tmp_path: Path) -> None:
    kept(tmp_path, "a")
    for limit, size in ((2, 3 * MIB), (1 << 50, 1 << 62)):
        with pytest.raises(ImageError, match="no room"):
            a_cache(tmp_path, limit).make_room(tmp_path / "new.qcow2", size)
        assert left(tmp_path) == "a"


def test_the_image_there_has_to_be_room_for_is_not_given_up_though_it_was_used_longest_ago(tmp_path: Path) -> None:
    first, _ = (kept(tmp_path, digit, age=age) for age, digit in enumerate("ab"))
    a_cache(tmp_path, 2).make_room(first, 2 * MIB)
    assert left(tmp_path) == "a"


def test_what_has_come_so_far_counts_once_and_can_be_given_up(tmp_path: Path) -> None:
    part = kept(tmp_path, "a", ending=".qcow2.part")
    part.with_name(f"{part.name}.json").write_text("{}")
    cache = a_cache(tmp_path, 2)
    (known,) = cache.kept()
    assert known.path.name == f"{'a' * 64}.qcow2" and known.size >= MIB
    cache.make_room(known.path, 2 * MIB)
    assert part.exists(), "it is the very image there has to be room for"
    cache.make_room(tmp_path / "new.qcow2", 2 * MIB)
    assert list(tmp_path.glob("a*.part*")) == []


def test_holes_take_no_room_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    with (tmp_path / f"{'a' * 64}.img").open("wb") as file:
        file.truncate(1 << 40)
    foreign = tmp_path / "somebody's.qcow2"
    foreign.write_bytes(os.urandom(MIB))
    a_cache(tmp_path, 2).make_room(tmp_path / "new.qcow2", 2 * MIB)
    assert foreign.exists() and len(list(tmp_path.glob("*.img"))) == 1


def test_no_limit_is_half_of_the_file_system(tmp_path: Path) -> None:
    about = os.statvfs(tmp_path)
    half = about.f_blocks * about.f_frsize // 2
    with pytest.raises(ImageError, match=f"of the limit, {half >> 20} MiB"):
        Cache(tmp_path, 0, state=tmp_path).make_room(tmp_path / "new.qcow2", half + MIB)


def test_a_job_on_a_shared_file_system_reads_the_catalogues_own_file() -> None:
    image = an_image()
    with imagecache.local(image, fs_type="sharedfs", site=a_site(), deadline=Deadline(1)) as found:
        assert found is image


def test_what_is_there_is_used_and_remembered(tmp_path: Path) -> None:
    site = a_site(ramdisk_dir=str(tmp_path), image_cache_dir=str(tmp_path / "images"))
    (tmp_path / "images").mkdir()
    path = kept(tmp_path / "images", "0")
    for fs_type, url in (("ramdisk", ""), ("ramdisk", "http://host/x"), ("sharedfs", "http://host/x")):
        lock = path.with_name(f"{path.name}.lock")
        lock.touch()
        os.utime(lock, (0, 0))
        with imagecache.local(an_image(url=url), fs_type=fs_type, site=site, deadline=Deadline(1)) as found:
            assert found == an_image(url=url, path=path)
        assert lock.stat().st_mtime > 0


def test_while_somebody_else_fetches_it_we_wait_no_longer_than_we_may(tmp_path: Path) -> None:
    with (tmp_path / f"{'0' * 64}.qcow2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(ImageError, match=r"image debian-12\.qcow2 is not on this node in time"),
            a_cache(tmp_path, 1).holding(an_image(), deadline=Deadline(0.02)),
        ):
            pass


@pytest.mark.parametrize(("name", "mode", "says"), [
    ("none", 0o755, "no RAMDISK_DIR of root's own: .*No such file.*none"), ("ram", 0o1777, "ram is writable by others"),
    ("ram", 0o775, "ram is writable by others"), ("link", 0o755, "link is a symbolic link"),
])
def test_whoever_asks_for_a_ram_disk_that_is_missing_or_not_roots_alone_is_told_so(
    tmp_path: Path, name: str, mode: int, says: str
) -> None:
    """It is he who asked for it: the node serves others."""
    (tmp_path / "ram").mkdir()
    (tmp_path / "ram").chmod(mode)
    (tmp_path / "link").symlink_to(tmp_path / "ram")
    site = a_site(ramdisk_dir=str(tmp_path / name))
    with (
        pytest.raises(RequestError, match=says),
        imagecache.local(an_image(), fs_type="ramdisk", site=site, deadline=Deadline(1)),
    ):
        pass
    assert list((tmp_path / "ram").iterdir()) == []


@pytest.mark.parametrize("digest", ["", "x" * 64, "../" * 21 + "a", "A" * 64])
def test_an_image_without_a_digest_names_no_file(tmp_path: Path, digest: str) -> None:
    with (
        pytest.raises(ImageError, match="no digest"),
        a_cache(tmp_path, 1).holding(an_image()._replace(sha256=digest), deadline=Deadline(1)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images").chmod(0o777)
    with (
        pytest.raises(ConfigError, match="writable by others"),
        a_cache(tmp_path / "images", 1).holding(an_image(), deadline=Deadline(1)),
    ):
        pass
    assert list((tmp_path / "images").iterdir()) == []
