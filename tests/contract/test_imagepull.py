# SPDX-License-Identifier: Apache-2.0
"""Pulling an image from a real web server that cuts connections, lies and changes its mind."""

import fcntl
import hashlib
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.request import Request

import pytest

from tests.builders import a_site
from tests.fakes.node import a_monitor
from vtorque import accounts, become, downloader, files, imagepull, servant
from vtorque.errors import ImageError, RequestError
from vtorque.proc import Identity
from vtorque.rootside import RootSide
from vtorque.servant import Caller

pytestmark = pytest.mark.runs

MIB = 1 << 20
DATA = hashlib.shake_128(b"image").digest(MIB + 12_345)
OLD, NOW = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@dataclass
class Site:
    """What the server has, and how it misbehaves."""

    data: bytes = DATA
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    if_range: bool = True
    cut: int | None = None
    claim: int | None = None
    length: bool = True
    chunked: bool = False
    status: int = 200
    extra: dict[str, str] = field(default_factory=dict)
    base: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    askers: set[int] = field(default_factory=set)
    hold: threading.Event = field(default_factory=threading.Event)
    wait: bool = False


def handler_of(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append({key.lower(): value for key, value in self.headers.items()})
            site.askers.add(owner(self.client_address[1], self.connection.getsockname()[1]))
            if site.wait:
                site.hold.wait(30)
            if self.path.startswith("/moved"):
                self.reply(302, {"Location": f"{site.base}/image", "Content-Length": "0"}, b"")
            elif site.status != 200:
                self.reply(site.status, {"Content-Length": "0", **site.extra}, b"")
            else:
                self.image()

        def image(self) -> None:
            first = self.first()
            validators = {"ETag": site.etag, "Last-Modified": site.modified}
            headers = {key: value for key, value in validators.items() if value} | site.extra
            if first is None:
                self.body(200, headers, site.data)
            elif first >= len(site.data):
                headers |= {"Content-Range": f"bytes */{len(site.data)}", "Content-Length": "0"}
                self.reply(416, headers, b"")
            else:
                headers["Content-Range"] = f"bytes {first}-{len(site.data) - 1}/{len(site.data)}"
                self.body(206, headers, site.data[first:])

        def first(self) -> int | None:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            current = self.headers.get("If-Range") in (site.etag, site.modified)
            return int(match[1]) if match and site.ranges and (current or not site.if_range) else None

        def body(self, status: int, headers: dict[str, str], data: bytes) -> None:
            length = len(data) if site.claim is None else site.claim
            if site.chunked:
                headers["Transfer-Encoding"] = "chunked"
                size = len(data)
                data = b"%x\r\n%b\r\n0\r\n\r\n" % (size, data)
            elif site.length:
                headers["Content-Length"] = str(length)
            self.reply(status, headers, data[: site.cut])

        def reply(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.protocol_version = "HTTP/1.1" if site.chunked else "HTTP/1.0"
            self.send_response_only(status)
            for key, value in ({"Date": NOW} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.close_connection = True
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def owner(port: int, to: int) -> int:
    """The numeric user whose end of a connection on this machine has the port, and the other end that of `to`
    (proc_net_tcp, Linux's documentation): a port alone may be another connection's as well.
    """
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = (f":{port:04X}", f":{to:04X}")
    return next(int(fields[7]) for fields in lines if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(served)) as server:
        served.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield served
        served.hold.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "image.qcow2"


def ignore(done: int, total: int | None) -> None:
    pass


def pull(site: Site, target: Path, sha256: str | None = None, path: str = "/image") -> str:
    return imagepull.pull(site.base + path, target, sha256=sha256, progress=ignore)


def failure(site: Site, target: Path, sha256: str | None = None, path: str = "/image") -> str:
    with pytest.raises(ImageError) as caught:
        pull(site, target, sha256, path)
    line = caught.value.one_line()
    assert "\n" not in line
    return line


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def cut_at(site: Site, target: Path, size: int) -> str:
    """A first attempt that ends after `size` bytes."""
    site.cut = size
    line = failure(site, target)
    site.cut = None
    return line


class TestWhole:
    def test_it_comes_whole_and_leaves_nothing_else(self, site: Site, target: Path) -> None:
        assert pull(site, target) == digest(DATA)
        assert target.read_bytes() == DATA
        assert beside(target) == [target.name]
        assert target.stat().st_mode & 0o777 == 0o644

    def test_who_asks_the_server_is_nobody_and_the_file_is_roots(self, site: Site, target: Path) -> None:
        pull(site, target)
        assert site.askers == {65534} and target.stat().st_uid == 0
        with urllib.request.urlopen(f"{site.base}/image") as answer:
            answer.read()
            assert site.askers == {65534, 0}, "the test would see it"

    def test_who_asks_for_the_program_is_nobody_as_well(self, site: Site, tmp_path: Path) -> None:
        """It cannot make anybody of itself: root has the child that it asks."""
        program = Identity(*accounts.program(), groups=())
        for parent in (tmp_path, *tmp_path.parents[:-2]):
            parent.chmod(0o755)
        target = tmp_path / "own" / "image.qcow2"
        files.hand_over(target.parent, mode=0o700, uid=program.uid, gid=program.gid)

        def live(orders: socket.socket) -> None:
            root = RootSide(Caller("root", orders))
            imagepull.pull(f"{site.base}/image", target, sha256=None, progress=ignore, child=root.downloader)

        pid, orders = become.fork_as(program, live)
        with orders:
            servant.serve(a_monitor(a_site()), orders)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert site.askers == {65534} and target.read_bytes() == DATA
        assert target.stat().st_uid == program.uid

    def test_the_digest_is_compared_in_any_case(self, site: Site, target: Path) -> None:
        assert pull(site, target, digest(DATA).upper()) == digest(DATA)

    def test_a_wrong_digest_names_both_and_leaves_nothing(self, site: Site, target: Path) -> None:
        line = failure(site, target, "0" * 64)
        assert digest(DATA) in line and "0" * 64 in line
        assert beside(target) == []

    def test_progress_begins_at_nothing_and_ends_at_all(self, site: Site, target: Path) -> None:
        seen: list[tuple[int, int | None]] = []
        imagepull.pull(
            f"{site.base}/image", target, sha256=None, progress=lambda done, total: seen.append((done, total))
        )
        assert seen[0] == (0, len(DATA)) and seen[-1] == (len(DATA), len(DATA)) and seen == sorted(seen)
        assert (MIB, len(DATA)) in seen

    def test_a_redirect_is_followed(self, site: Site, target: Path) -> None:
        assert pull(site, target, path="/moved") == digest(DATA)

    def test_an_older_image_is_replaced(self, site: Site, target: Path) -> None:
        target.write_bytes(b"old")
        pull(site, target)
        assert target.read_bytes() == DATA

    def test_an_empty_file_comes_empty(self, site: Site, target: Path) -> None:
        site.data = b""
        assert pull(site, target) == digest(b"")


class TestHoles:
    @pytest.mark.parametrize(
        "data",
        [bytes(8 * MIB), DATA[:70_000] + bytes(8 * MIB) + DATA[:10], DATA[:100] + bytes(8 * MIB + 77)],
        ids=["all zeros", "zeros within", "zeros at the end"],
    )
    def test_zeros_take_no_room(self, site: Site, target: Path, data: bytes) -> None:
        site.data = data
        assert pull(site, target) == digest(data)
        assert target.read_bytes() == data
        assert target.stat().st_blocks * 512 < MIB

    def test_a_cut_within_zeros_goes_on_behind_what_came(self, site: Site, target: Path) -> None:
        site.data = DATA[:100] + bytes(4 * MIB) + DATA[:100]
        cut_at(site, target, 3 * MIB + 5)
        assert pull(site, target) == digest(site.data)
        assert site.asked[-1]["range"] == f"bytes={3 * MIB + 5}-"


class TestResume:
    @pytest.mark.parametrize("size", [1, 65_535, 65_536, 700_001, len(DATA) - 1])
    def test_it_goes_on_where_it_was_cut(self, site: Site, target: Path, size: int) -> None:
        line = cut_at(site, target, size)
        assert f"only {size} of {len(DATA)} bytes" in line and "run the command again to go on" in line
        part = target.with_name("image.qcow2.part")
        assert part.read_bytes() == DATA[:size]
        assert part.stat().st_mode & 0o777 == 0o600
        assert target.with_name("image.qcow2.part.json").stat().st_mode & 0o777 == 0o600
        assert pull(site, target) == digest(DATA)
        assert (site.asked[-1]["range"], site.asked[-1]["if-range"]) == (f"bytes={size}-", '"one"')
        assert beside(target) == [target.name] and target.read_bytes() == DATA

    def test_it_may_be_cut_again_and_again(self, site: Site, target: Path) -> None:
        for _ in range(3):
            cut_at(site, target, 300_000)
        assert pull(site, target) == digest(DATA)
        assert site.asked[-1]["range"] == "bytes=900000-"

    def test_a_changed_file_is_fetched_anew(self, site: Site, target: Path) -> None:
        cut_at(site, target, 100_000)
        site.data, site.etag = DATA[::-1], '"two"'
        assert pull(site, target) == digest(DATA[::-1])
        assert len(site.asked) == 2

    def test_so_it_is_when_the_server_ignores_if_range(self, site: Site, target: Path) -> None:
        cut_at(site, target, 100_000)
        site.data, site.etag, site.if_range = DATA[::-1], '"two"', False
        assert pull(site, target) == digest(DATA[::-1])
        assert "range" not in site.asked[-1]

    def test_so_it_is_when_only_the_length_tells(self, site: Site, target: Path) -> None:
        cut_at(site, target, 100_000)
        site.data = DATA[::-1] + b"more"
        assert pull(site, target) == digest(site.data)

    def test_a_server_without_ranges_sends_all_again(self, site: Site, target: Path) -> None:
        site.ranges = False
        cut_at(site, target, 100_000)
        assert pull(site, target) == digest(DATA)
        assert len(site.asked) == 2

    @pytest.mark.parametrize("etag", ["", 'W/"weak"'])
    def test_without_a_validator_it_begins_anew(self, site: Site, target: Path, etag: str) -> None:
        site.etag = etag
        assert "begins anew" in cut_at(site, target, 100_000)
        assert pull(site, target) == digest(DATA)
        assert "range" not in site.asked[-1]

    def test_a_date_of_change_is_a_validator_too(self, site: Site, target: Path) -> None:
        site.etag, site.modified = "", OLD
        cut_at(site, target, 100_000)
        assert pull(site, target) == digest(DATA)
        assert site.asked[-1]["if-range"] == OLD

    def test_unless_it_is_this_very_second(self, site: Site, target: Path) -> None:
        site.etag, site.modified = "", NOW
        cut_at(site, target, 100_000)
        pull(site, target)
        assert "range" not in site.asked[-1]

    def test_what_is_already_whole_is_not_fetched_again(self, site: Site, target: Path) -> None:
        cut_at(site, target, 100_000)
        target.with_name("image.qcow2.part").write_bytes(DATA)
        assert pull(site, target) == digest(DATA)
        assert len(site.asked) == 2

    def test_a_part_longer_than_the_file_begins_anew(self, site: Site, target: Path) -> None:
        cut_at(site, target, 100_000)
        target.with_name("image.qcow2.part").write_bytes(DATA + b"more")
        assert pull(site, target) == digest(DATA)

    def test_a_part_of_another_url_begins_anew(self, site: Site, target: Path) -> None:
        cut_at(site, target, 100_000)
        assert pull(site, target, path="/other") == digest(DATA)
        assert "range" not in site.asked[-1]

    @pytest.mark.parametrize("record", ["", "{}", "[1]", "\udcff", '{"url": 1}'])
    def test_a_broken_record_begins_anew(self, site: Site, target: Path, record: str) -> None:
        cut_at(site, target, 100_000)
        target.with_name("image.qcow2.part.json").write_bytes(record.encode(errors="surrogateescape"))
        assert pull(site, target) == digest(DATA)
        assert "range" not in site.asked[-1]

    @pytest.mark.parametrize("checked", [True, False])
    def test_after_a_reboot_only_a_digest_makes_it_go_on(
        self, site: Site, target: Path, checked: bool
    ) -> None:
        cut_at(site, target, 100_000)
        record = target.with_name("image.qcow2.part.json")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        record.write_text(record.read_text().replace(boot, "another"))
        assert pull(site, target, digest(DATA) if checked else None) == digest(DATA)
        assert ("range" in site.asked[-1]) is checked


class TestServers:
    def test_one_that_claims_more_than_it_sends_is_a_cut(self, site: Site, target: Path) -> None:
        site.claim = len(DATA) + 10
        assert f"only {len(DATA)} of {len(DATA) + 10} bytes" in failure(site, target)
        assert not target.exists()

    def test_chunks_need_no_length(self, site: Site, target: Path) -> None:
        site.chunked = True
        assert pull(site, target) == digest(DATA)

    def test_a_cut_in_chunks_is_seen(self, site: Site, target: Path) -> None:
        site.chunked, site.cut = True, 500_000
        assert "again to go on" in failure(site, target)
        site.cut, site.chunked = None, False
        assert pull(site, target) == digest(DATA)
        assert "range" in site.asked[-1]

    def test_without_any_length_a_digest_is_needed(self, site: Site, target: Path) -> None:
        site.length = False
        assert "--sha256" in failure(site, target)
        assert pull(site, target, digest(DATA)) == digest(DATA)

    def test_a_coding_is_refused(self, site: Site, target: Path) -> None:
        site.extra = {"Content-Encoding": "gzip"}
        assert "coding" in failure(site, target)

    @pytest.mark.parametrize("status", [404, 403, 500, 416, 204])
    def test_a_refusal_is_told_with_its_number(self, site: Site, target: Path, status: int) -> None:
        site.status = status
        assert str(status) in failure(site, target)

    def test_a_key_in_the_url_is_not_told(self, site: Site, target: Path) -> None:
        site.status = 404
        assert "secret" not in failure(site, target, path="/image?key=secret")

    @pytest.mark.parametrize(
        "place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://me:secret@127.0.0.1/x"]
    )
    def test_a_redirect_elsewhere_is_refused(self, site: Site, target: Path, place: str) -> None:
        site.status, site.extra = 302, {"Location": place}
        line = failure(site, target)
        assert "redirects" in line and "secret" not in line

    def test_a_redirect_in_circles_ends(self, site: Site, target: Path) -> None:
        site.status, site.extra = 302, {"Location": f"{site.base}/image"}
        assert "redirects too often" in failure(site, target)

    def test_a_redirect_from_https_to_http_is_refused(self) -> None:
        request = Request("https://images.example/x")
        with pytest.raises(ImageError, match="from https to http"):
            downloader._Redirects().redirect_request(
                request, BytesIO(), 302, "Found", HTTPMessage(), "http://images.example/x"
            )

    def test_nobody_listening_is_one_line(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(ImageError, match=r"cannot reach http://127\.0\.0\.1:1/x: Connection refused"):
            imagepull.pull("http://127.0.0.1:1/x?key=1", target, sha256=None, progress=ignore)

    def test_a_silent_server_is_given_up(
        self, site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(imagepull, "_SOCKET_SECONDS", 0.2)
        site.wait = True
        assert "timed out" in failure(site, target)


class TestRequests:
    @pytest.mark.parametrize(
        "url",
        [
            "", "image", "/etc/passwd", "file:///etc/passwd", "ftp://host/x", "http://", "http:///x",
            "http://host:port/x", "http://host/a b", "http://host/\n", "http://hóst/", "http://[::1/x",
            "http://me:secret@host/x",
        ],
    )
    def test_only_http_urls_are_taken(self, target: Path, url: str) -> None:
        with pytest.raises(RequestError) as caught:
            imagepull.pull(url, target, sha256=None, progress=ignore)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("sha256", ["", "0" * 63, "g" * 64, "0" * 64 + "\n"])
    def test_a_digest_has_its_form(self, target: Path, sha256: str) -> None:
        with pytest.raises(RequestError, match="SHA-256"):
            imagepull.pull("http://127.0.0.1:1/", target, sha256=sha256, progress=ignore)


class TestPart:
    def test_two_at_once_do_not_mix(self, site: Site, target: Path) -> None:
        part = target.with_name("image.qcow2.part")
        with part.open("wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            assert "another pull" in failure(site, target)
        assert site.asked == []
        assert pull(site, target) == digest(DATA)

    def test_a_link_is_not_followed(self, site: Site, target: Path, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        target.with_name("image.qcow2.part").symlink_to(victim)
        assert "image.qcow2" in failure(site, target)
        assert victim.read_text() == "precious"

    @pytest.mark.parametrize("kind", ["hard link", "fifo", "directory"])
    def test_what_is_no_part_is_not_touched(
        self, site: Site, target: Path, tmp_path: Path, kind: str
    ) -> None:
        part, victim = target.with_name("image.qcow2.part"), tmp_path / "victim"
        victim.write_text("precious")
        if kind == "hard link":
            part.hardlink_to(victim)
        elif kind == "fifo":
            os.mkfifo(part)
        else:
            part.mkdir()
        failure(site, target)
        assert victim.read_text() == "precious" and site.asked == []

    def test_a_directory_that_is_not_there_is_told(self, site: Site, tmp_path: Path) -> None:
        assert "cannot write" in failure(site, tmp_path / "none" / "image.qcow2")
