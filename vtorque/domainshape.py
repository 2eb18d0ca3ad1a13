# SPDX-License-Identifier: Apache-2.0
"""What a domain document may consist of: the elements, attributes and texts that its templates have. Pure.

Templates are root's; who fills them in need not be believed that they are what was filled in. Each
element has to be one that stands in a template, with no attribute that it has not there, and with the values
and the text that are written there; only where a template has an expression may there be anything.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple, Self
from xml.etree.ElementTree import Element
from xml.sax.saxutils import unescape

from vtorque.errors import ConfigError
from vtorque.kinds import Templates

# What Jinja takes out of a text, and what it puts a value in place of.
_NOTHING = re.compile(r"{%.*?%}|{#.*?#}|<!--.*?-->", re.DOTALL)
_EXPRESSION = re.compile(r"{{.*?}}", re.DOTALL)
_ANYTHING = "\0"
_TAG = re.compile(r"<([A-Za-z_][\w.:-]*)((?:[^<>'\"]|'[^']*'|\"[^\"]*\")*)>([^<]*)", re.ASCII)
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
        return (not text or _fits(self.text, text)) and all(
            _local(name) in self.attributes and _fits(self.attributes[_local(name)], value)
            for name, value in element.items()
        )


class Shape:
    """The start tags of templates, by the names of their elements."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._tags: dict[str, list[_Tag]] = {}
        for text in texts:
            for name, attributes, behind in _TAG.findall(_EXPRESSION.sub(_ANYTHING, _NOTHING.sub("", text))):
                found = {
                    key.rpartition(":")[2]: _plain(one or other) for key, one, other in _ATTRIBUTE.findall(attributes)
                }
                tag = _Tag(attributes=found, text=_plain(behind).strip())
                self._tags.setdefault(name.rpartition(":")[2], []).append(tag)

    @classmethod
    @cache
    def of(cls, templates: Templates) -> Self:
        """That of all of a site's templates: one may include another."""
        return cls(text for _, text in templates)

    def require(self, root: Element) -> None:
        """Refuse a document that has what no template has (ConfigError)."""
        for element in root.iter():
            name = _local(element.tag)
            if (element.tail or "").strip() or not any(tag.fits(element) for tag in self._tags.get(name, ())):
                raise ConfigError(
                    f"template domain.xml: no template has <{name[:40]}> as it is there",
                    hint="elements and attributes are written out in templates; only values may be expressions",
                )

    def whole(self, name: str, root: Element) -> bool:
        """Whether the document has elements of this name just if a template has, and each all of its attributes."""
        tags, found = self._tags.get(name, ()), list(root.iter(name))
        return bool(tags) == bool(found) and all(
            any(tag.fits(each) and len(tag.attributes) == len(each.attrib) for tag in tags) for each in found
        )

    def says(self, name: str, text: str) -> bool:
        """Whether it is a template that has this text in an element of this name, or in an attribute of one."""
        tags = self._tags.get(name, ())
        return any(text == tag.text or text in tag.attributes.values() for tag in tags)


def _fits(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split(_ANYTHING))), text, re.DOTALL) is not None


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _plain(text: str) -> str:
    return unescape(text, _QUOTES)
