# SPDX-License-Identifier: Apache-2.0
"""The node's images with real processes, files and a web server: one fetch, whatever is cut, killed or wrong."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.builders import a_plan, an_image
from tests.contract.test_catalogue import NAME, Site
from tests.contract.test_lifecycle import Scene
from vtorque import catalogue, files, imageprobe, images, lifecycle, orders, request, service
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded, ImageError
from vtorque.imagecache import Cache
from vtorque.model import Image
from vtorque.state import JobState

pytestmark = pytest.mark.runs

MIB = 1 << 20


def an_image_at(path: Path, *, mib: int = 2, url: str = "") -> Image:
    """A raw disk with data at both ends and a hole between them, in the catalogue or by URL."""
    with path.open("wb") as file:
        file.write(os.urandom(mib * MIB // 2))
        file.seek(64 * MIB)
        file.write(os.urandom(mib * MIB // 2))
    return an_image(name=path.name, path=path, sha256=images.digest(path), url=url)


def a_cache(root: Path, mib: int = 100) -> Cache:
    return Cache(root / "cache", mib * MIB, state=root / "state")


def got(cache: Cache, image: Image, *, seconds: float = 30) -> Path:
    with cache.holding(image, deadline=Deadline(seconds)) as path:
        return path


def beside(cache: Cache) -> list[str]:
    """What lies in the cache, locks left out, names cut short."""
    names = (path.name for path in cache.directory.iterdir() if not path.name.endswith(".lock"))
    return sorted(f"{name[:4]}{name[64:]}" for name in names)


def ask(root: Path, image: Image, begin: float, inodes: "multiprocessing.Queue[int]") -> None:
    """One of several processes that want an image at the same moment."""
    time.sleep(max(0.0, begin - time.monotonic()))
    with a_cache(root).holding(image, deadline=Deadline(30)) as path:
        inodes.put(path.stat().st_ino)


class Web:
    """A server of one file, with ranges, that may send only so many bytes of it, or slowly."""

    def __init__(self, data: bytes) -> None:
        self.data, self.limit, self.pause = data, len(data), 0.0
        self.silent, self.released = False, threading.Event()
        self.asked: list[str] = []
        web = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.headers.get("Range", ""))
                match = re.fullmatch(r"bytes=(\d+)-", web.asked[-1])
                first = int(match[1]) if match else 0
                self.send_response(206 if match else 200)
                if match:
                    self.send_header("Content-Range", f"bytes {first}-{len(web.data) - 1}/{len(web.data)}")
                self.send_header("Content-Length", str(len(web.data) - first))
                self.send_header("ETag", '"1"')
                self.end_headers()
                if web.silent:
                    web.released.wait(30)
                with contextlib.suppress(OSError):
                    for start in range(first, min(web.limit, len(web.data)), MIB):
                        self.wfile.write(web.data[start:min(start + MIB, web.limit)])
                        time.sleep(web.pause)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/disk.img?key=secret"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web = Web(an_image_at(tmp_path / "served.img").path.read_bytes())
    yield web
    web.close()


def by_url(web: Web) -> Image:
    digest = hashlib.sha256(web.data).hexdigest()
    return an_image(name="disk.img", path=Path("/images/disk.img"), sha256=digest, url=web.url)


def test_a_copy_is_whole_sparse_and_nobodys_to_write(tmp_path: Path) -> None:
    image = an_image_at(tmp_path / "a.img")
    path = got(a_cache(tmp_path), image)
    assert path.name == f"{image.sha256}.img" and path.read_bytes() == image.path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o444 and path.stat().st_blocks * 512 < 3 * MIB
    image.path.unlink()
    assert got(a_cache(tmp_path), image) == path, "it is not fetched again"


def test_eight_threads_that_ask_at_once_get_one_fetch(tmp_path: Path, web: Web) -> None:
    web.pause = 0.002
    cache, image = a_cache(tmp_path), by_url(web)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: got(cache, image), range(8)))
    assert len(set(found)) == 1 and web.asked == [""]
    assert images.digest(found[0]) == image.sha256


def test_eight_processes_that_ask_at_once_get_one_fetch(tmp_path: Path) -> None:
    image = an_image_at(tmp_path / "a.img", mib=16)
    context = multiprocessing.get_context("spawn")
    inodes = context.Queue()
    begin = time.monotonic() + 2
    children = [context.Process(target=ask, args=(tmp_path, image, begin, inodes)) for _ in range(8)]
    for child in children:
        child.start()
    found = [inodes.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(set(found)) == 1 and beside(a_cache(tmp_path)) == [f"{image.sha256[:4]}.img"]


def test_a_fetcher_that_is_killed_leaves_a_part_that_the_next_one_replaces(tmp_path: Path, web: Web) -> None:
    web.pause = 0.2
    image = by_url(web)
    context = multiprocessing.get_context("spawn")
    inodes = context.Queue()
    child = context.Process(target=ask, args=(tmp_path, image, 0.0, inodes))
    child.start()
    part = tmp_path / "cache" / f"{image.sha256}.img.part"
    for _ in Deadline(30).ticks(doing="a part"):
        if part.exists() and part.stat().st_size >= MIB:
            break
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    assert part.exists()
    web.pause = 0.0
    assert images.digest(got(a_cache(tmp_path), image)) == image.sha256
    assert len(web.asked) == 2 and beside(a_cache(tmp_path)) == [f"{image.sha256[:4]}.img"]


def test_what_a_crash_left_of_a_copy_is_tidied_up(tmp_path: Path) -> None:
    cache, image, other = a_cache(tmp_path), an_image_at(tmp_path / "a.img"), an_image_at(tmp_path / "b.img")
    cache.directory.mkdir()
    for each in (image, other):
        (cache.directory / f"{each.sha256}.img.part").write_bytes(b"rubbish")
    assert images.digest(got(cache, image)) == image.sha256
    assert beside(cache) == [f"{image.sha256[:4]}.img"]


def test_a_wrong_digest_names_both_and_leaves_nothing(tmp_path: Path, web: Web) -> None:
    image = an_image_at(tmp_path / "a.img")
    image.path.write_bytes(bytes(MIB))
    with pytest.raises(ImageError) as refusal:
        got(a_cache(tmp_path), image)
    assert image.sha256 in refusal.value.brief and images.digest(image.path) in refusal.value.brief
    remote = by_url(web)
    digest, web.data = remote.sha256, bytes(MIB)
    with pytest.raises(ImageError) as refusal:
        got(a_cache(tmp_path), remote)
    assert digest in refusal.value.brief and hashlib.sha256(bytes(MIB)).hexdigest() in refusal.value.brief
    assert beside(a_cache(tmp_path)) == []


def test_an_image_that_is_gone_fails_and_the_next_try_may_succeed(tmp_path: Path) -> None:
    image = an_image_at(tmp_path / "a.img")
    aside = image.path.rename(tmp_path / "aside")
    with pytest.raises((ImageError, CommandError), match=r"No such file"):
        got(a_cache(tmp_path), image)
    aside.rename(image.path)
    assert got(a_cache(tmp_path), image).exists()


def test_a_download_that_is_cut_goes_on_and_keeps_its_holes(tmp_path: Path, web: Web) -> None:
    image = by_url(web)
    web.limit = MIB // 2
    with pytest.raises(ImageError, match=f"only {MIB // 2} of {len(web.data)} bytes") as cut:
        got(a_cache(tmp_path), image)
    assert "run the command again" not in cut.value.one_line() and "secret" not in cut.value.one_line()
    assert beside(a_cache(tmp_path)) == [f"{image.sha256[:4]}.img.part{ending}" for ending in ("", ".json")]
    web.limit = len(web.data)
    path = got(a_cache(tmp_path), image)
    assert web.asked == ["", f"bytes={MIB // 2}-"]
    assert images.digest(path) == image.sha256 and path.stat().st_blocks * 512 < 3 * MIB
    assert path.stat().st_mode & 0o777 == 0o444 and beside(a_cache(tmp_path)) == [f"{image.sha256[:4]}.img"]


def test_a_download_ends_with_the_time_and_goes_on_with_the_next_start(tmp_path: Path, web: Web) -> None:
    image, web.pause = by_url(web), 0.1
    part = tmp_path / "cache" / f"{image.sha256}.img.part"
    # Time is up when some of it has come, however long that takes.
    deadline = Deadline(60, clock=lambda: time.monotonic() + (1000 if part.exists() and part.stat().st_size else 0))
    with (
        pytest.raises(ImageError, match=r"disk.img is not on this node in time") as late,
        a_cache(tmp_path).holding(image, deadline=deadline),
    ):
        pass
    assert re.search(r"downloading http://127.0.0.1:\d+/disk.img$", late.value.details)
    assert 0 < part.stat().st_size < len(web.data)
    web.pause = 0.0
    assert images.digest(got(a_cache(tmp_path), image)) == image.sha256
    assert web.asked[1].startswith("bytes=")


def test_a_silent_server_does_not_outlive_the_deadline(tmp_path: Path, web: Web) -> None:
    web.silent = True
    started = time.monotonic()
    with pytest.raises((ImageError, DeadlineExceeded)):
        got(a_cache(tmp_path), by_url(web), seconds=1)
    assert time.monotonic() - started < 20, "it is silent for longer"


def used(path: Path, when: float) -> None:
    """As if the image had been asked for then."""
    os.utime(path.with_name(f"{path.name}.lock"), (when, when))


def test_an_image_that_is_asked_for_again_is_the_same_file_unchanged(tmp_path: Path) -> None:
    cache, image = a_cache(tmp_path), an_image_at(tmp_path / "a.img")
    probed = imageprobe.probe(got(cache, image), deadline=Deadline(5))
    used(probed.path, 1000)
    got(cache, image)
    probed.require_same()
    assert cache.kept()[0].used > 1000


def test_the_image_used_longest_ago_makes_room_and_one_under_a_guest_does_not(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, mib=7)
    first, second, third, fourth = (an_image_at(tmp_path / f"{name}.img") for name in "abcd")
    for image in (first, second, third):
        used(got(cache, image), 1000)
    job = JobState(tmp_path / "state", "7.srv")
    job.create()
    with cache.holding(first, deadline=Deadline(5)) as path:
        job.save_plan(orders.plain(a_plan(image=first._replace(path=path))))
        used(path, 0)
    used(cache.directory / f"{second.sha256}.img", 500)
    got(cache, fourth)
    assert beside(cache) == sorted(f"{each.sha256[:4]}.img" for each in (first, third, fourth))
    with (
        cache.holding(third, deadline=Deadline(5)), cache.holding(fourth, deadline=Deadline(5)),
        pytest.raises(ImageError, match=r"takes 2 MiB; of the limit, 7 MiB, others have 6 MiB"),
    ):
        got(cache, second)
    with job.closing(deadline=Deadline(5)):
        job.remove()
    got(cache, second)
    assert not (cache.directory / f"{first.sha256}.img").exists()


def test_a_download_that_outgrows_the_limit_is_removed(tmp_path: Path, web: Web) -> None:
    with pytest.raises(ImageError, match="no room"):
        got(a_cache(tmp_path, mib=1), by_url(web))
    assert beside(a_cache(tmp_path, mib=1)) == []


def test_images_of_all_sizes_come_and_go_under_many_jobs(tmp_path: Path) -> None:
    """More images than there is room for, asked for at the same time: each is whole while somebody holds it."""
    known = [an_image_at(tmp_path / f"{number}.img") for number in range(5)]
    cache = a_cache(tmp_path, mib=8)

    def use(number: int) -> None:
        image = known[number % len(known)]
        for _ in Deadline(60).ticks(doing="room"):
            with contextlib.suppress(ImageError), cache.holding(image, deadline=Deadline(30)) as path:
                assert images.digest(path) == image.sha256
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(40)))
    assert sum(each.size for each in cache.kept()) <= 8 * MIB
    assert not [name for name in beside(cache) if "part" in name]


def test_an_overlay_is_as_large_as_asked_for_and_holds_nothing(tmp_path: Path) -> None:
    image = an_image_at(tmp_path / "a.img")
    overlay = tmp_path / "o.qcow2"
    with files.created(overlay, mode=0o600) as handle:
        imageprobe.make_overlay(imageprobe.probe(image.path, deadline=Deadline(5)), handle, size_mib=20 << 10)
    told = subprocess.run(["qemu-img", "info", "--output=json", overlay], check=True, capture_output=True, text=True)
    assert f'"virtual-size": {20 << 30}' in told.stdout and f'"backing-filename": "{image.path}"' in told.stdout
    assert '"backing-filename-format": "raw"' in told.stdout and overlay.stat().st_blocks * 512 < MIB


@pytest.fixture
def root() -> Iterator[Path]:
    """A place that guests' files may lie in: root's own up to the top, but not writable by others as /tmp is."""
    if os.getuid() != 0:
        pytest.skip("root's own verbs")
    with tempfile.TemporaryDirectory(prefix="vtorque-test-", dir="/var/lib") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def wish(scene: Scene, **changes: object) -> str:
    return request.encode(scene.request._replace(**changes))  # type: ignore[arg-type]


def overlay_of(scene: Scene) -> tuple[Path, dict[str, object]]:
    """Where the guest's overlay is, and what qemu-img says of it."""
    (path,) = scene.root.rglob("7.srv_1of1.qcow2")
    told = subprocess.run(["qemu-img", "info", "--output=json", path], check=True, capture_output=True)
    about: dict[str, object] = json.loads(told.stdout)
    return path, about


