"""Bounds on a page's markup, checked before the parser sees it.

Parsers of HTML are quadratic in three things: in open elements, since most tags look through them (200,000 nested
`<div>` took 119 s); in attributes of one element, since each is compared with those before it (80,000 took 12.8 s); and
in formatting elements, which are opened again in every paragraph (1,000 different `<b x>` and 2,000 `<p>`, 16 kB, made
2 million elements) and moved by their end tags (40 kB took 8 s). And whatever a page holds costs memory per element.

`excess` refuses a page that goes beyond what pages are. It reads markup without the rules of a tokenizer, in linear
time, and may therefore be misled by a page that knows it. `is_light` cannot be misled: it vouches for a page only if no
page of so many characters and tags can cost more than a fraction of a second. What is neither refused nor light is
read in a process of its own with limits (`pipeline.processes.confined`).

Limits: tags within comments and scripts count like any others. The bounds are a hundred times what the pages of the
demo have (457 tags, 9 deep, 7 attributes), and above the largest real pages that were found, API references of 5 MB
(180,361 tags, 128 deep at most).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MAX_TAGS = 300_000
"""Tags and comments of a page; each costs about 3 microseconds and 300 bytes."""

MAX_DEPTH = 1_000
"""Elements within elements; browsers stop at 512. It matters above MANY_TAGS, and is counted only there."""

MANY_TAGS = 10_000
"""Tags up to which nesting costs at most 0.3 s, however deep it is."""

MAX_ATTRIBUTES = 2_000

MAX_IMAGES = 10_000
"""Images of a page; each becomes a candidate or a decision, some 40 microseconds."""

SMALL_CHARACTERS, SMALL_TAGS = 32_000, 1_000
"""Size of a page that cannot cost more than 0.2 s and 150 MB whatever it holds."""

TINY_CHARACTERS, TINY_FORMATTING = 16_000, 20

LIGHT_CHARACTERS, LIGHT_IMAGES = 1_000_000, 3_000

LIGHT_CLONES = 500_000
"""Formatting elements that a light page may make the parser open again; each costs a microsecond and 370 bytes."""

LIGHT_LOOKS = 2_000_000
"""Open elements that the ends of formatting elements may make the parser move, at 0.3 microseconds each."""

LONG_TAG = 4_096
"""Characters of a tag above which its attributes are counted."""

_NAMES = re.compile(r"<(/?[a-zA-Z][^\s/>]*)")
_VOID = frozenset((
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"
))  # fmt: skip
_CLOSED_BY_THE_NEXT = frozenset(("p", "li", "dd", "dt", "tr", "td", "th", "option", "tbody", "thead", "rt", "rp", "a"))


def _tags_named(before: str, names: str, after: str) -> str:
    """A pattern for tags of some names in either case, which is found by its `<`: a search that ignores case looks at
    every character and takes three times as long."""
    either = "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in name) for name in names.split())
    return f"<{before}(?:{either}){after}"


_FORMATTING = re.compile(_tags_named("", "b big code em font i nobr s small strike strong tt u", r"[\s/]"))
"""Formatting elements with attributes. Of those without, a parser opens at most three of each name again."""

_MAYBE_FORMATTING = re.compile(r"<[bBcCeEfFhHiInNsStTuU][a-zA-Z]{0,5}[\s/]")
"""Beginnings of those and of `_ROOT`, and others: found in a quarter of the time."""

_FORMATTING_ENDS = re.compile(
    _tags_named("/", "a b big code em font i nobr s small strike strong tt u", r"[\s/>]")
    + "|"
    + _tags_named("", "a nobr", r"[\s/>]")
)
"""Tags that make a parser look for an open formatting element, and move what is open within it (adoption agency)."""

_NAMES_WITHOUT = 39
"""Formatting elements without attributes, and links, that can be open at once for the parser to open again."""

_QUOTED_END = re.compile(r"""=\s*(?:"[^">]*>|'[^'>]*>)""")
"""Candidates for an attribute whose value holds the end of a tag. Every such attribute has a match of its own."""

_ROOT = re.compile(_tags_named("", "html body", r"[\s/]"))
"""A second `<body x>` adds its attributes to the first."""

_TAG_START = re.compile("<[a-zA-Z]")
_QUOTED = re.compile(r"""=\s*(?:"[^"]*"|'[^']*')""")
_IMAGE = re.compile("<[iI][mM][aA]?[gG][eE]?")


class PageRefused(ValueError):
    """A page beyond a bound; the message says which."""


def tree_of(html: str) -> Any:
    """The page as selectolax (lexbor) reads it. Raises PageRefused for a page beyond a bound."""
    from selectolax.lexbor import LexborHTMLParser, SelectolaxError

    if bound := excess(html):
        raise PageRefused(bound)
    try:
        return LexborHTMLParser(html)
    except SelectolaxError as e:  # whatever is written is HTML: only memory can be missing
        raise PageRefused(f"{e} It takes more memory than there is.") from None


