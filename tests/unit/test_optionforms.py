# SPDX-License-Identifier: Apache-2.0
"""What a text of each kind may look like: the longest that fits, and what is one too many."""

import re
import signal

import pytest

from vtorque.optionforms import FORMS, INERT, fits, inert, option

LABEL = "a" * 63
V6 = "1111:2222:3333:4444:5555:6666:7777:8888"

GOOD = {
    "share": [f"{'s' * 253}:/{'x' * 1023}", "[fd00::1]:/"],
    "mac": ["52", "52:54", "52:54:00"],
    "interface": ["a" * 15],
    "mount": ["rw", "o" * 255],
    "user": ["_" + "u" * 31],
    "uri": [f"q{'+' * 31}://{'x' * 255}", "qemu:///system"],
    "addresses": ["1.2.3.4 1.2.3.5 1.2.3.6", V6, "::1"],
    "domain": ["a", ".".join([LABEL] * 10)],
    "domains": ["a b c d e f"],
    "host": [LABEL, "10.0.0.255", V6],
    "endpoints": [
        "10.1.0.0/32", "10.1.0.0/16:65535", "10.0.0.1:1-9999", f"[{V6}]", f"[{V6}/128]:80", "[::]", "[fd00::/8]",
        "[::2222:3333:4444:5555:6666:7777]", "[1111:2222:3333:4444:5555:6666::]", " ".join(["10.0.0.1"] * 64),
    ],
    "image": ["a.img", f"{'a' * 124}.img", "a.qcow2@999999"],
}
BAD = {
    "share": [f"{'s' * 254}:/x", f"s:/{'x' * 1024}", ":/x", "s:x", "s:/a b"],
    "mac": ["", "52:54:00:00", "53", "5"],
    "interface": ["a" * 16, "", "-a", "a b"],
    "mount": ["", "o" * 256, "rw hard"],
    "user": ["_" + "u" * 32, "", "0u", "ü"],
    "uri": [f"q{'+' * 32}://x", f"q://{'x' * 256}", "system"],
    "addresses": [
        "", "11111::1", "::11111", "1:2:3:4:5:6:7:8:9", "1", "10.0.0.256", "10.0.0.01",
        "1.2.3.4 1.2.3.5 1.2.3.6 1.2.3.7",
    ],
    "domain": ["", f"a.{LABEL}a", ".".join(["a"] * 11), "a.", "-a"],
    "domains": ["", "a b c d e f g", "a  b"],
    "host": ["", "a b"],
    "endpoints": [
        "", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:080", "10.0.0.1:99999", "10.0.0.1/33", "10.0.0.01",
        f"[{V6}/129]", "fd00::1", "[11111::]", "[::11111]", "[1:11111::]", "[::1:11111]", f"[{V6[1:]}1:1]", f"[1{V6}]",
        f"[{V6}8]", "[1:2:3:4:5:6:7::]", "[::2:3:4:5:6:7:8]", "[1::2::3]", " ".join(["10.0.0.1"] * 65),
    ],
    "image": [".img", f"{'a' * 125}.img", "a.qcow2@9999999", "a.qcow2@", "a/b.img"],
}


@pytest.mark.parametrize("kind", GOOD)
def test_the_longest_text_of_a_kind_fits_and_nothing_more(kind: str) -> None:
    assert [text for text in GOOD[kind] if not fits(kind, text)] == []
    assert [text for text in BAD[kind] if fits(kind, text)] == []


def answers(pattern: str, text: str) -> bool:
    """Whether it is done with a text in 0.2 s of CPU: a thousand times what it takes, or never."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.2)
    try:
        re.fullmatch(pattern, text, re.ASCII)
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return True


@pytest.mark.parametrize("kind", GOOD)
def test_a_long_list_with_a_mistake_at_its_end_is_refused_at_once(kind: str) -> None:
    pattern = FORMS[kind][0]
    for text in GOOD[kind]:
        assert answers(pattern, " ".join([text] * 64) + " !")


def test_numbers_that_can_be_read_in_two_ways_are_caught_by_that() -> None:
    octet = r"(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
    text = " ".join(["10.0.0.1"] * 64) + " !"
    assert not answers(rf"{octet}(?:\.{octet}){{3}}(?: {octet}(?:\.{octet}){{3}}){{0,63}}", text)


def test_no_kind_is_without_a_test() -> None:
    assert GOOD.keys() == BAD.keys() == FORMS.keys()


def test_a_host_name_has_at_most_64_characters() -> None:
    assert fits("host", "a" * 64) and not fits("host", "a" * 65)


def test_an_option_knows_its_default_and_whatever_is_said_of_it() -> None:
    class Site:
        port: int = option(22, "where it listens", low=1)
        colour: str = inert("red", "of the door", "there is no door", kind="word")

    port, colour = vars(Site)["port"], vars(Site)["colour"]
    assert (port.name, port.type, port.default) == ("port", int, 22)
    assert port.metadata == {"text": "where it listens", "low": 1}
    assert colour.metadata == {"text": "of the door", INERT: "there is no door", "kind": "word"}
