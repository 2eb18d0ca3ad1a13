# SPDX-License-Identifier: Apache-2.0
"""The request: what a user may ask for, and the text that carries it through the batch system."""

import base64
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vtorque import request
from vtorque.config import SiteConfig
from vtorque.errors import RequestError
from vtorque.model import VmRequest

SITE = SiteConfig(img_default="debian-12.qcow2", vcpus_default=2, ram_default=2048)
KEY_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"


def public_key(raw: bytes) -> str:
    return f"ssh-ed25519 {base64.b64encode(KEY_HEAD + raw).decode()}"


A_REQUEST = VmRequest(
    request_id="0123456789abcdef",
    image="debian-12.qcow2",
    distro="debian",
    arch="x86_64",
    vcpus=4,
    memory_mib=8192,
    vms_per_node=1,
    public_key=public_key(bytes(range(32))),
)

A_TEXT = (
    "vt1.eyJhIjoieDg2XzY0IiwiYyI6NCwiZCI6ImRlYmlhbiIsImkiOiJkZWJpYW4tMTIucWNvdzIiLCJrIjoiQUFFQ0F3UUZCZ2NJQ1FvTERBME9E"
    "eEFSRWhNVUZSWVhHQmthR3h3ZEhoOCIsIm0iOjgxOTIsIm4iOjEsInIiOiIwMTIzNDU2Nzg5YWJjZGVmIn0"
)

REQUESTS = st.builds(
    VmRequest,
    request_id=st.text("0123456789abcdef", min_size=16, max_size=16),
    image=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}\.(qcow2|img)", fullmatch=True),
    distro=st.sampled_from(request.DISTROS),
    arch=st.just("x86_64"),
    vcpus=st.integers(1, 1024),
    memory_mib=st.integers(64, 16 << 20),
    vms_per_node=st.integers(1, 256),
    public_key=st.binary(min_size=32, max_size=32).map(public_key),
)


def spelled(data: object, **how: Any) -> str:
    text = json.dumps(data, **{"sort_keys": True, "separators": (",", ":"), **how})
    return "vt1." + base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def fields() -> dict[str, Any]:
    text = A_TEXT.removeprefix("vt1.")
    data: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return data


def asked(*texts: str, site: SiteConfig = SITE) -> VmRequest:
    options = request.parse_vm_options(texts)
    return request.resolve(
        options, site, request_id=A_REQUEST.request_id, public_key=A_REQUEST.public_key
    )


def refusal(*texts: str, site: SiteConfig = SITE) -> str:
    with pytest.raises(RequestError) as caught:
        asked(*texts, site=site)
    return caught.value.one_line()


