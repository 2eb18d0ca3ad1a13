# SPDX-License-Identifier: Apache-2.0
"""Command lines of qsub as people and programs write them: all options, all spellings getopt knows."""

Line = list[str | bytes]

# Every option of Torque 4 to 6, with values that quoting could hurt.
_VALUES = {
    "a": ["202612241800", "2359.59"], "A": ["proj-1", "a b", "x=1,y=2"], "b": ["60"], "c": ["enabled,interval=5", "n"],
    "C": ["#X", "", "PBS "], "d": ["/tmp", "/a b/ä"], "D": ["/srv/root"],
    "e": ["/tmp/e", "host:/tmp/err file", "$PBS_JOBID.e"],
    "F": ["a 'b c' *", "-x --y", "\"quoted\"", ""], "i": ["in"], "j": ["oe", "eo", "n"], "J": ["16"], "k": ["oe", "n"],
    "K": ["30"],
    "l": ["nodes=2:ppn=4", "nodes=1:ppn=2:gpus=1+big:ppn=8,walltime=1:00:00", "mem=4gb,pmem=1gb", "software=a;b",
          "nodes=n1+n2#shared"],
    "L": ["tasks=2:lprocs=4:memory=8gb"], "m": ["abe", "n"], "M": ["a@b.c,d@e.f"],
    "N": ["name", "name.with-all_9", "x"],
    "o": ["/tmp/$PBS_JOBID", "out dir/", "h:/x"], "p": ["-1024", "100"], "P": ["proxy"],
    "q": ["batch", "long@server", "@s"],
    "r": ["y", "n"], "S": ["/bin/bash@h1,/bin/sh@h2", "/bin/sh"], "t": ["1-10%2", "0,2,5-7"], "T": ["slow"],
    "u": ["ann@h1,bob"], "v": ["A=1,B", "A=x y,B='q'", "PATH=/a:/b,LC_ALL", "X=a=b=c", "m"],
    "w": ["/work dir"], "W": ["block=true", "depend=afterok:12.srv:13.srv,umask=022", "stagein=a@h:b,group_list=g",
                              "x=NACCESSPOLICY:SINGLEJOB"],
}
_FLAGS = "EfhnVxXz"

_SPELLINGS: list[Line] = [
    [f"-{letter}", value] for letter, values in _VALUES.items() for value in values if value != "-1024"
]
_JOINED: list[Line] = [[f"-{letter}{values[0]}"] for letter, values in _VALUES.items() if values[0]]

_FLAGGED: list[Line] = [[f"-{flag}"] for flag in _FLAGS]


def _with_script(lines: list[Line]) -> list[Line]:
    return [[*words, "x.sh"] for words in lines]


