"""Site rules: where a known site keeps its article, title and captions, as CSS selectors in `pages/sites/*.yaml`.

    hosts: [mp.weixin.qq.com]      the host or a parent domain of it; the longest that fits decides
    content: "#js_content"         images and running text count inside it only
    title, abstract: CSS selector  the first element that fits
    captions, tags, remove: [CSS selectors]

A file holds a list of rules. All but `hosts` may be left out, and a selector that fits nothing on a page changes
nothing: sites are rebuilt, and the general reading (`pipeline.pages.walk`) is always there.

Limits: rules are for pages as served; elements that a script would build are not there.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.urls import host_names


class SiteRule(BaseModel):
    """Rule for reading the pages of some hosts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hosts: tuple[str, ...] = Field(min_length=1)
    content: str = ""
    title: str = ""
    abstract: str = ""
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(slots=True)
class SiteTexts:
    """The parts of a page that its site's rule selects; empty ones are left to the general reading."""

    content: Any = None  # the element, None for the whole page
    title: str = ""
    abstract: str = ""
    tags: tuple[str, ...] = ()


@functools.cache
def rules() -> dict[str, SiteRule]:
    """Every rule by host. Two rules for one host are a fault of ours."""
    by_host: dict[str, SiteRule] = {}
    for file in sorted((resources.files("pipeline.pages") / "sites").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            for entry in yaml.safe_load(file.read_text(encoding="utf-8")):
                rule = SiteRule.model_validate(entry)
                assert not by_host.keys() & set(rule.hosts), f"{file.name}: a second rule for one of {rule.hosts}"
                by_host.update(dict.fromkeys(rule.hosts, rule))
    return by_host


def rule_of(url: str) -> SiteRule | None:
    """The rule for a page, None if its site has none."""
    return _rule_of_host("/".join(url.split("/", 3)[:3]))


@functools.lru_cache(maxsize=1024)
def _rule_of_host(origin: str) -> SiteRule | None:
    by_host = rules()
    return next((by_host[name] for name in host_names(origin) if name in by_host), None)


def apply(tree: Any, rule: SiteRule) -> SiteTexts:
    """Apply a rule to a page: deletes the elements to remove, marks captions, returns the parts that are selected."""
    for selector in rule.remove:
        for node in tree.css(selector):
            node.decompose()
    for selector in rule.captions:
        for node in tree.css(selector):
            node.attrs["class"] = "caption"
    return SiteTexts(
        content=tree.css_first(rule.content) if rule.content else None,
        title=_text(tree, rule.title),
        abstract=_text(tree, rule.abstract),
        tags=tuple(node.text() for selector in rule.tags for node in tree.css(selector)[:20]),
    )


def _text(tree: Any, selector: str) -> str:
    node = tree.css_first(selector) if selector else None
    return node.text() if node is not None else ""
