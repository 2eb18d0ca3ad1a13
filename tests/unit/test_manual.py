# SPDX-License-Identifier: Apache-2.0
"""The manual pages and the completion: those in the tree are those that the parsers make, and nothing is missing."""

import argparse
import re
from pathlib import Path

import pytest

from vtorque import resolve, vmoptions
from vtorque.cli import completion, manual, vmgr, vsubhelp, wording
from vtorque.optionforms import INERT
from vtorque.options import ALIASES, OPTIONS
from vtorque.qsub import OPENPBS, OURS, TORQUE
from vtorque.vmoptions import Source

ROOT = Path(__file__).resolve().parents[2]
PAGES, SCRIPTS = manual.texts(), completion.texts()
COMMANDS = [command for command in completion.commands(vmgr.parser()) if command.words]
# What stands for one character: \e is the backslash, \- the minus.
ESCAPE = re.compile(r"\\(?:\((aq|dq|ga|ha|ti)|(e)|(-)|(&)|(%)|f[BIR]|\[u([0-9A-F]{4,6})\])")
CHARACTERS = {"aq": "'", "dq": '"', "ga": "`", "ha": "^", "ti": "~", "e": "\\", "-": "-", "&": "", "%": ""}
MACROS = {"TH", "SH", "SS", "PP", "TP", "RS", "RE", "EX", "EE"}


def plain(name: str) -> str:
    """What a reader sees of a page, without macros, one blank between words."""
    lines = [re.sub(r"^\.S[HS] ", "", line) for line in PAGES[name].splitlines()]
    text = " ".join(line for line in lines if not line.startswith("."))

    def character(match: re.Match[str]) -> str:
        if match[6]:
            return chr(int(match[6], 16))
        return CHARACTERS.get(next(filter(None, match.groups()), ""), "")

    return " ".join(ESCAPE.sub(character, text).split())


@pytest.mark.parametrize("directory, name", [
    *(("doc/man", name) for name in PAGES), *(("contrib/completion", name) for name in SCRIPTS),
])
def test_what_is_in_the_tree_is_what_the_parsers_make(directory: str, name: str) -> None:
    path = ROOT / directory / name
    made = {**PAGES, **SCRIPTS}[name]
    assert path.is_file() and path.read_text() == made, f"{directory}/{name} is out of date: make manual"


def test_the_tree_has_nothing_else_there() -> None:
    for directory, made in (("doc/man", PAGES), ("contrib/completion", SCRIPTS)):
        assert {path.name for path in (ROOT / directory).iterdir()} == set(made)


def test_main_writes_all_of_it(tmp_path: Path) -> None:
    assert manual.main([str(tmp_path / "man"), str(tmp_path / "completion")]) == 0
    written = {path.name: path.read_text() for path in tmp_path.glob("*/*")}
    assert written == {**PAGES, **SCRIPTS}


class TestSource:
    @pytest.mark.parametrize("name", PAGES)
    def test_only_macros_begin_with_a_dot(self, name: str) -> None:
        for line in PAGES[name].splitlines():
            assert not line.startswith("'")
            if line.startswith(".") and not line.startswith('.\\"'):
                assert line[1:].split()[0] in MACROS, line

    @pytest.mark.parametrize("name", PAGES)
    def test_nothing_is_left_to_roffs_own_reading(self, name: str) -> None:
        for line in PAGES[name].splitlines():
            if not line.startswith('.\\"'):
                assert re.search(r"[-'`^~\\]|[^\x20-\x7e]", ESCAPE.sub("", line)) is None, line
            if not line.startswith("."):
                assert line and '"' not in line, line

    def test_whatever_a_text_holds_roff_shows_it(self) -> None:
        odd = "a\\nb -x 'q' \"d\" `c` ^ ~ × .lead"
        shown = ESCAPE.sub(lambda m: chr(int(m[6], 16)) if m[6] else CHARACTERS[next(filter(None, m.groups()))],
                           manual.escaped(odd))
        assert shown == odd

    @pytest.mark.parametrize("name", PAGES)
    def test_a_page_says_which_version_and_no_date(self, name: str) -> None:
        (title,) = re.findall(r"^\.TH .*$", PAGES[name], re.MULTILINE)
        assert re.fullmatch(r'\.TH [A-Z.]+ [158] "" "vtorque [0-9.]+" "[A-Za-z ]+"', title)


