# SPDX-License-Identifier: Apache-2.0
"""A packet filter in memory: it keeps the text of each table, and can be told to refuse."""

import re
from collections.abc import MutableMapping

from vtorque.backends.filter import PREFIX
from vtorque.deadline import Deadline
from vtorque.errors import CommandError

_TABLE = re.compile(rf"\bbridge ({re.escape(PREFIX)}[A-Za-z0-9._-]+)")


class FakeFilter:
    """Tables that exist only here; with `fails` it loads none."""

    def __init__(self, *, fails: bool = False) -> None:
        self.loaded: MutableMapping[str, list[str]] = {}
        self.fails = fails

    def load(self, rules: str, *, deadline: Deadline) -> None:
        deadline.require("load")
        if self.fails:
            raise CommandError("nft refuses: told to fail")
        (name,) = set(_TABLE.findall(rules))
        if f"delete table bridge {name}\n" in rules:
            self.loaded[name] = []
        elif name not in self.loaded:
            raise CommandError(f"nft refuses: there is no table {name}")
        self.loaded[name] = [*self.loaded[name], rules]

    def remove(self, table: str, *, deadline: Deadline) -> None:
        deadline.require("remove")
        self.loaded.pop(table, None)

    def renew(self, table: str, rules: str, *, deadline: Deadline) -> bool:
        deadline.require("renew")
        before, self.loaded[table] = self.loaded[table], [rules]
        return "".join(before) != rules

    def tables(self, *, deadline: Deadline) -> list[str]:
        return sorted(self.loaded)
