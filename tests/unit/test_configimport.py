# SPDX-License-Identifier: Apache-2.0
"""The original's config.sh: what is taken, what is left out and why, and that nothing of it is run."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vtorque import config
from vtorque.config import SiteConfig
from vtorque.configimport import convert
from vtorque.optionforms import INERT
from vtorque.options import ALIASES, OPTIONS

HEADER = "# converted from config.sh by vmgr config import\n"

SHIPPED = r"""#!/bin/bash
# what the original came with
set -o nounset;
DISABLED_HOSTS_LIST="";
REGEX_FE="*";
TORQUE_HOME="/var/spool/torque";
PBS_QSUB_ON_FE="/usr/bin/qsub";
PBS_QSUB_ON_NODES="/usr/bin/qsub";
VM_IMG_DIR="/opt/vm-images";
SUSPENDED_IMAGE_DIR=/opt/vm-images-suspended
WS_DIR="/workspace/.vtorque";
RAMDISK_DIR="/ramdisk"; # comment; with 'quotes
VM_NFS_HOME="nfs-server.my-domain.com:/nfs/home";
VM_NFS_WS="nfs-server.my-domain.com:/fast_storage/workspace";
VM_NFS_OPT="nfs-server.my-domain.com:/nfs/shared-opt";
ARP_BIN="/usr/sbin/arp";
MAC_PREFIX="52:54:00";
HOST_OS_CORE_COUNT=1;
HOST_OS_RAM_MB=2048;
PBS_EXCLUSIVE_NODE_ALLOC=true;
KILL_USER_PROCESSES_AFTER_JOB=true;
MEASURE_TIME=false;
SSH_TIMEOUT=5;
TIMEOUT=120;
PROLOGUE_TIMEOUT=600;
NFS_TIMEOUT=3;
CUSTOM_IP_MAPPING=false;
IP_TO_MAC_SCRIPT="";
NAME_SERVER="name-server.my-domain.com";
DOMAIN="my-domain.com";
SEARCH_DOMAIN="$DOMAIN";
NTP_SERVER_1="ntp-server1.my-domain.com";
NTP_SERVER_2="ntp-server2.my-domain.com";
SW_PACKAGES_DEBIAN=("nfs-common" "libnfs1" # two of them
  "openmpi-bin" "libopenmpi-dev" "libmetis5" "libmetis-dev" "9mount");
SW_PACKAGES_REDHAT=("nfs-common" "libnfs1" "nfs-utils" "openmpi" "openmpi-devel" "metis" "metis-devel"
  "nfs-ganesha-mount-9P");
FILESYSTEM_TYPE_DEFAULT="sharedfs";
IMG_DEFAULT="ubuntu.x86_64.img";
DISTRO_DEFAULT="debian";
ARCH_DEFAULT="x86_64";
VCPUS_DEFAULT="7";
VCPU_PINNING_DEFAULT=true;
RAM_DEFAULT="24576";
VMS_PER_NODE_DEFAULT="1";
DISK_DEFAULT="";
VRDMA_ENABLED_DEFAULT=false;
UNCLOT_ENABLED_DEFAULT=false;
UNCLOT_SHMEM_DEFAULT="1024M";
IOCM_ENABLED_DEFAULT=false;
IOCM_MIN_CORES_DEFAULT="1";
IOCM_MAX_CORES_DEFAULT="4";
ENABLE_DEV_MODE=false;
PARALLEL=true;
ALLOW_USER_IMAGES=false;
DEBUG_DEFAULT=false;
TRACE_DEFAULT=false;
SHOW_LOG_DEFAULT=false;
PRINT_TO_STDOUT=false;
ABORT_ON_ERROR=true;
LOG_ROTATE=true;
LOG_FILE="$VM_JOB_DIR/debug.log";
IOCM_ENABLED=false;
IOCM_MIN_CORES=0;
IOCM_MAX_CORES=12;
IOCM_NODES="*";
VRDMA_ENABLED=false;
VRDMA_NODES="*";
UNCLOT_ENABLED=false;
SNAP_MONITORING_ENABLED=false;
SNAP_BIN_DIR="/usr/local/bin/";
SNAP_TAG_FORMAT="snapTask-[username]-[jobid]";
if [ -z ${TRACE-} ]; then
  TRACE=$TRACE_DEFAULT;