def test_a_ramdisk_job_has_image_and_overlay_in_the_ram_disk_and_leaves_the_image(root: Path) -> None:
    ram = root / "ram"
    ram.mkdir()
    scene = Scene(root, ramdisk_dir=str(ram))
    text = wish(scene, fs_type="ramdisk", disk_size_mib=20480)
    scene.prologue(request=text)
    assert scene.markers() == {"ready"}
    path, about = overlay_of(scene)
    (image,) = ram.glob("images/*.qcow2")
    assert path.parent == ram / "jobs" / "7.srv" and about["virtual-size"] == 20 << 30
    assert about["backing-filename"] == str(image) and about["backing-filename-format"] == "qcow2"
    assert str(image) in (scene.state.path / "plan.json").read_text()
    scene.job = scene.job._replace(request=text)
    scene.epilogue()
    assert scene.left() == [] and image.exists() and list((ram / "jobs").iterdir()) == []


def test_what_no_ledger_tells_of_is_given_back_from_the_ram_disk_too(root: Path) -> None:
    scene = Scene(root, ramdisk_dir=str(root / "ram"))
    (root / "ram/jobs/7.srv").mkdir(parents=True)
    (root / "ram/jobs/7.srv/7.srv_1of1.qcow2").touch()
    scene.epilogue()
    assert list((root / "ram/jobs").iterdir()) == []


