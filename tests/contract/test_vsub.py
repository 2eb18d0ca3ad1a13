# SPDX-License-Identifier: Apache-2.0
"""vsub and a qsub promise each other: the same words in, the same bytes out, and nothing left when it says no."""

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import program
from tests.contract import corpus
from vtorque import request
from vtorque.model import VmRequest
from vtorque.run import ExitStatus

pytestmark = pytest.mark.runs

JOBS = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".vtorque"

HOST = socket.gethostname().partition(".")[0]
CROWD, AT_ONCE = 1000, 100

# Gives every call an id of its own, and keeps its words.
MANY = """\
#!/bin/sh
id=$$.{server}
printf '%s\\0' "$@" >{root}/submitted.$id
echo $id
"""

# Logs its words with NULs between them, says what it is told to say.
QSUB = """\
#!/bin/sh
[ $# -eq 0 ] || printf '%s\\0' "$@" >{root}/argv
[ {reads} = False ] || cat >{root}/stdin
printf '%b' "{prints}"
printf '%b' "{complains}" >&2
exit {status}
"""


# Becomes what OpenPBS's mom does of an interactive job: its shell, the last that -S says, under a name that tells
# it to be a login shell, and without words (start_exec.c, finish_exec).
OPENPBS_INTERACTIVE = """\
#!/usr/bin/python3
import os, sys
shells = [sys.argv[number + 1] for number, word in enumerate(sys.argv) if word == "-S"]
os.execve(shells[-1], ["-" + os.path.basename(shells[-1])], {**os.environ, "PBS_JOBID": "12.srv",
          "PBS_ENVIRONMENT": "PBS_INTERACTIVE"})
"""


class Front:
    """A front end with its own installation and a qsub that does as it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        program.copy_to(root)
        (root / "etc").mkdir()
        (root / "images").mkdir()
        (root / "images/a.qcow2.json").write_text(json.dumps({
            "schema": 1, "name": "a.qcow2", "distro": "debian", "arch": "x86_64", "sha256": "", "description": "",
        }))
        (root / "etc/vtorque.yaml").write_text(
            f"VM_IMG_DIR: {root}/images\nIMG_DEFAULT: a.qcow2\nPBS_QSUB_ON_FE: {root}/qsub\n"
            f"PBS_QSUB_ON_NODES: {root}/qsub\nMAX_VCPUS: 8\nVCPUS_DEFAULT: 1\nRAM_DEFAULT: 1024\n"
        )
        self.qsub()

    def configure(self, **options: object) -> None:
        """More lines for the site's configuration."""
        with (self.root / "etc/vtorque.yaml").open("a") as file:
            file.writelines(f"{name}: {value}\n" for name, value in options.items())

    def qsub(
        self, *, prints: str = "12.srv\\n", complains: str = "", status: int = 0, reads: bool = False
    ) -> None:
        path = self.root / "qsub"
        path.write_text(
            QSUB.format(root=self.root, prints=prints, complains=complains, status=status, reads=reads)
        )
        path.chmod(0o755)

    def script(self, text: bytes, name: str = "job.sh") -> str:
        (self.root / name).write_bytes(text)
        return str(self.root / name)

    def run(
        self, *words: str | bytes, stdin: bytes = b"", **environ: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.root / "scripts/vsub", *words], capture_output=True, check=False, input=stdin, cwd=self.root,
            env={"PATH": "/usr/bin:/bin", "MINE": "x", **environ},
        )

    def request(self) -> VmRequest:
        """What the last call to qsub carried."""
        return request.decode(self.argv()[-2].partition(b"=")[2].decode())

    def argv(self) -> list[bytes]:
        """The words of the one call to qsub."""
        return (self.root / "argv").read_bytes().split(b"\0")[:-1]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    before = set(JOBS.glob("*"))
    yield Front(tmp_path)
    for path in set(JOBS.glob("*")) - before:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    if not before and JOBS.exists():
        JOBS.rmdir()


def made(front: Front) -> Path:
    """The job directory of what was submitted last."""
    return Path(os.fsdecode(front.argv()[-1])).parents[1]


