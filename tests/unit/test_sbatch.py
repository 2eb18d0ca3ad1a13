# SPDX-License-Identifier: Apache-2.0
"""qsub's command lines and the command lines of sbatch that say the same."""

import re
import shlex
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtorque import qsub, sbatch, sbatchforms, sbatchlines, slurmjob
from vtorque.errors import RequestError
from vtorque.qsub import SLURM
from vtorque.sbatch import Submit
from vtorque.sbatchforms import Place

MANUAL = Path(__file__).resolve().parents[2] / "doc" / "user.md"
NOW = datetime(2026, 11, 21, 10, 30, 15)
PLACE = Place(
    user="ann", home="/home/ann", directory="/data/run", now=NOW, is_directory=lambda path: path == "/data/logs"
)
OUT, ERR = "--output=%x.o%j", "--error=%x.e%j"
NONE = "--export=NONE"


def submit(words: str, *, whole: bool = False, said: frozenset[str] = frozenset(), name: str = "") -> Submit:
    line = qsub.parse(shlex.split(words), SLURM)
    return sbatch.translate(line.options, place=PLACE, name=name, whole=whole, said=said)


def options(words: str) -> list[str]:
    """sbatch's options without the defaults that everybody gets."""
    slurm = submit(words)
    return [word for word in slurm.options if word not in (OUT, ERR, NONE)]


