# SPDX-License-Identifier: Apache-2.0
"""vsub and sbatch promise each other: qsub's words in, sbatch's out, the plain id back."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_vsub import JOBS, Front
from tests.unit import test_sbatch as translated
from vtorque import request

pytestmark = pytest.mark.runs

SCRIPT = b"#!/bin/sh\n#PBS -N name\n#PBS -l nodes=2:ppn=4\n#SBATCH --qos=high\necho\n"
FIRST = [b"--parsable", b"--ignore-pbs"]
LAST = [b"--output=%x.o%j", b"--error=%x.e%j"]

# What sbatch says of a command line that it understands, with nobody there to take it.
NOBODY = "Unable to contact slurm controller"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    front = Front(tmp_path)
    front.configure(BATCH_SYSTEM="slurm")
    front.qsub(prints="70012\\n")
    for name in ("salloc", "srun"):
        shutil.copy(tmp_path / "qsub", tmp_path / name)
    yield front
    for wrapper in left_by(front):
        shutil.rmtree(wrapper.parents[1])
    (JOBS / "70012").unlink(missing_ok=True)
    if not any(JOBS.glob("*")) and JOBS.exists():
        JOBS.rmdir()


def left_by(front: Front) -> set[Path]:
    """Wrappers in the home that belong to this front end; others may be submitting as well."""
    found = set()
    for path in JOBS.glob("*/submit/*"):
        with contextlib.suppress(FileNotFoundError):
            if not path.parents[1].is_symlink() and os.fsencode(front.root) in path.read_bytes():
                found.add(path)
    return found


def test_without_vm_the_job_is_said_in_sbatchs_words(front: Front) -> None:
    name = front.script(SCRIPT)
    done = front.run("-q", "long", "-t", "1-3", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"70012\n", b"")
    assert front.argv() == [
        *FIRST, b"--job-name=name", b"--partition=long", b"--array=1-3", b"--nodes=2", b"--ntasks-per-node=4",
        b"--output=%x.o%A-%a", b"--error=%x.e%A-%a", b"--export=NONE", os.fsencode(name),
    ]


def test_with_vm_guests_get_whole_shares_and_the_request_is_the_comment(front: Front) -> None:
    done = front.run("-vm", "vcpus=3,ram=1G", "-v", "MINE,A=x y", front.script(SCRIPT))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"70012\n", b"")
    *options, carried, wrapper = front.argv()
    assert options == [
        *FIRST, b"--job-name=name", b"--nodes=2", b"--ntasks-per-node=1", b"--cpus-per-task=4", b"--mem=3218M",
        b"--exclusive", *LAST, b"--export=ALL",
    ]
    asked = request.decode(carried.removeprefix(b"--comment=").decode())
    assert (asked.image, asked.vcpus, asked.memory_mib) == ("a.qcow2", 3, 1024)
    text = Path(os.fsdecode(wrapper)).read_bytes()
    assert text.startswith(b"#!/bin/sh\n#SBATCH --qos=high\nexec ") and b"#PBS" not in text
    assert (JOBS / "70012").is_symlink() and left_by(front) == {Path(os.fsdecode(wrapper))}


def test_what_is_too_small_is_raised_and_said(front: Front) -> None:
    done = front.run("-vm", "vcpus=3", "-l", "select=2:ncpus=2:mem=8gb", front.script(b"#!/bin/sh\necho\n"))
    assert b"ncpus raised to 4" in done.stderr
    assert {b"--nodes=2", b"--cpus-per-task=4", b"--mem=8192M"} <= set(front.argv())


def test_the_id_is_printed_without_the_cluster(front: Front) -> None:
    front.qsub(prints="70012;north\\n")
    name = front.script(SCRIPT)
    for words in ([name], ["-vm", "vcpus=1", name]):
        assert front.run(*words).stdout == b"70012\n"


def test_one_call_may_name_another_batch_system(front: Front) -> None:
    front.configure(MAX_RAM="64G")
    name = front.script(SCRIPT)
    done = front.run("--batch", "torque", "--dry-run", "-vm", "vcpus=1", name)
    assert done.stdout.startswith(b"/usr/bin/qsub -l ") and b" other=vt1." in done.stdout
    text = (front.root / "etc/vtorque.yaml").read_text().replace("BATCH_SYSTEM: slurm\n", "")
    (front.root / "etc/vtorque.yaml").write_text(text)
    done = front.run("-q", "b", "--batch=slurm", "--dry-run", name)
    assert done.stdout.startswith(b"/usr/bin/sbatch --parsable ") and b" --partition=b " in done.stdout
    done = front.run("--batch", "torque", "-q", "b", name)
    assert (done.stdout, front.argv()) == (b"70012\n", [b"-q", b"b", os.fsencode(name)]), "the site's own is as ever"


@pytest.mark.parametrize("value", ["--batch", "-N--batch"])
def test_a_value_that_looks_like_it_is_a_value(front: Front, value: str) -> None:
    name = front.script(SCRIPT)
    done = front.run(*(["-N", value] if value.startswith("--") else [value]), name)
    assert (done.returncode, b"--job-name=--batch" in front.argv()) == (0, True)


def test_values_of_any_bytes_go_by_the_environment(front: Front) -> None:
    qsub = front.root / "qsub"
    qsub.write_text(qsub.read_text().replace("exit", f'printf "%s" "$A" >{front.root}/a\nexit'))
    front.run("-v", b"A='\xff, \"x\" $(id)\n;'", front.script(SCRIPT))
    assert (front.root / "a").read_bytes() == b"\xff, \"x\" $(id)\n;"
    assert b"--export=A" in front.argv()


def test_a_script_on_standard_input_is_named_as_qsub_names_it(front: Front) -> None:
    front.qsub(prints="70012\\n", reads=True)
    front.run(stdin=SCRIPT.replace(b"#PBS -N name\n", b""))
    assert front.argv()[2] == b"--job-name=STDIN" and front.argv()[-1].startswith(b"--export")
    assert (front.root / "stdin").read_bytes() == SCRIPT.replace(b"#PBS -N name\n", b"")


@pytest.mark.parametrize(("words", "shell"), [([], None), (["-S", "/bin/zsh"], b"/bin/zsh")])
def test_a_script_that_names_no_shell_gets_qsubs(front: Front, words: list[str], shell: bytes | None) -> None:
    front.qsub(prints="70012\\n", reads=True)
    front.run(*words, "-F", "a 'b c'", front.script(b"echo \xff\n"))
    assert front.argv()[-3:] == [b"/dev/stdin", b"a", b"b c"]
    first, rest = (front.root / "stdin").read_bytes().split(b"\n", 1)
    assert rest == b"echo \xff\n" and first.startswith(b"#!/") and (shell is None or first == b"#!" + shell)


def test_an_interactive_job_runs_its_wrapper_in_a_step_on_the_first_node(front: Front) -> None:
    salloc = front.root / "salloc"
    salloc.write_text(salloc.read_text().replace("exit 0", "exit 7"))
    done = front.run("-I", "-vm", "vcpus=1", "-l", "nodes=2:ppn=2")
    assert done.returncode == 7, "the status of the session"
    at = front.argv().index(os.fsencode(front.root / "srun"))
    assert {b"--nodes=2", b"--ntasks-per-node=1"} <= set(front.argv()[:at])
    assert front.argv()[at + 1:-1] == [b"--interactive", b"--preserve-env", b"--pty"]
    assert not Path(os.fsdecode(front.argv()[-1])).exists(), "the job is over"


def test_nothing_is_submitted_by_a_dry_run_and_its_command_is_complete(front: Front) -> None:
    name = front.script(SCRIPT)
    done = front.run("--dry-run", "-v", "A=x y", name)
    assert done.stdout.startswith(b"env 'A=x y' ") and done.stdout.endswith(b" --export=A " + os.fsencode(name) + b"\n")
    done = front.run("--generate", f"{front.root}/files", "-vm", "vcpus=1", name)
    assert done.returncode == 0 and b"--comment=vt1." in (front.root / "files/sbatch.sh").read_bytes()
    assert b"vcpus " in front.run("--explain", "-vm", "vcpus=1", name).stdout
    assert not (front.root / "argv").exists()


@pytest.mark.parametrize("words", [[], ["-vm", "vcpus=1"]])
def test_a_job_whose_id_cannot_be_written_is_there_all_the_same(front: Front, words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [front.root / "scripts/vsub", *words, front.script(SCRIPT)], check=False,
            stdout=full, stderr=subprocess.PIPE,
        )
    said = b"vsub: job 70012 is submitted; its id could not be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_sbatchs_refusal_is_passed_on_and_nothing_is_left(front: Front) -> None:
    front.qsub(prints="", complains="sbatch: error: invalid partition\\n", status=1)
    done = front.run("-vm", "vcpus=1", front.script(SCRIPT))
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"sbatch: error: invalid partition\n")
    assert left_by(front) == set()


# Pending at first, as long as the file of calls is short; then over.
SCONTROL = """\
#!/bin/sh
echo "$@" >>{root}/asked
[ $(wc -l <{root}/asked) -gt 1 ] || {{ echo "JobId=70012 JobName=x JobState=PENDING Reason=None ExitCode=0:0"; exit; }}
{then}
"""


@pytest.mark.parametrize(("then", "status", "says"), [
    ('echo "JobId=70012 JobName=x JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0"', 3, ""),
    ('echo "JobId=70012 JobName=x JobState=COMPLETED Reason=None ExitCode=0:0"', 0, ""),
    ('echo "JobId=70012 JobName=x JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15"', 143, "ended as TIMEOUT"),
    ('echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1', 1, "cannot say how job 70012 is"),
])
def test_a_job_is_followed_to_its_end(front: Front, then: str, status: int, says: str) -> None:
    scontrol = front.root / "scontrol"
    scontrol.write_text(SCONTROL.format(root=front.root, then=then))
    scontrol.chmod(0o755)
    done = front.run("--wait", "-vm", "vcpus=1", front.script(SCRIPT))
    assert (done.returncode, done.stdout) == (status, b"70012\n")
    assert "queued" in done.stderr.decode() and says in done.stderr.decode()
    assert (front.root / "asked").read_text().splitlines()[0] == "show job --oneliner 70012"


WRONG = {
    "no counterpart": (["-b", "60"], "-b 60, waiting for the server, has no counterpart in Slurm"),
    "nor in guests": (["-vm", "vcpus=1", "-W", "stagein=a@b:c"], "-W stagein=a@b:c has no counterpart"),
    "no qsub option": (["-Y"], "-Y is not an option of qsub"),
    "processes anywhere": (["-vm", "vcpus=1", "-l", "procs=4"], "guests need whole shares of nodes"),
    "our options without guests": (["--explain"], "--explain is for jobs in guests"),
    "an unknown system": (["--batch", "lsf"], "--batch 'lsf' is not a batch system"),
    "no system": (["--batch"], "is not a batch system"),
    "too long": (["-vm", "vms_per_node=20,vcpus=8,vcpu_pinning=../long"], "fit into a job"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_done(front: Front, case: str) -> None:
    words, says = WRONG[case]
    (front.root.parent / "long").write_text(
        "".join(",".join(str(1000 + 16 * guest + 2 * n) for n in range(8)) + "\n" for guest in range(20))
    )
    done = front.run(front.script(b"#!/bin/sh\necho\n"), *words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1 and says in done.stderr.decode()
    assert left_by(front) == set() and not (front.root / "argv").exists()


@pytest.mark.parametrize(("line", "named"), [("-N 4", "--nodes"), ("--comment=x", "--comment"), ("-a 1-9", "--array")])
def test_a_line_for_sbatch_that_guests_depend_on_is_refused_by_name(front: Front, line: str, named: str) -> None:
    name = front.script(f"#!/bin/sh\n#SBATCH {line}\necho\n".encode())
    done = front.run("-vm", "vcpus=1", name)
    assert (done.returncode, f"#SBATCH {named}" in done.stderr.decode()) == (2, True)
    assert front.run(name).returncode == 0, "without guests it is sbatch's own affair"


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm's clients are not installed")
def test_the_real_sbatch_and_salloc_understand_all_of_it(tmp_path: Path) -> None:
    """With a configuration that names a controller nobody plays, what is wrong is said before it is looked for."""
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=c\nSlurmctldHost=localhost\nSlurmctldPort=1\nMessageTimeout=1\nGresTypes=gpu\n"
        "NodeName=n1 CPUs=2\nPartitionName=p Nodes=n1 Default=YES\n"
    )
    script = tmp_path / "job.sh"
    script.write_bytes(SCRIPT)
    environ = {"PATH": os.environ["PATH"], "SLURM_CONF": str(tmp_path / "slurm.conf")}

    def says(words: list[str]) -> str:
        done = subprocess.run(
            words, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )
        return done.stdout + done.stderr

    assert "unrecognized option" in says(["sbatch", "--parsable", "--ignore-pbs", "--bogus", str(script)])
    for words in (*translated.SAME, *translated.ARRAYS):
        if "z" in words or "group_list" in words:
            # Quiet, it says nothing; and there need be no such group.
            continue
        command = translated.submit(words).command("sbatch", [str(script)], carried=["--comment=vt1.x", "--test-only"])
        assert NOBODY in says(command), words
    for words in translated.INTERACTIVE:
        # Whatever it would run is left out: without a controller salloc would wait for one.
        *command, _ = translated.submit(words).command("salloc", ["true"], carried=["--comment=vt1.x", "--usage"])
        assert "Usage: salloc" in says(command[:command.index("srun")]), words
