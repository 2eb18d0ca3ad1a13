# SPDX-License-Identifier: Apache-2.0
"""The kernel's nf_tables through the nft command: nft(8) makes one transaction of what it reads."""

import contextlib
import json
import os
import select
from collections.abc import Iterator, Sequence
from pathlib import Path

from vtorque import proc
from vtorque.backends.filter import PREFIX
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, ConfigError, DeadlineExceeded

PROGRAM = Path("/usr/sbin/nft")

_UNSHARE, _NSENTER, _CAT = "/usr/bin/unshare", "/usr/bin/nsenter", "/usr/bin/cat"


class Nft:
    """Tables of this process's network namespace."""

    def __init__(self, program: Path = PROGRAM) -> None:
        self._program = program

    def load(self, rules: str, *, deadline: Deadline) -> None:
        """Put rules into force in one transaction; ConfigError without nft, CommandError when it refuses them."""
        self._run("-f", "-", rules=rules, deadline=deadline)

    def check(self, rules: str, *, deadline: Deadline) -> None:
        """The same, for a trial: the kernel looks at the rules and takes none."""
        self._run("--check", "-f", "-", rules=rules, deadline=deadline)

    def remove(self, table: str, *, deadline: Deadline) -> None:
        """Drop the table. To delete one that is not there would be an error, so it is made first."""
        self._run("-f", "-", rules=f"add table bridge {table}\ndelete table bridge {table}\n", deadline=deadline)

    def is_as(self, table: str, rules: str, *, deadline: Deadline) -> bool:
        """Whether the kernel lists the table as it lists one that these rules make where nobody else is.

        nft says nothing of what it has loaded that could be compared with the text.
        """
        listing = ("-s", "list", "table", "bridge", table)
        with _elsewhere(deadline) as enter:
            self._run("-f", "-", rules=rules, deadline=deadline, enter=enter)
            wanted = self._run(*listing, rules="", deadline=deadline, enter=enter)
        return wanted == self._run(*listing, rules="", deadline=deadline)

    def tables(self, *, deadline: Deadline) -> list[str]:
        """Names of our tables; none where there is no nft that could have made any."""
        if not self._program.exists():
            return []
        listed = json.loads(self._run("-j", "list", "tables", "bridge", rules="", deadline=deadline))
        names = [entry["table"]["name"] for entry in listed["nftables"] if "table" in entry]
        # Somebody else's may hold what no key of a job does.
        return sorted(name for name in names if name.startswith(PREFIX) and "/" not in name)

    def _run(self, *words: str, rules: str, deadline: Deadline, enter: Sequence[str] = ()) -> bytes:
        if not self._program.exists():
            hint = "apt-get install nftables, or NETWORK_FILTER: false"
            raise ConfigError(f"NETWORK_FILTER: there is no {self._program} on this node", hint=hint)
        deadline.require("set the network filter")
        done = proc.run([*enter, self._program, *words], stdin=rules.encode(), deadline=deadline, statuses=range(256))
        if done.status != 0:
            # It points at the place in a line of its own, which alone says nothing.
            said = done.stderr.decode(errors="backslashreplace").strip() or "no message"
            raise CommandError(f"nft refuses: {said.splitlines()[0][:200]}", details=f"{said[:2000]}\n{rules[:2000]}")
        return done.stdout


@contextlib.contextmanager
def _elsewhere(deadline: Deadline) -> Iterator[Sequence[str]]:
    """What brings a command into a network namespace of nobody's, which goes when this ends, however it does."""
    keeper = proc.spawn(
        [_UNSHARE, "--net", _CAT], stdin=proc.PIPE, stdout=proc.PIPE, stderr=proc.DEVNULL, env=proc.CLEAN_ENV,
        cwd=Path("/"),
    )
    with keeper:
        assert keeper.stdin is not None and keeper.stdout is not None
        # Its answer is the sign that it is there.
        os.write(keeper.stdin.fileno(), b".")
        if not select.select([keeper.stdout], [], [], deadline.require("make a network namespace"))[0]:
            keeper.kill()
            raise DeadlineExceeded("out of time: a network namespace to compare rules in")
        yield (_NSENTER, f"--net=/proc/{keeper.pid}/ns/net")