# What the user types, and what sbatch is told besides the defaults.
SAME = {
    "": "",
    "-N run7": "--job-name=run7",
    "-N a -N b": "--job-name=b",
    "-q long": "--partition=long",
    "-A proj-1": "--account=proj-1",
    "-P climate": "--wckey=climate",
    # Times.
    "-l walltime=90": "--time=00:01:30",
    "-l walltime=1:30": "--time=00:01:30",
    "-l walltime=2:00:00": "--time=02:00:00",
    "-l walltime=100:00:00": "--time=100:00:00",
    "-l walltime=1:02:03:04": "--time=26:03:04",
    "-l walltime=10.5": "--time=00:00:10",
    "-l walltime=1 -l walltime=60": "--time=00:01:00",
    # Torque's nodes.
    "-l nodes=2": "--nodes=2 --ntasks-per-node=1",
    "-l nodes=2:ppn=4": "--nodes=2 --ntasks-per-node=4",
    "-lnodes=1:ppn=8,walltime=60": "--nodes=1 --ntasks-per-node=8 --time=00:01:00",
    "-l nodes=cn01+cn02": "--nodes=2 --ntasks-per-node=1 --nodelist=cn01,cn02",
    "-l nodes=cn01:ppn=4+cn02:ppn=4": "--nodes=2 --ntasks-per-node=4 --nodelist=cn01,cn02",
    "-l nodes=2+cn09": "--nodes=3 --ntasks-per-node=1 --nodelist=cn09",
    "-l nodes=2:ppn=4:fast": "--nodes=2 --ntasks-per-node=4 --constraint=fast",
    "-l nodes=2:fast:ib": "--nodes=2 --ntasks-per-node=1 --constraint=fast&ib",
    "-l nodes=2:fast+1:slow": "--nodes=3 --ntasks-per-node=1 --constraint=[fast*2&slow*1]",
    "-l nodes=2:a:b+1:c": "--nodes=3 --ntasks-per-node=1 --constraint=[(a&b)*2&c*1]",
    "-l nodes=2:fast+2": "--nodes=4 --ntasks-per-node=1 --constraint=fast*2",
    "-l nodes=1:ppn=2:gpus=2": "--nodes=1 --ntasks-per-node=2 --gpus-per-node=2",
    "-l nodes=2:ppn=2:mem=3gb": "--nodes=2 --ntasks-per-node=2 --mem=3072M",
    "-l nodes=2#shared": "--nodes=2 --ntasks-per-node=1 --oversubscribe",
    "-l nodes=2#excl": "--nodes=2 --ntasks-per-node=1 --exclusive",
    # Cores without nodes.
    "-l ncpus=8": "--nodes=1 --ntasks-per-node=1 --cpus-per-task=8",
    "-l procs=16": "--ntasks=16",
    "-l procs=4,mem=8gb": "--ntasks=4 --mem-per-cpu=2048M",
    "-l procs=4,pmem=1gb": "--ntasks=4 --mem-per-cpu=1024M",
    # OpenPBS's chunks.
    "-l select=2": "--nodes=2 --ntasks-per-node=1",
    "-l select=2:ncpus=4": "--nodes=2 --ntasks-per-node=1 --cpus-per-task=4",
    "-l select=2:ncpus=4:mpiprocs=4": "--nodes=2 --ntasks-per-node=4",
    "-l select=2:ncpus=8:mpiprocs=2:mem=8gb": "--nodes=2 --ntasks-per-node=2 --cpus-per-task=4 --mem=8192M",
    "-l select=ncpus=4": "--nodes=1 --ntasks-per-node=1 --cpus-per-task=4",
    "-l select=1:ncpus=2:host=cn1+1:ncpus=2:host=cn2":
        "--nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --nodelist=cn1,cn2",
    "-l select=1:ncpus=4:ngpus=1": "--nodes=1 --ntasks-per-node=1 --cpus-per-task=4 --gpus-per-node=1",
    "-l select=2:ncpus=4 -l place=scatter": "--nodes=2 --ntasks-per-node=1 --cpus-per-task=4",
    "-l select=2:ncpus=4:mem=1gb -l place=pack": "--nodes=1 --ntasks-per-node=2 --cpus-per-task=4 --mem=2048M",
    "-l select=1:ncpus=2 -l place=free:excl": "--nodes=1 --ntasks-per-node=1 --cpus-per-task=2 --exclusive",
    # Memory: of the job, of a process.
    "-l mem=4gb": "--mem=4096M",
    "-l mem=1kb": "--mem=1M",
    "-l mem=1000mw": "--mem=8000M",
    "-l nodes=4:ppn=2,mem=10gb": "--nodes=4 --ntasks-per-node=2 --mem=2560M",
    "-l nodes=3,mem=1000mb": "--nodes=3 --ntasks-per-node=1 --mem=334M",
    "-l pmem=2gb": "--mem-per-cpu=2048M",
    "-l nodes=1:ppn=4,pmem=2gb": "--nodes=1 --ntasks-per-node=4 --mem-per-cpu=2048M",
    "-l nodes=1:ppn=4,pmem=2gb,mem=4gb": "--nodes=1 --ntasks-per-node=4 --mem=8192M",
    "-l vmem=6gb": "--mem=6144M",
    "-l mem=4gb,vmem=6gb": "--mem=6144M",
    "-l pvmem=1gb": "--mem-per-cpu=1024M",
    # Who else may be there, and the rest of -l.
    "-l naccesspolicy=singlejob": "--exclusive",
    "-l naccesspolicy=SINGLEUSER": "--exclusive=user",
    "-l naccesspolicy=shared": "--oversubscribe",
    "-n": "--exclusive",
    "-n -l naccesspolicy=singlejob": "--exclusive",
    "-l file=10gb": "--tmp=10240M",
    "-l software=matlab:2": "--licenses=matlab:2",
    "-l qos=high": "--qos=high",
    "-l advres=maint.1": "--reservation=maint.1",
    # Output: where it goes is the default's, or the user's.
    "-o out.txt": "--output=out.txt",
    "-e /tmp/err": "--error=/tmp/err",
    "-j oe": "",
    "-j n": "",
    "-o all -j oe": "--output=all",
    "-e all -j eo": "--output=all",
    "-o /data/logs": "--output=/data/logs/%x.o%j",
    "-o /data/logs/": "--output=/data/logs/%x.o%j",
    "-e logs/": "--error=logs/%x.e%j",
    "-o '$PBS_JOBID.out'": "--output=%j.out",
    "-o '${PBS_JOBNAME}-$PBS_JOBID'": "--output=%x-%j",
    "-o '$HOME/$USER'": "--output=/home/ann/ann",
    "-o '~/o'": "--output=/home/ann/o",
    "-o '$PBS_O_WORKDIR/100%'": "--output=/data/run/100%%",
    "-k oe": "--output=/home/ann/%x.o%j --error=/home/ann/%x.e%j",
    "-k e": "--error=/home/ann/%x.e%j",
    "-k n": "",
    "-k doe -o here": "--output=here",
    "-i in%1": "--input=in%%1",
    "-d /scratch": "--chdir=/scratch --output=/data/run/%x.o%j --error=/data/run/%x.e%j",
    "-d /scratch -o o -j oe": "--chdir=/scratch --output=/data/run/o",
    "-w /scratch": "--chdir=/scratch",
    # When.
    "-a 1130": "--begin=2026-11-21T11:30:00",
    "-a 1029": "--begin=2026-11-22T10:29:00",
    "-a 1030.20": "--begin=2026-11-22T10:30:20",
    "-a 220000": "--begin=2026-11-22T00:00:00",
    "-a 031200": "--begin=2026-12-03T12:00:00",
    "-a 12241800": "--begin=2026-12-24T18:00:00",
    "-a 01011800": "--begin=2027-01-01T18:00:00",
    "-a 2703051200": "--begin=2027-03-05T12:00:00",
    "-a 202612241800.30": "--begin=2026-12-24T18:00:30",
    "-h": "--hold",
    "-p -10": "--nice=10",
    "-p 100": "--nice=-100",
    # After what.
    "-W depend=afterok:12.srv": "--dependency=afterok:12",
    "-W depend=afterok:12:13.srv.dom": "--dependency=afterok:12:13",
    "-W depend=afterok:1,afterany:2": "--dependency=afterok:1,afterany:2",
    "-W depend=afternotok:1.a,umask=022": "--dependency=afternotok:1",
    "-W depend=after:7@srv": "--dependency=after:7",
    "-W depend=afterok:5[].srv": "--dependency=afterok:5",
    "-W depend=afterok:5[3].srv": "--dependency=afterok:5_3",
    "-W depend=afterokarray:5[]": "--dependency=afterok:5",
    "-W depend=singleton": "--dependency=singleton",
    # The rest of -W.
    "-W block=true": "--wait",
    "-W block=false": "",
    "-W group_list=hpc@srv": "--gid=hpc",
    # Mail.
    "-m abe": "--mail-type=BEGIN,END,FAIL",
    "-m n": "--mail-type=NONE",
    "-m f -M a@b.c,d@e.f": "--mail-type=FAIL --mail-user=a@b.c,d@e.f",
    "-M ann": "--mail-type=FAIL --mail-user=ann",
    "-m ej": "--mail-type=END,ARRAY_TASKS",
    # Variables.
    "-V": "--export=ALL",
    "-v A": "--export=A",
    "-v A=1,B": "--export=A=1,B",
    "-v A=1 -v B=2": "--export=A=1,B=2",
    "-v A=x=y": "--export=A=x=y",
    "-v PATH=/a:/b,LC_ALL": "--export=PATH=/a:/b,LC_ALL",
    "-v A=1 -V": "--export=ALL",
    # Switches.
    "-r y": "--requeue",
    "-r n": "--no-requeue",
    "-f": "--no-kill",
    "-z": "--quiet",
    "-c n": "",
    "-E": "",
    "-u ann@login": "",
    "-S /bin/bash": "",
    "-C '#X'": "",
    "-x": "",
    "-hzV": "--hold --quiet --export=ALL",
}


