# SPDX-License-Identifier: Apache-2.0
"""`vmgr bench boot`, with a stand-in for all that vsub brings about, and the job's script in a plain shell."""

import json
import os
import pwd
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtorque import bootphases
from vtorque.cli import vmgr, vmgr_bench

pytestmark = pytest.mark.runs

# vsub, qsub, the hooks and the guest: the record goes with its directory, and not before somebody holds on to it.
VSUB = """\
#!/bin/sh
jobs={home}/.vtorque
echo "$*" >{home}/words
[ -z "{refusal}" ] || {{ echo "vsub: {refusal}" >&2; exit 2; }}
mkdir -p "$jobs/0123456789abcdef"
record=$jobs/0123456789abcdef/phases
ln -s 0123456789abcdef "$jobs/7.lab"
echo 7.lab
echo '{{"time": 90.0, "phase": "queued"}}' >>"$record"
until [ "$(stat -c %h "$record")" = 2 ]; do sleep 0.02; done
printf '{{"time": %s, "phase": "%s"}}\\n' 100.5 started 118.5 ready 118.75 running >>"$record"
rm -r "$jobs/0123456789abcdef" "$jobs/7.lab"
while [ "$1" != -o ]; do shift; done
sh >"$2" 2>&1
{{ [ {status} = 0 ] || echo "guest: no luck"; }} >>"$2"
exit {status}
"""


class Bench:
    """A user with a home, and a vsub of ours."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        (root / "scripts").mkdir()
        self.home.mkdir()
        self._vsub = root / "scripts/vsub"
        self.acts()

    def acts(self, *, status: int = 0, refusal: str = "") -> None:
        """From now on it refuses, or its jobs end with this status."""
        self._vsub.write_text(VSUB.format(home=self.home, status=status, refusal=refusal))
        self._vsub.chmod(0o755)

    @property
    def words(self) -> str:
        """What vsub was called with last."""
        return (self.home / "words").read_text()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(vmgr_bench, "PREFIX", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(made.home)))
    return made


def test_every_boot_is_a_job_and_its_record_is_kept_beyond_its_end(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vmgr.main(["bench", "boot", "a.qcow2", "-n", "2", "--json", "--qsub", "-q short -A 'a b'"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["image"] == "a.qcow2"
    assert len(found["boots"]) == 2
    hosts = {each["name"]: each for each in found["medians"] if each["word"] == "host"}
    assert hosts == {
        "boot": {"name": "boot", "began": 0.0, "ended": 18.0, "word": "host"},
        "hand-over": {"name": "hand-over", "began": 18.0, "ended": 18.25, "word": "host"},
    }
    assert "-q short -A a b -vm img=a.qcow2,vms_per_node=1" in bench.words
    assert {path.name for path in bench.home.iterdir()} == {".vtorque", "words"}, "nothing else is left"


def test_the_table_names_the_image_and_how_many_boots(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmgr.main(["bench", "boot", "a.qcow2", "-n", "1"]) == 0
    first, head, *lines = capsys.readouterr().out.splitlines()
    assert first == "a.qcow2: 1 boot, medians"
    assert head.split() == ["PHASE", "BEGAN", "TOOK", "SAYS"]
    assert "boot                   0.000 s    18.000 s  host" in lines


def test_a_job_that_fails_is_no_measurement(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.acts(status=71)
    assert vmgr.main(["bench", "boot", "a.qcow2"]) == 1
    assert "vmgr: job 7.lab on image a.qcow2 ended with status 71: 'guest: no luck'" in capsys.readouterr().err
    bench.acts(refusal="image a.qcow2 is not in the catalogue")
    assert vmgr.main(["bench", "boot", "a.qcow2"]) == 1
    assert "vmgr: no job on image a.qcow2 could be submitted" in capsys.readouterr().err
    assert {path.name for path in bench.home.iterdir()} == {".vtorque", "words"}


@pytest.mark.parametrize("words, complaint", [
    (["-n", "0"], "-n 0 is not 1 to 100"), (["--qsub", "'"], "--qsub: No closing quotation"),
    (["--user", "root"], "--user is for root only"),
])
def test_nonsense_is_refused(
    bench: Bench, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vmgr.main(["bench", "boot", "a.qcow2", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_root_has_to_say_whose_jobs_they_are(bench: Bench, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert vmgr.main(["bench", "boot", "a.qcow2"]) == 2
    assert "vmgr: root submits no jobs (--user NAME)" in capsys.readouterr().err
    assert vmgr.main(["bench", "boot", "a.qcow2", "--user", "no-such-user"]) == 2
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, argv: became.append(argv))
    vmgr_bench._boot(vmgr.parser().parse_args(["bench", "boot", "a b", "--json", "--user", "nobody", "--qsub=-q x"]))
    (words,) = became
    assert words[:4] == ["/usr/sbin/runuser", "-l", "nobody", "-c"]
    again = subprocess.run(["sh", "-c", f"printf '%s\\n' {words[4]}"], stdout=subprocess.PIPE, text=True, check=True)
    assert again.stdout.splitlines()[1:] == ["bench", "boot", "a b", "-n", "3", "--json", "--qsub=-q x"]


def test_the_script_says_what_it_finds_and_is_content_with_nothing(tmp_path: Path) -> None:
    done = subprocess.run(["/bin/sh"], input=bootphases.SCRIPT, capture_output=True, check=True, cwd=tmp_path)
    assert done.stderr == b""
    found = bootphases.facts(done.stdout.decode())
    assert found["uptime"] > 0
    assert all(0 <= at <= found["uptime"] for at in found.values())