class TestText:
    def test_a_request_has_one_spelling_for_ever(self) -> None:
        assert request.encode(A_REQUEST) == A_TEXT
        assert request.decode(A_TEXT) == A_REQUEST

    @given(REQUESTS)
    @settings(max_examples=200, derandomize=True, deadline=None)
    def test_every_request_comes_back_as_it_was(self, wanted: VmRequest) -> None:
        text = request.encode(wanted)
        assert text.isascii() and len(text) <= request.LIMIT
        assert request.decode(text) == wanted

    @given(st.text())
    @settings(max_examples=300, derandomize=True, deadline=None)
    def test_arbitrary_text_is_refused_and_nothing_worse(self, text: str) -> None:
        for candidate in (text, f"vt1.{text}"):
            with pytest.raises(RequestError):
                request.decode(candidate)

    @given(st.binary(max_size=700))
    @example(b"[" * 700)
    @example(b'{"a":' * 140)
    @example(b"9" * 700)
    @example(b"\xff\xfe")
    @settings(max_examples=300, derandomize=True, deadline=None)
    def test_arbitrary_content_is_refused_and_nothing_worse(self, data: bytes) -> None:
        with pytest.raises(RequestError):
            request.decode("vt1." + base64.urlsafe_b64encode(data).rstrip(b"=").decode())

    @given(st.data())
    @settings(max_examples=2000, derandomize=True, deadline=None)
    def test_a_changed_text_is_refused_or_says_exactly_what_it_means(self, data: st.DataObject) -> None:
        text = list(A_TEXT)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(text) - 1))
            text[place] = data.draw(st.sampled_from("ABCDEFabcdefghijk0123456789-_.=+/ \n"))
        changed = "".join(text)
        try:
            decoded = request.decode(changed)
        except RequestError:
            return
        assert request.encode(decoded) == changed

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("c", 0), ("c", 1025), ("c", -1), ("c", 4.0), ("c", True), ("c", "4"), ("c", None), ("c", [4]),
            ("m", 63), ("m", (16 << 20) + 1), ("m", 1e3), ("n", 0), ("n", 257), ("n", False),
            ("i", ""), ("i", "../debian.img"), ("i", "a/b.img"), ("i", ".hidden.img"), ("i", "debian.iso"),
            ("i", "x" * 125 + ".img"), ("i", "debian.img\n"), ("i", "débian.img"), ("i", 5), ("i", None),
            ("d", "Debian"), ("d", "arch"), ("d", ""), ("a", "aarch64"), ("a", ["x86_64"]),
            ("r", "0123456789abcde"), ("r", "0123456789ABCDEF"), ("r", "0123456789abcdef0"),
            ("r", "٠123456789abcdef"), ("k", ""), ("k", "A" * 42), ("k", "A" * 44), ("k", "*" * 43), ("k", 1),
        ],
    )
    def test_a_field_outside_its_range_is_refused(self, key: str, value: object) -> None:
        with pytest.raises(RequestError):
            request.decode(spelled({**fields(), key: value}))

    @pytest.mark.parametrize("key", sorted(fields()))
    def test_no_field_may_be_missing(self, key: str) -> None:
        data = fields()
        del data[key]
        with pytest.raises(RequestError, match="missing or unknown"):
            request.decode(spelled(data))

    def test_no_field_may_be_added(self) -> None:
        with pytest.raises(RequestError, match="missing or unknown"):
            request.decode(spelled({**fields(), "z": 1}))

    def test_no_key_may_come_twice(self) -> None:
        twice = json.dumps(fields(), sort_keys=True, separators=(",", ":")).replace('"c":4', '"c":4,"c":4')
        with pytest.raises(RequestError, match="twice"):
            request.decode("vt1." + base64.urlsafe_b64encode(twice.encode()).rstrip(b"=").decode())

    @pytest.mark.parametrize("how", [{"indent": 1}, {"separators": (", ", ": ")}, {"sort_keys": False}])
    def test_another_spelling_of_the_same_is_refused(self, how: dict[str, Any]) -> None:
        shuffled = dict(reversed(fields().items()))
        with pytest.raises(RequestError, match="canonical"):
            request.decode(spelled(shuffled, **how))

    def test_stray_bits_behind_the_key_are_refused(self) -> None:
        assert fields()["k"].endswith("8")
        with pytest.raises(RequestError, match="canonical"):
            request.decode(spelled({**fields(), "k": fields()["k"][:-1] + "9"}))

    @pytest.mark.parametrize(
        "text", ["", "vt1", "vt1.", "vt2." + A_TEXT[4:], A_TEXT + "=", A_TEXT + "\n", A_TEXT[4:]]
    )
    def test_only_this_version_is_understood(self, text: str) -> None:
        with pytest.raises(RequestError):
            request.decode(text)

    def test_a_text_above_the_limit_is_not_even_parsed(self) -> None:
        with pytest.raises(RequestError, match="no request that this version understands"):
            request.decode("vt1." + "A" * request.LIMIT)

    @pytest.mark.parametrize(
        "key",
        [
            "", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 é", f"{A_REQUEST.public_key} me@home",
            public_key(b"x" * 31), public_key(b"x" * 33), A_REQUEST.public_key.replace("ssh-", "no-"),
            f"from=\"*\" {A_REQUEST.public_key}",
        ],
    )
    def test_only_a_bare_ed25519_key_is_sent(self, key: str) -> None:
        with pytest.raises(RequestError, match="key"):
            request.encode(dataclasses.replace(A_REQUEST, public_key=key))

    def test_what_decode_would_refuse_is_not_encoded(self) -> None:
        with pytest.raises(RequestError):
            request.encode(dataclasses.replace(A_REQUEST, vcpus=True))
        with pytest.raises(RequestError):
            request.encode(dataclasses.replace(A_REQUEST, image="../x.img"))

    def test_a_request_that_does_not_fit_into_a_job_is_refused_with_its_length(self) -> None:
        with pytest.raises(RequestError, match=r"has \d{4} characters, 1000 fit"):
            request.encode(dataclasses.replace(A_REQUEST, image="x" * 900))


