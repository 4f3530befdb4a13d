"""The command `search`."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from typing import Any

from data_specs.command.printable import printable_line
from training.commands.options import add_json, path
from training.errors import ConfigError

LOG = logging.getLogger("training")

MOST = 10_000
"""Largest --limit: a page for people and programs, not an export."""


def add_search(commands: Any) -> None:
    search = commands.add_parser(
        "search",
        help="search an index for images or texts close to a text, a picture or one of its rows",
        description="Compares every row, unless the index is large and has an approximate search. Near-copies are "
        "shown once. A score is the share of unrelated pairs that are less similar; chance is the share of "
        "hits at least as near that unrelated rows make.",
        examples=[
            "wenlan-train search index --text 一只猫在窗台上 --checkpoint runs/1",
            "wenlan-train search index --image cat.jpg --checkpoint runs/1 --target text --limit 5",
            "wenlan-train search index --text 红烧肉 --words --source news --min-side 400",
        ],
    )
    search.add_argument("folder", type=path, metavar="INDEX", help="an index made by wenlan-train embed")
    asked = search.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", metavar="T", help="text to search for")
    asked.add_argument("--image", type=path, metavar="FILE", help="picture to search by; needs --checkpoint")
    asked.add_argument("--id", metavar="ID", help="row of the index to search by")
    search.add_argument(
        "--checkpoint",
        type=path,
        metavar="CHECKPOINT",
        help="the checkpoint that made the index (default: the text tower in the index, queries/text.onnx)",
    )
    search.add_argument(
        "--target", choices=["image", "text"], help="what to find (default: images, if the index has them)"
    )
    search.add_argument("--words", action="store_true", help="rank by the words of --text (BM25) too")
    search.add_argument("--words-only", action="store_true", help="rank by the words of --text only; needs no towers")
    for name, help in (
        ("--source", "only this source; may be repeated"),
        ("--license", "only this licence; may be repeated"),
        ("--split", "only this split; may be repeated"),
    ):
        search.add_argument(name, action="append", default=[], metavar="X", help=help)
    search.add_argument("--min-side", type=int, metavar="N", help="smallest shorter side, in pixels")
    search.add_argument(
        "--min-score", type=float, metavar="S", help="lowest score, 0 to 1; for images by text or texts by image"
    )
    search.add_argument("--url", default="", metavar="PART", help="only rows whose image or page URL contains this")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="number of hits (default 20)")
    search.add_argument("--offset", type=int, default=0, metavar="N", help="number of hits to skip")
    search.add_argument("--copies", action="store_true", help="show near-copies as well")
    search.add_argument("--exact", action="store_true", help="compare every row, even in a large index")
    search.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    add_json(search)
    search.set_defaults(run=_search)


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    from data_specs.search.search import Filters, Query, SearchIndex
    from training.use.query import QueryInput, search

    _check(arguments)
    index = SearchIndex.open(arguments.folder)
    text = (arguments.text or "").strip()
    asked = QueryInput(text, arguments.image, arguments.id or "", arguments.checkpoint, arguments.device)
    filters = Filters(
        source=frozenset(arguments.source),
        license=frozenset(arguments.license),
        split=frozenset(arguments.split),
        min_side=arguments.min_side,
        min_score=arguments.min_score,
        url=arguments.url,
    )
    query = Query(
        words=text if arguments.words or arguments.words_only else "",
        target=arguments.target or ("image" if index.about.images else "text"),
        limit=arguments.limit,
        offset=arguments.offset,
        filters=filters,
        exact=True if arguments.exact else None,
        copies=arguments.copies,
    )
    found = search(index, query, None if arguments.words_only else asked)
    if not arguments.json:
        _show(found)
    return found


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.words or arguments.words_only) and not arguments.text:
        raise ConfigError("--words", "needs --text")
    if arguments.text is not None and not arguments.text.strip():
        raise ConfigError("--text", "is empty")
    if not 1 <= arguments.limit <= MOST:
        raise ConfigError("--limit", f"{arguments.limit} is out of range; it must be between 1 and {MOST:,}")


def _show(found: dict[str, Any]) -> None:
    """The hits as a table on stdout: lines of equal columns, the caption cut to the terminal's width."""
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    digits = {"cosine": 3, "score": 4, "chance": 2, "words": 2}
    lines = [(*digits, "copies", "id", "caption")]
    for hit in found["hits"]:
        numbers = [_cell(hit[name], places) for name, places in digits.items()]
        lines.append((*numbers, f"+{hit['copies']}", hit["id"], hit["caption"]))
    widths = [max(len(line[n]) for line in lines) for n in range(6)]
    for line in lines:
        text = "  ".join(cell.ljust(size) for cell, size in zip(line, [*widths, 0], strict=True))
        sys.stdout.write(f"{printable_line(text)[:width].rstrip()}\n")
    more = "; more with --offset" if found["more"] else ""
    how = "every row was compared" if found["exact"] else "approximate search; --exact compares every row"
    LOG.info("%d of %d %ss%s; %s", len(found["hits"]), found["allowed"], found["target"], more, how)


def _cell(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"
