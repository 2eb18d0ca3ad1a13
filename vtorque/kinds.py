# SPDX-License-Identifier: Apache-2.0
"""What a job takes on a node, and of what kinds, as its ledger has it."""

from dataclasses import dataclass

DOMAIN = "domain"
FILE = "file"
DIRECTORY = "directory"
SHUTDOWN = "shutdown"
"""A guest that has something to write or to run before it is destroyed; its name is the domain's."""
SHARE = "share"
"""The server of a share; its name is the socket."""
DISK = "disk"
"""The server of the user's own disk; its name is the socket."""
KEEPER = "keeper"
"""Who keeps the connection to rank 0's guest; its name is that of `proc.name`."""
FILTER = "filter"
"""The job's table of network rules; its name is the table's."""

Templates = tuple[tuple[str, str], ...]
"""Names and texts: whoever renders need not be able to read a site's own directory of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Something that was taken and has to be given back: a line of the ledger."""

    kind: str
    name: str