def test_without_vm_qsub_gets_the_very_same_words(front: Front) -> None:
    front.qsub(prints="7.srv\\n", complains="a warning\\n", status=3)
    for words in corpus.LINES:
        (front.root / "argv").unlink(missing_ok=True)
        done = front.run(*words)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"7.srv\n", b"a warning\n"), words
        assert (front.argv() if words else []) == [os.fsencode(word) for word in words]


def test_without_vm_openpbs_gets_the_very_same_words(front: Front) -> None:
    front.configure(BATCH_SYSTEM="openpbs")
    for words in corpus.OPENPBS_LINES:
        (front.root / "argv").unlink(missing_ok=True)
        done = front.run(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"12.srv\n", b""), words
        assert front.argv() == [os.fsencode(word) for word in words]


def test_with_vm_the_users_words_come_through_as_well(front: Front) -> None:
    """Every line of the corpus that qsub would take, with a request: words are only added, or raised."""
    name = front.script(b"#!/bin/sh\necho\n")
    for words in corpus.VM_LINES:
        (front.root / "argv").unlink(missing_ok=True)
        done = front.run("-vm", "vcpus=1", *words, name)
        assert done.returncode == 0, (words, done.stderr)
        argv = front.argv()
        assert argv[:len(words)] == [os.fsencode(word) for word in words]
        added = argv[len(words):-3]
        assert added[::2] == [b"-l"] * (len(added) // 2), words
        assert argv[-3] == b"-l" and argv[-2].startswith(b"other=vt1.")


def test_with_vm_qsub_gets_the_users_words_the_request_and_the_wrapper(front: Front) -> None:
    name = front.script(b"#!/bin/sh\necho\n")
    done = front.run("-N", "a.b", "-vm", "vcpus=3", "-lwalltime=60", "-vm", "RAM=2G", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"12.srv\n", b"")
    *passed, option, carried, wrapper = front.argv()
    assert passed[:3] == [b"-N", b"a.b", b"-lwalltime=60"]
    assert passed[3::2] == [b"-l"] * 3
    assert passed[4::2] == [b"nodes=1:ppn=4", b"mem=4244mb", b"naccesspolicy=uniqueuser"]
    assert option == b"-l" and carried.startswith(b"other=vt1.")
    asked = request.decode(carried.removeprefix(b"other=").decode())
    assert (asked.image, asked.vcpus, asked.memory_mib) == ("a.qcow2", 3, 2048)
    assert wrapper.endswith(b"/job.sh"), "qsub names the job after the script"


def test_the_script_is_kept_byte_for_byte_and_secrets_are_private(front: Front) -> None:
    text = b"#!/bin/bash\n#PBS -N x\n  indent\\\n\tcaf\xe9 $'\\n' `*`\nno newline at the end"
    front.run("-vm", "vcpus=1", "-v", "MINE,A=1", front.script(text))
    directory = made(front)
    assert (directory / "script/job.sh").read_bytes() == text
    assert b"#PBS -N x\n" in (directory / "submit/job.sh").read_bytes()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (directory, directory / "key", directory / "job.json")}
    assert modes == {directory.name: 0o700, "key": 0o600, "job.json": 0o600}
    assert json.loads((directory / "job.json").read_text())["exported"] == ["A", "MINE"]
    assert (JOBS / "12.srv").readlink() == Path(directory.name)


def test_a_request_in_the_script_counts_and_the_command_line_wins(front: Front) -> None:
    name = front.script(b"#!/bin/sh\n#PBS -vm vcpus=2,ram=1G\n#PBS -l walltime=9\necho\n#PBS -vm vcpus=7\n")
    front.run("-vm", "vcpus=4", name)
    asked = request.decode(front.argv()[-2].removeprefix(b"other=").decode())
    assert (asked.vcpus, asked.memory_mib) == (4, 1024)
    wrapper = (made(front) / "submit/job.sh").read_text()
    assert "-l walltime=9" in wrapper and "-vm" not in wrapper


def test_when_qsub_says_no_its_words_and_status_are_passed_on_and_nothing_is_left(front: Front) -> None:
    front.qsub(prints="half\\n", complains="qsub: Unknown queue\\n", status=172)
    before = set(JOBS.glob("*"))
    done = front.run("-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n"))
    assert (done.returncode, done.stdout, done.stderr) == (172, b"half\n", b"qsub: Unknown queue\n")
    assert set(JOBS.glob("*")) == before


