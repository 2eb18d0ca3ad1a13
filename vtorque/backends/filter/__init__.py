# SPDX-License-Identifier: Apache-2.0
"""What we need of the node's packet filter. Every verb may be repeated."""

from typing import Protocol

from vtorque.deadline import Deadline

PREFIX = "vtorque"
"""What the names of our tables begin with. No other table is touched."""


class Filter(Protocol):
    """Tables of rules in the kernel's bridge family, one for each job that has guests here."""

    def load(self, rules: str, *, deadline: Deadline) -> None:
        """Put rules, in nft's own language, into force: all of them or none. CommandError when they are refused."""
        ...

    def remove(self, table: str, *, deadline: Deadline) -> None:
        """Drop a table with all that is in it. Absent is success."""
        ...

    def renew(self, table: str, rules: str, *, deadline: Deadline) -> bool:
        """Load the table, which is in force, again; whether it was something else. CommandError when it is refused."""
        ...

    def tables(self, *, deadline: Deadline) -> list[str]:
        """Names of our tables that are in force, also of those that no ledger tells of."""
        ...
