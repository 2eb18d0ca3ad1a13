# SPDX-License-Identifier: Apache-2.0
"""The request: what a user may ask for, and the text that carries it through the batch system."""

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vtorque import request
from vtorque.errors import RequestError
from vtorque.model import VmRequest

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
    pinning=st.sampled_from(["true", "false", "auto"]),
    fs_type=st.sampled_from(["sharedfs", "ramdisk"]),
    disk=st.one_of(
        st.just(""), st.from_regex(r"/[A-Za-z0-9]{1,20}(/[A-Za-z0-9_+-]{1,20}){0,4}\.(img|qcow2)", fullmatch=True)
    ),
    metadata=st.sampled_from(["", '{"timezone":"Europe/Berlin"}', '{"locale":"de_DE.UTF-8","timezone":"UTC"}']),
    vm_prologue=st.booleans(), vm_epilogue=st.booleans(), vrdma=st.booleans(), unclot=st.booleans(), iocm=st.booleans(),
    unclot_shmem_mib=st.integers(0, 16 << 20),
    iocm_min_cores=st.just(0), iocm_max_cores=st.integers(0, 1024),
    elements=st.integers(1, 1 << 20),
    disk_size_mib=st.integers(0, 16 << 20),
    disk_new_mib=st.integers(0, 16 << 20),
)


def asking(**changes: Any) -> VmRequest:
    return A_REQUEST._replace(**changes)


def spelled(data: object, **how: Any) -> str:
    text = json.dumps(data, **{"sort_keys": True, "separators": (",", ":"), **how})
    return "vt1." + base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def fields() -> dict[str, Any]:
    text = A_TEXT.removeprefix("vt1.")
    data: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return data


class TestText:
    def test_a_request_has_one_spelling_for_ever(self) -> None:
        assert request.encode(A_REQUEST) == A_TEXT
        assert request.decode(A_TEXT) == A_REQUEST

    def test_every_field_at_once_fits_into_a_job(self) -> None:
        wanted = A_REQUEST._replace(
            pinning="0-3", fs_type="ramdisk", disk="/home/ann/data.img", disk_new_mib=1024, disk_size_mib=20480,
            metadata='{"locale":"de_DE.UTF-8","timezone":"Europe/Berlin"}', vm_prologue=True, vm_epilogue=True,
            vrdma=True, unclot=True, unclot_shmem_mib=64, iocm=True, iocm_min_cores=1, iocm_max_cores=2, elements=10,
        )
        assert all(value != VmRequest._field_defaults.get(name) for name, value in wanted._asdict().items())
        assert request.decode(request.encode(wanted)) == wanted

    def test_a_thousand_characters_fit_into_a_job_and_not_one_byte_more(self) -> None:
        pins = ",".join(map(str, range(150)))
        wanted = A_REQUEST._replace(vcpus=150, pinning=pins, image="x" * 117 + ".img")
        assert len(request.encode(wanted)) == request.LIMIT == 1000
        assert request.decode(request.encode(wanted)) == wanted
        with pytest.raises(RequestError, match="has 1002 characters, 1000 fit"):
            request.encode(wanted._replace(image="x" * 118 + ".img"))

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
            ("p", ""), ("p", "maybe"), ("p", "0,0,0,0"), ("p", "0-2"), ("p", "0-3;4-7"), ("p", "0,1,2,3,"),
            ("p", "10000,1,2,3"), ("p", "09997-10000"), ("p", "9997-10000"), ("p", "0,1,2,10000"),
            ("p", "0,9998-10000"), ("p", "true"),
            ("f", "nfs"), ("f", "sharedfs"), ("D", "x.img"), ("D", "/a/../x.img"), ("D", "/x.iso"), ("D", "/a,b.img"),
            ("D", "/./x.img"), ("b", 0), ("b", 2), ("b", True), ("v", "1"), ("t", 0), ("t", 1), ("x", 1), ("y", 1025),
            ("z", 0), ("z", (16 << 20) + 1), ("z", -1), ("z", "1"), ("z", True), ("z", 1.0),
            ("M", {}), ("M", []), ("M", {"runcmd": "id"}), ("M", {"timezone": 1}), ("M", {"timezone": "a\nb"}),
            ("r", "٠123456789abcdef"), ("k", ""), ("k", "A" * 42), ("k", "A" * 44), ("k", "*" * 43), ("k", 1),
        ],
    )
    def test_a_field_outside_its_range_is_refused(self, key: str, value: object) -> None:
        with pytest.raises(RequestError):
            request.decode(spelled({**fields(), key: value}))

    @pytest.mark.parametrize(("key", "value", "says"), [
        ("c", "4", "vcpus is not a number"), ("b", "1", "vm_prologue is not a number"), ("i", 5, "image is not text"),
        ("k", 5, "key is not text"),
    ])
    def test_a_value_of_another_type_is_named(self, key: str, value: object, says: str) -> None:
        with pytest.raises(RequestError, match=f"^the request's {says}$"):
            request.decode(spelled({**fields(), key: value}))

    def test_a_mapping_of_cpus_fits_the_guests(self) -> None:
        for number, text in ((1, "0-2,9"), (2, "3,2,1,0;4-7")):
            wanted = A_REQUEST._replace(pinning=text, vms_per_node=number)
            assert request.decode(request.encode(wanted)) == wanted

    @pytest.mark.parametrize("key", sorted(fields()))
    def test_no_field_of_these_may_be_missing(self, key: str) -> None:
        data = fields()
        del data[key]
        with pytest.raises(RequestError, match="missing or unknown"):
            request.decode(spelled(data))

    def test_no_field_may_be_added(self) -> None:
        with pytest.raises(RequestError, match="missing or unknown"):
            request.decode(spelled({**fields(), "Z": 1}))

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
            "", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 é", public_key(b"x" * 31), public_key(b"x" * 33),
            A_REQUEST.public_key.replace("ssh-", "no-"), A_REQUEST.public_key.replace("AAAA", "BAAA"),
            A_REQUEST.public_key.replace("AAAA", "AA*AA"), f"from=\"*\" {A_REQUEST.public_key}",
        ],
    )
    def test_only_an_ed25519_key_is_sent(self, key: str) -> None:
        with pytest.raises(RequestError, match="the job's public key is not an ed25519 key"):
            request.encode(A_REQUEST._replace(public_key=key))

    def test_a_key_is_sent_without_its_comment_or_not_at_all(self) -> None:
        with pytest.raises(RequestError, match="the job's public key has more to it"):
            request.encode(A_REQUEST._replace(public_key=f"{A_REQUEST.public_key} me@home"))

    def test_what_decode_would_refuse_is_not_encoded(self) -> None:
        with pytest.raises(RequestError):
            request.encode(A_REQUEST._replace(vcpus=True))
        with pytest.raises(RequestError):
            request.encode(A_REQUEST._replace(image="../x.img"))

    def test_a_request_that_does_not_fit_into_a_job_is_refused_with_its_length(self) -> None:
        with pytest.raises(RequestError, match=r"has \d{4} characters, 1000 fit"):
            request.encode(A_REQUEST._replace(image="x" * 900))


