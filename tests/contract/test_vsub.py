# SPDX-License-Identifier: Apache-2.0
"""vsub and a qsub promise each other: the same words in, the same bytes out, and nothing left when it says no."""

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtorque import request

pytestmark = pytest.mark.runs

ROOT = Path(__file__).resolve().parents[2]
JOBS = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".vtorque"

# Logs its words with NULs between them, says what it is told to say.
QSUB = """\
#!/bin/sh
[ $# -eq 0 ] || printf '%s\\0' "$@" >>{root}/argv
cat >/dev/null </dev/null
printf '%b' "{prints}"
printf '%b' "{complains}" >&2
exit {status}
"""


class Front:
    """A front end with its own installation and a qsub that does as it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("vtorque", "scripts", "templates"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "etc").mkdir()
        (root / "images").mkdir()
        (root / "images/a.qcow2.json").write_text(json.dumps({
            "schema": 1, "name": "a.qcow2", "distro": "debian", "arch": "x86_64", "sha256": "", "description": "",
        }))
        (root / "etc/vtorque.yaml").write_text(
            f"VM_IMG_DIR: {root}/images\nIMG_DEFAULT: a.qcow2\nPBS_QSUB_ON_FE: {root}/qsub\n"
            f"PBS_QSUB_ON_NODES: {root}/qsub\nMAX_VCPUS: 8\n"
        )
        self.qsub()

    def qsub(self, *, prints: str = "12.srv\\n", complains: str = "", status: int = 0) -> None:
        path = self.root / "qsub"
        path.write_text(QSUB.format(root=self.root, prints=prints, complains=complains, status=status))
        path.chmod(0o755)

    def script(self, text: bytes, name: str = "job.sh") -> str:
        (self.root / name).write_bytes(text)
        return str(self.root / name)

    def run(self, *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.root / "scripts/vsub", *words], capture_output=True, check=False, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "MINE": "x"},
        )

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


CORPUS = [
    ["-N", "name with blanks", "-l", "nodes=1:ppn=2,walltime=1:00", "x.sh"],
    ["-lnodes=2", "-Vz", "x.sh"],
    ["-v", "A=1,B='x y'", "-W", "block=true", "--", "-x.sh"],
    ["-N", b"caf\xe9", "x.sh"],
    ["x.sh", "-q", "batch"],
    ["-I", "-l", "nodes=a+b"],
    [],
    ["-t", "1-3%2", "-j", "oe", "-o", "/tmp/$PBS_JOBID", "x.sh"],
    ["-F", "a 'b c' *", "-M", "a@b,c@d", "-m", "abe", "x.sh"],
]


@pytest.mark.parametrize("words", CORPUS, ids=lambda words: repr(words)[:50])
def test_without_vm_qsub_gets_the_very_same_words(front: Front, words: list[str | bytes]) -> None:
    front.qsub(prints="7.srv\\n", complains="a warning\\n", status=3)
    done = front.run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"7.srv\n", b"a warning\n")
    assert (front.argv() if words else []) == [os.fsencode(word) for word in words]


def test_with_vm_qsub_gets_the_users_words_the_request_and_the_wrapper(front: Front) -> None:
    name = front.script(b"#!/bin/sh\necho\n")
    done = front.run("-N", "a b", "-vm", "vcpus=3", "-lwalltime=60", "-vm", "RAM=2G", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"12.srv\n", b"")
    *passed, option, carried, wrapper = front.argv()
    assert passed == [b"-N", b"a b", b"-lwalltime=60"]
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
    done = front.run("-vm", "vcpus=1", front.script(b"#!/bin/sh\n"))
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
    "interactive": (["-vm", "vcpus=1", "-I"], 2, "not supported"),
    "two nodes": (["-vm", "vcpus=1", "-l", "nodes=2"], 2, "2 nodes"),
    "later": (["-vm", "disk=/x"], 2, "not supported"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_done(front: Front, case: str) -> None:
    words, status, says = WRONG[case]
    before = set(JOBS.glob("*"))
    # The script comes first, so that an option without its value has none.
    done = front.run(front.script(b"#!/bin/sh\n"), *words)
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


def test_help_teaches_by_example(front: Front) -> None:
    done = front.run("--help")
    assert done.returncode == 0 and b"vsub -vm vcpus=4,ram=8G" in done.stdout and done.stderr == b""
