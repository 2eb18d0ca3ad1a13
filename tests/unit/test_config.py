# SPDX-License-Identifier: Apache-2.0
"""The site's configuration: what is taken, what is refused and with which words."""

import ast
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vtorque import config
from vtorque.cli import wording
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError
from vtorque.optionforms import INERT
from vtorque.options import ALIASES, OPTIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vtorque.yaml"


def loaded(file: Path, text: str) -> SiteConfig:
    file.write_text(text)
    return config.load(file, trusted_owner=None)


def problems(file: Path, text: str | bytes) -> list[str]:
    """The lines of the error, without the path that each begins with."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        config.load(file, trusted_owner=None)
    return [line.removeprefix(f"{file}:") for line in caught.value.one_line().splitlines()]


class TestValues:
    def test_an_empty_file_means_all_defaults(self, file: Path) -> None:
        assert loaded(file, "") == loaded(file, "# nothing\n") == SiteConfig()

    def test_values_have_the_types_and_units_of_their_options(self, file: Path) -> None:
        site = loaded(
            file,
            "TIMEOUT: 300\nRAM_DEFAULT: 8G\nHOST_OS_RAM_MB: 512\nPARALLEL: no\nBRIDGE: virbr0\n"
            "MAC_PREFIX: 52:54:00\nVM_NFS_HOME: nfs:/home\nVCPU_PINNING_DEFAULT: yes\n",
        )
        assert (site.timeout, site.ram_default, site.host_os_ram_mb) == (300, 8192, 512)
        assert (site.parallel, site.vcpu_pinning_default) == (False, "true")
        assert (site.bridge, site.mac_prefix, site.vm_nfs_home) == ("virbr0", "52:54:00", "nfs:/home")

    @pytest.mark.parametrize("alias", sorted(ALIASES))
    def test_other_names_of_an_option_are_understood(self, file: Path, alias: str) -> None:
        assert loaded(file, f"{alias}: /images").vm_img_dir == "/images"

    @pytest.mark.parametrize("empty", ['""', "", "~", "null"])
    def test_a_share_may_be_nothing(self, file: Path, empty: str) -> None:
        assert loaded(file, f"VM_NFS_OPT: {empty}").vm_nfs_opt == ""

    @pytest.mark.parametrize("name", ["REGEX_FE", "IOCM_NODES", "VRDMA_NODES"])
    def test_the_manuals_star_means_all_hosts(self, file: Path, name: str) -> None:
        site = loaded(file, f'{name}: "*"')
        assert re.fullmatch(getattr(site, name.lower()), "any-host")

    @pytest.mark.parametrize("text", ["[a, b]", "a b", "\n- a\n- b"])
    def test_a_list_is_written_as_one_likes(self, file: Path, text: str) -> None:
        assert loaded(file, f"SW_PACKAGES_DEBIAN: {text}").sw_packages_debian == ("a", "b")

    @pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if INERT in option.metadata])
    def test_an_option_of_the_original_without_effect_is_noted_with_the_reason(
        self, file: Path, name: str
    ) -> None:
        file.write_text(f"# first\n{name}: {wording.written(name)}\n")
        notes = config.load_whole(file, trusted_owner=None).notes
        assert [(note.line, note.key) for note in notes] == [(2, name)]
        assert notes[0].text == f"has no effect: {OPTIONS[name].metadata[INERT]}"


class TestProblems:
    def test_a_line_of_the_shell_is_named_itself(self, file: Path) -> None:
        for after in ("BRIDGE: virbr0\n", ""):
            file.write_text(f"PARALLEL: no\nTIMEOUT=5\n{after}")
            with pytest.raises(ConfigError) as caught:
                config.load(file, trusted_owner=None)
            said = f"{file}:2: not YAML: could not find expected ':' (TIMEOUT: 5)"
            assert caught.value.one_line() == said

    def test_all_are_reported_at_once_in_the_order_of_the_file(self, file: Path) -> None:
        assert problems(
            file,
            "# comment\nTIMOUT: 5\nVM_IMG_DIR: images\nMAX_VCPUS: 4\nTIMEOUT: soon\n"
            "VM_IMAGE_DIR: /x\nPARALLEL: 1\n",
        ) == [
            "2: TIMOUT: is not an option; did you mean TIMEOUT?",
            "3: VM_IMG_DIR: must be an absolute path without .., not 'images'",
            "4: MAX_VCPUS: must be 0 or at least VCPUS_DEFAULT, which is 7",
            "5: TIMEOUT: must be a whole number, not 'soon'",
            "6: VM_IMAGE_DIR: sets VM_IMG_DIR again, after line 3",
            "7: PARALLEL: must be true or false, not '1'",
        ]

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("TIMEOUT: 0", "must be 1 to 86400 seconds, not 0"),
            ("TIMEOUT: 86401", "must be 1 to 86400 seconds, not 86401"),
            ("TIMEOUT: 1.5", "must be a whole number, not '1.5'"),
            ("TIMEOUT: -1", "must be a whole number, not '-1'"),
            ("TIMEOUT: 0120", "must be a whole number, not '0120'"),
            ("TIMEOUT: ٣", "must be a whole number, not '٣'"),
            ('TIMEOUT: "5"', "must be a whole number, not the text '5'"),
            ("TIMEOUT:", "must be a whole number, not ''"),
            ("TIMEOUT: {a: b}", "must be a single value"),
            ("PARALLEL: on", "must be true or false, not 'on'"),
            ('PARALLEL: "yes"', "must be true or false, not the text 'yes'"),
            ("RAM_DEFAULT: 63", "must be 64 to 16777216 MiB, not 63"),
            ("RAM_DEFAULT: lots", "'lots' is not a size: digits, then K, M, G or T"),
            ("MAX_RAM: 17T", "must be 0 to 16777216 MiB, not 17825792"),
            ("VM_IMG_DIR: /a/../b", "must be an absolute path without .., not '/a/../b'"),
            ("VM_IMG_DIR: [a]", "must be a single value"),
            ("VM_IMG_DIR:", "must not be empty"),
            ('STATE_DIR: "/a\\nb"', "must be one line of at most 1024 characters"),
            ("HYPERVISOR_TYPE: xen", "must be kvm or qemu, not 'xen'"),
            (
                "BRIDGE: a-longer-bridge0",
                "must be the name of a network interface, at most 15 characters, not 'a-longer-bridge0'",
            ),
            (
                "MAC_PREFIX: 53:54:00",
                "must be 1 to 3 octets of a unicast address, like 5a or 52:54:00, not '53:54:00'",
            ),
            (
                "MAC_PREFIX: '52:54:00:00'",
                "must be 1 to 3 octets of a unicast address, like 5a or 52:54:00, not '52:54:00:00'",
            ),
            ("VM_NFS_HOME: /home", "must be empty or server:/export, not '/home'"),
            ("VM_NFS_OPTIONS: rw hard", "must be mount options with commas between them, not 'rw hard'"),
            (
                "IMG_DEFAULT: a/b.img",
                "must be the name of a .qcow2 or .img file in the catalogue, not 'a/b.img'",
            ),
            ("LIBVIRT_URI: system", "must be a URI, like qemu:///system, not 'system'"),
            ("DISABLED_HOSTS_LIST: '*'", "must be a regular expression: nothing to repeat at position 0"),
            ("REGEX_FE: fe[", "must be a regular expression: unterminated character set at position 2"),
            ("SW_PACKAGES_DEBIAN: {a: b}", "must be a list of words"),
        ],
    )
    def test_a_wrong_value_is_told_what_is_allowed(self, file: Path, line: str, says: str) -> None:
        assert problems(file, line) == [f"1: {line.partition(':')[0]}: {says}"]

    def test_a_key_twice_is_refused_even_when_the_first_is_wrong(self, file: Path) -> None:
        assert problems(file, "TIMEOUT: x\nTIMEOUT: 5\n") == [
            "1: TIMEOUT: must be a whole number, not 'x'",
            "2: TIMEOUT: sets TIMEOUT again, after line 1",
        ]

    def test_a_limit_is_not_held_against_a_default_that_is_wrong_in_itself(self, file: Path) -> None:
        assert problems(file, "MAX_VCPUS: 4\nVCPUS_DEFAULT: many\n") == [
            "2: VCPUS_DEFAULT: must be a whole number, not 'many'"
        ]
        assert loaded(file, "MAX_VCPUS: 4\nVCPUS_DEFAULT: 4\nMAX_RAM: 24G\n").max_vcpus == 4

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("TIMEOUT: 5\n\tDOMAIN: x", "2: not YAML: found character '\\t' that cannot start any token"),
            ("TIMEOUT: 5\n  x: 6", "2: not YAML: mapping values are not allowed here"),
            ("\n'unclosed", "2: not YAML: found unexpected end of stream"),
            (
                "\nREGEX_FE: *\n",
                "2: not YAML: expected alphabetic or numeric character, but found '\\n' "
                "(quote a value that begins with *)",
            ),
            ("BRIDGE: &a br0\nDOMAIN: *a\n", "1: anchors and aliases (&name, *name) are not allowed"),
            ("TIMEOUT: 5\nBRIDGE: *a\n", "2: anchors and aliases (&name, *name) are not allowed"),
            ("TIMEOUT: !!python/object:os.system 5", "1: tags (!name) are not allowed"),
            ("TIMEOUT: 5\n---\nTIMEOUT: 6\n", "2: not YAML: but found another document"),
            ("\n- TIMEOUT", "2: the file must hold lines like OPTION: value"),
            ("TIMEOUT", "1: the file must hold lines like OPTION: value"),
            ("? [a]\n: b", "1: the name of an option must be a single word"),
            ("? |\n a\n b\n: c", "1: the name of an option must be a single word"),
            ("SW_PACKAGES_DEBIAN:\n- [a]", "2: a list holds plain words only"),
            ("A: 1\nB: \x01", "2: not YAML: special characters are not allowed"),
            (b"A: 1\nB: \xff", "2: not UTF-8"),
            ("[" * 50000, "1: a list holds plain words only"),
        ],
        ids=repr,
    )
    def test_a_file_that_is_no_list_of_options_is_refused_with_its_line(
        self, file: Path, text: str | bytes, says: str
    ) -> None:
        assert problems(file, text) == [says]

    def test_a_file_that_is_too_large_is_not_read(self, file: Path) -> None:
        assert problems(file, "#" * (256 * 1024 + 1)) == [f"{file} is larger than 262144 bytes"]

    @given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
    @example(b"TIMEOUT: " + b"9" * 5000)
    @example(b"RAM_DEFAULT: " + b"9" * 5000)
    @example(b"REGEX_FE: " + b"(" * 900)
    @settings(
        max_examples=400, derandomize=True, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_no_file_gets_further_than_a_configuration_error(self, file: Path, data: bytes) -> None:
        file.write_bytes(data)
        try:
            config.load(file, trusted_owner=None)
        except ConfigError as error:
            assert str(file) in error.brief


class TestTrust:
    def test_a_file_of_another_user_is_refused_for_root(self, file: Path) -> None:
        file.write_text("")
        os.chown(file, 12345, -1)
        with pytest.raises(ConfigError, match="belongs to uid 12345"):
            config.load(file, trusted_owner=0)
        assert config.load(file, trusted_owner=12345) == SiteConfig()

    @pytest.mark.parametrize("mode", [0o664, 0o646])
    def test_a_file_that_others_may_write_is_refused_for_root(self, file: Path, mode: int) -> None:
        file.write_text("")
        file.chmod(mode)
        with pytest.raises(ConfigError, match="writable by others"):
            config.load(file, trusted_owner=0)
        assert config.load(file, trusted_owner=None) == SiteConfig()

    def test_a_directory_above_that_others_may_write_is_refused_for_root(self, tmp_path: Path) -> None:
        directory = tmp_path / "open"
        directory.mkdir()
        directory.chmod(0o777)
        (directory / "vtorque.yaml").write_text("")
        with pytest.raises(ConfigError, match=f"{directory} is writable by others"):
            config.load(directory / "vtorque.yaml", trusted_owner=0)

    def test_a_missing_file_is_said_to_be_missing(self, file: Path) -> None:
        for owner in (None, 0):
            with pytest.raises(ConfigError, match=f"there is no configuration {file}"):
                config.load(file, trusted_owner=owner)


class TestFind:
    def test_the_programs_own_file_comes_first(self, tmp_path: Path) -> None:
        own = tmp_path / "etc" / "vtorque.yaml"
        own.parent.mkdir()
        own.write_text("")
        assert config.find(tmp_path) == own

    def test_the_systems_file_is_the_fallback_and_none_is_an_error_with_a_way_out(self, tmp_path: Path) -> None:
        system = tmp_path / "etc/vtorque/vtorque.yaml"
        with pytest.raises(ConfigError) as caught:
            config.find(Path("/opt/vtorque"), root=tmp_path)
        assert caught.value.hint == f"copy /opt/vtorque/contrib/vtorque.yaml to {system} and adapt it"
        system.parent.mkdir(parents=True)
        system.write_text("")
        assert config.find(Path("/opt/vtorque"), root=tmp_path) == system
        own = tmp_path / "opt"
        (own / "etc/vtorque.yaml").mkdir(parents=True)
        assert config.find(own, root=tmp_path) == system, "a directory is no configuration"

    def test_one_that_cannot_be_looked_for_is_not_taken_for_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read .*: File name too long") as caught:
            config.find(tmp_path / ("x" * 300))
        assert not isinstance(caught.value, config.NoConfiguration)


class TestDocuments:
    def test_the_example_loads_without_a_note(self) -> None:
        notes = config.load_whole(ROOT / "contrib/vtorque.yaml", trusted_owner=None).notes
        assert notes == ()

    def test_the_example_shows_every_option_that_has_an_effect_with_its_default(self, file: Path) -> None:
        text = (ROOT / "contrib/vtorque.yaml").read_text()
        active = set(re.findall(r"^([A-Z_0-9]+): ", text, re.MULTILINE))
        file.write_text(re.sub(r"^# ([A-Z_0-9]+: )", r"\1", text, flags=re.MULTILINE))
        site, notes, _ = config.load_whole(file, trusted_owner=None)
        shown = set(re.findall(r"^([A-Z_0-9]+): ", file.read_text(), re.MULTILINE))
        assert notes == ()
        assert shown == {name for name, option in OPTIONS.items() if INERT not in option.metadata}
        differing = {
            name for name in shown if getattr(site, name.lower()) != getattr(SiteConfig(), name.lower())
        }
        assert differing <= active

    def test_the_manual_lists_every_option_with_default_unit_and_meaning(self) -> None:
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in (ROOT / "doc/admin.md").read_text().splitlines()
            if re.match(r"\| `[A-Z]", line)
        ]
        assert sorted(rows) == sorted(row(name) for name in OPTIONS)

    def test_every_option_has_an_effect_or_says_why_not(self) -> None:
        trees = [
            ast.parse(path.read_text())
            for path in (ROOT / "vtorque").rglob("*.py")
            if path.name not in ("config.py", "options.py")
        ]
        read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        templates = "".join(path.read_text() for path in (ROOT / "templates-vm").iterdir())
        read |= set(re.findall(r"\bsite\.([a-z_]+)", templates))
        # A choice of one needs no reader.
        without_choice = {o.name for o in OPTIONS.values() if len(o.metadata.get("choices", ())) == 1}
        live = {o.name for o in OPTIONS.values() if INERT not in o.metadata}
        assert live - without_choice <= read

    def test_an_example_is_a_value_that_the_file_may_hold(self, file: Path) -> None:
        text = "".join(f"{wording.example(name)}\n" for name in OPTIONS)
        assert loaded(file, text).group_limits == ("students max_vcpus=4 max_ram=8G",)

    def test_a_default_is_a_value_that_the_file_may_hold(self, file: Path) -> None:
        text = "".join(f"{name}: {wording.written(name)}\n" for name in OPTIONS)
        assert loaded(file, text) == SiteConfig()


def row(name: str) -> list[str]:
    about = OPTIONS[name].metadata
    cells = [f"`{name}`", f"`{wording.written(name)}`", about.get("unit", ""), about["text"]]
    return [*cells, about[INERT] if INERT in about else f"`{wording.example(name)}`"]


def test_the_configuration_cannot_be_changed_once_read() -> None:
    with pytest.raises(AttributeError):
        SiteConfig().timeout = 5


def test_only_options_make_a_configuration() -> None:
    assert SiteConfig(timeout=5).but(min_uid=1) == SiteConfig(min_uid=1, timeout=5) != SiteConfig()
    with pytest.raises(TypeError, match="time_out"):
        SiteConfig(time_out=5)
