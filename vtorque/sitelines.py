# SPDX-License-Identifier: Apache-2.0
"""The entries of the site's configuration, read without a YAML parser where every line is a simple one.

To load a YAML parser takes longer than everything else that vsub does with the
file. What is read here is read in the same way there; anything else is left to it.
"""

import re
from typing import NamedTuple

_BLANK = re.compile(r" *(?:#.*)?")
# No colon before a blank, no hash; nothing that means something to YAML in front.
_WORD = r"[A-Za-z0-9./_](?:[][A-Za-z0-9._+/=,;@%()<>{}|*?^$\\-]|:(?! |$))*"
_ITEM = r"[A-Za-z0-9./_][A-Za-z0-9._+/=@-]*"
_QUOTED = r"""(?:"[^"\\]*"|'[^']*')"""
_ENTRY = re.compile(
    r"(?P<key>[A-Z][A-Z0-9_]{0,63}): +"
    rf"(?:(?P<plain>{_WORD}(?: +{_WORD})*)|(?P<quoted>{_QUOTED})"
    rf"|\[ *(?P<items>(?:(?:{_ITEM}|{_QUOTED})(?: *, *(?:{_ITEM}|{_QUOTED}))*)?) *\])(?: +#.*| *)"
)


class Entry(NamedTuple):
    """An option as the file has it: its line, and a text, the words of a list, or neither of them."""

    line: int
    key: str
    text: str | None = None
    is_quoted: bool = False
    words: tuple[str, ...] | None = None


def entries(text: str) -> list[Entry] | None:
    """All entries of the file; nothing when a line takes a YAML parser."""
    if not (text.isascii() and text.replace("\n", "").isprintable()):
        return None
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if _BLANK.fullmatch(line):
            continue
        match = _ENTRY.fullmatch(line)
        if match is None:
            return None
        if match["items"] is not None:
            items = re.findall(f"{_ITEM}|{_QUOTED}", match["items"])
            words = tuple(item[1:-1] if item[0] in "\"'" else item for item in items)
            found.append(Entry(line=number, key=match["key"], words=words))
        else:
            quoted = match["quoted"]
            said = quoted[1:-1] if quoted else match["plain"]
            found.append(Entry(line=number, key=match["key"], text=said, is_quoted=quoted is not None))
    return found