WRONG = {
    "unknown key": (["-vm", "vcpu=1"], 2, "did you mean vcpus?"),
    "no value": (["-vm", "vcpus"], 2, "is not key=value"),
    "bad size": (["-vm", "ram=8X"], 2, "is not a size"),
    "over the site's limit": (["-vm", "vcpus=9"], 2, "this cluster allows at most 8"),
    "unknown image": (["-vm", "img=b.qcow2"], 2, "did you mean a.qcow2?"),
    "a path": (["-vm", "img=/tmp/a.qcow2"], 2, "must be the name of"),
    "unknown option": (["-vm", "vcpus=1", "-Y"], 2, "-Y is not an option of qsub"),
    "-vm without a value": (["-vm"], 2, "needs a value"),
    "interactive array": (["-vm", "vcpus=1", "-I", "-t", "1-2"], 2, "-I and -t do not go together"),
    "no disk": (["-vm", "disk=/x"], 2, "there is no such file"),
    "other": (["-vm", "vcpus=1", "-l", "other=mine"], 2, "carries the request"),
    "wait for an array": (["--wait", "-vm", "vcpus=1", "-t", "1-2"], 2, "--wait follows one batch job"),
    "wait without guests": (["--wait"], 2, "--wait is for jobs in guests"),
    "processes anywhere": (["-vm", "vcpus=1", "-l", "procs=4"], 2, "guests need whole shares of nodes"),
    "auto without cores": (["-vm", "vcpus=auto"], 2, "needs cores to fit into"),
    "too long": (["-vm", "vms_per_node=20,vcpus=8,vcpu_pinning=../long"], 2, "fit into a job"),
    "a name with a dash": (["-N", "-x", "-vm", "vcpus=1"], 2, "'-x' cannot be a job's name"),
    "a name with a blank": (["-N", "a b", "-vm", "vcpus=1"], 2, "cannot be a job's name"),
    "a name with a newline": (["-N", "a\nb", "-vm", "vcpus=1"], 2, r"'a\nb' cannot be a job's name"),
    "a name for printf": (["-N", "%s", "-vm", "vcpus=1"], 2, "'%s' cannot be a job's name"),
    "a long name": (["-N", "n" * 300, "-vm", "vcpus=1"], 2, "at most 230 characters"),
    "a foreign name": (["-N", "café", "-vm", "vcpus=1"], 2, "'café' cannot be a job's name"),
    "no component": (["-vm", "vrdma=perhaps"], 2, "must be true, yes, enabled or 0"),
    "a directory to generate": (["-vm", "vcpus=1", "--generate", "/tmp"], 2, "/tmp is there already"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_done(front: Front, case: str) -> None:
    words, status, says = WRONG[case]
    before = set(JOBS.glob("*"))
    # The script comes first, so that an option without its value has none.
    (front.root.parent / "long").write_text(
        "".join(",".join(str(1000 + 16 * guest + 2 * n) for n in range(8)) + "\n" for guest in range(20))
    )
    done = front.run(front.script(b"#!/bin/sh\necho\n"), *words)
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr.count(b"\n") == 1 and says in done.stderr.decode()
    assert set(JOBS.glob("*")) == before and not (front.root / "argv").exists()


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [(b"#!/bin/sh\r\necho\r\n", 2, "DOS"), (b"\x7fELF\0\0", 2, "not a text"), (None, 1, "No such file")],
)
def test_scripts_that_qsub_would_not_take(front: Front, text: bytes | None, status: int, says: str) -> None:
    name = front.script(text) if text is not None else str(front.root / "absent")
    done = front.run("-vm", "vcpus=1", name)
    assert done.returncode == status and says in done.stderr.decode()


def test_a_broken_configuration_names_every_mistake(front: Front) -> None:
    (front.root / "etc/vtorque.yaml").write_text("VCPUS_DEFAULT: many\nTIMOUT: 3\n")
    done = front.run("-vm", "vcpus=1", front.script(b"#!/bin/sh\n"))
    assert done.returncode == 78
    assert done.stderr.count(b"\n") == 2 and b"did you mean TIMEOUT?" in done.stderr


def test_help_is_there_for_whoever_types_and_before_there_is_a_configuration(front: Front) -> None:
    (front.root / "etc/vtorque.yaml").unlink()
    ours, theirs = os.openpty()
    try:
        for words, status in ((["-h"], 0), (["--help"], 0), (["-h", "job.sh"], 78)):
            done = subprocess.run(
                [front.root / "scripts/vsub", *words], stdin=theirs, capture_output=True, check=False, cwd=front.root
            )
            assert done.returncode == status
            assert (b"usage: vsub" in done.stdout) == (status == 0)
            assert b"there is no configuration" in done.stdout + done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


def test_help_teaches_by_example_and_tells_of_the_site(front: Front) -> None:
    done = front.run("--help")
    assert done.returncode == 0 and b"vsub -vm vcpus=4,ram=8G" in done.stdout and done.stderr == b""
    assert b"limit: vcpus at most 8" in done.stdout and b"image: a.qcow2" in done.stdout
    assert front.run("--version").stdout.startswith(b"vtorque ")


class TestKinds:
    def test_a_script_on_standard_input(self, front: Front) -> None:
        done = front.run("-vm", "vcpus=2", stdin=b"#PBS -l walltime=5\n#VM ram=2G\nhostname\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"12.srv\n", b"")
        assert front.argv()[-1].endswith(b"/submit/STDIN"), "qsub calls such a job STDIN"
        assert (front.request().vcpus, front.request().memory_mib) == (2, 2048)
        assert (made(front) / "script/STDIN").read_bytes().endswith(b"hostname\n")

    def test_without_vm_qsub_reads_standard_input_itself(self, front: Front) -> None:
        front.qsub(reads=True)
        text = b"#PBS -N x\necho \xff\n" * 9999
        front.run("-q", "long", stdin=text)
        assert (front.root / "stdin").read_bytes() == text
        front.run("-q", "long", "-", stdin=text)
        assert (front.root / "stdin").read_bytes() == text

    def test_an_empty_script_is_refused(self, front: Front) -> None:
        done = front.run("-vm", "vcpus=1", stdin=b" \n")
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr == b"vsub: the script on standard input is empty\n"

    def test_an_interactive_job_reads_no_script_and_leaves_nothing(self, front: Front) -> None:
        before = set(JOBS.glob("*"))
        done = front.run("-I", "-vm", "vcpus=2", stdin=b"typed")
        assert (done.returncode, done.stdout) == (0, b"12.srv\n")
        argv = front.argv()
        assert argv[0] == b"-I" and b"-x" in argv and argv[-1].endswith(b"/submit/STDIN")
        assert set(JOBS.glob("*")) == before, "the session is over when qsub is"

    def test_an_array_carries_the_number_of_its_elements(self, front: Front) -> None:
        front.qsub(prints="12[].srv\\n")
        front.run("-t", "1-3,7,10-12%2", "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n"))
        assert front.request().elements == 7
        assert (JOBS / "12[].srv").readlink() == Path(made(front).name)

    @pytest.mark.parametrize(("array", "told"), [("1-3", "-t 1-3%1"), ("1-3%2", "-t 1-3%1"), ("1-3%1", ""), ("3", "")])
    def test_elements_that_would_want_one_disk_at_once_are_told_of(self, front: Front, array: str, told: str) -> None:
        front.qsub(prints="12[].srv\\n")
        done = front.run("-t", array, "-vm", "vcpus=1,disk=data.img:1G", front.script(b"#!/bin/sh\necho\n"))
        assert done.returncode == 0
        assert (b"one job has it at a time" in done.stderr) == bool(told)
        assert told.encode() in done.stderr

    def test_openpbs_has_arrays_and_requests_of_its_own(self, front: Front) -> None:
        front.configure(BATCH_SYSTEM="openpbs")
        front.qsub(prints="12[].srv\\n")
        front.run("-J", "1-9:2", "-P", "project", "-R", "e", "-f", "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n"))
        assert front.argv()[-2].startswith(b"site=vt1.") and front.request().elements == 5
        assert b"select=1:ncpus=2:mem=3202mb" in b" ".join(front.argv())
        second = (made(front) / "submit/job.sh").read_bytes().splitlines()[1]
        assert second == b"#VTORQUE " + front.argv()[-2].removeprefix(b"site="), "classic scripts look there"
        done = front.run("-vm", "vcpus=1", "--", "/bin/echo", "a b", "-x")
        assert done.returncode == 0, done.stderr
        assert (made(front) / "script/STDIN").read_bytes() == b"#!/bin/sh\nexec /bin/echo 'a b' -x\n"

    @pytest.mark.parametrize("words", [["-I"], ["-I", "-S", "/bin/zsh"], ["-IS/bin/zsh"]])
    def test_openpbs_runs_our_wrapper_in_place_of_an_interactive_jobs_shell(
        self, front: Front, words: list[str]
    ) -> None:
        front.configure(BATCH_SYSTEM="openpbs", TORQUE_HOME=front.root, STATE_DIR=front.root / "run")
        (front.root / "qsub").write_text(OPENPBS_INTERACTIVE)
        done = front.run(*words, "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho never\n"))
        assert done.returncode == ExitStatus.NO_GUEST
        assert done.stdout == b"", "neither a shell nor the script ran on the node"
        assert done.stderr == b"vtorque: no guest was started for this job: its prologue did not end\n"

    def test_openpbs_runs_the_command_of_an_interactive_job(self, front: Front) -> None:
        front.configure(BATCH_SYSTEM="openpbs")
        front.qsub(status=1)
        (front.root / "qsub").write_text('#!/bin/sh\nfor last; do :; done; cat "${last%/*/*}"/script/*\n')
        done = front.run("-I", "-vm", "vcpus=1", "--", "/bin/echo", "a b")
        assert done.stdout == b"#!/bin/sh\nexec /bin/echo 'a b'\n"

    def test_what_qsubs_own_option_cannot_name_is_refused(self, front: Front) -> None:
        front.configure(BATCH_SYSTEM="openpbs")
        done = front.run("-I", "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n", "a@b"))
        assert done.returncode == 2 and b"/submit/a@b, with @ or a comma in it (rename the script)" in done.stderr

    def test_with_z_nothing_is_printed_and_all_is_well(self, front: Front) -> None:
        front.qsub(prints="")
        done = front.run("-z", "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n"))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert made(front).is_dir()

    def test_a_job_that_qsub_waits_for_ends_with_its_own_status(self, front: Front) -> None:
        front.qsub(status=7)
        done = front.run("-W", "block=true", "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n"))
        assert (done.returncode, done.stdout, done.stderr) == (7, b"12.srv\n", b"")

    def test_arguments_are_qsubs_affair(self, front: Front) -> None:
        front.run("-F", "a 'b c' *", "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n"))
        assert front.argv()[:2] == [b"-F", b"a 'b c' *"]


