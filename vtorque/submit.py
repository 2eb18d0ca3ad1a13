# SPDX-License-Identifier: Apache-2.0
"""The job directory: what a VM job needs of its user, made by the user, below `~/.vtorque`."""

import contextlib
import json
import re
import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import RequestError
from vtorque.job import phases_name

_SCHEMA = 1
_KEYGEN_SECONDS = 30.0
_REQUEST_ID = r"[0-9a-f]{16}"

# What -V would carry along from the front end although it is the guest's own.
_GUESTS_OWN = frozenset(
    ("HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "_", "MAIL", "TERM", "TMPDIR")
)


class JobFile(NamedTuple):
    """What the wrapper has to know on the node. Without a script it gives the user a shell."""

    script: str
    shell: str
    exported: tuple[str, ...]
    interactive: bool
    x11: bool
    elements: int

    def text(self) -> bytes:
        """As it is kept, and read by the wrapper."""
        return json.dumps({"schema": _SCHEMA, **self._asdict()}).encode()

    @classmethod
    def parse(cls, data: bytes) -> "JobFile":
        """What `text` made. Raises RequestError when a newer version did, or a power failure left nothing of it."""
        try:
            fields = json.loads(data)
        except ValueError:
            raise RequestError("the job's own record, job.json, is damaged", hint="submit the job again") from None
        # The first version wrote none.
        if (schema := fields.pop("schema", _SCHEMA)) != _SCHEMA:
            text = f"the job was submitted by another version of vtorque, with schema {schema}"
            raise RequestError(text, hint=f"this node's knows {_SCHEMA}; submit it again with this version's vsub")
        return cls(**{**fields, "exported": tuple(fields["exported"])})


class JobDirectory(NamedTuple):
    """`~/.vtorque/<request id>`, and in it the script, the wrapper to submit, and a key pair."""

    path: Path

    @property
    def public_key(self) -> str:
        """The public half of the job's own key, as OpenSSH writes it."""
        return (self.path / "key.pub").read_text().strip()

    @property
    def phases(self) -> Path:
        """Where root's prologue and the wrapper note each phase of a job that is no array."""
        return self.path / phases_name("", 1)

    def keep(self, about: JobFile, script: bytes, more: Mapping[str, bytes]) -> None:
        """Put the user's script here byte for byte, how it is to be run, and his `more` scripts by name."""
        (self.path / "script").mkdir(mode=0o700)
        if about.script:
            files.write_new(self.path / "script" / about.script, script, mode=0o700)
        for name, text in more.items():
            files.write_new(self.path / name, text, mode=0o700)
        # Empty it would be noticed; an empty script would be run.
        files.write_new(self.path / "job.json", about.text(), mode=0o600, durable=False)

    def keep_wrapper(self, name: str, wrapper: bytes) -> Path:
        """Put the wrapper here under the script's name, after which qsub names job and output files."""
        path = wrapper_path(self.path, name)
        path.parent.mkdir(mode=0o700)
        # qsub reads it at once, and the server keeps what it read.
        files.write_new(path, wrapper, mode=0o700, durable=False)
        return path

    def submitted(self, job: str) -> None:
        """Make the directory known by the job's id as well, and note that the job is queued."""
        with contextlib.suppress(OSError):
            link = self.path.with_name(job)
            try:
                link.symlink_to(self.path.name)
            except FileExistsError:
                # Of a job of the same number, before the server was set up anew.
                link.unlink()
                link.symlink_to(self.path.name)
            # The job may have begun already.
            with self.phases.open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), "phase": "queued"}) + "\n")


def wrapper_path(directory: Path, name: str) -> Path:
    """Where a job directory has the wrapper of a script."""
    return directory / "submit" / name


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
    except BaseException as error:
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            # What has no name of its own, like a disk that is full, happened here.
            error.filename = error.filename or str(path)
        raise


def directories(home: Path) -> dict[Path, str]:
    """All job directories of a user, each with the id of its job as far as it is known."""
    jobs = home / ".vtorque"
    try:
        entries = sorted(jobs.iterdir())
    except FileNotFoundError:
        return {}
    found = {path: "" for path in entries if not path.is_symlink() and re.fullmatch(_REQUEST_ID, path.name, re.ASCII)}
    for path in entries:
        if path.is_symlink() and (target := jobs / path.readlink()) in found:
            found[target] = path.name
    return found


def remove(path: Path, job: str) -> None:
    """Remove a job directory of the user's own, and the link to it."""
    import shutil  # with libraries for archives that a submission has no need of

    shutil.rmtree(path)
    for name in (job, f"{job}.cancelled") if job else ():
        path.with_name(name).unlink(missing_ok=True)


def wrapper(template: bytes, *, directives: bytes, command: Sequence[str]) -> bytes:
    """What is submitted in place of the user's script: his directives byte for byte, then `command`."""
    text = template.replace(b"@COMMAND@", shlex.join(command).encode(errors="surrogateescape"))
    return text.replace(b"@DIRECTIVES@\n", directives)


def exported_names(lists: Collection[str], *, everything: bool, environ: Collection[str]) -> set[str]:
    """Names of the variables that the user sends along with -v, and with -V all of his environment."""
    names = {part.partition("=")[0].strip() for text in lists for part in text.split(",")}
    if everything:
        names |= set(environ) - _GUESTS_OWN
    return {name for name in names if name.isidentifier()}
