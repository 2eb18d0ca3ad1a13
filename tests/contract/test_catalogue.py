# SPDX-License-Identifier: Apache-2.0
"""vmgr's image commands, as root and as a user, on real disks."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vtorque import images

pytestmark = pytest.mark.runs

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
NAME = "debian-12.qcow2"
Done = subprocess.CompletedProcess[str]


class Site:
    """An installation of its own that every user can read."""

    def __init__(self, root: Path) -> None:
        self.root, self.pool, self.disks, self.held = root, root / "pool", root / "disks", root / "held"
        for name in ("vtorque", "scripts", "templates"):
            shutil.copytree(ROOT / name, root / name)
        (root / "etc").mkdir()
        (root / "etc/vtorque.yaml").write_text(
            f"VM_IMG_DIR: {self.pool}\nDISK_DIR: {self.disks}\nSUSPENDED_IMAGE_DIR: {self.held}\n"
        )

    def run(self, *words: str | Path, user: int = 0, fails: int = 0) -> Done:
        done = subprocess.run(
            (self.root / "scripts/vmgr", *words), capture_output=True, text=True, check=False, user=user, group=user,
            extra_groups=[], env={"PATH": "/usr/bin:/bin"}, cwd="/", stdin=subprocess.DEVNULL,
        )
        assert done.returncode == fails, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def show(self, *words: str | Path, user: int = 0, fails: int = 0) -> Done:
        return self.run("show", *words, user=user, fails=fails)

    def disk(self, name: str = NAME, *, data: int = 0, size: str = "4M") -> Path:
        """A new qcow2 with one cluster of bytes of the value `data`."""
        path = self.root / "sources" / name
        path.parent.mkdir(exist_ok=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
        if data:
            writing = ("qemu-io", "-f", "qcow2", "-c", f"write -P {data} 0 64k", path)
            subprocess.run(writing, check=True, capture_output=True)
        return path

    def about(self, name: str = NAME) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.run("image", "show", "--json", name).stdout)
        return found

    def listing(self) -> list[str]:
        return sorted(path.name for path in self.pool.iterdir() if path.name != ".lock")


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="vtorque-test-") as root:
        Path(root).chmod(0o755)
        yield Site(Path(root))


def test_what_is_added_can_be_listed_shown_and_verified_by_everybody(site: Site) -> None:
    done = site.run("add", site.disk(data=1), "Debian", "12,", "small")
    assert done.stdout == f"{NAME}@1: {site.pool}/{NAME}\n"
    for user in (0, NOBODY):
        assert "Debian 12, small" in site.run("image", "list", user=user).stdout
        assert site.show("images", user=user).stdout == site.run("image", "list", user=user).stdout
        shown = site.show("image", NAME, user=user).stdout
        assert "distro       debian\n" in shown and f"revisions    {NAME}@1 " in shown
        assert site.run("image", "verify", NAME, user=user, fails=3).stdout.splitlines() == verified(1)
    about = json.loads(site.show("image", "--json", NAME).stdout)
    assert about["description"] == "Debian 12, small" and len(about["revisions"]) == 1
    path = site.pool / NAME
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o644)
    subprocess.run(["qemu-img", "check", "-q", path], check=True)


def verified(number: int) -> list[str]:
    """What is said of a disk that is intact and empty."""
    name = f"{NAME}@{number}"
    return [f"{name}: qcow2, 4 MiB, intact", f"{name}: not looked into: it holds no file system that is known"]


def test_verified_is_what_was_looked_into_and_found_good(site: Site) -> None:
    site.run("add", site.disk(data=1))
    assert "verified     False\n" in site.show("image", NAME).stdout
    site.run("image", "verify", NAME, fails=3)
    assert site.about()["verified"] is False, "it could not be looked into"
    images.seal(site.pool, images.find(site.pool, NAME).sha256, sealed=True)
    assert "verified     True\n" in site.show("image", NAME, user=NOBODY).stdout
    assert site.about()["verified"] is True
    assert [each["verified"] for each in json.loads(site.show("images", "--json").stdout)] == [True]


def test_without_a_site_it_is_said_whose_images_these_are(site: Site) -> None:
    (site.root / "etc/vtorque.yaml").unlink()
    if Path("/etc/vtorque/vtorque.yaml").exists():
        pytest.skip("this machine has a site")
    for words in (("show", "images"), ("image", "show", "nosuch")):
        done = subprocess.run([site.root / "scripts/vmgr", *words], capture_output=True, text=True, check=False)
        about = [line for line in done.stderr.splitlines() if "the lab's images in" in line]
        assert len(about) == 1 and "there is no configuration" in about[0]
    assert "the lab's" not in site.run("image", "list", "--directory", site.pool).stderr


def test_another_content_is_a_new_revision_and_the_same_is_not(site: Site) -> None:
    kernel = site.root / "kernel"
    for number in (1, 2):
        kernel.write_text(f"kernel {number}")
        site.run("image", "add", "--kernel", kernel, "--cmdline", "quiet", site.disk(data=number), f"number {number}")
    same = site.run("add", "--kernel", kernel, "--cmdline", "quiet", site.disk(data=2), "again")
    assert same.stdout.startswith(f"{NAME}@2: ") and "is the same" in same.stderr
    assert (site.about()["description"], site.about(f"{NAME}@1")["description"]) == ("again", "number 1")
    for number in (1, 2):
        assert Path(str(site.about(f"{NAME}@{number}")["kernel"])).read_text() == f"kernel {number}"
    assert site.run("image", "verify", fails=3).stdout.splitlines() == verified(1) + verified(2)
    site.run("update", f"{NAME}@1", "the", "first")
    site.run("update", NAME, "the", "newest")
    found = [each["description"] for each in json.loads(site.run("image", "show", "--json", NAME).stdout)["revisions"]]
    assert found == ["the first", "the newest"]


def test_distrust_is_of_all_revisions_and_passes_on_and_trust_is_of_one(site: Site) -> None:
    def trusted() -> list[bool]:
        newest = images.find(site.pool, NAME).trusted
        known = [each.image.trusted for each in images.revisions(site.pool, NAME)]
        assert newest is known[-1]
        return known

    site.run("add", site.disk(data=1), "--untrusted")
    site.run("add", site.disk(data=2), "still not")
    assert trusted() == [False, False]
    site.run("update", NAME, "--trusted")
    assert trusted() == [False, True]
    site.run("add", site.disk(data=3))
    assert trusted() == [False, True, True]
    site.run("update", "--untrusted", f"{NAME}@2", "the second")
    assert trusted() == [False, False, True]
    site.run("image", "update", "--trusted", f"{NAME}@1")
    site.run("update", NAME, "--untrusted")
    assert trusted() == [False, False, False]
    assert site.about(f"{NAME}@2")["description"] == "the second", "what is not said stays"
    site.run("add", "--trusted", site.disk(data=3), "the same disk")
    assert trusted() == [False, False, True]
    assert "DESCRIPTION, --untrusted or --trusted" in site.run("update", NAME, fails=2).stderr
    site.run("update", NAME, "--trusted", "--untrusted", fails=2)


def test_deleting_one_revision_leaves_the_highest_of_the_others(site: Site) -> None:
    for number in (1, 2, 3):
        site.run("add", site.disk(data=number), str(number))
    assert site.run("delete", "image", f"{NAME}@3").stdout == f"deleted {NAME}@3\n"
    assert site.about()["description"] == "2"
    site.run("image", "delete", f"{NAME}@1")
    assert site.listing() == [f"{NAME}.json", f"{NAME}@2.json", "debian-12@2.qcow2"]
    site.run("image", "verify", NAME, fails=3)
    site.run("add", site.disk(data=4), "4")
    assert site.about()["revision"] == 3
    assert site.run("delete", "image", NAME).stdout == f"deleted {NAME}@2\ndeleted {NAME}@3\n"
    assert site.listing() == []


def test_an_image_that_a_guest_uses_stays_unless_forced(site: Site) -> None:
    site.run("add", site.disk(data=1))
    site.run("add", site.disk(data=2))
    overlay = site.disks / "12.srv/12.srv_1of1.qcow2"
    overlay.parent.mkdir(parents=True)
    base = site.pool / "debian-12@2.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay], check=True)
    for name in (NAME, f"{NAME}@2"):
        assert "in use by a guest of job 12.srv" in site.run("delete", "image", name, fails=1).stderr
    assert len(site.listing()) == 5
    site.run("delete", "image", f"{NAME}@1")
    site.run("delete", "image", "--force", NAME)
    assert site.listing() == []


def test_nobody_but_root_changes_anything(site: Site) -> None:
    disk = site.disk(data=1)
    site.run("add", disk)
    before = site.listing()
    for words in (
        ["add", disk], ["image", "add", disk], ["update", NAME, "x"], ["image", "update", NAME, "x"],
        ["delete", "image", NAME], ["image", "delete", NAME], ["image", "pull", "http://127.0.0.1:9/debian.img"],
        ["add", "--directory", "/tmp", disk],
    ):
        assert site.run(*words, user=NOBODY, fails=1).stderr == "vmgr: to change the catalogue needs root\n"
    assert site.listing() == before


@pytest.mark.parametrize("name", ["../victim.qcow2", "/etc/passwd", "x.qcow2/.."])
def test_no_name_leads_out_of_the_catalogue(site: Site, name: str) -> None:
    victim = site.disk("victim.qcow2")
    site.run("add", "--distro", "debian", victim)
    (site.root / "victim.qcow2.json").write_text((site.pool / "victim.qcow2.json").read_text())
    for words in (["delete", "image", "--", name], ["update", "--", name, "x"], ["image", "show", "--", name],
                  ["image", "verify", "--", name]):
        site.run(*words, fails=2)
    site.run("add", "--name", name, victim, fails=2)
    assert (site.root / "victim.qcow2.json").exists() and len(site.listing()) == 3


def test_what_is_no_safe_disk_is_not_added(site: Site) -> None:
    disk = site.disk(data=1)
    (site.root / "link.qcow2").symlink_to(disk)
    overlay = site.root / "debian-overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, overlay], check=True)
    (site.root / "debian-text.img").write_text("no disk")
    for path, why in ((site.root / "link.qcow2", "symbolic link"), (overlay, "backing file"),
                      (site.root / "debian-text.img", "sectors"), (site.root / "none.qcow2", "No such file"),
                      (site.root, "not a regular file")):
        done = site.run("add", path, fails=1)
        assert why in done.stderr and done.stderr.count("\n") == 1
    assert "which distribution" in site.run("add", site.disk("x.qcow2"), fails=2).stderr
    assert "need a kernel" in site.run("add", "--cmdline", "quiet", disk, fails=2).stderr
    assert "one line" in site.run("add", disk, "two\nlines", fails=2).stderr
    assert not site.pool.exists() or site.listing() == []


def test_the_header_says_what_a_file_called_img_is(site: Site) -> None:
    disk = site.disk()
    shutil.copy(disk, site.root / "ubuntu.img")
    assert site.run("add", site.root / "ubuntu.img").stdout.startswith("ubuntu.qcow2@1: ")
    assert "--name NAME.qcow2" in site.run("add", "--name", "ubuntu.img", site.root / "ubuntu.img", fails=1).stderr
    (site.root / "centos.raw").write_bytes(bytes(1 << 20))
    assert site.run("add", site.root / "centos.raw").stdout.startswith("centos.img@1: ")
    assert (site.pool / "centos.img").stat().st_blocks == 0


def test_a_directory_that_others_can_write_is_not_written(site: Site) -> None:
    site.pool.mkdir()
    site.pool.chmod(0o777)
    assert "writable by others" in site.run("add", site.disk(), fails=1).stderr
    assert site.listing() == []


def test_verify_names_what_is_damaged_and_what_belongs_to_nothing(site: Site) -> None:
    kernel = site.root / "kernel"
    kernel.write_text("kernel")
    site.run("add", "--kernel", kernel, site.disk(data=1))
    site.run("add", site.disk("ubuntu.qcow2"))
    (site.pool / f"{NAME}.kernel").write_text("KERNEL")
    (site.pool / "lost.img").touch()
    (site.pool / ".build-x").mkdir()
    (site.pool / "broken.img.json").write_text("[]")
    done = site.run("image", "verify", fails=1)
    assert "debian-12.qcow2.kernel differs from its digest" in done.stderr and "entry of broken.img" in done.stderr
    assert "ubuntu.qcow2@1: qcow2, 4 MiB, intact" in done.stdout
    assert "/lost.img: belongs to no image" in done.stdout and "/.build-x: unfinished" in done.stdout
    assert len(done.stdout.splitlines()) == 4
    assert "ubuntu.qcow2" in site.run("image", "list", fails=1).stdout


def test_hostile_text_does_nothing_to_a_terminal(site: Site) -> None:
    site.run("add", site.disk())
    path = site.pool / f"{NAME}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "description": "a\x1b[2Jb\nc"}))
    for text in (site.run("image", "list").stdout, site.show("image", NAME).stdout):
        assert "\x1b" not in text and "a?[2Jb c" in text


@pytest.fixture
def held(site: Site) -> Site:
    for name, uid in (("12.srv/a.qcow2", NOBODY), ("58-2.srv_1.img", NOBODY), ("roots.img", 0)):
        path = site.held / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(512))
        os.chown(path, uid, uid)
    for name in ("12.srv/a.qcow2.info", "roots.info"):
        (site.held / name).write_text(f"text of \x1b{name}\n")
    os.chown(site.held / "12.srv/a.qcow2.info", NOBODY, NOBODY)
    (site.held / "58-2.srv_1.img.info").symlink_to("/etc/hostname")
    (site.held / "link.img").symlink_to("roots.img")
    return site


def shown(done: Done) -> list[str]:
    return [line.split()[0] for line in done.stdout.splitlines()]


def test_users_see_their_own_suspended_images_and_root_all(held: Site) -> None:
    both = ["58-2.srv_1.img", "12.srv/a.qcow2"]
    assert shown(held.show("suspended", user=NOBODY)) == both
    assert sorted(shown(held.show("suspended"))) == sorted([*both, "roots.img"])
    assert shown(held.show("suspended", f"--user={pwd.getpwuid(NOBODY).pw_name}")) == both
    assert shown(held.show("suspended", "--job=12")) == shown(held.show("suspended", "--job=12.srv")) == both[1:]
    assert shown(held.show("suspended", "--job=58[2].srv")) == both[:1]
    assert shown(held.show("suspended", "--job=1")) == shown(held.show("suspended", "--job=58[3].srv")) == []
    assert "root only" in held.show("suspended", "--user=root", user=NOBODY, fails=2).stderr
    assert "not a job id" in held.show("suspended", "--job=../x", fails=2).stderr
    text = held.show("suspended").stdout
    assert "text of ?12.srv/a.qcow2.info" in text and text.count("-none-") == 1 and "text of ?roots.info" in text
    assert json.loads(held.show("suspended", "--json", "--job=12").stdout)[0]["uid"] == NOBODY


def test_where_nothing_was_ever_suspended_there_is_nothing(site: Site) -> None:
    for user in (0, NOBODY):
        done = site.show("suspended", user=user)
        assert (done.stdout, done.stderr) == ("", f"vmgr: there is no such image in {site.held}\n")
    assert site.show("suspended", "--json").stdout == "[]\n"
    assert "there is no suspended image" in site.run("delete", "suspended", "a.img", fails=2).stderr


def test_a_suspended_image_is_deleted_by_its_owner_or_root(held: Site) -> None:
    for path in (held.held, held.held / "12.srv"):
        os.chown(path, NOBODY, NOBODY)
    assert "not yours" in held.run("delete", "suspended", "roots.img", user=NOBODY, fails=2).stderr
    for name in ("../pool", "/etc/passwd", "12.srv", "link.img", "12.srv/../roots.img", "12.srv/a.qcow2.info"):
        assert "there is no suspended image" in held.run("delete", "suspended", name, fails=2).stderr
    held.run("delete", "suspended", "12.srv/a.qcow2", user=NOBODY)
    held.run("delete", "suspended", "roots.img")
    left = sorted(path.name for path in held.held.rglob("*"))
    assert left == ["12.srv", "58-2.srv_1.img", "58-2.srv_1.img.info", "link.img"]
    assert Path("/etc/hostname").exists()


class Web:
    """A server of one file that cuts its first answers short."""

    def __init__(self, data: bytes, *, cuts: int = 0) -> None:
        self.ranges: list[str | None] = []
        web = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                web.ranges.append(asked)
                if "none" in self.path:
                    self.send_error(404)
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.send_header("ETag", '"1"')
                self.end_headers()
                self.wfile.write(data[start:len(data) // 2] if len(web.ranges) <= cuts else data[start:])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web(site: Site) -> Iterator[Web]:
    web = Web(site.disk(data=5).read_bytes(), cuts=1)
    yield web
    web.close()


def test_a_pull_goes_on_where_it_was_cut_and_becomes_an_image(site: Site, web: Web) -> None:
    digest = sha256((site.root / "sources" / NAME).read_bytes()).hexdigest()
    words = ["image", "pull", "--sha256", digest, f"{web.url}/dir/{NAME}?key=secret"]
    assert "run the command again" in site.run(*words, fails=1).stderr
    parked = [name for name in site.listing() if name.startswith(".pull-")]
    assert len(parked) == 1 and (site.pool / parked[0]).stat().st_mode & 0o777 == 0o700
    assert "unfinished" in site.run("image", "verify").stdout
    done = site.run(*words)
    assert done.stdout == f"{NAME}@1: {site.pool}/{NAME}\n" and "100%" in done.stderr and "\r" not in done.stderr
    assert web.ranges[0] is None and (web.ranges[1] or "").startswith("bytes=")
    assert site.about()["description"] == f"from {web.url}/dir/{NAME}" and site.about()["sha256"] == digest
    assert site.listing() == [NAME, f"{NAME}.json", f"{NAME}@1.json"]
    assert "is the same" in site.run(*words, "in", "my", "words").stderr
    site.run(*words)
    assert site.about()["description"] == "in my words" and site.about()["revision"] == 1


def test_a_pull_that_cannot_become_an_image_leaves_nothing(site: Site, web: Web) -> None:
    web.ranges.append("no cut")
    for words, status, why in (
        ([f"{web.url}/none/debian.img"], 1, "404"),
        ([f"{web.url}/x.qcow2"], 2, "which distribution"),
        ([f"{web.url}/download"], 2, "does not end in"),
        (["--name", "../x.qcow2", f"{web.url}/{NAME}"], 2, "not the name"),
        (["--name", "debian.img", f"{web.url}/{NAME}"], 1, "is qcow2"),
        (["--sha256", "0" * 64, f"{web.url}/{NAME}"], 1, "has SHA-256"),
        (["--sha256", "1", f"{web.url}/{NAME}"], 2, "not a SHA-256"),
        ([f"{web.url.replace('http', 'ftp')}/{NAME}"], 2, "http://"),
    ):
        assert why in site.run("image", "pull", *words, fails=status).stderr
    assert site.listing() == []
    assert site.run("image", "pull", f"{web.url}/debian-x.img").stdout.startswith("debian-x.qcow2@1: ")
