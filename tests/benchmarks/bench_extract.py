"""Crawl and extract over the recipe site, held to its truth file; beside trafilatura and a reader of alt texts.

The site is served by nginx on loopback and goes through the crawl and extract stages as a build runs them. A pair is
right if the image comes with its page's title and with its alt or caption. trafilatura is asked for images and
metadata; the reader of alt texts takes every `src` with its `alt` and the first h1, after the meta tag's charset. Both
get the same pages as files, those that may not be taken included.

The rate is that of `extract_page` over the pages' bytes beside selectolax parsing the same bytes and no more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from tests.benchmarks.harness import SITE, Figure, at_least, at_most, interleaved, needed, peer, quick, report, told
from tests.benchmarks.loopback import nginx

FORMS = ("plain", "lazy", "gb18030", "figure")
Found = dict[tuple[str, str], set[str]]
"""(page, image) -> its texts, paths below the site's root."""

_TRAFILATURA = """
import json, sys, pathlib
from lxml import etree
from trafilatura import extract
root = pathlib.Path(sys.argv[1])
for page in sorted(root.rglob("*.html")):
    where = "http://site.test/" + str(page.relative_to(root))
    found = extract(page.read_bytes(), url=where, include_images=True, output_format="xml", with_metadata=True)
    tree = etree.fromstring(found.encode()) if found else None
    for image in tree.iter("graphic") if tree is not None else ():
        texts = [tree.get("title") or "", image.get("alt") or "", image.get("title") or ""]
        print(json.dumps([str(page.relative_to(root)), image.get("src") or "", texts]))
"""


def main() -> int:
    rounds = 3 if quick(__doc__) else 15
    truth = [json.loads(line) for line in needed(SITE.with_suffix(".truth.jsonl")).read_text().splitlines()]
    found, pages = ours()
    sides = {"ours": found, "alt only": alt_only()}
    if python := peer("python"):
        sides["trafilatura"] = trafilatura(python)
    figures: dict[str, Figure] = {}
    for side, pairs in sides.items():
        shares = {form: share([t for t in truth if t["allowed"] and t["form"] == form], pairs) for form in FORMS}
        taken = sum((t["page"], t["image"]) in pairs for t in truth if not t["allowed"])
        told(f"{side}: { {form: f'{value:.1%}' for form, value in shares.items()} }, forbidden: {taken}")
        if side == "ours":
            figures |= {f"pairs_{form}": at_least(value, 0.99, "share") for form, value in shares.items()}
            figures["forbidden_taken"] = at_most(taken, 0, "pairs")
    seconds, parsing = interleaved(lambda: extracted(pages), lambda: parsed(pages), rounds=rounds)
    each, size = 1000 * seconds / len(pages), sum(len(page.body) for page in pages) / len(pages) / 1000
    told(f"{each:.2f} ms a page of {size:.1f} kB, parsing {1000 * parsing / len(pages):.3f} ms")
    figures["rate_to_parsing_alone"] = at_least(parsing / seconds, 0.5)
    return report(figures)


def share(truth: list[dict[str, Any]], found: Found) -> float:
    """Of the pairs of the truth, those that were found with the title and the alt or caption."""
    right = [{t["title"], t["caption"] or t["alt"]} <= found.get((t["page"], t["image"]), set()) for t in truth]
    return sum(right) / len(right)


def ours() -> tuple[Found, list[Any]]:
    """What the two stages give, and the captures."""
    from data_specs.build import BuildSpec
    from pipeline.rows.records import candidates_of
    from pipeline.stages import STAGES, crawl, extract
    from pipeline.store.build import Build
    from pipeline.store.store import Store
    from pipeline.web.warc import read_captures

    found: Found = {}
    with nginx() as port, tempfile.TemporaryDirectory(prefix="wenlan-bench-") as out:
        root = f"http://127.0.0.1:{port}/"
        source = {"kind": "site", "name": "site", "source_kind": "library", "start": [f"{root}index.html"]}
        egress = {"allow": [f"127.0.0.1:{port}"], "delay_s": 0}
        fields = {"name": "bench", "contact": "https://example.org/bench", "sources": [source], "egress": egress}
        marks = {"crawl": "c" * 64, "extract": "e" * 64}
        spec = BuildSpec.model_validate(fields)
        build = Build(spec, out, Store(f"{out}/store"), "bench", "2026-01-01", marks, stages=STAGES)
        crawl.run_partition(build, "site")
        extract.run_partition(build, "site-00000")
        stage = build.stage("extract")
        for candidate in candidates_of(stage.table(stage.record("site-00000"))):
            key = candidate.page_url.removeprefix(root), candidate.image_url.removeprefix(root)
            found[key] = {t.text for t in candidate.texts}
        captures = build.stage("crawl")
        with captures.file(captures.record("site"), "warc.gz") as path:
            return found, list(read_captures(str(path), 1 << 20, {}))


def trafilatura(python: Path) -> Found:
    """What trafilatura gives for the pages as files, in its own environment."""
    command = [str(python), "-c", _TRAFILATURA, str(SITE)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found: Found = {}
    for line in done.stdout.splitlines():
        page, src, texts = json.loads(line)
        found.setdefault((page, urljoin(page, src).removeprefix("http://site.test/")), set()).update(
            text for text in texts if text
        )
    return found


def alt_only() -> Found:
    """What a reader of `src` and `alt` gives."""
    from selectolax.lexbor import LexborHTMLParser

    found: Found = {}
    for file in SITE.rglob("*.html"):
        page, body = str(file.relative_to(SITE)), file.read_bytes()
        charset = re.search(rb"charset=[\"']?([\w-]+)", body)
        tree = LexborHTMLParser(body.decode(charset.group(1).decode() if charset else "utf-8", "replace"))
        title = tree.css_first("h1")
        for image in tree.css("img"):
            texts = {image.attributes.get("alt") or "", title.text().strip() if title else ""}
            found.setdefault((page, urljoin(page, image.attributes.get("src") or "")), set()).update(texts)
    return found


def extracted(pages: list[Any]) -> None:
    from pipeline.stages._page_candidates import extract_page

    for page in pages:
        extract_page(page, "s", "library")


def parsed(pages: list[Any]) -> None:
    from selectolax.lexbor import LexborHTMLParser

    for page in pages:
        LexborHTMLParser(page.body)


if __name__ == "__main__":
    sys.exit(main())
