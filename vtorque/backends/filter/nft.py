# SPDX-License-Identifier: Apache-2.0
"""The kernel's nf_tables through the nft command: nft(8) makes one transaction of what it reads."""

from collections.abc import Sequence
from pathlib import Path

from vtorque import proc
from vtorque.backends.filter import PREFIX, nftables
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, ConfigError

PROGRAM = Path("/usr/sbin/nft")

_AS_KEEPER = (
    "/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
    "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--",
)


class Nft:
    """Tables of this process's network namespace."""

    def __init__(self, program: Path = PROGRAM) -> None:
        self._program = program

    def load(self, rules: str, *, deadline: Deadline) -> None:
        """Put rules into force in one transaction; ConfigError without nft, CommandError when it refuses them."""
        self._run("-f", "-", rules=rules, deadline=deadline)

    def check(self, rules: str, *, deadline: Deadline) -> None:
        """The same, for a trial, with the rights of who keeps the network: the kernel looks at them and takes none."""
        self._run("--check", "-f", "-", rules=rules, deadline=deadline, through=_AS_KEEPER)

    def remove(self, table: str, *, deadline: Deadline) -> None:
        """Drop the table. To delete one that is not there would be an error, so it is made first."""
        self._run("-f", "-", rules=f"add table bridge {table}\ndelete table bridge {table}\n", deadline=deadline)

    def renew(self, table: str, rules: str, *, deadline: Deadline) -> bool:
        """Load the table again; whether the kernel listed it otherwise before.

        nft says nothing of what it has loaded that could be compared with the text.
        """
        before = self._listing(table, deadline)
        self.load(rules, deadline=deadline)
        return self._listing(table, deadline) != before

    def tables(self, *, deadline: Deadline) -> list[str]:
        """Names of our tables, as the kernel tells them, without a process; none where it knows of no tables."""
        deadline.require("ask for the tables of the network filter")
        # Somebody else's may hold what no key of a job does.
        return sorted(name for name in nftables.tables() if name.startswith(PREFIX) and "/" not in name)

    def _listing(self, table: str, deadline: Deadline) -> bytes:
        return self._run("-s", "list", "table", "bridge", table, rules="", deadline=deadline)

    def _run(self, *words: str, rules: str, deadline: Deadline, through: Sequence[str] = ()) -> bytes:
        if not self._program.exists():
            hint = "apt-get install nftables, or NETWORK_FILTER: false"
            raise ConfigError(f"NETWORK_FILTER: there is no {self._program} on this node", hint=hint)
        deadline.require("set the network filter")
        done = proc.run([*through, self._program, *words], stdin=rules.encode(), deadline=deadline, statuses=range(256))
        if done.status != 0:
            # It points at the place in a line of its own, which alone says nothing.
            said = done.stderr.decode(errors="backslashreplace").strip() or "no message"
            raise CommandError(f"nft refuses: {said.splitlines()[0][:200]}", details=f"{said[:2000]}\n{rules[:2000]}")
        return done.stdout