class TestPrecedence:
    def test_from_the_site_to_the_command_line(self, front: Front, tmp_path: Path) -> None:
        rc = Path(pwd.getpwuid(os.getuid()).pw_dir, ".vtorquerc")
        assert not rc.exists()
        rc.write_text("vcpus = 2\nram = 2G\nvms_per_node = 2\n")
        try:
            name = front.script(b"#!/bin/sh\n#PBS -vm ram=3G\n#VM vms_per_node=3\necho\n")
            front.run("-vm", "vms_per_node=4", name)
            asked = front.request()
            assert (asked.image, asked.vcpus, asked.memory_mib, asked.vms_per_node) == ("a.qcow2", 2, 3072, 4)
            shown = front.run("--explain", "-vm", "vms_per_node=4", name).stdout.decode()
            for line in ("vcpus .* 2 .*~/.vtorquerc:1", "ram .* 3G .*job.sh:2", "vms_per_node .* 4 .*command line",
                         "img .* a.qcow2 .*site: IMG_DEFAULT"):
                assert re.search(line.replace(" .*", r"\s+.*"), shown), line
        finally:
            rc.unlink()

    def test_another_prefix_for_directives(self, front: Front) -> None:
        name = front.script(b"#!/bin/sh\n#PBS -vm vcpus=7\n#X -vm vcpus=2\necho\n")
        front.run("-C", "#X", name)
        assert front.request().vcpus == 2
        front.run(name, PBS_DPREFIX="#X")
        assert front.request().vcpus == 2

    def test_the_inert_spelling_alone_makes_it_a_job_in_guests(self, front: Front) -> None:
        front.run(front.script(b"#!/bin/sh\n#VM vcpus=2,ram=1G\n#VMs are fine\necho\n#VM vcpus=3\n"))
        assert front.request().vcpus == 2


