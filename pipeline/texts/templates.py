"""Templates: beginnings and ends that very many texts of one site share, such as 关注公众号【…】 or 「… 的图片」.

`learn` finds them in a sample of a site's texts. A beginning is a template if many texts have it and go on differently:
if it stands in a third of the site's texts, or in hundreds of them and ends at a separator. The longest such beginning
counts. Ends are beginnings of the reversed texts. Numbers are all one: 「预览图-5」 and 「预览图-12」 end alike.

`Templates.cut` takes a template off a text. Where nothing remains the text was the template.

Limits: a site that names its pictures by a system (“模糊”滤镜选项, “锐化”滤镜选项) says something by it, and so would a
beginning of a few letters that many texts have by chance (北京). Therefore a template without a separator needs LETTERS
letters and the share of a third, and neither a quotation mark nor the space after a Latin word is a separator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MIN_TEXTS = 10
"""Texts of the sample that share a template at least."""

SHARE = 1 / 3
"""Share of a site's texts from which on a beginning is a template wherever it ends."""

HUNDREDS = 100
"""Texts of a site from which on a beginning that ends at a separator is a template, whatever their share."""

LETTERS = 6
"""Letters of a template that ends at no separator."""

LONGEST = 40
"""Characters of a template at most."""

_NUMBER = re.compile(r"\d+")
_SEPARATOR = re.compile(r"[\s|｜_:：\-–—·•/\\【】〖〗\[\]()（）>»#~,，。]")
_BETWEEN_WORDS = re.compile(r"[A-Za-z]\s$|^\s[A-Za-z]")
_LETTER = re.compile(r"[^\W\d_]")
_EDGE = " |｜_:：-–—·•/\\>»~,，、"
_PAIRS = {"【": "】", "〖": "〗", "[": "]", "(": ")", "（": "）", "「": "」", "『": "』", "“": "”", "《": "》"}


@dataclass(frozen=True, slots=True)
class Template:
    """A beginning or an end of texts, with 0 for each number. texts: how many have it, as the sample tells."""

    side: str  # "begins" or "ends"
    text: str
    texts: int


class Templates:
    def __init__(self, templates: Sequence[Template]) -> None:
        self.templates = tuple(sorted(templates, key=lambda t: (-len(t.text), t.side, t.text)))
        self._patterns = [(t, _pattern(t)) for t in self.templates]

    def cut(self, text: str) -> tuple[str, Template | None]:
        """The text without the longest template at its beginning and at its end, and the longer one of them.

        A cleaned text; one without any is returned as it is. Where no letter would remain, it is "".
        """
        begins, ends = (next(self._matches(own, side), None) for own, side in ((text, "begins"), (text[::-1], "ends")))
        if begins is None and ends is None:
            return text, None
        start, stop = begins[1] if begins else 0, len(text) - (ends[1] if ends else 0)
        remaining = _trim_edges(text[start:stop])  # both may claim the space between them, where it stands alone
        longest = max((match[0] for match in (begins, ends) if match), key=lambda template: len(template.text))
        return (remaining if _LETTER.search(remaining) else ""), longest

    def _matches(self, text: str, side: str) -> Iterator[tuple[Template, int]]:
        """The templates of one side that a text has, and how many of its characters each takes, the longest first.

        text: reversed for ends, which are then looked for in one place, too: a search would restart at each digit.
        """
        for template, pattern in self._patterns:
            if template.side == side and (match := pattern.match(text)):
                yield template, match.end()


def learn(texts: Sequence[str], rate: float = 1.0) -> list[Template]:
    """Templates of a site from a sample of its texts, each once.

    rate: share of the site's texts that are in the sample, above 0. The result does not depend on the order of texts.
    """
    if len(texts) < MIN_TEXTS:
        return []
    shapes = {_NUMBER.sub("0", text) for text in texts}
    reversed_shapes = {shape[::-1] for shape in shapes}
    templates = []
    for side, of_side in (("begins", shapes), ("ends", reversed_shapes)):
        for beginning, count in _beginnings(sorted(of_side)):
            text = beginning if side == "begins" else beginning[::-1]
            if _is_template(side, text, count, len(shapes), rate):
                templates.append(Template(side, text, round(count / rate)))
    return templates


def _beginnings(shapes: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(beginning, how many have it), for each from which LEAST shapes go on differently.

    shapes: sorted. Those that share a beginning are neighbours, and a beginning from which they go on differently is a
    branch of their tree: found in one pass over the lengths that neighbours have in common.
    """
    for length, first, end in _branches(shapes):
        if _goes_on_differently(shapes, length, first, end):
            yield shapes[first][:length], end - first


def _branches(shapes: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(length, first, end): shapes[first:end], LEAST or more, are all that begin with the same `length` characters."""
    branches: list[tuple[int, int]] = [(0, 0)]  # (length, first), lengths ascending
    for at in range(1, len(shapes) + 1):
        shared = _common_length(shapes[at - 1], shapes[at]) if at < len(shapes) else 0
        first = at - 1
        while branches and branches[-1][0] > shared:
            length, first = branches.pop()
            if at - first >= MIN_TEXTS:
                yield length, first, at
        if shared and (not branches or branches[-1][0] < shared):
            branches.append((shared, first))


def _common_length(one: str, other: str) -> int:
    limit = min(len(one), len(other), LONGEST)
    return next((at for at in range(limit) if one[at] != other[at]), limit)


def _is_template(side: str, text: str, count: int, total: int, rate: float) -> bool:
    """True if so many texts of a sample of `total` texts make what they share a template."""
    letters = len(_LETTER.findall(text))
    edge = text[-1] if side == "begins" else text[0]
    separated = _SEPARATOR.match(edge) and not _BETWEEN_WORDS.search(text)
    if separated or (side == "ends" and edge == "的"):
        return letters >= 2 and (count >= SHARE * total or count / rate >= HUNDREDS)
    return letters >= LETTERS and count >= SHARE * total


def _goes_on_differently(shapes: Sequence[str], length: int, first: int, end: int) -> bool:
    """True if no single character follows in more than half of the texts."""
    following = [shape[length : length + 1] for shape in shapes[first:end]]
    return max(following.count(c) for c in set(following)) * 2 <= len(following)


def _pattern(template: Template) -> re.Pattern[str]:
    """Matches a beginning of texts, or of reversed ones for an end."""
    shape = template.text if template.side == "begins" else template.text[::-1]
    return re.compile(r"\d+".join(re.escape(part) for part in shape.split("0")))


def _trim_edges(text: str) -> str:
    """Returns the rest of a text, without separators at its edges and without half of a pair of brackets."""
    text = text.strip(_EDGE)
    for opening, closing in _PAIRS.items():
        if text.endswith(closing) and text.count(closing) > text.count(opening):
            text = text[: -len(closing)]
        elif text.startswith(opening) and text.count(opening) > text.count(closing):
            text = text[len(opening) :]
    return text.strip(_EDGE)