@pytest.mark.parametrize("words", SAME)
def test_a_qsub_command_line_is_said_in_sbatchs_words(words: str) -> None:
    assert options(words) == SAME[words].split()


ARRAYS = {
    "-t 1-10": "--array=1-10",
    "-t 0,2,5-7": "--array=0,2,5-7",
    "-t 1-10%2": "--array=1-10%2",
    "-t 3": "--array=3",
    "-J 1-9:2": "--array=1-9:2",
    "-J 1-100%5": "--array=1-100%5",
}


@pytest.mark.parametrize("words", ARRAYS)
def test_an_arrays_elements_have_files_of_their_own(words: str) -> None:
    assert list(submit(words).options) == [ARRAYS[words], "--output=%x.o%A-%a", "--error=%x.e%A-%a", NONE]


def test_an_arrays_variables_in_a_path_are_those_of_the_element() -> None:
    assert "--output=%A_%a/%a" in options("-t 1-3 -o '$PBS_JOBID/$PBS_ARRAYID' -j oe")
    assert "--output=x.%a" in options("-J 1-3 -o 'x.^array_index^' -j oe")


# What the user types, and what the refusal has to name.
REFUSED = {
    "-b 60": "-b 60, waiting for the server, has no counterpart in Slurm",
    "-D /srv/root": "-D /srv/root",
    "-G": "-G",
    "-K 30": "-K 30, a kill delay",
    "-L tasks=2": "-L tasks=2",
    "-R eo": "-R eo",
    "-T slow": "-T slow",
    "-X": "-X without -I",
    "-I -t 1-3": "-I with an array",
    "-I -r y": "-I with -r y",
    "-q long@server": "-q long@server: a server",
    "-q @server": "-q @server",
    "-u bob": "-u bob",
    "-c enabled,interval=5": "-c enabled,interval=5, checkpointing",
    "-m x": "-m x",
    "-k x": "-k x",
    "-j x": "-j x",
    "-r maybe": "-r maybe: must be y or n",
    "-p high": "-p high: must be a whole number",
    "-a tomorrow": "-a 'tomorrow' is not a time",
    "-a 2561": "-a 2561",
    "-t 1-": "'1-' is not an array",
    "-t 1 -J 2": "-t and -J do not go together",
    "-o host:/tmp/out": "-o host:/tmp/out: a host",
    "-o ~bob/out": "-o ~bob/out",
    r"-o 'a\b'": "a backslash in a path",
    "-e '$PBS_O_TZ/x'": r"-e: $PBS_O_TZ in a path",
    "-v 1A=2": "'1A' is not the name of a variable",
    "-F 'a \"b'": "-F 'a \"b': no closing quotation",
    "-W stagein=a@h:b": "-W stagein=a@h:b has no counterpart in Slurm",
    "-W x=FLAGS:PREEMPTEE": "-W x=FLAGS:PREEMPTEE",
    "-W nonsense": "-W nonsense: is not name=value",
    "-W umask=9": "-W umask=9: must be an octal number",
    "-W block=perhaps": "-W block=perhaps",
    "-W depend=before:1": "-W depend=before:1",
    "-W depend=on:2": "-W depend=on:2",
    "-W depend=afterok": "-W depend=afterok: no job is named",
    "-W depend=afterok:x": "'x' is not a job's id",
    "-l other=text": "-l other=text has no counterpart in Slurm",
    "-l cput=60": "-l cput=60",
    "-l nice=5": "-l nice=5",
    "-l walltime=soon": "'soon' is not a time",
    "-l mem=much": "-l mem=much: is not a size",
    "-l ncpus=0": "-l ncpus=0: must be a whole number above 0",
    "-l nodes=0": "-l nodes=0: there must be a node",
    "-l nodes=1:ppn=x": "-l ppn=x",
    "-l nodes=1:ppn=2+1:ppn=4": "chunks of different sizes",
    "-l nodes=1:mics=1": ":mics=1",
    "-l nodes=1:gpus=1:exclusive_process": "gpus=1:exclusive_process",
    "-l nodes=1#odd": "#odd",
    "-l nodes=2,ncpus=4": "-l nodes= and -l ncpus= do not go together",
    "-l select=1:ncpus=4:ompthreads=4": ":ompthreads=4",
    "-l select=1:ncpus=4:mpiprocs=3": "mpiprocs=3 that do not divide ncpus=4",
    "-l place=group=rack": "-l place=group=rack",
    "-l place=excl,naccesspolicy=shared": "do not go together",
    "-l naccesspolicy=odd": "-l naccesspolicy=odd",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_slurm_has_not_is_refused_by_name_in_one_line(words: str) -> None:
    with pytest.raises(RequestError) as caught:
        submit(words)
    assert REFUSED[words] in caught.value.one_line()
    assert "\n" not in caught.value.one_line()


def test_every_option_of_qsub_is_translated_or_refused() -> None:
    letters = {letter for words in (*SAME, *ARRAYS, *REFUSED, *INTERACTIVE, "-F 'a b'")
               for letter, _ in qsub.parse(shlex.split(words), SLURM).options}
    assert letters == SLURM.with_value | SLURM.flags


class TestVariables:
    def test_what_would_have_to_be_quoted_goes_by_the_environment(self) -> None:
        slurm = submit("""-v "A='x, y',B=plain,C=a\\,b,D=\\"q\\"" """)
        assert slurm.options[-1] == "--export=A,B=plain,C,D=q"
        assert dict(slurm.environ) == {"A": "x, y", "C": "a,b"}

    def test_with_the_whole_environment_the_users_values_win(self) -> None:
        assert dict(submit("-V -v A=1,B").environ) == {"A": "1"}

    def test_the_mask_is_slurms_own_variable(self) -> None:
        assert dict(submit("-W umask=022").environ) == {"SLURM_UMASK": "022"}

    @settings(max_examples=300)
    @given(st.dictionaries(
        st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(blacklist_characters="\0'", blacklist_categories=["Cs"])), min_size=1, max_size=4,
    ))
    def test_any_value_between_quotes_arrives_as_it_is(self, named: dict[str, str]) -> None:
        text = ",".join(f"{name}='{value}'" for name, value in named.items())
        assert sbatchforms.variables([text]) == named


