# SPDX-License-Identifier: Apache-2.0
"""What a user may add to his guests' cloud-config: only what cannot make him root in them.

Guests mount shares by NFS with sec=sys, so root in a guest is everybody there.
Packages are left out for that reason, too: some hand root to members of a
group, and a user brings his groups along.
"""

import re
from collections.abc import Mapping

from vtorque.errors import RequestError

KEYS = {
    "timezone": r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z][A-Za-z0-9_+-]{0,31}){0,2}",
    "locale": r"[A-Za-z]{1,8}(?:_[A-Z]{2})?(?:\.[A-Za-z0-9-]{1,16})?(?:@[a-z]{1,16})?",
}
"""The keys of cloud-config that users may set, and what their values look like."""


def check(data: Mapping[object, object]) -> None:
    """Refuse what users may not set (RequestError)."""
    for key, value in data.items():
        check_entry(key, value)


def check_entry(key: object, value: object, *, line: int = 0) -> None:
    """The same for one of them, which stands in that line."""
    pattern = KEYS.get(key) if isinstance(key, str) else None
    if pattern is None:
        hint = f"there are: {', '.join(KEYS)}"
        raise wrong(f"{str(key)[:80]!r} is not a key that users may set", line=line, hint=hint)
    if not isinstance(value, str):
        raise wrong(f"{key} cannot be anything but a text", line=line)
    if re.fullmatch(pattern, value, re.ASCII) is None:
        raise wrong(f"{key} cannot be {value[:80]!r}", line=line)


def wrong(text: str, *, line: int = 0, hint: str = "") -> RequestError:
    """What is wrong with it, as the user is told."""
    return RequestError(f"-vm metadata=: {f'line {line}: ' if line else ''}{text}", hint=hint)