class TestResources:
    def test_what_is_too_small_is_raised_and_said(self, front: Front) -> None:
        name = front.script(b"#!/bin/sh\n#PBS -l mem=1gb\necho\n")
        done = front.run("-l", "nodes=1:ppn=2,walltime=9", "-vm", "vcpus=4", name)
        assert done.stdout == b"12.srv\n"
        assert front.argv()[:2] == [b"-l", b"nodes=1:ppn=5,walltime=9"]
        assert b"mem=3226mb" in front.argv()
        assert done.stderr == (
            b"vsub: -l nodes=1:ppn=2: ppn raised to 5 (4 for the guest, 1 for the host)\n"
            b"vsub: -l mem=1gb: raised to 3226mb (1178 MiB for the guest with QEMU's own part, 2048 for the host, "
            b"on each node)\n"
        )

    def test_guests_fit_what_is_asked_for(self, front: Front) -> None:
        name = front.script(b"#!/bin/sh\necho\n")
        done = front.run("-l", "nodes=1:ppn=7", "-l", "mem=8gb", "-vm", "vcpus=auto,ram=auto,vms_per_node=2", name)
        assert (done.returncode, done.stderr) == (0, b"")
        asked = front.request()
        assert (asked.vcpus, asked.memory_mib) == (3, 2922)
        assert b"nodes=1:ppn=7" in front.argv() and b"mem=8gb" in front.argv()

    def test_what_no_node_has_is_refused(self, front: Front) -> None:
        front.configure(NODE_CORE_COUNT=4)
        done = front.run("-vm", "vcpus=4", front.script(b"#!/bin/sh\necho\n"))
        assert done.returncode == 2
        assert b"5 cores are needed on a node (4 for the guest, 1 for the host); the largest has 4" in done.stderr


