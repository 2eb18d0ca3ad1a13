# SPDX-License-Identifier: Apache-2.0
"""What a user may add to a guest's cloud-config, and with which words the rest is refused."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtorque import metadata, metadatafile
from vtorque.errors import RequestError

ALLOWED = "(there are: timezone, locale)"


def refusal(text: str | bytes) -> str:
    with pytest.raises(RequestError) as caught:
        metadatafile.read(text.encode() if isinstance(text, str) else text)
    return caught.value.one_line().removeprefix("-vm metadata=: ")


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("timezone: Europe/Berlin", {"timezone": "Europe/Berlin"}),
        ("#cloud-config\n\ntimezone: UTC\n", {"timezone": "UTC"}),
        ("timezone: 'Etc/GMT+5'\nlocale: de_DE.UTF-8", {"locale": "de_DE.UTF-8", "timezone": "Etc/GMT+5"}),
        ('{"locale": "C.UTF-8"}', {"locale": "C.UTF-8"}),
    ],
)
def test_what_is_allowed_is_carried_as_canonical_json(text: str, becomes: dict[str, str]) -> None:
    made = metadatafile.read(text.encode())
    assert made == json.dumps(becomes, sort_keys=True, separators=(",", ":"))
    metadata.check(json.loads(made))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timezone: UTC\n\nruncmd: [id]", f"line 3: 'runcmd' is not a key that users may set {ALLOWED}"),
        ("# mine\nbootcmd:\n  - id\n", f"line 2: 'bootcmd' is not a key that users may set {ALLOWED}"),
        ("locale: C\npackages: [sudo]", f"line 2: 'packages' is not a key that users may set {ALLOWED}"),
        ("Timezone: UTC", f"line 1: 'Timezone' is not a key that users may set {ALLOWED}"),
        ("5: x", f"line 1: '5' is not a key that users may set {ALLOWED}"),
        ("timezone: UTC\n? [a]\n: b", f"line 2: 'a list or mapping' is not a key that users may set {ALLOWED}"),
        ("timezone: UTC\n<<: {locale: C}", f"line 2: '<<' is not a key that users may set {ALLOWED}"),
        ("\nlocale: ../../etc/passwd", "line 2: locale cannot be '../../etc/passwd'"),
        ('timezone: "UTC\\nruncmd: [id]"', "line 1: timezone cannot be 'UTC\\nruncmd: [id]'"),
        ("locale: C\ntimezone: [UTC]", "line 2: timezone cannot be anything but a text"),
        ("locale: no", "line 1: locale cannot be anything but a text"),
        ("timezone:", "line 1: timezone cannot be anything but a text"),
        ("timezone: !!python/name:os.system x", "line 1: timezone cannot be anything but a text"),
        ("timezone: UTC\nlocale: C\ntimezone: CET", "line 3: timezone is there twice"),
        ("timezone: &a UTC\nlocale: *a", "line 2: aliases (*name) are not allowed"),
        ("timezone: UTC\n\tlocale: C", "line 2: not YAML: found character '\\t' that cannot start any token"),
        ("timezone: [", "line 1: not YAML: "),
        ("timezone: UTC\n---\nlocale: C", "line 2: not YAML: but found another document"),
        ("- timezone", "not a cloud-config (lines like timezone: Europe/Berlin)"),
        ("", "not a cloud-config"),
        ("{}", "not a cloud-config"),
        (b"timezone: \xff", "not YAML: "),
        ("#" * 4097, "the file has more than 4096 bytes"),
        ("[" * 2048 + "]" * 2048, "not YAML: maximum recursion depth"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_not_is_refused_with_its_line(text: str | bytes, says: str) -> None:
    assert refusal(text).startswith(says)


ZONE, LOCALE = "A" + "b" * 31, f"{'a' * 8}_DE.{'b' * 16}@{'c' * 16}"


def test_values_are_of_a_length_that_real_ones_have() -> None:
    metadata.check({"timezone": f"{ZONE}/{ZONE}/{ZONE}", "locale": LOCALE})
    zones = (f"{ZONE}b", f"UTC/{ZONE}b", f"{ZONE}/{ZONE}/{ZONE}/UTC")
    locales = ("a" * 9, "a." + "b" * 17, "a@" + "c" * 17)
    for key, value in (*(("timezone", zone) for zone in zones), *(("locale", locale) for locale in locales)):
        with pytest.raises(RequestError, match=f"{key} cannot be"):
            metadata.check({key: value})


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
@example(b"timezone: UTC\x00")
@example(b"? {a: b}\n: c")
def test_no_file_gets_further_than_a_refusal(text: bytes) -> None:
    try:
        made = json.loads(metadatafile.read(text))
    except RequestError:
        return
    metadata.check(made)
    assert made.keys() <= metadata.KEYS.keys()


@pytest.mark.parametrize("data", [{"runcmd": "x"}, {"timezone": 5}, {"locale": "a b"}, {5: "x"}])
def test_what_comes_in_a_request_is_checked_the_same_way(data: dict[object, object]) -> None:
    with pytest.raises(RequestError, match=r"^-vm metadata=: (?!line)"):
        metadata.check(data)
