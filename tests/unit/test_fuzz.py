# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand hostile inputs: qsub's words, scripts' headers, `-vm` options, and the text of a request.

The same ones in every run. A refusal is one line of one kind of error; what is
taken means what getopt says it means, or what the text says and nothing else.
"""

import getopt
import random
import string

import pytest

from tests.builders import a_request
from vtorque import qsub, request, vmoptions
from vtorque.errors import RequestError
from vtorque.qsub import OPENPBS, TORQUE, Grammar
from vtorque.vmoptions import COMMAND_LINE, Source

COUNT = 25_000

PIECES = [
    "-l", "-lnodes=2:ppn=4", "-N", "a b", "-v", "A=1,B='x y'", "-Vz", "-I", "-t", "1-3%2", "-J", "-x", "-W",
    "block=true", "--", "-", "", "job.sh", "-vm", "vcpus=2", "img=a.qcow2,ram=1G", "--wait", "-C", "#X", "-Q", "-é",
    "-\udcff", "\n", "-z-", "-hN",
    "nodes=1#shared", "=,=", "-S", "/bin/sh@h", "-F", "$(id)", "-P", "-f", "-R", "y", "-vmx", "--wait=1", "-gf",
]


def words(generator: random.Random) -> list[str]:
    """A command line of pieces, some of them cut or joined anywhere."""
    made = []
    for _ in range(generator.randrange(9)):
        piece = generator.choice(PIECES)
        if generator.random() < 0.2:
            piece = piece[generator.randrange(len(piece) + 1):] + generator.choice(PIECES)
        if generator.random() < 0.1:
            piece += chr(generator.choice((0, 7, 0x27, 0x22, 0x5C, 0xE9, 0x20AC, 0xDC80)))
        made.append(piece)
    return made


@pytest.mark.parametrize("grammar", [TORQUE, OPENPBS], ids=["torque", "openpbs"])
def test_command_lines_are_read_as_getopt_reads_them(grammar: Grammar) -> None:
    generator = random.Random(1)
    spelled = "".join(f"{letter}:" for letter in sorted(grammar.with_value)) + "".join(sorted(grammar.flags))
    taken = 0
    for _ in range(COUNT // 2):
        line = words(generator)
        try:
            read = qsub.parse(line, grammar)
        except RequestError as error:
            assert "\n" not in error.one_line()
            continue
        taken += 1
        pairs, rest = getopt.gnu_getopt(list(read.passed), spelled)
        assert rest == [], "qsub gets options only"
        assert read.options == tuple((option[1:], value) for option, value in pairs)
        for number, (_, value) in enumerate(read.options):
            word, start = read.places[number]
            assert not value or read.passed[word][start:] == value
        assert read.with_values({}) == list(read.passed)
    assert taken > COUNT // 20, "most of them must not be refused for one and the same reason"


def test_headers_are_read_or_refused_and_what_is_left_says_the_same() -> None:
    generator = random.Random(2)
    taken = 0
    for _ in range(COUNT):
        lines = []
        for _ in range(generator.randrange(7)):
            text = " ".join(words(generator))
            start = generator.choice(
                ("#PBS ", "#PBS", " #PBS ", "#VM ", "#VM vcpus=", "# ", ":", "", "#!/bin/sh", "\t#PBS -vm ")
            )
            lines.append(start + text + generator.choice(("", "", " \\", "\r", "'", '"')))
        script = "\n".join(lines).encode(errors="surrogateescape")
        try:
            head = qsub.header(script)
        except RequestError as error:
            assert "\n" not in error.one_line()
            continue
        taken += 1
        again = qsub.header(head.lines)
        assert (again.options, again.vm, again.lines) == (head.options, (), head.lines)
    assert taken > COUNT // 50


def test_vm_options_are_taken_or_refused_with_their_names() -> None:
    generator = random.Random(3)
    keys = [*vmoptions.KEYS, "VCPUS", "vcpu", "", "img ", "\u0131mg"]
    values = ["1", "0", "8G", "auto", "", " ", "=", "a=b", "\x00", "\n", "x" * 500, "true", "ä", "../..", "9" * 30]
    for _ in range(COUNT):
        parts = [f"{generator.choice(keys)}{generator.choice(('=', '=', '', ' = '))}{generator.choice(values)}"
                 for _ in range(generator.randrange(4))]
        text = generator.choice((",", ",", ", ", ",,")).join(parts)
        try:
            found = vmoptions.collect([Source(origin=COMMAND_LINE, text=text)])
        except RequestError as error:
            assert "\n" not in error.one_line() and error.one_line().startswith("-vm ")
        else:
            assert set(found) <= set(vmoptions.KEYS)
            assert all(each.value.isprintable() and each.value.strip() for each in found.values())


def test_a_changed_request_is_refused_or_is_another_one_spelled_rightly() -> None:
    generator = random.Random(4)
    good = request.encode(
        a_request(pinning="0,1", metadata='{"timezone":"UTC"}', disk="/home/ann/x.img", vm_prologue=True)
    )
    alphabet = string.ascii_letters + string.digits + "-_.=+/\n\0"
    for _ in range(COUNT):
        text = list(good)
        for _ in range(generator.randrange(1, 5)):
            place = generator.randrange(len(text))
            match generator.randrange(3):
                case 0:
                    text[place] = generator.choice(alphabet)
                case 1:
                    del text[place]
                case _:
                    text.insert(place, generator.choice(alphabet))
        changed = "".join(text)
        try:
            decoded = request.decode(changed)
        except RequestError as error:
            assert "\n" not in error.one_line()
        else:
            assert request.encode(decoded) == changed