@pytest.mark.parametrize("changes, says", [
    ({"disk_size_mib": 4 << 20}, "this cluster allows at most 1048576 MiB"),
    ({"image": "b.img", "disk_size_mib": 1}, "image b.img has 2 MiB, and a disk cannot shrink"),
])
def test_a_disk_of_the_wrong_size_is_the_users_fault(root: Path, changes: dict[str, object], says: str) -> None:
    scene = Scene(root, max_disk_size=1 << 20)
    (root / "disk").write_bytes(bytes(2 * MIB))
    images.publish(root / "images", {"name": "b.img", "distro": "debian", "arch": "x86_64", "description": ""}, {
        "b.img": root / "disk",
    })
    scene.prologue(request=wish(scene, **changes))
    failed = (scene.state.path / "failed").read_text()
    assert says in failed and '"blame": "user"' in failed


@pytest.mark.parametrize("mode", [None, 0o1777])
def test_without_a_ram_disk_of_roots_own_the_node_goes_on_with_others(root: Path, mode: int | None) -> None:
    if mode:
        (root / "ram").mkdir()
        (root / "ram").chmod(mode)
    scene = Scene(root, ramdisk_dir=str(root / "ram"), node_failure_limit=1)
    scene.prologue(request=wish(scene, fs_type="ramdisk"))
    failed = (scene.state.path / "failed").read_text()
    assert "this node has no RAMDISK_DIR of root's own" in failed and '"blame": "user"' in failed
    assert list((root / "ram").glob("*")) == [] and not service.look(scene.node.site).out


