# SPDX-License-Identifier: Apache-2.0
"""qsub's grammar: what goes to the real qsub as it stands, and what is ours."""

import getopt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtorque import qsub
from vtorque.errors import RequestError
from vtorque.qsub import UsageError

GETOPT = "".join(f"{letter}:" for letter in sorted(qsub.TORQUE.with_value)) + "".join(sorted(qsub.TORQUE.flags))

WORDS = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.from_regex(r"-[A-Za-z]{1,3}", fullmatch=True),
        st.from_regex(r"-[lNvWF][a-z=:, ]{0,6}", fullmatch=True),
        st.sampled_from(["-", "--", "-vm", "img=a.img", "--wait", "job.sh"]),
    ),
    max_size=8,
)


def usage_error(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        qsub.parse(words)
    return caught.value.one_line()


class TestCommandLine:
    def test_options_of_qsub_keep_their_order_and_their_bytes(self) -> None:
        words = ["-l", "nodes=2:ppn=4", "-N", "my job", "-zV", "-v", "A=x y,B=\udcff", "-lwalltime=1:00"]
        line = qsub.parse([*words, "job.sh"])
        assert list(line.passed) == words
        assert line.script == "job.sh"
        assert line.vm == () and line.ours == frozenset()

    def test_vm_and_our_own_options_are_taken_out(self) -> None:
        line = qsub.parse(["-q", "long", "-vm", "img=a.img", "--wait", "-vm", "vcpus=2", "job.sh"])
        assert line.passed == ("-q", "long")
        assert line.vm == ("img=a.img", "vcpus=2")
        assert line.ours == {"--wait"}

    def test_vm_is_ours_only_as_a_word_of_its_own(self) -> None:
        assert qsub.parse(["-vmx", "job.sh"]).options == (("v", "mx"),)
        assert qsub.parse(["-N", "-vm", "job.sh"]).options == (("N", "-vm"),)
        assert qsub.parse(["-zvm", "job.sh"]).options == (("z", ""), ("v", "m"))

    def test_the_hold_of_qsub_is_not_a_cry_for_help(self) -> None:
        line = qsub.parse(["-h", "job.sh"])
        assert line.has("h") and line.ours == frozenset()
        assert qsub.parse(["--help"]).ours == {"--help"}

    def test_options_are_found_behind_the_script_as_getopt_does(self) -> None:
        line = qsub.parse(["job.sh", "-N", "x", "-vm", "vcpus=2"])
        assert (line.script, line.last("N"), line.vm) == ("job.sh", "x", ("vcpus=2",))

    def test_two_dashes_end_the_options(self) -> None:
        line = qsub.parse(["-z", "--", "-N"])
        assert (line.passed, line.script) == (("-z",), "-N")

    def test_a_lone_dash_is_a_script(self) -> None:
        assert qsub.parse(["-"]).script == "-"
        assert qsub.parse([]).script is None

    def test_the_last_of_an_option_wins(self) -> None:
        line = qsub.parse(["-Na", "-N", "b"])
        assert line.last("N") == "b"
        assert line.last("q", "batch") == "batch"
        assert not line.has("q")

    def test_a_value_may_be_joined_to_a_cluster(self) -> None:
        assert qsub.parse(["-Vzlnodes=2"]).options == (("V", ""), ("z", ""), ("l", "nodes=2"))
        assert qsub.parse(["-VN", "name"]).options == (("V", ""), ("N", "name"))

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["-N"], "-N needs a value"),
            (["-vm"], "-vm needs a value"),
            (["-zN"], "-N needs a value"),
            (["-Q", "job.sh"], "-Q is not an option of qsub (vsub --help lists them)"),
            (["--vm", "job.sh"], "'--vm' is not an option (vsub --help lists them)"),
            (["job.sh", "a", "b"], "'a' is one word too many (-F \"words\" hands words to the script)"),
            (["--generate"], "--generate needs a value"),
        ],
    )
    def test_what_qsub_would_not_take_is_named(self, words: list[str], says: str) -> None:
        assert usage_error(*words) == says

    @given(WORDS)
    @settings(max_examples=400, derandomize=True, deadline=None)
    def test_qsubs_own_options_are_read_as_getopt_reads_them(self, words: list[str]) -> None:
        foreign = [word for word in words if word != "--" and word.startswith(("--", "-vm", "-gf"))]
        if foreign:
            return
        try:
            pairs, operands = getopt.gnu_getopt(words, GETOPT)
        except getopt.GetoptError:
            with pytest.raises(UsageError):
                qsub.parse(words)
            return
        if len(operands) > 1:
            with pytest.raises(UsageError, match="too many"):
                qsub.parse(words)
            return
        line = qsub.parse(words)
        assert line.options == tuple((option[1], value) for option, value in pairs)
        assert line.script == (operands[0] if operands else None)
        assert getopt.gnu_getopt(list(line.passed), GETOPT) == (pairs, [])

    @given(WORDS)
    @settings(max_examples=400, derandomize=True, deadline=None)
    def test_nothing_a_user_types_is_worse_than_a_usage_error(self, words: list[str]) -> None:
        try:
            line = qsub.parse(words)
        except UsageError:
            return
        kept = list(words)
        for word in line.passed:
            kept.remove(word)
        gone = {"--", *line.ours, *line.vm, "-vm", line.script}
        assert set(kept) <= gone


