# SPDX-License-Identifier: Apache-2.0
"""Completion in the shells that read it, and the manual pages in the program that shows them."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from vtorque import vmoptions
from vtorque.cli import completion

pytestmark = pytest.mark.runs

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "contrib" / "completion"
PAGES = sorted((ROOT / "doc" / "man").iterdir())
VMGR = """\
#!/bin/sh
[ "$*" = "image list" ] || exit 2
echo asked >> "$COUNT"
printf 'debian-12.qcow2              debian       400 MiB  Debian 12\\nown.qcow2 debian 1 MiB x\\n'
"""
# What readline ends a word at: $COMP_WORDBREAKS as bash sets it.
BREAKS = "[ \t\n\"'@><=;|&(:]"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a vmgr on its PATH, and some files."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vmgr").write_text(VMGR)
    (tmp_path / "bin/vmgr").chmod(0o755)
    (tmp_path / "job.sh").touch()
    (tmp_path / "jobs").mkdir()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    return {"PATH": f"{place}/bin:/usr/bin:/bin", "COUNT": str(place / "asked"), "TERM": "dumb", "HOME": str(place)}


def complete(place: Path, *lines: str) -> list[list[str]]:
    """What bash is told for each of these lines, one after the other in one shell."""
    script = ['. "$1"', '. "$2"']
    for line in lines:
        # As readline cuts it: a run of separators that are no blanks is a word, too.
        words: list[str] = re.findall(r"[^\s\"'@><=;|&(:]+|[@><=;|&(:]+", line)
        current = re.split(BREAKS, line)[-1]
        if not current and not line.endswith(tuple("@><=;|&(:")):
            words.append("")
        quoted = " ".join(f"'{word}'" for word in words)
        script += [
            f"COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}",
            f"COMPREPLY=(); _{words[0]} {words[0]} '{current}' ''",
            "printf '%s\\n' \"${COMPREPLY[@]}\"; echo .",
        ]
    done = subprocess.run(
        ["/bin/bash", "--norc", "-uc", "\n".join(script), "bash", SCRIPTS / "vsub.bash", SCRIPTS / "vmgr.bash"],
        env=environment(place), cwd=place, capture_output=True, text=True, timeout=30, check=True,
    )
    assert done.stderr == ""
    answers = done.stdout.split("\n.\n")[:-1]
    return [sorted(filter(None, answer.split("\n"))) for answer in answers]


class TestVsub:
    def test_keys_and_after_a_comma_those_that_are_left(self, place: Path) -> None:
        every, some, second = complete(place, "vsub -vm ", "vsub -N x -vm v", "vsub -vm vcpus=4,")
        assert every == sorted(f"{key}=" for key in vmoptions.KEYS)
        assert some == sorted(f"{key}=" for key in vmoptions.KEYS if key.startswith("v"))
        # Readline replaces what follows the =, so that has to come back as well.
        assert second == sorted(f"4,{key}=" for key in vmoptions.KEYS if key != "vcpus")

    @pytest.mark.parametrize("text, answers", [
        ("vrdma=", ["false", "true"]), ("unclot=t", ["true"]), ("ram=2G,iocm=", ["false", "true"]),
        ("fs_type=", ["ramdisk", "sharedfs"]), ("distro=d", ["debian"]), ("arch=", ["x86_64"]), ("vcpus=", ["auto"]),
        ("vcpu_pinning=j", ["job.sh", "jobs"]), ("vcpu_pinning=a", ["auto"]), ("vm_prologue=job.", ["job.sh"]),
        ("vms_per_node=", []), ("nonsense=", []),
    ])
    def test_values_of_keys(self, place: Path, text: str, answers: list[str]) -> None:
        assert complete(place, f"vsub -vm {text}") == [answers]

    def test_images_are_asked_for_once(self, place: Path) -> None:
        assert complete(place, "vsub -vm img=", "vsub -vm ram=1G,img=o", "vmgr image show d") == [
            ["debian-12.qcow2", "own.qcow2"], ["own.qcow2"], ["debian-12.qcow2"],
        ]
        assert (place / "asked").read_text() == "asked\n"

    def test_no_image_is_asked_for_without_need(self, place: Path) -> None:
        complete(place, "vsub -vm ", "vsub ", "vsub -", "vmgr ", "vmgr image ")
        assert not (place / "asked").exists()

    def test_options(self, place: Path) -> None:
        every, ours = complete(place, "vsub -", "vsub --")
        assert every == sorted([*completion.own_options(), *completion.qsub_options()])
        assert ours == ["--batch", "--dry-run", "--explain", "--generate", "--help", "--version", "--wait"]

    @pytest.mark.parametrize("line, answers", [
        ("vsub --batch ", ["local", "openpbs", "slurm", "torque"]), ("vsub --batch=s", ["slurm"]),
    ])
    def test_batch_systems(self, place: Path, line: str, answers: list[str]) -> None:
        assert complete(place, line) == [answers]

    @pytest.mark.parametrize("line, answers", [
        ("vsub j", ["job.sh", "jobs"]), ("vsub -vm ram=1G j", ["job.sh", "jobs"]), ("vsub -I j", ["job.sh", "jobs"]),
        ("vsub -o j", ["job.sh", "jobs"]), ("vsub -w j", ["jobs"]), ("vsub --generate j", ["jobs"]),
        ("vsub --generate=j", ["jobs"]), ("vsub -N j", []), ("vsub -l ", []),
    ])
    def test_files_where_files_may_stand(self, place: Path, line: str, answers: list[str]) -> None:
        assert complete(place, line) == [answers]


class TestVmgr:
    @pytest.mark.parametrize("line, answers", [
        ("vmgr ima", ["image"]), ("vmgr image ver", ["verify"]), ("vmgr lab st", ["status"]),
        ("vmgr lab status -", ["--help", "--json"]), ("vmgr lab status ", ["--help", "--json"]),
        ("vmgr image build d", ["debian-12"]), ("vmgr image build --force d", ["debian-12"]),
        ("vmgr image show --directory j", ["jobs"]), ("vmgr image show --directory=j", ["jobs"]),
        ("vmgr image show --directory /srv own", ["own.qcow2"]), ("vmgr image show own.qcow2 --js", ["--json"]),
    ])
    def test_commands_arguments_and_their_values(self, place: Path, line: str, answers: list[str]) -> None:
        assert complete(place, line) == [answers]


@pytest.mark.parametrize("typed, shown", [
    ("vsub -vm img=de\t", "vsub -vm img=debian-12.qcow2 "),
    ("vsub -vm fs_\tr\t", "vsub -vm fs_type=ramdisk "),
    ("vsub -vm vcpus=4,vrd\tf\t", "vsub -vm vcpus=4,vrdma=false "),
    ("vsub -vm ram=1G,vm_pro\tjob\t", "vsub -vm ram=1G,vm_prologue=job"),
    ("vsub --gen\tjobs\t", "vsub --generate jobs/"),
    ("vmgr image verify o\t", "vmgr image verify own.qcow2 "),
    ("true; vmgr la\tsta\t--j\t", "true; vmgr lab status --json "),
])
def test_a_user_who_types_it(place: Path, typed: str, shown: str) -> None:
    rc = place / "rc"
    rc.write_text(f". {SCRIPTS}/vsub.bash\n. {SCRIPTS}/vmgr.bash\nPS1='ready> '\nbind 'set bell-style none'\n"
                  "bind 'set enable-bracketed-paste off'\n")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(place)
        os.execve("/bin/bash", ["bash", "--rcfile", str(rc), "--noprofile", "-i"], environment(place))
    try:
        assert "ready> " in read(terminal, "ready> ")
        os.write(terminal, typed.encode())
        assert f"ready> {shown}" in "ready> " + read(terminal, shown)
    finally:
        os.kill(child, 9)
        os.close(terminal)
        os.waitpid(child, 0)


def read(terminal: int, until: str) -> str:
    """What the terminal shows until that stands there, or for ten seconds."""
    shown = ""
    end = time.monotonic() + 10
    while until not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 4096).decode()
    return shown


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
@pytest.mark.parametrize("name", ["_vsub", "_vmgr"])
def test_zsh_can_read_its_own(name: str) -> None:
    assert subprocess.run(["zsh", "-fn", SCRIPTS / name], check=False).returncode == 0


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_shown_without_a_warning(path: Path) -> None:
    checks = {"groff": ["groff", "-man", "-Tutf8", "-ww"], "mandoc": ["mandoc", "-man", "-Tutf8", "-Wwarning"]}
    present = [words for program, words in checks.items() if shutil.which(program)]
    if not present:
        pytest.skip("there is neither groff nor mandoc")
    for words in present:
        done = subprocess.run([*words, path], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        assert "vtorque" in done.stdout