class TestShowing:
    def test_what_cannot_be_shown_is_a_failure(self, front: Front) -> None:
        with Path("/dev/full").open("w") as full:
            done = subprocess.run([front.root / "scripts/vsub", "--help"], stdout=full, check=False)
        assert done.returncode == 1
        assert b"-vm" in front.run("--help").stdout

    def test_a_dry_run_shows_what_would_be_submitted(self, front: Front) -> None:
        before = set(JOBS.glob("*"))
        name = front.script(b"#!/bin/sh\n#PBS -N x\necho\n")
        done = front.run("--dry-run", "-v", "A=x y", "-vm", "vcpus=1", name)
        assert done.returncode == 0 and done.stderr == b""
        assert f"{front.root}/qsub -v 'A=x y' -l nodes=1:ppn=2" in done.stdout.decode()
        assert b"#PBS -N x\nexec " in done.stdout
        assert set(JOBS.glob("*")) == before and not (front.root / "argv").exists()

    def test_all_files_can_be_generated(self, front: Front) -> None:
        name = front.script(b"#!/bin/sh\necho\n")
        for word, target in (("-gf", "vtorque-job.sh"), ("--generate=out/put", "out/put")):
            done = front.run(word, "-vm", "vms_per_node=2", name)
            assert done.returncode == 0, done.stderr
            made = sorted(path.name for path in (front.root / target).iterdir())
            assert [name for name in made if name.endswith(("domain.xml", "user-data.yaml"))] == [
                f"v{HOST}-{n}.{what}" for n in (1, 2) for what in ("domain.xml", "user-data.yaml")
            ]
            assert {"qsub.sh", "wrapper.sh", "script.sh", "request.json", "plan.json"} <= set(made)
        assert not (front.root / "argv").exists()

    def test_a_component_that_is_off_is_said_and_the_job_goes_on(self, front: Front) -> None:
        done = front.run("-vm", "vrdma=true,iocm=0", front.script(b"#!/bin/sh\necho\n"))
        assert done.returncode == 0 and done.stdout == b"12.srv\n"
        assert done.stderr.count(b"is off on this cluster") == 2