class TestPrecedence:
    """qsub's options, then SBATCH_ variables and #SBATCH lines, then qsub's defaults."""

    LINES = (b"#SBATCH -J mine", b"#SBATCH --out=here --export=ALL # --error=no")

    def test_a_default_gives_way_to_a_line_of_the_script(self) -> None:
        said = sbatchlines.said(self.LINES)
        assert said == {"job-name", "output", "export"}
        assert submit("", said=said, name="job.sh").options == ()

    def test_what_the_user_says_with_qsubs_options_does_not(self) -> None:
        words = submit("-N n -o o -e e -v A", said=sbatchlines.said(self.LINES), name="job.sh").options
        assert words == ("--job-name=n", "--output=o", "--error=e", "--export=A")

    def test_a_variable_of_sbatch_counts_as_well(self) -> None:
        assert sbatchlines.said([], {"SBATCH_JOB_NAME", "SBATCH_OUTPUT", "HOME"}) == {"job-name", "output"}

    def test_lines_count_up_to_the_first_that_is_no_comment(self) -> None:
        script = b"#!/bin/sh\n#SBATCH -A x\n\n # c\n#SBATCH -o y\n"
        assert sbatchlines.directives(script) == [b"#SBATCH -A x"]
        script = b"#!/bin/sh\n#PBS -N n\n\n#SBATCH -A x\necho\n#SBATCH -o y\n"
        assert sbatchlines.directives(script) == [b"#SBATCH -A x"]

    @pytest.mark.parametrize(("line", "named"), [
        (b"#SBATCH -N 2", "--nodes"), (b"#SBATCH --mem=4G", "--mem"), (b"#SBATCH -c8", "--cpus-per-task"),
        (b"#SBATCH --comment=x", "--comment"), (b"#SBATCH -a 1-3", "--array"), (b"#SBATCH --export=A", "--export"),
    ])
    def test_a_job_in_guests_says_its_size_with_qsubs_options(self, line: bytes, named: str) -> None:
        with pytest.raises(RequestError, match=f"#SBATCH {named}"):
            sbatchlines.refuse_sizes([line], ())

    def test_an_array_that_comes_from_the_environment_is_refused_as_well(self) -> None:
        with pytest.raises(RequestError, match="SBATCH_ARRAY_INX is set"):
            sbatchlines.refuse_sizes([], {"SBATCH_ARRAY_INX"})

    def test_a_line_that_cannot_be_read_is_named(self) -> None:
        with pytest.raises(RequestError, match="#SBATCH -J 'x: No closing quotation"):
            sbatchlines.said([b"#SBATCH -J 'x"])


