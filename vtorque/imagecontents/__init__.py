# SPDX-License-Identifier: Apache-2.0
"""Look into an image, without booting and without mounting it: has it what guests need, and who can become root?"""

import json
from dataclasses import dataclass
from pathlib import Path

from vtorque import confined
from vtorque.deadline import Deadline
from vtorque.errors import CommandError
from vtorque.imagecontents.rules import MISSING, RIGHTS, Finding

__all__ = ["MISSING", "RIGHTS", "Contents", "Finding", "look"]

_SCRIPT = Path(__file__).with_name("child.py")
_LIMITS = confined.Limits(cpu_seconds=120, memory_mib=1024, answer=256 << 10)
_KINDS = (MISSING, RIGHTS, "nfs", "9p", "virtiofs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was found in an image: its system's name and what is wrong with it; or why it is `unread`."""

    system: str = ""
    unread: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def sealed(self) -> bool:
        """Whether it was looked into, and nobody was found who can become root in it."""
        return not self.unread and all(each.kind != RIGHTS for each in self.findings)

    def problems(self, *, share: str, trusted: bool) -> tuple[Finding, ...]:
        """The findings that count where guests get their shares in that way; of an untrusted image no rights do."""
        counted = {MISSING, share} | ({RIGHTS} if trusted else set())
        return tuple(each for each in self.findings if each.kind in counted)


def look(handle: int, *, deadline: Deadline) -> Contents:
    """Have a child without rights look into the image behind `handle`; DeadlineExceeded."""
    try:
        return _understood(confined.run(_SCRIPT, handle=handle, limits=_LIMITS, deadline=deadline))
    except (CommandError, ValueError, TypeError) as error:
        return Contents(unread=f"its file system is damaged, or too large to be looked into: {error}")


def _understood(text: bytes) -> Contents:
    """The child's answer; ValueError or TypeError when it is none."""
    match json.loads(text):
        case {"unread": str(why)}:
            return Contents(unread=why)
        case {"os": str(system), "findings": list(lines)}:
            found = [Finding(kind=str(kind), what=str(what), hint=str(hint)) for kind, what, hint in lines]
            if all(each.kind in _KINDS for each in found):
                return Contents(system=system, findings=tuple(found))
    raise ValueError("an answer that makes no sense")