class TestNothingLeft:
    def test_when_the_disk_is_full(self, front: Front) -> None:
        name = front.script(b"#!/bin/sh\n" + b"# a line of a script\n" * 5000)
        before = set(JOBS.glob("*"))
        done = subprocess.run(
            ["/bin/sh", "-c", f"ulimit -f 8; exec {front.root}/scripts/vsub -vm vcpus=1 {name}"], check=False,
            capture_output=True, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert done.returncode == 1 and b"File too large" in done.stderr
        assert done.stderr.count(b"\n") == 1 and set(JOBS.glob("*")) == before

    def test_when_it_is_interrupted_while_qsub_runs(self, front: Front) -> None:
        before = set(JOBS.glob("*"))
        path = front.root / "qsub"
        path.write_text(f"#!/bin/sh\ntouch {front.root}/began\nexec sleep 60\n")
        vsub = subprocess.Popen(
            [front.root / "scripts/vsub", "-vm", "vcpus=1", front.script(b"#!/bin/sh\necho\n")],
            stdin=subprocess.DEVNULL, start_new_session=True, stderr=subprocess.DEVNULL,
        )
        while not (front.root / "began").exists():
            time.sleep(0.01)
        # A terminal sends it to both.
        os.killpg(vsub.pid, signal.SIGINT)
        assert vsub.wait() == 128 + signal.SIGINT
        assert set(JOBS.glob("*")) == before

    def test_a_job_whose_id_another_one_has_had_is_found_by_it(self, front: Front) -> None:
        """A server that was set up anew counts from 1 again."""
        job = f"7.srv{secrets.token_hex(4)}"
        front.qsub(prints=f"{job}\\n")
        for target in ("gone", "."):
            JOBS.mkdir(exist_ok=True)
            (JOBS / job).unlink(missing_ok=True)
            (JOBS / job).symlink_to(target)
            assert front.run("-vm", "vcpus=1", front.script(b"echo\n")).returncode == 0
            assert (JOBS / job).resolve() == made(front)
            assert json.loads((JOBS / job / "phases").read_text())["phase"] == "queued"

    def test_many_at_once_lose_nothing_and_mix_nothing_up(self, front: Front) -> None:
        # What an earlier run has left in the home must not have the id of one of these.
        (front.root / "qsub").write_text(MANY.format(root=front.root, server=f"srv{secrets.token_hex(4)}"))
        # All at once is more than this machine has memory for; a hundred at a time are enough to collide.
        scripts = [front.script(b"#!/bin/sh\necho %d\n" % n, f"job{n}.sh") for n in range(CROWD)]
        children: list[tuple[int, subprocess.Popen[bytes]]] = []
        for number, name in enumerate(scripts):
            child = subprocess.Popen(
                [front.root / "scripts/vsub", "-vm", f"vcpus={number % 8 + 1}", name], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            children.append((number, child))
            if len(children) >= AT_ONCE:
                children[-AT_ONCE][1].wait()
        jobs = {}
        for number, child in children:
            out, err = child.communicate()
            assert (child.returncode, err) == (0, b"")
            jobs[out.decode().strip()] = number
        assert len(jobs) == CROWD
        for job, number in jobs.items():
            directory = JOBS / job
            assert (directory / f"script/job{number}.sh").read_bytes() == b"#!/bin/sh\necho %d\n" % number
            submitted = (front.root / f"submitted.{job}").read_text().split("\0")
            asked = request.decode(submitted[-3].removeprefix("other="))
            assert submitted[-2] == f"{directory.resolve()}/submit/job{number}.sh"
            assert asked.vcpus == number % 8 + 1 and asked.request_id == directory.resolve().name
            assert asked.public_key == (directory / "key.pub").read_text().strip()