def excess(html: str) -> str:
    """Returns the bound that a page exceeds, in words; "" for none."""
    tags = html.count("<")
    if tags > MAX_TAGS and (tags := _tags(html)) > MAX_TAGS:
        return f"{tags} tags, more than {MAX_TAGS}"
    if tags > MAX_IMAGES and (images := len(_IMAGE.findall(html))) > MAX_IMAGES:
        return f"{images} images, more than {MAX_IMAGES}"
    if tags > MANY_TAGS and _nests_beyond(html, MAX_DEPTH):
        return f"elements nested more than {MAX_DEPTH} deep"
    if len(html) > LONG_TAG and (attributes := _max_attributes(html)) > MAX_ATTRIBUTES:
        return f"an element with {attributes} attributes, more than {MAX_ATTRIBUTES}"
    return ""


def is_light(html: str) -> bool:
    """Returns whether parsing and reading a page are certain to be fast, hostile pages included."""
    tags = html.count("<")
    if tags <= SMALL_TAGS and len(html) <= SMALL_CHARACTERS:
        return True
    if tags > MANY_TAGS or len(html) > LIGHT_CHARACTERS:
        return False
    maybe = _MAYBE_FORMATTING.findall(html)
    clones = (len(maybe) + _NAMES_WITHOUT) * tags  # at most; counted where that is too much
    if clones > LIGHT_CLONES:
        clones = (len(_FORMATTING.findall(html)) + _NAMES_WITHOUT) * tags
    looks = tags * tags
    if looks > LIGHT_LOOKS:
        looks = len(_TAG_START.findall(html)) * len(_FORMATTING_ENDS.findall(html))
    return (
        clones <= LIGHT_CLONES
        and looks <= LIGHT_LOOKS
        and (tags <= LIGHT_IMAGES or len(_IMAGE.findall(html)) <= LIGHT_IMAGES)
        and sum(1 for tag in maybe if _ROOT.match(tag)) <= 4
        and not _may_have_long_tag(html)
    )


def is_tiny(html: str) -> bool:
    """True if a page is so small that reading it cannot hold up an event loop: a few hundredths of a second."""
    small = len(html) <= TINY_CHARACTERS and html.count("<") <= SMALL_TAGS // 2
    return small and len(_FORMATTING.findall(html)) <= TINY_FORMATTING


def _tags(html: str) -> int:
    """Tags, comments and declarations: a `<` before anything else is text, as in a script."""
    return len(re.findall("<[a-zA-Z/!?]", html))


def _nests_beyond(html: str, depth: int) -> bool:
    """True if more than `depth` elements are open at once. An end tag ends the last open element of its name, and all
    that is open within it; without one it is passed over."""
    open_elements: list[str] = []
    count: dict[str, int] = {}  # of each name among them
    for tag in _NAMES.findall(html):
        name = tag.lower()
        if name[0] == "/":
            name = name[1:]
            if count.get(name):
                while (last := open_elements.pop()) != name:
                    count[last] -= 1
                count[name] -= 1
        elif name not in _VOID:
            if name in _CLOSED_BY_THE_NEXT and open_elements and open_elements[-1] == name:
                continue
            open_elements.append(name)
            count[name] = count.get(name, 0) + 1
            if len(open_elements) > depth:
                return True
    return False


def _max_attributes(html: str) -> int:
    """Attributes of the element that has the most, as far as they are set apart by white space."""
    parts = ((part, _TAG_START.search(part)) for part in _long_parts(html))
    return max((len(_QUOTED.sub("", part[tag.start() :]).split()) - 1 for part, tag in parts if tag), default=0)


def _long_parts(html: str) -> Iterator[str]:
    """The parts between two `>` that have more than LONG_TAG characters; looks at one in thousands of the others'."""
    at = 0
    while len(html) - at > LONG_TAG:
        end = html.rfind(">", at, at + LONG_TAG + 1)
        if end < 0:
            end = html.find(">", at + LONG_TAG)
            yield html[at : end if end >= 0 else None]
            if end < 0:
                return
        at = end + 1


def _may_have_long_tag(html: str) -> bool:
    """True if the attributes of a tag, without values that hold `>`, may have more than eight times LONG_TAG
    characters."""
    long = [_TAG_START.search(part) for part in _long_parts(html)]
    if not long:
        return len(_QUOTED_END.findall(html)) > 7
    # the attributes of a tag may go on behind a value that holds `>`: then any long part may be attributes
    return any(long) or _QUOTED_END.search(html) is not None