class TestVsub:
    def test_it_has_all_sections(self) -> None:
        assert re.findall(r'^\.SH "(.*)"$', PAGES["vsub.1"], re.MULTILINE) == [
            "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", r"KEYS OF \-vm", "WHERE THEY MAY STAND", "ENVIRONMENT",
            "EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO",
        ]

    @pytest.mark.parametrize("key", vmoptions.KEYS)
    def test_every_key_is_there_with_an_example_that_may_be_written(self, key: str) -> None:
        example = wording.KEY_EXAMPLES[key]
        assert f"{key}=value {vmoptions.KEYS[key]}" in plain("vsub.1")
        assert f"Like -vm {example}." in plain("vsub.1")
        assert key in vmoptions.collect([Source(origin="example", text=example)])

    @pytest.mark.parametrize("option", vsubhelp.OPTIONS)
    def test_every_option_of_its_own_is_there(self, option: str) -> None:
        assert f"{option} {vsubhelp.OPTIONS[option]}" in plain("vsub.1")

    def test_every_option_of_qsub_is_there(self) -> None:
        for grammar in (TORQUE, OPENPBS):
            assert all(f" -{letter}" in plain("vsub.1") for letter in grammar.flags | grammar.with_value)

    def test_every_key_is_completed(self) -> None:
        for script in (SCRIPTS["vsub.bash"], SCRIPTS["_vsub"]):
            assert f"for each in {' '.join(vmoptions.KEYS)}; do" in script
            assert all(option in script for option in ("-vm", "--generate", "-gf", *OURS))

    def test_what_the_site_decides_is_what_the_resolver_asks_it(self) -> None:
        named = {key: completion.site_default(key) for key in resolve._DEFAULT_NAMES}
        assert named == resolve._DEFAULT_NAMES

    @pytest.mark.parametrize("name", manual.JOB_VARIABLES)
    def test_a_job_finds_what_the_page_says(self, name: str) -> None:
        assert f'"{name}": ' in (ROOT / "vtorque/markers.py").read_text()

    def test_the_words_for_switches_are_those_of_the_resolver(self) -> None:
        yes = [word for word, value in resolve._BOOLEANS.items() if value]
        no = [word for word, value in resolve._BOOLEANS.items() if not value]
        (said,) = re.findall(r"Switches are (.*) or 0, and (.*) or 1:", plain("vsub.1"))
        assert [{*text.split(", ")} for text in said] == [{*yes} - {"0"}, {*no} - {"1"}]


class TestVmgr:
    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
    def test_every_command_is_there_with_its_arguments(self, command: completion.Command) -> None:
        name = " ".join(["vmgr", *command.words])
        if command.children:
            assert len(command.words) > 1 or f"{command.words[0]} {command.help}" in plain("vmgr.8")
            return
        (part,) = re.findall(rf'"{name}" (.*?)(?= "|$)', plain("vmgr.8"))
        assert part.startswith(name) and command.help.rstrip(".") in part
        for action in command.options:
            assert action.option_strings[-1] in part
            assert " ".join((action.help or "").split()) in part
        for action in command.operands:
            assert (action.metavar or action.dest) in part

    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
    def test_every_command_is_completed(self, command: completion.Command) -> None:
        at = "".join(f" {word}" for word in command.words)
        for script in (SCRIPTS["vmgr.bash"], SCRIPTS["_vmgr"]):
            assert f"'{at}:-') vt_words=" in script
            for action in command.options:
                assert set(action.option_strings) <= set(re.findall(r"--?[\w-]+", script))

    def test_subcommands_are_all_named_where_they_are_chosen(self) -> None:
        for command in completion.commands(vmgr.parser()):
            for action in command.parser._actions:
                if isinstance(action, argparse._SubParsersAction) and "|" in str(action.metavar):
                    assert set(str(action.metavar).split("|")) == set(action.choices), command.words

    def test_what_the_parsers_say_makes_whole_sentences(self) -> None:
        assert re.findall(r"\S*[?!,;:]\.(?= |$)", plain("vmgr.8")) == []

    def test_a_status_that_a_commands_own_page_names_is_in_the_list_of_all(self) -> None:
        page = plain("vmgr.8")
        listed = page[page.index('"EXIT STATUS"'):page.index('"FILES"')]
        for command in COMMANDS:
            for status in re.findall(r"[0-9]+(?=:)", command.parser.epilog or ""):
                assert re.search(rf"{' '.join(command.words)}:[^;]*\b{status} ", listed), (command.words, status)

    def test_a_hidden_option_stays_hidden(self) -> None:
        for command in COMMANDS:
            assert all("help" not in action.dest for action in command.options)


class TestConfiguration:
    @pytest.mark.parametrize("name", OPTIONS)
    def test_every_option_is_there_with_its_meaning(self, name: str) -> None:
        about = OPTIONS[name].metadata
        assert f" {name}: " in plain("vtorque.yaml.5")
        assert f"{about['text']}." in plain("vtorque.yaml.5")
        assert about.get(INERT, "") in plain("vtorque.yaml.5")

    def test_options_without_effect_stand_apart(self) -> None:
        live, inert = plain("vtorque.yaml.5").split("OPTIONS WITHOUT EFFECT")
        for name, option in OPTIONS.items():
            assert f" {name}: " in (inert if INERT in option.metadata else live)

    def test_every_kind_of_value_is_described(self) -> None:
        described = {option.metadata.get("kind", "") for option in OPTIONS.values() if "choices" not in option.metadata}
        assert described - {""} <= set(wording.KIND_FORMS)

    def test_other_names_are_there(self) -> None:
        assert all(f"{alias} {name}" in plain("vtorque.yaml.5") for alias, name in ALIASES.items())