class TestHeader:
    def test_directives_count_until_the_first_line_that_would_run(self) -> None:
        head = qsub.header(
            b"#!/bin/sh\n#PBS -N one\n\n# a comment\n  # another\n: a colon\n\t#PBS -q long\n"
            b"echo\n#PBS -N two\n"
        )
        assert head.lines == b"#PBS -N one\n\t#PBS -q long\n"
        assert head.options == (("N", "one"), ("q", "long"))

    def test_a_colon_is_tolerated_in_the_first_column_only(self) -> None:
        assert qsub.header(b" : \n#PBS -N x\n").options == ()

    def test_lines_for_qsub_stay_byte_for_byte(self) -> None:
        lines = (
            b"#PBS  -v 'A=\xff b',C=\"d e\"   # don\\'t\n"
            b"#PBS -l nodes=1,\\\nwalltime=5\n#PBS-N glued\n#PBS\n"
        )
        head = qsub.header(lines + b"\xff\xfe\n")
        assert head.lines == lines
        assert head.options == (("v", "A=\udcff b,C=d e"), ("l", "nodes=1,walltime=5"), ("N", "glued"))

    def test_a_backslash_at_the_end_of_a_line_joins_it_to_the_next(self) -> None:
        head = qsub.header(b"#PBS -N x \\\n -q lo\\\nng \\\n#PBS -z\necho\n")
        assert head.options == (("N", "x"), ("q", "long"), ("z", ""))
        assert head.lines.count(b"\n") == 4

    def test_vm_lines_are_for_us_alone(self) -> None:
        head = qsub.header(b"#PBS -vm img=a.img,\\\nvcpus=2  # small\n#PBS -N x\n#PBS -vm ram=1G\n")
        assert head.vm == ((1, "img=a.img,vcpus=2"), (4, "ram=1G"))
        assert head.lines == b"#PBS -N x\n"

    def test_what_shares_a_line_with_vm_still_reaches_qsub(self) -> None:
        head = qsub.header(b"""#PBS -N x -vm "vcpus=2" -v A='b  c' -z\n""")
        assert head.vm == ((1, "vcpus=2"),)
        assert head.lines == b"#PBS -N x -v A='b  c' -z\n"
        assert head.options == (("N", "x"), ("v", "A=b  c"), ("z", ""))

    def test_words_that_belong_to_no_option_are_qsubs_own_affair(self) -> None:
        assert qsub.header(b"#PBS -N x # the name\n").options == (("N", "x"),)

    def test_another_prefix_replaces_the_usual_one(self) -> None:
        script = b"#PBS -N a\n#X -N b\n"
        assert qsub.header(script, prefix="#X").options == (("N", "b"),)
        assert qsub.header(script, prefix="").lines == b""

    def test_a_last_line_without_an_end_gets_one(self) -> None:
        assert qsub.header(b"#PBS -N x").lines == b"#PBS -N x\n"
        assert qsub.header(b"").lines == b""

    @pytest.mark.parametrize(
        ("script", "says"),
        [
            (b"\x7fELF\0\0", "the script is not a text file"),
            (b"#!/bin/sh\r\necho\r\n", "the script has DOS line ends (dos2unix mends it)"),
            (b"\n#PBS -Q x\n", "line 2: -Q is not an option of qsub (vsub --help lists them)"),
            (b"#PBS -N\n", "line 1: -N needs a value"),
            (b"#PBS -N 'x\n", "line 1: unmatched '"),
            (b"#PBS -N x # don't\n", "line 1: unmatched '"),
            (b"#PBS -N x \\\n", "line 1: the directive goes on behind the end of the script"),
            (b"#PBS -N x \\", "line 1: the directive goes on behind the end of the script"),
            (b"#PBS --wait\n", "line 1: --wait belongs on the command line"),
            (
                b"#PBS -vm img=a.img vcpus=2\n",
                "line 1: 'vcpus=2' is one word too many (no blanks between keys: -vm vcpus=4,ram=8G)",
            ),
        ],
    )
    def test_what_cannot_be_submitted_is_named_with_its_line(self, script: bytes, says: str) -> None:
        with pytest.raises(RequestError) as caught:
            qsub.header(script)
        assert caught.value.one_line() == says

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=12),
                st.from_regex(rb"[ \t]?#PBS ?-[a-zA-Z]{1,2} ?[a-z'\"=,\\ ]{0,6}", fullmatch=True),
                st.sampled_from([b"#PBS -vm a=b", b"#PBS -N x -vm c=d", b"#PBS -l nodes=2 \\", b": x", b""]),
            ),
            max_size=8,
        )
    )
    @settings(max_examples=600, derandomize=True, deadline=None)
    def test_any_script_is_refused_or_what_is_left_says_the_same_without_vm(self, lines: list[bytes]) -> None:
        try:
            head = qsub.header(b"\n".join(lines))
        except RequestError:
            return
        again = qsub.header(head.lines)
        assert again.lines == head.lines
        assert (again.options, again.vm) == (head.options, ())