INTERACTIVE = {
    "-I": "",
    "-I -l nodes=2:ppn=4": "--nodes=2 --ntasks-per-node=4",
    "-I -X": "--x11",
    "-I -N n -q q -A a -l walltime=60": "--job-name=n --partition=q --account=a --time=00:01:00",
    "-I -r n -o out -j oe": "",
}


@pytest.mark.parametrize("words", INTERACTIVE)
def test_an_interactive_job_is_a_step_on_the_first_node_of_an_allocation(words: str) -> None:
    slurm = submit(words)
    assert slurm.command("/opt/slurm/bin/sbatch", ["/bin/bash", "-l"], carried=["--comment=c"]) == [
        "/opt/slurm/bin/salloc", *INTERACTIVE[words].split(), "--comment=c",
        "/opt/slurm/bin/srun", "--interactive", "--preserve-env", "--pty", "/bin/bash", "-l",
    ]


def test_an_interactive_jobs_variables_go_by_the_environment() -> None:
    assert dict(submit("-I -v A=1,B").environ) == {"A": "1"}


def test_the_scripts_own_words_follow_it() -> None:
    command = submit("-F \"a 'b c' *\" -z").command("/usr/bin/sbatch", ["job.sh"], carried=["--comment=c"])
    assert command == [
        "/usr/bin/sbatch", "--parsable", "--ignore-pbs", "--quiet", OUT, ERR, NONE, "--comment=c", "job.sh",
        "a", "b c", "*",
    ]


