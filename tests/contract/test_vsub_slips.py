# SPDX-License-Identifier: Apache-2.0
"""vsub when something is wrong that nobody meant: a slip in a header, an output that is closed, a signal at once."""

import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_vsub import Front, front, made
from tests.contract.test_vsub_slurm import left_by
from vtorque import qsub

__all__ = ["front"]
pytestmark = pytest.mark.runs

SCRIPT = b"#!/bin/sh\necho\n"
SLIPS = {
    "a blank too many": b"#PBS -vm ram=2G, vcpus=2\n",
    "a blank too many, inert": b"#VM ram=2G vcpus=2\n",
    "an option behind the inert spelling": b"#VM ram = 2G -N foo\n",
    "no value": b"#PBS -vm\n",
    "a quote without its other half": b"#PBS -N 'x\n#VM ram=2G\n",
    "a line that goes on behind the end": b"#PBS -vm ram=2G \\",
    "an option of ours": b"#PBS --dry-run\n#PBS -vm ram=2G\n",
    "DOS line ends": b"#PBS -vm ram=2G\r\necho\r\n",
    "in the next line": b"#PBS -N x \\\n  -vm ram=2G, vcpus=2\n",
    "glued": b"#PBS-vm ram=2G, vcpus=2\n",
}


def shell(front: Front, line: str, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[bytes]:
    """vsub with what the shell does to its descriptors."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$@" {line}', "sh", front.root / "scripts/vsub", *words], check=False, capture_output=True,
        cwd=front.root, stdin=stdin, env={"PATH": "/usr/bin:/bin"},
    )


class TestHeaders:
    @pytest.mark.parametrize("slip", SLIPS)
    def test_a_script_that_asks_for_guests_does_not_run_without_them(self, front: Front, slip: str) -> None:
        done = front.run(front.script(b"#!/bin/sh\n" + SLIPS[slip]))
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(b"vsub: job.sh: ") and done.stderr.count(b"\n") == 1
        assert not (front.root / "argv").exists()

    @pytest.mark.parametrize("text", [
        b"#PBS -N x # don't say -vmx\n", b"#PBS -v m -N 'vm\n", b"# VM ram=2G\n#PBS -N 'vm\n", b"#X -vm ram=1G\0",
    ])
    def test_one_that_does_not_is_qsubs_affair_as_ever(self, front: Front, text: bytes) -> None:
        name = front.script(text)
        assert front.run(name).stdout == b"12.srv\n" and front.argv() == [os.fsencode(name)]

    @pytest.mark.parametrize(("prefix", "status"), [("#X", 2), ("", 0)])
    def test_with_another_prefix_others_are_meant(self, front: Front, prefix: str, status: int) -> None:
        name = front.script(b"#PBS -vm ram=1G, vcpus=1\n#X -vm ram=1G, vcpus=1\n")
        assert front.run("-C", prefix, name).returncode == status

    def test_blanks_around_the_equals_sign_are_as_in_the_users_own_file(self, front: Front) -> None:
        assert front.run(front.script(b"#!/bin/sh\n#VM ram = 2G\n#VM vcpus= 2\necho\n")).returncode == 0
        assert (front.request().memory_mib, front.request().vcpus) == (2048, 2)

    def test_what_qsub_takes_for_an_interactive_job_or_an_array_is_one(self, front: Front) -> None:
        interactive = front.script(b"#!/bin/sh\n#PBS -I\necho\n")
        for words in ([interactive], ["-W", "interactive=true"], ["-W", "umask=022, interactive = true"]):
            assert front.run("-vm", "vcpus=1", *words).returncode == 0
            assert b"-x" in front.argv(), words
        assert front.run("-vm", "vcpus=1", "-W", "interactive=true", "-t", "1-2").returncode == 2
        assert front.run("-vm", "vcpus=1", "-x", interactive).returncode == 0 and front.argv().count(b"-x") == 1
        done = front.run("--wait", "-vm", "vcpus=1", interactive)
        assert b"--wait follows one batch job" in done.stderr
        front.run("-vm", "vcpus=1", "-W", "job_array_request=1-3,7,umask=022", front.script(SCRIPT))
        assert front.request().elements == 4


class TestNames:
    @pytest.mark.parametrize("name", ["nf-ALIGN_(s1)", "job#1", "a[1]", "a,b", "x" * 230, "~", "$(id)", "q'uote"])
    def test_torque_takes_what_has_a_shape(self, front: Front, name: str) -> None:
        assert front.run("-N", name, "-vm", "vcpus=1", front.script(SCRIPT)).returncode == 0
        assert front.argv()[:2] == [b"-N", name.encode()]

    @pytest.mark.parametrize("name", ["$(id).sh", "q'uote.sh", "a;b.sh", "*"])
    def test_so_it_does_of_a_script(self, front: Front, name: str) -> None:
        done = front.run("-vm", "vcpus=1", front.script(b"#!/bin/sh\n#PBS -q a\necho\n", name))
        assert (done.returncode, done.stderr) == (0, b"")
        directory = made(front)
        assert (directory / "submit" / name).is_file() and (directory / "script" / name).is_file()
        assert subprocess.run(["/bin/sh", "-n", directory / "submit" / name], check=False).returncode == 0

    def test_openpbs_does_not(self, front: Front) -> None:
        front.configure(BATCH_SYSTEM="openpbs")
        done = front.run("-N", "a(b)", "-vm", "vcpus=1", front.script(SCRIPT))
        assert (done.returncode, b"cannot be a job's name" in done.stderr) == (2, True)


class TestPrograms:
    @pytest.mark.parametrize("words", [[], ["-q", "long", "-"], ["-Q"]])
    def test_a_qsub_that_is_not_there_is_named(self, front: Front, words: list[str]) -> None:
        (front.root / "qsub").unlink()
        done = front.run(*words, *([] if words else [front.script(SCRIPT)]))
        assert done.returncode == 1
        assert done.stderr.startswith(f"vsub: cannot run {front.root}/qsub: No such file".encode())
        assert b"PBS_QSUB_ON_FE" in done.stderr

    def test_vsub_in_place_of_qsub_does_not_start_itself_for_ever(self, front: Front) -> None:
        (front.root / "qsub").unlink()
        (front.root / "qsub").symlink_to("scripts/vsub")
        name = front.script(SCRIPT)
        for words in ([name], ["-vm", "vcpus=1", name]):
            done = subprocess.run([front.root / "scripts/vsub", *words], check=False, capture_output=True, timeout=60)
            assert (done.returncode, b"qsub is vsub itself" in done.stderr) == (78, True)
        assert front.run("--help").returncode == 0


class TestScripts:
    def test_what_is_no_file_is_not_waited_for(self, front: Front) -> None:
        os.mkfifo(front.root / "fifo")
        assert front.run("fifo").stdout == b"12.srv\n", "qsub itself complains"
        for path in ("fifo", "/dev/zero"):
            done = front.run("-vm", "vcpus=1", path)
            assert (done.returncode, b"the script is not a regular file" in done.stderr) == (2, True)

    def test_what_has_no_end_is_not_read_to_it(self, front: Front) -> None:
        with Path("/dev/zero").open("rb") as zero:
            for words in ([], ["-vm", "vcpus=1"]):
                done = shell(front, "", *words, stdin=zero.fileno())
                assert (done.returncode, b"has more than 64 MiB" in done.stderr) == (1, True)
        assert not (front.root / "argv").exists()

    def test_a_large_file_is_qsubs_affair_unless_it_asks_for_guests(self, front: Front) -> None:
        name = front.script(b"#PBS -q a\necho\n")
        os.truncate(name, (64 << 20) + 1)
        assert front.run(name).returncode == 0
        name = front.script(b"#VM vcpus=1\necho\n")
        os.truncate(name, (64 << 20) + 1)
        done = front.run(name)
        assert (done.returncode, b"job.sh: the script has more than 64 MiB" in done.stderr) == (2, True)

    def test_an_empty_name_is_standard_input_as_to_qsub(self, front: Front) -> None:
        assert front.run("-vm", "vcpus=1", "", stdin=SCRIPT).returncode == 0
        assert front.argv()[-1].endswith(b"/submit/STDIN")


class TestOutput:
    def test_a_job_whose_id_cannot_be_written_is_there_all_the_same(self, front: Front) -> None:
        for redirection in (">/dev/full", ">&-", "| :"):
            status = "; exit $?" if "|" not in redirection else ""
            done = shell(front, f"{redirection}{status}", "-vm", "vcpus=1", front.script(SCRIPT))
            assert b"vsub: job 12.srv is submitted; its id could not be written: " in done.stderr, redirection
            assert done.returncode == (1 if status else 0) and made(front).is_dir()

    @pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
    def test_a_note_that_nobody_takes_is_no_reason_not_to_submit(self, front: Front, redirection: str) -> None:
        done = shell(front, redirection, "-vm", "vcpus=1,iocm=true", front.script(SCRIPT))
        assert (done.returncode, done.stdout) == (0, b"12.srv\n")

    @pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
    @pytest.mark.parametrize("words", [["--help"], ["--version"], ["--dry-run"], ["--explain"], ["--generate", "out"]])
    def test_what_cannot_be_shown_is_said_in_one_line(self, front: Front, words: list[str], redirection: str) -> None:
        done = shell(front, redirection, *words, "-vm", "vcpus=1", front.script(SCRIPT))
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1
        assert done.stderr.startswith(b"vsub: cannot write to standard output: ")

    def test_qsub_finds_closed_what_was_closed(self, front: Front) -> None:
        (front.root / "qsub").write_text("#!/bin/sh\nls -l /proc/$$/fd >&2\n")
        def found(*program: str | Path) -> list[bytes]:
            words = ["/bin/sh", "-c", '"$@" <&- >&-', "sh", *program]
            said = subprocess.run(words, capture_output=True, check=False).stderr
            return [line.split()[-3] for line in said.splitlines() if b"->" in line]

        assert found(front.root / "scripts/vsub", "-N", "x") == found(front.root / "qsub")

    def test_where_it_went_wrong_is_said(self, front: Front) -> None:
        name = front.script(SCRIPT)
        line = f'mkdir gone && cd gone && rmdir ../gone && exec {front.root}/scripts/vsub -vm vcpus=1 {name}'
        done = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, cwd=front.root)
        assert (done.returncode, b"vsub: the working directory is not there" in done.stderr) == (2, True)

    def test_help_has_all_images_though_one_is_broken_and_says_that_there_are_more(self, front: Front) -> None:
        entry = (front.root / "images/a.qcow2.json").read_text()
        (front.root / "images/b.qcow2.json").write_text("{")
        for number in range(25):
            name = f"c{number:02}.qcow2"
            (front.root / f"images/{name}.json").write_text(entry.replace("a.qcow2", name))
        shown = front.run("--help").stdout
        assert b"b.qcow2                    the catalogue entry of b.qcow2 is broken" in shown
        assert b"image: c17.qcow2" in shown and b"and 7 images more: vmgr show images" in shown


class TestTerminal:
    @pytest.fixture
    def terminal(self) -> Iterator[tuple[int, int]]:
        ours, theirs = pty.openpty()
        yield ours, theirs
        os.close(ours)
        os.close(theirs)

    @pytest.mark.parametrize(("words", "says"), [
        (["-vm", "job.sh"], b"'job.sh' is not key=value"), (["-vm", "foo=1"], b"'foo' is not a key"),
    ])
    def test_what_is_wrong_is_said_before_somebody_types(
        self, front: Front, terminal: tuple[int, int], words: list[str], says: bytes
    ) -> None:
        done = shell(front, "", *words, stdin=terminal[1])
        assert (done.returncode, says in done.stderr) == (2, True)

    def test_whoever_has_to_type_is_told(self, front: Front, terminal: tuple[int, int]) -> None:
        os.write(terminal[0], b"#VM vcpus=1\necho\n\4")
        done = shell(front, "", "--dry-run", stdin=terminal[1])
        assert done.returncode == 0 and done.stderr == b"vsub: no script is named: type it, and Ctrl-D at its end\n"


class TestSignals:
    def test_an_early_one_ends_it_without_a_word(self, front: Front) -> None:
        name = front.script(b"#!/bin/sh\n#VM vcpus=1\necho\n")
        (front.root / "qsub").write_text("#!/bin/sh\nexec sleep 5\n")
        for delay in range(0, 120, 8):
            vsub = subprocess.Popen(
                [front.root / "scripts/vsub", name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True,
            )
            time.sleep(delay / 1000)
            # What is not yet a program of its own is this one.
            if b"vsub" in Path(f"/proc/{vsub.pid}/cmdline").read_bytes():
                os.killpg(vsub.pid, signal.SIGINT)
            said = vsub.communicate()[1]
            # Until it has run our first line the interpreter speaks for itself.
            ours = b"core initialized" not in said and b"import _signal" not in said
            assert said in (b"", b"vsub: interrupted\n") or not ours, (delay, said)
        assert left_by(front) == set()

    def test_whoever_stops_waiting_hears_that_the_job_goes_on(self, front: Front) -> None:
        qstat = front.root / "qstat"
        qstat.write_text(f"#!/bin/sh\ntouch {front.root}/asked\necho job_state = R\n")
        qstat.chmod(0o755)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            (front.root / "asked").unlink(missing_ok=True)
            vsub = subprocess.Popen(
                [front.root / "scripts/vsub", "--wait", "-vm", "vcpus=1", front.script(SCRIPT)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            while not (front.root / "asked").exists():
                time.sleep(0.01)
            vsub.send_signal(number)
            assert b"vsub: job 12.srv goes on\n" in vsub.communicate()[1]
            assert vsub.returncode == 128 + number


def test_an_empty_directory_to_generate_is_refused_and_swallows_nothing(front: Front) -> None:
    done = front.run("--generate=", "-vm", "vcpus=1", front.script(SCRIPT))
    assert (done.returncode, done.stderr) == (2, b"vsub: --generate needs a value\n")


def test_what_could_not_be_generated_does_not_stand_in_the_way(front: Front) -> None:
    name, template = front.script(SCRIPT), front.root / "templates-vm/domain.xml"
    template.rename(template.with_suffix(".away"))
    assert front.run("--generate", "out", "-vm", "vcpus=1", name).returncode != 0
    template.with_suffix(".away").rename(template)
    assert front.run("--generate", "out", "-vm", "vcpus=1", name).returncode == 0


def test_a_name_of_a_long_option_is_put_right() -> None:
    with pytest.raises(qsub.UsageError) as caught:
        qsub.parse(["--dryrun", "-vm", "vcpus=1"])
    assert caught.value.hint == "did you mean --dry-run?"
