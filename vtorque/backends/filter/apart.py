# SPDX-License-Identifier: Apache-2.0
"""The packet filter in the hands of a child of root's that is nobody, and may do nothing but set up networks.

Who is taken for a guest, where guests may send and what nft is told is worked out there. Root says whose
guests they are, keeps the text, and knows the table by its name.
"""

import logging
from collections.abc import Mapping
from typing import Any

from vtorque import orders, servant
from vtorque.deadline import Deadline
from vtorque.errors import CommandError
from vtorque.model import JobPlan
from vtorque.servant import Asked

log = logging.getLogger(__name__)


class FilterApart:
    """The filter of this node, asked for; see `Filter`."""

    def __init__(self, child: Asked) -> None:
        self._child = child

    def rules(self, plan: JobPlan, addresses: Mapping[str, str], deadline: Deadline) -> str:
        """The text of the rules for a plan's guests, by the interfaces of which some addresses are known."""
        text, troubles = self._ask("rules", orders.encode(plan).decode(), dict(addresses), deadline=deadline)
        for trouble in troubles:
            log.warning("%s", trouble)
        return str(text)

    def load(self, rules: str, *, deadline: Deadline) -> None:
        """Put rules into force, all of them or none."""
        self._ask("load", rules, deadline=deadline)

    def renew(self, table: str, rules: str, *, deadline: Deadline) -> bool:
        """Load a table again; whether it was something else."""
        return bool(self._ask("renew", table, rules, deadline=deadline))

    def remove(self, table: str, *, deadline: Deadline) -> None:
        """Drop a table; absent is success."""
        self._ask("remove", table, deadline=deadline)

    def tables(self, *, deadline: Deadline) -> list[str]:
        """Names of our tables that are in force."""
        return [str(each) for each in self._ask("tables", deadline=deadline)]

    def close(self) -> None:
        """Let the child go."""
        self._child.dismiss()

    def _ask(self, verb: str, *words: object, deadline: Deadline) -> Any:
        try:
            return self._child.ask(verb, *words, deadline=deadline)
        except servant.Gone as error:
            raise CommandError("who sets the network filter for us has gone", details=str(error)) from error
