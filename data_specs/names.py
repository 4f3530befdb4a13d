"""Names in specs and datasets that a command line needs before anything heavy (Arrow, pydantic) is imported."""

from __future__ import annotations

from typing import Literal, get_args

NAME = r"^[a-z0-9][a-z0-9_-]*$"
"""Names of datasets and sources: they become parts of paths and ids."""

FEWEST_MEASURED = 30
"""Samples of a split below which a figure measured by it is mostly chance."""

MANIFEST = "manifest.json"
"""Name of the manifest in a dataset's folder; a folder without it is not a dataset."""

LATEST = "latest.json"
"""Name of the file that says which release of a dataset is the newest."""

Split = Literal["train", "dev", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

TextKind = Literal["alt", "caption", "title", "surrounding", "abstract", "content", "tag"]
TEXT_KINDS: tuple[TextKind, ...] = get_args(TextKind)

DERIVED_KINDS = ("easy", "first")
"""Text kinds that training makes of the surrounding text; no dataset stores them."""

SourceKind = Literal["news", "encyclopedia", "microblog", "wechat", "image_search", "library", "blog", "forum", "web"]
SOURCE_KINDS: tuple[SourceKind, ...] = get_args(SourceKind)
"""`library` is everything that is not on a web page: own photos, an archive, a catalogue, a dataset. `web` is pages of
any kind, as of an open crawl.

Readers refuse a kind that they do not know. Another one is added at the end: training numbers them.
"""