@pytest.mark.parametrize("sweeps", [True, False])
def test_root_looks_for_nothing_below_what_a_user_can_change(root: Path, sweeps: bool) -> None:
    """A link in place of `jobs` or of a job's directory had the files of others deleted, by their names."""
    ram, victim = root / "ram", root / "victim"
    victim.mkdir(mode=0o700)
    for number in (7, 9):
        (victim / f"{number}.srv_1of1.qcow2").touch()
        (victim / f"{number}.srv_1of1.console").touch()
    before = sorted(victim.iterdir())
    (ram / "jobs").mkdir(parents=True)
    ram.chmod(0o1777)
    os.chown(ram / "jobs", 65534, 65534)
    for number in (7, 9):
        (ram / "jobs" / f"{number}.srv").symlink_to(victim)
    (root / "disks/9.srv").mkdir(parents=True)
    (root / "disks/9.srv/9.srv_1of1.qcow2").touch()
    scene = Scene(root, ramdisk_dir=str(ram))
    if sweeps:
        assert lifecycle.sweep(scene.node, deadline=Deadline(20)) == ["9.srv"]
        assert not (root / "disks/9.srv").exists(), "what is root's own is given back as ever"
    else:
        scene.prologue()
        scene.epilogue()
        assert scene.left() == []
    assert sorted(victim.iterdir()) == before and (ram / "jobs/7.srv").is_symlink()


