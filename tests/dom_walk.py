"""The walk over a page's DOM, node by node: the oracle of the walk over what lexbor writes out (`pipeline.pages.walk`).

It was the pipeline's own walk before. What a tag means is the same code; how the elements and texts of a page follow
each other is not.
"""

from __future__ import annotations

from html import escape
from typing import Any
from unittest import mock

from pipeline.pages import page
from pipeline.pages.page import Page, parse
from pipeline.pages.walk import _BITS, _HOLDS, MARKS, MAX_LOOKS, MAX_SOURCES, SRCSETS, Walk, _Kind, _kind, _OpenElement


class DomWalk(Walk):
    """A walk over the nodes of the body."""

    def run(self, body: Any) -> None:
        entered: list[int] = []
        others: list[_OpenElement] = []
        node = body

        def begin(tag: str) -> int:
            names = (name for name in ("class", "align", "style") if name in node.attributes)
            self.tags.append(" ".join([tag, *(f'{name}="{escape(node.attributes[name] or "")}"' for name in names)]))
            return len(self.tags) - 1

        def leave() -> None:
            at, opened = entered.pop(), others.pop()
            self.tags.append(f"/{opened.kind.tag}")
            if at & _HOLDS:
                self.ends[at >> _BITS] = len(self.tags) - 1
            self._leave(opened)

        while True:
            tag, inner = node.tag, None
            if tag == "-text":
                text = node.text_content
                link = node.parent.tag == "a" and node.prev is None
                if link and (text or "").rstrip() in MARKS:
                    pass
                elif text and (self._block_text() or not text.isspace()):
                    self._add(text)
            elif tag == "img":
                at = begin(tag)
                if not self._block_text():
                    self._without_captions(others)
                if not self._filled:
                    self._block.first_tag = at
                self._add_place(at, {k.lower(): v or "" for k, v in node.attributes.items()}, entered)
            elif tag == "source":
                if len(self._sources) < MAX_SOURCES:
                    self._sources += [v for k in SRCSETS if (v := node.attributes.get(k)) and "avif" not in v]
            elif tag is not None and tag[0] != "-" and not self._kind(node).silent:  # None: `<?php ... ?>` and its like
                self._node = node
                entered.append((at := begin(tag)) << _BITS)
                others.append(self._enter(at, self._kind(node)))
                inner = node.first_child
                if inner is None:
                    leave()
            if inner is None:
                while entered and (inner := node.next) is None:  # up, to the first ancestor with a next sibling
                    node = node.parent
                    leave()
                if not entered:
                    self._finish()
                    return
            node = inner

    def _add(self, text: str) -> None:
        block = self._block
        if not self._block_text():
            if not self._filled:
                block.first_tag = len(self.tags) - 1
            self._filled, block.furniture, block.figures = True, self._furniture > 0, tuple(self._figures)
        self.texts.append(text)
        block.caption = block.caption or self._caption > 0
        block.titles = block.titles or self._titles > 0

    def _kind(self, node: Any) -> _Kind:
        style = " ".join(v for k in ("class", "id") if (v := node.attributes.get(k)))[:300]
        return _kind(node.tag, style, node.attributes.get("role") or "")

    def _is_furniture(self, at: int) -> bool:
        if self._furniture or self._looks >= MAX_LOOKS:
            return True
        self._looks += 1
        return self._node.css_first("article, main, h1") is None


def parse_by_nodes(html: str) -> Page:
    """`parse`, with the walk over nodes."""
    with mock.patch.object(page, "Walk", DomWalk), mock.patch.object(page, "_written", lambda node: node):
        return parse(html)