class TestOptions:
    def test_what_is_not_asked_for_comes_from_the_site(self) -> None:
        wanted = asked()
        assert (wanted.image, wanted.distro, wanted.arch) == ("debian-12.qcow2", "debian", "x86_64")
        assert (wanted.vcpus, wanted.memory_mib, wanted.vms_per_node) == (2, 2048, 1)

    def test_several_options_add_up_and_the_last_of_a_key_wins(self) -> None:
        wanted = asked("vcpus=4,ram=8G", "vms_per_node=2,RAM=1T")
        assert (wanted.vcpus, wanted.memory_mib, wanted.vms_per_node) == (4, 1 << 20, 2)

    def test_a_value_is_everything_after_the_first_equals_sign(self) -> None:
        assert request.parse_vm_options(["img=a=b"]) == {"img": "a=b"}

    @pytest.mark.parametrize(
        ("text", "mib"), [("512M", 512), ("2048", 2048), ("1048576K", 1024), ("8GB", 8192), ("8gib", 8192)]
    )
    def test_memory_has_a_unit_or_is_mib(self, text: str, mib: int) -> None:
        assert asked(f"ram={text}").memory_mib == mib

    @pytest.mark.parametrize("text", ["", "img", "img=", "=x", "img=a.img,,vcpus=1", "vcpus=1,", ",", " =1"])
    def test_a_text_that_is_not_key_and_value_is_named(self, text: str) -> None:
        assert "is not key=value" in refusal(text)

    @pytest.mark.parametrize(
        "key",
        [
            "vcpu_pinning", "vm_prologue", "vm_epilogue", "vrdma", "unclot", "unclot_shmem", "iocm",
            "iocm_min_cores", "iocm_max_cores", "fs_type", "disk", "metadata",
        ],
    )
    def test_a_key_of_the_manual_that_comes_later_says_so(self, key: str) -> None:
        assert refusal(f"{key.upper()}=1") == f"-vm {key}= is not supported by this version"

    def test_an_unknown_key_is_told_its_neighbour(self) -> None:
        assert refusal("vcpu=4") == "-vm 'vcpu' is not a key (did you mean vcpus?)"
        assert "there are: img, ram" in refusal("zzzzzzz=4")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("vcpus=0", "-vm vcpus=0: must be 1 to 1024"),
            ("vcpus=four", "-vm vcpus=: 'four' is not a whole number"),
            ("vcpus=٤", "-vm vcpus=: '٤' is not a whole number"),
            ("vcpus=-1", "-vm vcpus=: '-1' is not a whole number"),
            ("vms_per_node=257", "-vm vms_per_node=257: must be 1 to 256"),
            ("ram=63M", "-vm ram=63 MiB: must be 64 to 16777216 MiB"),
            ("ram=1.5G", "-vm ram=: '1.5G' is not a size: digits, then K, M, G or T"),
            ("arch=arm64", "-vm arch='arm64': must be x86_64"),
            ("distro=gentoo", "-vm distro='gentoo': must be one of debian, ubuntu, redhat, centos, osv"),
            ("img=a/b.img", "-vm img='a/b.img': must be the name of a .qcow2 or .img file in the catalogue"),
        ],
    )
    def test_a_refusal_names_key_value_and_what_is_allowed(self, text: str, says: str) -> None:
        assert refusal(text) == says

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("vcpus=5", "-vm vcpus=5: this cluster allows at most 4"),
            ("ram=5G", "-vm ram=5120 MiB: this cluster allows at most 4096 MiB"),
            ("vms_per_node=3", "-vm vms_per_node=3: this cluster allows at most 2"),
        ],
    )
    def test_the_site_has_the_last_word(self, text: str, says: str) -> None:
        site = dataclasses.replace(SITE, max_vcpus=4, max_ram=4096, max_vms_per_node=2)
        assert refusal(text, site=site) == says
        assert asked("vcpus=4,ram=4G,vms_per_node=2", site=site).vcpus == 4

    @pytest.mark.parametrize(
        ("text", "distro"),
        [
            ("img=Ubuntu-22.04.img", "ubuntu"),
            ("img=my-centos7.qcow2", "centos"),
            ("img=osv-base.img", "osv"),
            ("img=plain.img", "redhat"),
            ("img=plain.img,distro=Debian", "debian"),
            ("img=ubuntu.img,distro=debian", "debian"),
        ],
    )
    def test_the_distribution_is_asked_for_or_guessed_from_the_image_or_the_sites(
        self, text: str, distro: str
    ) -> None:
        assert asked(text, site=dataclasses.replace(SITE, distro_default="redhat")).distro == distro

    @given(st.lists(st.text(alphabet=st.characters(), max_size=40), max_size=4))
    @settings(max_examples=300, derandomize=True, deadline=None)
    def test_no_text_gets_further_than_a_refusal(self, texts: list[str]) -> None:
        try:
            wanted = asked(*texts)
        except RequestError as error:
            assert "\n" not in error.one_line()
        else:
            assert request.decode(request.encode(wanted)) == wanted

    @given(st.sampled_from(request.OPTIONS), st.text(min_size=1, max_size=40))
    @settings(max_examples=500, derandomize=True, deadline=None)
    def test_a_value_is_taken_or_refused_in_one_line(self, key: str, value: str) -> None:
        try:
            wanted = asked(f"{key}={value}")
        except RequestError as error:
            assert "\n" not in error.one_line()
        else:
            assert request.decode(request.encode(wanted)) == wanted
