# SPDX-License-Identifier: Apache-2.0
"""Looks into the image that is its standard input. A script that root starts without rights (vtorque/confined.py)."""

import json
import os
import sys
from pathlib import Path
from typing import Any

_LONGEST = 200
_MOST_FINDINGS = 200
_NAME = 'PRETTY_NAME="'


def answer() -> dict[str, Any]:
    """What is in the image, or why it cannot be looked into."""
    from vtorque import imageformat
    from vtorque.imagecontents import disk, ext4, rules

    image_format = imageformat.format_of(0)
    try:
        imageformat.look(0, image_format)
    except imageformat.Refused as error:
        return {"unread": f"it {error}"}
    reasons = []
    for part in disk.partitions(disk.reader(0, image_format)):
        found = disk.kind(part)
        if found != "ext":
            reasons.append(found)
            continue
        try:
            system = ext4.Ext4(part)
            text = system.text("/etc/os-release", limit=_LONGEST * 20)
            if text is not None:
                findings = rules.check(system)[:_MOST_FINDINGS]
                lines = [[each.kind, each.what[:_LONGEST], each.hint[:_LONGEST]] for each in findings]
                return {"os": text.partition(_NAME)[2].partition('"')[0][:_LONGEST], "findings": lines}
            reasons.append("ext4 without an /etc/os-release")
        except ext4.Unreadable as error:
            reasons.append(str(error))
    known = sorted({reason for reason in reasons if reason})
    return {"unread": f"it holds {', '.join(known)}" if known else "it holds no file system that is known"}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    os.write(1, json.dumps(answer()).encode())
