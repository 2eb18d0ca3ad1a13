# SPDX-License-Identifier: Apache-2.0
"""The job directory: what a VM job needs of its user, made by the user, below `~/.vtorque`."""

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vtorque import files, proc
from vtorque.deadline import Deadline

_KEYGEN_SECONDS = 30.0

# What -V would carry along from the front end although it is the guest's own.
_GUESTS_OWN = frozenset(
    ("HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "_", "MAIL", "TERM", "TMPDIR")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDirectory:
    """`~/.vtorque/<request id>`, and in it the script, the wrapper to submit, and a key pair."""

    path: Path

    @property
    def public_key(self) -> str:
        """The public half of the job's own key, as OpenSSH writes it."""
        return (self.path / "key.pub").read_text().strip()

    @property
    def phases(self) -> Path:
        """Where root's prologue and the wrapper note each phase."""
        return self.path / "phases"

    def keep_script(self, name: str, script: bytes, *, shell: str, exported: Collection[str]) -> None:
        """Put the user's script here byte for byte, and how it is to be run."""
        (self.path / "script").mkdir(mode=0o700)
        files.write_new(self.path / "script" / name, script, mode=0o700)
        about = {"script": name, "shell": shell, "exported": sorted(exported)}
        files.write_new(self.path / "job.json", json.dumps(about).encode(), mode=0o600)

    def keep_wrapper(self, name: str, wrapper: bytes) -> Path:
        """Put the wrapper here under the script's name, after which qsub names job and output files."""
        (self.path / "submit").mkdir(mode=0o700)
        path = self.path / "submit" / name
        files.write_new(path, wrapper, mode=0o700)
        return path

    def submitted(self, job: str) -> None:
        """Make the directory known by the job's id as well."""
        with contextlib.suppress(OSError):
            self.path.with_name(job).symlink_to(self.path.name)


@contextlib.contextmanager
def job_directory(home: Path, request_id: str) -> Iterator[JobDirectory]:
    """A new job directory with a fresh key pair; gone again when what is done with it fails."""
    jobs = home / ".vtorque"
    jobs.mkdir(mode=0o700, exist_ok=True)
    path = jobs / request_id
    path.mkdir(mode=0o700)
    try:
        proc.run(
            ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path / "key"],
            deadline=Deadline(_KEYGEN_SECONDS),
        )
        yield JobDirectory(path=path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def exported_names(lists: Collection[str], *, everything: bool, environ: Collection[str]) -> set[str]:
    """Names of the variables that the user sends along with -v, and with -V all of his environment."""
    names = {part.partition("=")[0].strip() for text in lists for part in text.split(",")}
    if everything:
        names |= set(environ) - _GUESTS_OWN
    return {name for name in names if name.isidentifier()}