def test_what_is_not_yet_there_is_not_made_where_others_can_write(root: Path) -> None:
    (root / "disks").mkdir()
    (root / "disks").chmod(0o1777)
    scene = Scene(root)
    scene.prologue()
    assert "disks is writable by others" in (scene.state.path / "failed").read_text()
    assert [each.name for each in (root / "disks").iterdir()] in ([], ["service.json"])
    scene.epilogue()
    assert not scene.state.exists


def test_an_image_by_url_starts_from_the_nodes_own_copy(root: Path, web: Web) -> None:
    scene = Scene(root, image_cache_dir=str(root / "cache"))
    about = catalogue.About(name="u.img", distro="debian", url=web.url, sha256=by_url(web).sha256)
    catalogue.add(root / "images", None, about, progress=lambda text: None)
    for _ in range(2):
        scene.prologue(request=wish(scene, image="u.img"))
        assert scene.markers() == {"ready"}
        path, told = overlay_of(scene)
        assert path.parent == root / "disks" / "7.srv"
        assert told["backing-filename"] == str(root / "cache" / f"{by_url(web).sha256}.img")
        scene.epilogue()
    assert web.asked == [""]


def test_an_image_by_url_is_recorded_listed_shown_verified_and_deleted(root: Path) -> None:
    site = Site(root / "site")
    url, digest = "https://host/dir/debian-12.qcow2", "0" * 64
    kernel = root / "kernel"
    kernel.write_text("kernel")
    done = site.run("add", "--url", url, "--sha256", digest.upper(), "--kernel", kernel, "Debian", "far", "away")
    assert done.stdout == f"{NAME}@1: {url}\n"
    assert "by URL  Debian far away" in site.run("image", "list").stdout
    about = site.about()
    assert (about["url"], about["sha256"], about["description"]) == (url, digest, "Debian far away")
    assert f"url          {url}" in site.show("image", NAME).stdout
    assert site.run("image", "verify", fails=3).stdout == f"{NAME}@1: each node fetches it from {url}\n"
    (site.pool / f"{NAME}.kernel").write_text("KERNEL")
    assert "differs from its digest" in site.run("image", "verify", fails=1).stderr
    assert site.run("add", site.disk(data=1)).stdout.startswith(f"{NAME}@2: /")
    site.run("delete", "image", NAME)
    assert site.listing() == []


@pytest.mark.parametrize("words, says", [
    ([], "which image?"), (["--sha256", "0" * 64, "x.qcow2"], "which image?"),
    (["--url", "https://host/debian.img"], "not a SHA-256"),
    (["--url", "https://host/debian.img", "--sha256", "1"], "not a SHA-256"),
    (["--url", "file:///debian.img", "--sha256", "0" * 64], "http://"),
    (["--url", "https://me:pw@host/debian.img", "--sha256", "0" * 64], "password"),
    (["--url", "https://[/debian.img", "--sha256", "0" * 64], "http://"),
    (["--url", "https://host/download", "--sha256", "0" * 64], "does not end in"),
    (["--url", "https://host/x.img", "--sha256", "0" * 64], "which distribution"),
])
def test_a_url_that_cannot_be_is_not_recorded(root: Path, words: list[str], says: str) -> None:
    site = Site(root / "site")
    assert says in site.run("add", *words, fails=2).stderr
    assert not site.pool.exists() or site.listing() == []
