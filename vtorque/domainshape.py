# SPDX-License-Identifier: Apache-2.0
"""What a domain document may consist of: the elements, attributes and texts that its templates have. Pure.

Templates are root's; who fills them in need not be believed that they are what was filled in. Each element has to
be one that stands in a template, below one of the same name as there, with no attribute that it has not there, and
with the values and the text that are written there; only where a template has an expression may there be any text.
libvirt often does not look at namespaces, and takes the text of what is below for an element's own: nothing may
have a namespace but our mark, and what has text has nothing below it.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple, Self
from xml.etree.ElementTree import Element
from xml.sax.saxutils import unescape

from vtorque.errors import ConfigError
from vtorque.kinds import Templates

MARK = "metadata/{https://vtorque.org/xmlns/domain/1}vtorque"
"""Where a document says whose guest it makes."""

# What Jinja takes out of a text, and what it puts a value in place of.
_NOTHING = re.compile(r"{#.*?#}|<!--.*?-->", re.DOTALL)
_EXPRESSION = re.compile(r"{{.*?}}", re.DOTALL)
_ANYTHING = "\0"
_STATEMENT = re.compile(r"{%[-+]?\s*(\w*).*?%}", re.DOTALL)
# Of its statements those by which a text has branches.
_BEGIN, _OTHER, _END = "\1\2\3"
_BRANCHES = {"if": _BEGIN, "for": _BEGIN, "elif": _OTHER, "else": _OTHER, "endif": _END, "endfor": _END}
_MARKS = str.maketrans("", "", _BEGIN + _OTHER + _END)
_PART = re.compile(
    rf"[{_BEGIN}{_OTHER}{_END}]|<(/?)([A-Za-z_][\w.:-]*)((?:[^<>'\"]|'[^']*'|\"[^\"]*\")*)>([^<]*)", re.ASCII
)
_ATTRIBUTE = re.compile(r"([A-Za-z_][\w.:-]*)\s*=\s*(?:'([^']*)'|\"([^\"]*)\")", re.ASCII)
_QUOTES = {"&quot;": '"', "&apos;": "'"}


class _Tag(NamedTuple):
    """A start tag of a template, and the text behind it."""

    attributes: dict[str, str]
    text: str

    def fits(self, element: Element) -> bool:
        """Whether the element may have come of it."""
        # An element that had only others in it, which a condition left out, has no text.
        text = (element.text or "").strip()
        return (not text or _fits(self.text, text)) and not (self.text and len(element)) and all(
            name in self.attributes and _fits(self.attributes[name], value) for name, value in element.items()
        )


class Shape:
    """The start tags of templates, by the names of the element above each and of its own."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._tags: dict[tuple[str, str], list[_Tag]] = {}
        for text in texts:
            for above, name, tag in _tags(text):
                self._tags.setdefault((above, name), []).append(tag)

    @classmethod
    @cache
    def of(cls, templates: Templates) -> Self:
        """That of all of a site's templates: one may include another."""
        return cls(text for _, text in templates)

    def require(self, root: Element) -> None:
        """Refuse a document that has what no template has (ConfigError)."""
        marks = {id(each) for each in root.iterfind(MARK)}
        pending = [(root, "")]
        while pending:
            element, above = pending.pop()
            name = element.tag.rpartition("}")[2]
            strange = element.tag != name and id(element) not in marks
            if strange or (element.tail or "").strip() or not any(tag.fits(element) for tag in self._at(above, name)):
                raise ConfigError(
                    f"template domain.xml: no template has <{name[:40]}> as it is there",
                    hint="elements and attributes are written out in templates; only values may be expressions",
                )
            pending += [(each, name) for each in element]

    def whole(self, name: str, root: Element) -> bool:
        """Whether each kind of these elements that templates have below the root is there, with all its attributes."""
        tags, found = self._at(root.tag, name), root.findall(name)
        fitting = [
            [tag for tag in tags if tag.fits(each) and len(tag.attributes) == len(each.attrib)] for each in found
        ]
        kinds = {tag.attributes.get("model") for fits in fitting for tag in fits}
        return all(fitting) and kinds == {tag.attributes.get("model") for tag in tags}

    def says(self, name: str, text: str) -> bool:
        """Whether it is a template that has this text in an element of this name, or in an attribute of one."""
        return any(text == tag.text or text in tag.attributes.values() for tag in self._named(name))

    def has(self, name: str) -> bool:
        """Whether a template has an element of this name."""
        return bool(self._named(name))

    def _at(self, above: str, name: str) -> list[_Tag]:
        # What stands on top of a template may be included anywhere; the document itself is included nowhere.
        return [*self._tags.get((above, name), ()), *(self._tags.get(("", name), ()) if name != "domain" else ())]

    def _named(self, name: str) -> list[_Tag]:
        return [tag for (_, own), tags in self._tags.items() if own == name for tag in tags]


def _tags(text: str) -> Iterator[tuple[str, str, _Tag]]:
    """Each start tag of a template, with the names of the element that it stands in and of its own."""
    text = _EXPRESSION.sub(_ANYTHING, _NOTHING.sub("", text))
    text = _STATEMENT.sub(lambda found: _BRANCHES.get(found[1], ""), text)
    open_ones: list[str] = []
    branches: list[list[str]] = []
    for part in _PART.finditer(text):
        end, full, attributes, behind = part.groups("")
        name = full.rpartition(":")[2]
        if end and name in open_ones:
            while open_ones.pop() != name:
                pass
        elif full and not end:
            found = {key: _plain(one or other) for key, one, other in _ATTRIBUTE.findall(attributes)}
            yield (open_ones or [""])[-1], name, _Tag(found, _plain(behind).strip())
            if not attributes.translate(_MARKS).rstrip().endswith("/"):
                open_ones.append(name)
        for mark in behind if full else part[0]:
            open_ones = _branch(mark, open_ones, branches)


def _branch(mark: str, open_ones: list[str], branches: list[list[str]]) -> list[str]:
    """Which elements are open behind a statement: where there are several branches each begins as the first did."""
    if mark == _BEGIN:
        branches.append([*open_ones])
    elif mark == _OTHER and branches:
        return [*branches[-1]]
    elif mark == _END and branches:
        branches.pop()
    return open_ones


def _fits(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split(_ANYTHING))), text, re.DOTALL) is not None


def _plain(text: str) -> str:
    return unescape(text.translate(_MARKS), _QUOTES)
