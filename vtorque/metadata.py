# SPDX-License-Identifier: Apache-2.0
"""What a user may add to his guests' cloud-config: only what cannot make him root in them.

Guests mount shares by NFS with sec=sys, so root in a guest is everybody there.
Packages are left out for that reason, too: some hand root to members of a
group, and a user brings his groups along.
"""

import json
import re
from collections.abc import Mapping

import yaml

from vtorque.errors import RequestError

KEYS = {
    "timezone": re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z][A-Za-z0-9_+-]{0,31}){0,2}", re.ASCII),
    "locale": re.compile(r"[A-Za-z]{1,8}(?:_[A-Z]{2})?(?:\.[A-Za-z0-9-]{1,16})?(?:@[a-z]{1,16})?", re.ASCII),
}
"""The keys of cloud-config that users may set, and what their values look like."""

LIMIT = 4096


def read(text: bytes) -> str:
    """A user's YAML file as canonical JSON; RequestError that names the key and what is allowed."""
    if len(text) > LIMIT:
        raise RequestError(f"-vm metadata=: the file has more than {LIMIT} bytes")
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise RequestError("-vm metadata=: aliases (*name) are not allowed")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RequestError(f"-vm metadata=: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not data:
        raise RequestError("-vm metadata=: not a cloud-config", hint="lines like timezone: Europe/Berlin")
    check(data)
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def check(data: Mapping[object, object]) -> None:
    """Refuse what users may not set (RequestError)."""
    for key, value in data.items():
        pattern = KEYS.get(key) if isinstance(key, str) else None
        if pattern is None:
            raise RequestError(
                f"-vm metadata=: {str(key)[:80]!r} is not a key that users may set",
                hint=f"there are: {', '.join(KEYS)}",
            )
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise RequestError(f"-vm metadata=: {key} cannot be {str(value)[:80]!r}")
