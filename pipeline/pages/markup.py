"""An element of a parsed page as a list of its tags, each with the text behind it.

A parser in C makes a tree of a page in a quarter of a millisecond; to visit each node of it from Python costs five
times as much. But lexbor also writes a tree out in C, and what it writes is regular, whatever the page was: every
element but the void ones has its end tag, `<` and `>` stand for nothing but tags (HTML Living Standard, serializing
HTML fragments, with `<` and `>` escaped in attributes). So cutting it at `<` is all the parsing that is left.

Not escaped are comments and the text of a few elements (`script`, `style`, `iframe`, `xmp` ...). Comments and those of
them that no browser shows are taken out first; the text of the others is escaped.

Limits: within SVG, a `<style>` whose text spells an end tag ends there.
"""

from __future__ import annotations

import re

NOTHING = "!"
"""The tag that stands where a comment or a script was."""

_RAW = re.compile("<(?:!--|(script|style|iframe|xmp|noembed|noframes|plaintext|template)(?=[ >]))")
_SHOWN = frozenset(("xmp", "noembed", "noframes", "plaintext"))
_SCRIPT = re.compile(r"(?i)<!--|-->|(</?)script(?=[\t\n\f\r />])")
_TEMPLATE = re.compile("<(/?)template(?=[ >])")
_ATTRIBUTE = re.compile(r' (=?[^\t\n\f\r />=]*)="([^"]*)"')


def pieces_of(html: str) -> tuple[list[str], list[str]]:
    """The tags of an element as lexbor writes it, each without its `<` and `>`, and the texts behind them.

    `<p>a<br>b</p>c` is `["p", "br", "/p"]` and `["a", "b", "c"]`. Texts and values of attributes are escaped: see
    `unescaped`.
    """
    html = _without_raw(html)
    parts = html.replace(">", "<").split("<")
    if len(parts) == 2 * html.count("<") + 1:  # as many `>`: each ends the tag that the `<` before it began
        return parts[1::2], parts[2::2]
    pieces: list[str] = []  # names of tags and attributes may hold a `<`
    for piece in html.split("<")[1:]:
        if pieces and ">" not in pieces[-1]:
            pieces[-1] += "<" + piece
        else:
            pieces.append(piece)
    cut = [piece.partition(">") for piece in pieces]
    return [tag for tag, _, _ in cut], [text for _, _, text in cut]


def unescaped(text: str) -> str:
    """A text, or the value of an attribute, as it was before it was written out."""
    if "&" not in text:
        return text
    for reference, character in (("&nbsp;", "\xa0"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(reference, character)
    return text


def value_of(tag: str, name: str) -> str:
    """The value of one attribute; "" if it is missing or empty."""
    lead = f' {name}="'
    start = tag.find(lead)
    if start < 0:
        return ""
    if tag.count('"', 0, start) % 2:  # it may be the end of another attribute's value
        return next((unescaped(value) for other, value in _ATTRIBUTE.findall(tag) if other == name), "")
    start += len(lead)
    return unescaped(tag[start : tag.find('"', start)])


def attributes_of(tag: str) -> dict[str, str]:
    """All attributes of a tag, names in lower case."""
    pairs = _ATTRIBUTE.findall(tag)
    if "&" in tag:
        return {name.lower(): unescaped(value) for name, value in pairs}
    return {name.lower(): value for name, value in pairs}


def _without_raw(html: str) -> str:
    """The element with NOTHING for each comment, script and template, and with what is shown of the rest escaped."""
    parts, at, searched, templates = list[str](), 0, 0, False
    while mark := _RAW.search(html, searched):
        if _is_within_tag(html, mark.start(), at):
            searched = mark.end()
            continue
        name = mark.group(1)
        if name == "template":
            searched, templates = mark.end(), True
            continue
        parts.append(html[at : mark.start()])
        if name is None:
            end = html.find("-->", mark.end())
            at = searched = end + 3 if end >= 0 else len(html)
            parts.append(f"<{NOTHING}>")
            continue
        start = html.find(">", mark.end()) + 1
        end = _end_of_script(html, start) if name == "script" else html.find(f"</{name}>", start)
        if name == "plaintext":  # nothing ends it; what comes behind it was written before
            end = html.rfind("</plaintext>", start)
        end = end if end >= 0 and start else len(html)
        at = searched = html.find(">", end) + 1 or len(html)
        if name in _SHOWN:
            text = html[start:end].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            parts.append(html[mark.start() : start] + text + html[end:at])
        else:
            parts.append(f"<{NOTHING}>")
    html = "".join([*parts, html[at:]])
    return _without_templates(html) if templates else html


def _is_within_tag(html: str, at: int, start: int) -> bool:
    """True if the `<` there is one in the name of a tag or an attribute: `<a <!--b-->` has an attribute `<!--b--`.

    start: a place before it that is in no tag.
    """
    before = html.rfind("<", start, at)
    return before >= 0 and html.find(">", before, at) < 0


def _end_of_script(html: str, start: int) -> int:
    """Returns the position of a script's end tag, -1 without one; a `<script` in a comment in it has its own."""
    end = html.find("</script>", start)
    if html.find("<!--", start, end) < 0:
        return end
    in_comment = in_script = False
    for mark in _SCRIPT.finditer(html, start):
        text = mark.group()
        if text == "<!--":
            in_comment = True
        elif text == "-->":
            in_comment = in_script = False
        elif mark.group(1) == "<":
            in_script = in_script or in_comment
        elif in_script:
            in_script = False
        else:
            return mark.start()
    return -1


def _without_templates(html: str) -> str:
    """The element without the contents of its templates, which no selector finds either."""
    parts, at, depth = list[str](), 0, 0
    for mark in _TEMPLATE.finditer(html):
        if _is_within_tag(html, mark.start(), 0):
            continue
        if not mark.group(1):
            if not depth:
                parts.append(html[at : mark.start()] + f"<{NOTHING}>")
            depth += 1
        elif depth:
            depth -= 1
            at = html.find(">", mark.end()) + 1 or len(html)
    return "".join([*parts, html[at:] if not depth else ""])