@pytest.mark.parametrize(
    ("option", "field", "low", "high"),
    [
        ("vcpus", "vcpus", 1, 1024), ("ram", "memory_mib", 64, 16 << 20), ("vms_per_node", "vms_per_node", 1, 256),
        ("unclot_shmem", "unclot_shmem_mib", 0, 16 << 20), ("elements", "elements", 1, 1 << 20),
        ("iocm_min_cores", "iocm_min_cores", 0, 1024), ("iocm_max_cores", "iocm_max_cores", 0, 1024),
        ("disk_size", "disk_size_mib", 0, 16 << 20), ("disk", "disk_new_mib", 0, 16 << 20),
    ],
)
def test_a_number_is_as_small_or_as_large_as_may_be_and_no_more(option: str, field: str, low: int, high: int) -> None:
    for number in (low, low + 1, high):
        request.check(asking(**{"iocm_max_cores": 1024, field: number}))
    for number in (low - 1, high + 1):
        with pytest.raises(RequestError, match=f"^-vm {option}={number}( MiB)?: must be [0-9]+ to {high}( MiB)?$"):
            request.check(asking(**{"iocm_max_cores": 1024, field: number}))


@pytest.mark.parametrize(("option", "field", "good", "bad"), [
    ("img", "image", "a.img", "a.iso"), ("vcpu_pinning", "pinning", "auto", "maybe"),
    ("fs_type", "fs_type", "ramdisk", "nfs"), ("disk", "disk", f"/{'x' * 254}.img", f"/{'x' * 255}.img"),
    *(("distro", "distro", name, f"{name}2") for name in ("debian", "ubuntu", "redhat", "centos", "osv")),
])
def test_a_word_is_one_of_those_and_else_named_as_the_user_wrote_it(
    option: str, field: str, good: str, bad: str
) -> None:
    request.check(asking(**{field: good}))
    with pytest.raises(RequestError, match=f"^-vm {option}='{bad[:80]}'"):
        request.check(asking(**{field: bad}))


def test_a_disk_is_no_larger_than_the_site_allows_and_no_smaller_than_its_image() -> None:
    asked = A_REQUEST._replace(disk_size_mib=100)
    for most, image in ((0, 0), (100, 0), (101, 100 << 20)):
        request.check_disk_size(asked, most_mib=most, image_bytes=image)
    request.check_disk_size(A_REQUEST, most_mib=1, image_bytes=1 << 40)
    with pytest.raises(RequestError, match="disk_size=100 MiB: this cluster allows at most 99 MiB"):
        request.check_disk_size(asked, most_mib=99)
    with pytest.raises(RequestError, match=r"image .* has 101 MiB") as caught:
        request.check_disk_size(asked, most_mib=0, image_bytes=(100 << 20) + 1)
    assert caught.value.hint == "leave it out, or disk_size=101M"
    with pytest.raises(RequestError, match="allows at most 1 MiB"):
        request.check_disk_size(A_REQUEST._replace(disk_size_mib=2), most_mib=1)