fi
SSH_OPTS="-t -n -o ConnectTimeout=$SSH_TIMEOUT";
PBS_QSUB="$(which qsub)";
"""


def taken(source: str) -> dict[str, str]:
    """The lines of the result as they are written."""
    text = convert(source, name="config.sh").text
    assert text.startswith(HEADER)
    return dict(line.split(": ", 1) for line in text.removeprefix(HEADER).splitlines())


def noted(source: str) -> list[str]:
    notes = convert(source, name="config.sh").notes
    assert all(note.startswith("config.sh:") and note.isprintable() for note in notes)
    return [note.removeprefix("config.sh:") for note in notes]


def left_out(source: str, line: int, key: str, why: str) -> None:
    """Nothing of `key` is in the result, and a note says so."""
    assert key not in taken(source)
    mine = [note for note in noted(source) if note.startswith(f"{line}: {key}: ")]
    assert mine and why in mine[0], noted(source)


class TestShipped:
    def test_a_site_that_changed_nothing_gets_nothing(self) -> None:
        assert taken(SHIPPED) == {}

    def test_and_is_told_only_of_what_is_no_value(self) -> None:
        keys = [note.split(": ")[1] for note in noted(SHIPPED)]
        assert keys == ["set", "LOG_FILE", "if", "SSH_OPTS", "PBS_QSUB"]

    def test_but_gets_packages_that_it_chose_itself(self) -> None:
        source = SHIPPED + 'SW_PACKAGES_DEBIAN=("nfs-common" "gdb")\nNAME_SERVER=10.0.0.53\n'
        assert taken(source) == {"SW_PACKAGES_DEBIAN": '["nfs-common", "gdb"]', "NAME_SERVER": '"10.0.0.53"'}

    def test_what_the_site_changed_is_all_that_is_taken(self, tmp_path: Path) -> None:
        source = SHIPPED + "VM_NFS_HOME=nfs:/home\nRAM_DEFAULT=8G\nPARALLEL=false\nREGEX_FE='fe[0-9]'\nTIMEOUT=300\n"
        result = convert(source, name="config.sh")
        path = tmp_path / "vtorque.yaml"
        path.write_text(result.text)
        site, notes, _ = config.load_whole(path, trusted_owner=None)
        assert site == SiteConfig(
            vm_nfs_home="nfs:/home", ram_default=8192, parallel=False, regex_fe="fe[0-9]", timeout=300
        )
        assert notes == ()
        assert result.text.count("\n") == 6


class TestValues:
    @pytest.mark.parametrize(
        ("source", "line"),
        [
            ("BRIDGE=br1", '"br1"'),
            ("BRIDGE='br1'", '"br1"'),
            ('BRIDGE="br1"; # my bridge', '"br1"'),
            ("export BRIDGE=br1", '"br1"'),
            ("declare -r BRIDGE=br1", '"br1"'),
            ("readonly BRIDGE=br1", '"br1"'),
            ("typeset -x BRIDGE=br1; export BRIDGE", '"br1"'),
            ("A=1 BRIDGE=br1", '"br1"'),
            ("BRIDGE=br0\nBRIDGE=br1", '"br1"'),
            ("BRIDGE=$(x)\nBRIDGE=br1", '"br1"'),
            ("BRIDGE=b\\\nr1", '"br1"'),
            ("BRIDGE=b'r'\"1\"", '"br1"'),
            ("BRIDGE=\\b\\r1", '"br1"'),
            ("N=1; BRIDGE=br$N", '"br1"'),
            ("N=r; BRIDGE=\"b${N}1\"", '"br1"'),
            ("BRIDGE=b; BRIDGE=${BRIDGE}r1", '"br1"'),
            ("BRIDGE=br1 # it's mine", '"br1"'),
            ("\t BRIDGE=br1", '"br1"'),
        ],
    )
    def test_a_plain_assignment_is_understood(self, source: str, line: str) -> None:
        assert taken(source) == {"BRIDGE": line}

    @pytest.mark.parametrize(
        ("source", "name", "line"),
        [
            ("PARALLEL=false", "PARALLEL", "false"),
            ('PARALLEL="false"', "PARALLEL", "false"),
            ("RAM_DEFAULT=8192", "RAM_DEFAULT", "8192"),
            ("RAM_DEFAULT=8G", "RAM_DEFAULT", "8G"),
            ("REGEX_FE='fe.*|login\\d'", "REGEX_FE", '"fe.*|login\\\\d"'),
            ("VM_NFS_OPT=", "VM_NFS_OPT", '""'),
            ("VM_NFS_OPT=''", "VM_NFS_OPT", '""'),
            ("IMAGE_POOL_DIR=/images", "VM_IMG_DIR", '"/images"'),
            ("REGEX_FE='$(x)'", "REGEX_FE", '"$(x)"'),
            ('REGEX_FE="it\'s\\$5"', "REGEX_FE", '"it\'s$5"'),
        ],
    )
    def test_a_value_is_written_as_config_reads_it(self, source: str, name: str, line: str) -> None:
        assert taken(source) == {name: line}

    @pytest.mark.parametrize(
        "source", ["REGEX_FE=*", "REGEX_FE='.*'", "RAM_DEFAULT=24G", "VM_IMAGE_DIR=/opt/vm-images"]
    )
    def test_our_default_is_left_out_silently(self, source: str) -> None:
        assert (taken(source), noted(source)) == ({}, [])

    @pytest.mark.parametrize("alias", sorted(ALIASES))
    def test_the_real_name_wins_over_others(self, alias: str) -> None:
        source = f"VM_IMG_DIR=/a\n{alias}=/b\n"
        assert taken(source) == {"VM_IMG_DIR": '"/a"'}
        left_out(source, 2, alias, "VM_IMG_DIR is set too")

    def test_a_helper_is_no_news_but_an_unknown_name_is(self) -> None:
        source = "BASE=/data\nVM_IMG_DIR=$BASE/images\nMINE=1\n"
        assert taken(source) == {"VM_IMG_DIR": '"/data/images"'}
        assert noted(source) == ["3: MINE: is not an option of vtorque.yaml"]


class TestRefused:
    @pytest.mark.parametrize(
        ("source", "key", "why"),
        [
            ("PARALLEL=yes", "PARALLEL", "true or false"),
            ("TIMEOUT=soon", "TIMEOUT", "whole number"),
            ("TIMEOUT=0", "TIMEOUT", "1 to 86400"),
            ("TIMEOUT=010", "TIMEOUT", "whole number"),
            ("RAM_DEFAULT=lots", "RAM_DEFAULT", "K, M, G or T"),
            ("VM_IMG_DIR=images", "VM_IMG_DIR", "absolute path"),
            ("VM_IMAGE_DIR=images", "VM_IMAGE_DIR", "absolute path"),
            ("IMG_DEFAULT=sub/image.img", "IMG_DEFAULT", "the catalogue"),
            ("HYPERVISOR_TYPE=xen", "HYPERVISOR_TYPE", "kvm or"),
            ("REGEX_FE='['", "REGEX_FE", "regular expression"),
            ("BRIDGE=", "BRIDGE", "must not be empty"),
            ("BRIDGE=(a b)", "BRIDGE", "single value"),
            ("MAX_VCPUS=4", "MAX_VCPUS", "at least VCPUS_DEFAULT"),
            ("BRIDGE=br1\r", "BRIDGE", "printable"),
            ("BRIDGE=br\udcff", "BRIDGE", "printable"),
            ("REGEX_FE='a\nb'", "REGEX_FE", "one line"),
            (f"REGEX_FE={'a' * 2000}", "REGEX_FE", "too long"),
        ],
    )
    def test_what_config_refuses_is_left_out_with_its_words(self, source: str, key: str, why: str) -> None:
        left_out(source, 1, key, why)
        assert taken(source) == {}

    def test_the_rest_is_taken_all_the_same(self) -> None:
        assert taken("TIMEOUT=soon\nMAX_RAM=1G\nPARALLEL=no\nSSH_TIMEOUT=9\n") == {"SSH_TIMEOUT": "9"}

    @pytest.mark.parametrize("name", sorted(name for name, about in OPTIONS.items() if INERT in about.metadata))
    @pytest.mark.parametrize("value", ["changed", "$(x)", "(a b)"])
    def test_what_does_nothing_any_more_is_noted_with_the_reason(self, name: str, value: str) -> None:
        left_out(f"\n{name}={value}\n", 2, name, OPTIONS[name].metadata[INERT])
        assert taken(f"\n{name}={value}\n") == {}


class TestUndecided:
    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("$(touch x)", "output of a command"),
            ('"$(touch "x")"', "output of a command"),
            ("`touch x`", "output of a command"),
            ('"a`touch x`"', "output of a command"),
            ("$((60*2))", "output of a command"),
            ("$HOME/x", "$HOME is not known"),
            ('"${HOME}/x"', "$HOME is not known"),
            ("${X:-5}", "${"),
            ("$1", "$1"),
            ('"$$"', "$$"),
            ("$'a'", "$'"),
            ("~/x", "~"),
            ("a=(b)", "("),
        ],
    )
    def test_what_only_a_shell_could_tell_is_left_out(self, value: str, why: str) -> None:
        left_out(f"VM_IMG_DIR={value}\n", 1, "VM_IMG_DIR", why)
        assert taken(f"VM_IMG_DIR={value}\nTIMEOUT=7") == {"TIMEOUT": "7"}

    @pytest.mark.parametrize(
        "change",
        [
            "if [ -e /x ]; then\n  TIMEOUT=8\nfi",
            "if true; then if true; then :; fi; TIMEOUT=8; fi",
            "[ -e /x ] && TIMEOUT=8",
            "[ -e /x ] ||\nTIMEOUT=8",
            "case x in\n  a) TIMEOUT=8;;\n  (b) ;;\nesac",
            "for TIMEOUT in 1 2; do\n  :\ndone",
            "while read TIMEOUT; do :; done < file",
            "{ TIMEOUT=8; }",
            "(TIMEOUT=8)",
            "change() {\n  TIMEOUT=8\n}",
            "change()\n{ TIMEOUT=8; }\nchange",
            "function change {\n  TIMEOUT=8\n}",
            "function change() { TIMEOUT=8; }",
            'eval "TIMEOUT=8"',
            ": ${TIMEOUT:=8}",
            "((TIMEOUT=8))",
            "let TIMEOUT=8",
            "unset TIMEOUT",
            "printf -v TIMEOUT 8",
            "declare -i TIMEOUT=8",
            "TIMEOUT+=8",
            "TIMEOUT[0]=8",
            "TIMEOUT=8 sleep 1",
            "TIMEOUT=8 &",
            "TIMEOUT=8 | cat",
            "! TIMEOUT==8",
            "A=8; export A=9 TIMEOUT=$A",
            "cat <<END\nTIMEOUT=8\nEND",
            "X='never closed\nTIMEOUT=8",
            "fi\nTIMEOUT=8",
            "X=$(case a in a) TIMEOUT=8;; esac)",
        ],
    )
    def test_an_option_that_may_have_changed_is_not_guessed(self, change: str) -> None:
        source = f"TIMEOUT=7\n{change}\n"
        assert "TIMEOUT" not in taken(source)
        assert any(": TIMEOUT: left out: " in note for note in noted(source)), noted(source)

    def test_what_is_set_after_a_block_holds(self) -> None:
        assert taken("if x; then TIMEOUT=8; fi\nTIMEOUT=9\n") == {"TIMEOUT": "9"}

    def test_a_function_may_be_called_at_any_time(self) -> None:
        assert taken("f() { TIMEOUT=8; }\nTIMEOUT=9\nf\n") == {}

    def test_what_refers_to_it_is_undecided_too(self) -> None:
        source = "D=/a\nif x; then D=/b; fi\nVM_IMG_DIR=$D/images\n"
        left_out(source, 3, "VM_IMG_DIR", "$D is not known")
        assert taken(source) == {}

    @pytest.mark.parametrize("end", ["exit 0", "return"])
    def test_nothing_counts_behind_the_end(self, end: str) -> None:
        assert taken(f"TIMEOUT=7\n{end}\nTIMEOUT=8\n") == {"TIMEOUT": "7"}

    def test_the_lines_of_notes_are_right(self) -> None:
        source = "\n# one\nsource other.sh\nif x\nthen\n  BRIDGE=br1\nfi\nTIMEOUT=`x`\n"
        assert [note.split(": ")[:2] for note in noted(source)] == [
            ["3", "source"], ["4", "if"], ["6", "BRIDGE"], ["8", "TIMEOUT"],
        ]


class TestHostile:
    @pytest.mark.parametrize(
        "line",
        [
            "BRIDGE=$(touch {})", "BRIDGE=`touch {}`", "BRIDGE=br1; touch {}", "BRIDGE=br1 && touch {}",
            'BRIDGE="$(touch {})"', "touch {}", "A=(x $(touch {}))", "BRIDGE=<(touch {})", "BRIDGE=br1 > {}",
        ],
    )
    def test_nothing_is_run(self, line: str, tmp_path: Path) -> None:
        convert(line.format(tmp_path / "x"), name="config.sh")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "value", ["'a: b'", "'a\" #'", "'&a'", "'!!x'", "'a\\nTIMEOUT: 9'", "'{a: b}'", "'\u2028'", "'\x7f'", "'é'"]
    )
    def test_no_value_becomes_yaml_of_its_own(self, value: str, tmp_path: Path) -> None:
        path = tmp_path / "vtorque.yaml"
        path.write_text(convert(f"DISABLED_HOSTS_LIST={value}\n", name="config.sh").text)
        site = config.load(path, trusted_owner=None)
        assert site.disabled_hosts_list in ("", value.strip("'")) and site.timeout == 120

    @pytest.mark.parametrize(
        "source",
        ["(" * 50_000, "$(" * 50_000, "a[" * 50_000, '"${' * 20_000, "A=x\n" + "A=$A$A\n" * 99],
        ids=["brackets", "commands", "indices", "references", "doubling"],
    )
    def test_what_is_made_to_hurt_does_not(self, source: str) -> None:
        assert taken(source) == {}

    @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=200)
    @given(
        st.lists(
            st.sampled_from(
                [
                    *"'\"`$(){}[]\\;&|<>#=~*\n\t \x0c\udcff", "if ", "fi", "case ", "esac", "do ", "done", "f()",
                    "TIMEOUT", "TIMEOUT=8", "BRIDGE=b", "export ", "declare -r ", "${", "$(", "<<", "A", "function ",
                ]
            )
        ).map("".join)
    )
    @example("\x0c")
    def test_any_text_gives_a_file_that_loads(self, source: str) -> None:
        result = convert(source, name="config.sh")
        assert result.text.startswith(HEADER)
        assert all(note.isprintable() for note in result.notes)