def test_qsub_prints_the_id_without_the_cluster() -> None:
    assert sbatch.job_id(b"12;north\n") == b"12\n"
    assert sbatch.job_id(b"12\n") == b"12\n"


class TestGuests:
    """A job in guests is one task on a node that has all of its cores."""

    @pytest.mark.parametrize(("words", "says"), [
        ("-l nodes=2:ppn=4,mem=8gb", "--nodes=2 --ntasks-per-node=1 --cpus-per-task=4 --mem=4096M"),
        ("-l select=2:ncpus=4:mpiprocs=4:mem=8gb", "--nodes=2 --ntasks-per-node=1 --cpus-per-task=4 --mem=8192M"),
        ("-l nodes=1:ppn=1", "--nodes=1 --ntasks-per-node=1"),
    ])
    def test_of_each_node(self, words: str, says: str) -> None:
        assert list(submit(words, whole=True).options)[:-3] == says.split()

    def test_their_wrapper_has_the_environment_whatever_arrives_in_the_guests(self) -> None:
        slurm = submit("-v A=1", whole=True)
        assert slurm.options[-1] == "--export=ALL" and dict(slurm.environ) == {"A": "1"}


SHOWN = "JobId={} JobName=a UserId=ann(1) JobState={} Reason={} Dependency=(null) Requeue=1 ExitCode={} Comment=x\n"


@pytest.mark.parametrize(("state", "reason", "code", "says"), [
    ("PENDING", "Resources", "0:0", "job_state = Q\n"),
    ("PENDING", "JobHeldUser", "0:0", "job_state = H\n"),
    ("RUNNING", "None", "0:0", "job_state = R\n"),
    ("COMPLETING", "None", "0:0", "job_state = E\n"),
    ("COMPLETED", "None", "0:0", "job_state = C\nexit_status = 0\n"),
    ("FAILED", "NonZeroExitCode", "3:0", "job_state = C\nexit_status = 3\n"),
    ("CANCELLED", "None", "0:15", "job_state = C\nexit_status = 271\ncomment = the job ended as CANCELLED\n"),
    ("TIMEOUT", "TimeLimit", "0:0", "job_state = C\nexit_status = 1\ncomment = the job ended as TIMEOUT\n"),
])
def test_what_slurm_says_of_a_job_is_said_as_qstat_would(state: str, reason: str, code: str, says: str) -> None:
    assert slurmjob.as_qstat(SHOWN.format(1, state, reason, code)) == says


def test_each_part_of_an_array_has_its_own_state() -> None:
    printed = SHOWN.format(1, "PENDING", "None", "0:0") + SHOWN.format(2, "COMPLETED", "None", "0:0")
    assert re.findall("job_state = (.)", slurmjob.as_qstat(printed)) == ["Q", "C"]


def _table() -> list[tuple[str, str]]:
    """The rows of the manual's table: qsub's words, and sbatch's or "refused"."""
    text = MANUAL.read_text()
    section = text[text.index("| qsub | sbatch |"):].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    return [(cells[0], cells[1]) for cells in rows]


@pytest.mark.parametrize(("typed", "told"), _table())
def test_the_manuals_table_says_what_the_code_does(typed: str, told: str) -> None:
    words = re.findall(r"`([^`]*)`", typed)
    assert words
    for each in words:
        if told == "refused":
            with pytest.raises(RequestError):
                submit(each)
        else:
            expected = re.findall(r"`([^`]*)`", told)
            slurm = submit(each)
            given = [*sbatch.environ_words(slurm.environ), *slurm.command("sbatch", ["job.sh"])]
            assert set(" ".join(expected).split()) <= set(given), each
            assert expected or set(given) == set(submit("").command("sbatch", ["job.sh"])), each


def test_the_manuals_table_has_every_option_of_qsub() -> None:
    said = {letter for typed, _ in _table() for each in re.findall(r"`([^`]*)`", typed)
            for letter, _ in qsub.parse(shlex.split(each), SLURM).options}
    assert said == SLURM.with_value | SLURM.flags