LINES: list[Line] = [
    [],
    ["-"],
    *_with_script(_SPELLINGS),
    *_with_script(_JOINED),
    *_with_script(_FLAGGED),
    ["-p", "-1024", "x.sh"],
    ["-I"], ["-I", "-l", "nodes=a+b"], ["-IX", "-lnodes=1"], ["-I", "-x", "x.sh"],
    ["-Vz", "x.sh"], ["-Vzlnodes=2", "x.sh"], ["-hVN", "glued", "x.sh"], ["-zj", "oe", "x.sh"],
    ["x.sh", "-q", "batch"], ["x.sh", "-zV"], ["-q", "a", "x.sh", "-N", "b"],
    ["--", "x.sh"], ["-z", "--", "-x.sh"], ["-N", "--", "x.sh"],
    ["-N", b"caf\xe9", "x.sh"], ["-N", "naïve-ünïcode", "x.sh"], ["-v", b"A=\xff\xfe,B=\xc3", "x.sh"],
    ["-N", "name with blanks", "-l", "nodes=1:ppn=2,walltime=1:00", "x.sh"],
    ["-v", "A=1,B='x y'", "-W", "block=true", "--", "-x.sh"],
    ["-v", "A=line one\nline two", "x.sh"], ["-v", "A=\ttab", "x.sh"], ["-F", "$(id) `id` ; rm -rf / #", "x.sh"],
    ["-l", "nodes=1", "-l", "walltime=5", "-l", "nodes=2", "x.sh"],
    ["-N", "", "x.sh"], ["-N", "%s%n", "x.sh"], ["-N", "x" * 300, "x.sh"], ["-N", "-z", "x.sh"], ["-N", "*", "x.sh"],
    ["-e", "~/err", "-o", "~ann/out", "x.sh"], ["-l", "other=free text", "x.sh"],
    ["-W", "x=\"FLAGS:PREEMPTEE\"", "x.sh"], ["-M", "", "x.sh"], ["-C", "", "x.sh"],
    # Mistakes are qsub's to complain of.
    ["-Q", "x.sh"], ["--long", "x.sh"], ["-N"], ["-zN"], ["x.sh", "one", "word", "too", "many"], ["-vmx", "x.sh"],
    ["absent.sh"], ["/dev/null"], ["-Y", "-Q", "x.sh", "--"], ["-l"], ["-l", "", "x.sh"],
    # Of a workflow engine, of a portal, of a test of an administrator.
    ["-S", "/bin/bash", "-N", "snakejob.align.12.sh", "-l", "nodes=1:ppn=4,mem=16gb,walltime=24:00:00", "-j", "oe",
     "-o", "/scratch/ann/logs/", "/home/ann/.snakemake/tmp.abc/snakejob.align.12.sh"],
    ["-N", "nf-ALIGN_(s1)", "-j", "oe", "-o", "/w/aa/bb/.command.log", "-q", "long", ".command.run"],
    ["-A", "proj", "-v", "BATCH=1,JOB='a b'", "-W", "group_list=hpc", "-V", "-z", "x.sh"],
    ["-l", "nodes=node01:ppn=1", "-q", "test", "-N", "health", "-m", "n", "x.sh"],
]

OPENPBS_LINES: list[Line] = [
    ["-J", "1-100:2", "x.sh"], ["-P", "project", "x.sh"], ["-f", "x.sh"], ["-R", "eo", "x.sh"], ["-GI"],
    ["-l", "select=2:ncpus=4:mem=8gb", "-l", "place=scatter:excl", "x.sh"],
    ["-lselect=1:ncpus=2", "-Vz", "x.sh"], ["--", "/bin/echo", "a b", "-x", "*"],
    ["-N", "n", "--", "/bin/sleep", "1"], ["-k", "doe", "-W", "sandbox=PRIVATE", "x.sh"],
    ["-l", "site=free text", "x.sh"], ["-T", "x"], ["-t", "1-3", "x.sh"], ["-A", "a b,c=d", "-v", "X='1, 2'", "x.sh"],
]

# Values that a real qsub would take together with guests on one node.
_TAKEN = {"l": ["walltime=1:00:00", "software=a;b", "nodes=1:ppn=9:gpus=1,mem=64gb"], "N": ["name", "x.9"], "t": []}

_VM_SPELLINGS: list[Line] = [
    [f"-{letter}", value]
    for letter, values in _VALUES.items() for value in _TAKEN.get(letter, values) if letter != "C"
]
_VM_JOINED: list[Line] = [
    [f"-{letter}{_TAKEN.get(letter, values)[0]}"]
    for letter, values in _VALUES.items() if letter not in "Ct" and values[0]
]
_VM_FLAGGED: list[Line] = [[f"-{flag}"] for flag in _FLAGS if flag != "z"]

VM_LINES: list[Line] = [
    *_VM_SPELLINGS, *_VM_JOINED, *_VM_FLAGGED,
    ["-hVN", "glued"], ["-v", b"A=\xff\xfe,B=\xc3"], ["-v", "A=line one\nline two"], ["-F", "$(id) `id` ; #"],
    ["-l", "walltime=5", "-l", "walltime=9", "-V"], ["-e", "~/err", "-o", "~ann/out"],
]
