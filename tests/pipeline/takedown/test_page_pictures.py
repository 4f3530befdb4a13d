"""Captures lose the pages that show what is taken down, in builds without the candidates that say so."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import cli
from pipeline.publish import release
from pipeline.rows.records import SHOWN
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.takedown import garbage
from pipeline.takedown.page_pictures import shown_on
from pipeline.web.frontier import Frontier
from tests.parks import PAGES, page, picture

pytestmark = pytest.mark.slow

Week = Callable[..., Build]


def captured(out: str) -> str:
    """All that the captures of a build say, and the state of a crawl that is not done."""
    said = b""
    for path in sorted(Path(out, "captures").rglob("*")):
        if path.name.endswith(".warc.gz"):
            said += gzip.decompress(path.read_bytes())
        elif path.suffix == ".parquet":
            said += repr(pq.read_table(path).to_pylist()).encode()
        elif path.is_file():
            said += path.read_bytes()
    return said.decode(errors="replace")


def forget(build: Build, *words: str) -> int:
    return cli.main(["forget", "--store", build.store.url, "--exact", *words])


@pytest.mark.parametrize(
    ("state", "by"),
    [pytest.param("expired", "domain", marks=pytest.mark.drill(3)), ("crawled", "sha256")],
)
def test_a_page_goes_with_its_picture_where_no_candidates_are_left(week: Week, site: Any, state: str, by: str) -> None:
    """After `gc --keep` the pages stayed in the captures; a build that had only crawled kept them too."""
    old = week("2026-11-01", until="crawl" if state == "crawled" else "report")
    if state != "crawled":
        release.publish(old)
        site.pages["/1.html"] = site.pages["/1.jpg"] = (404, {}, b"")
        more = "<p>另一张公园里的照片</p><img src='/6.jpg' alt='另一张公园里的新照片'></body>"
        site.pages |= {"/2.html": page(2).replace(b"</body>", more.encode()), "/6.jpg": (200, {}, picture(6))}
        release.publish(week("2026-11-08", until="report"))
        garbage.collect(old.store, STAGES, keep=1)
        assert old.history("extract") == []
    crawl = old.stage("crawl")
    if state == "crawled" and by == "sha256":
        week("2026-11-08", until="fetch")  # which knows at what address these bytes are
    about = {"url": site.url("/1.jpg"), "domain": "127.0.0.1", "sha256": hashlib.sha256(picture(1)).hexdigest()}
    assert page(1).decode() in captured(old.out)
    shown = (SHOWN in crawl.record("park").files, len(crawl.column(crawl.record("park"), "parquet", "url")))
    assert shown == (state == "expired", PAGES + 1)
    forget(old, f"--{by}", about[by])
    left = captured(old.out)
    assert "/1.jpg" not in left
    assert "/1.html" not in left.replace("href='/1.html'", "")  # the page of links names it still
    assert (page(2).decode() in left) == (by != "domain")


@pytest.mark.parametrize("stored", [False, True])
def test_a_crawl_that_was_killed_begins_again_if_its_state_holds_what_is_taken_down(
    week: Week, site: Any, stored: bool, tmp_path: Path
) -> None:
    build = week("2026-11-01", until="crawl")
    folder = Path(build.out) / "captures/_frontier/park-0123456789abcdef"
    with Frontier(folder, 100, {}) as frontier:
        frontier.add([site.url("/9.html")], depth=1)
    if stored:  # of a crawl that has pages already
        shutil.copy(next(Path(build.out, "captures").glob("*.warc.gz")), folder / "pages.warc.gz")
    shutil.rmtree(Path(build.out, "captures/_records"))
    for path in Path(build.out, "captures").glob("park-*"):
        path.unlink()
    assert forget(build, "--url", site.url("/8.html"), "--missing-ok") == 0
    assert folder.exists()
    assert forget(build, "--url", site.url("/1.jpg" if stored else "/9.html")) == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("html", "urls"),
    [
        ("<p>一<img src=a.jpg alt=图>", ["http://a.cn/b/a.jpg"]),
        ("<base href=/c/><img data-src='a.jpg' src=x.gif>", ["http://a.cn/c/a.jpg"]),
        ("<meta property=og:image content='//b.cn/1.png'>", ["http://b.cn/1.png"]),
        ("<img src='http://[x'>", []),
    ],
)
def test_pictures_are_found_on_a_page_as_extract_finds_them(html: str, urls: list[str]) -> None:
    found = shown_on("http://a.cn/b/page.html", "text/html", html.encode())
    assert set(urls) <= set(found)
    assert len(found) <= len(urls) + 1
