"""_stored_images: what STORE and a source have is not fetched again, as long as it is whole and the limits allow it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stages import _stored_images, fetch
from tests.fetching import PARTITION, SITE, admit, candidate, outcome, picture, run


@pytest.mark.slow
def test_a_lasting_failure_is_tried_again_when_its_time_has_come(serve, make_build, monkeypatch):
    web = serve({"/robots.txt": (404, {}, b"")})
    url = web.url("/a.png")
    assert run(make_build(web, out="one", sources=SITE), url)[url]["reason"] == "http_status"
    web.pages["/a.png"] = picture(1)
    assert run(make_build(web, out="two", sources=SITE), url)[url]["reason"] == "http_status"
    now = _stored_images.rfc3339
    monkeypatch.setattr(_stored_images, "rfc3339", lambda later_s=0.0: now(later_s + 31 * 24 * 3600))
    assert run(make_build(web, out="three", sources=SITE), url)[url]["ok"]


@pytest.mark.slow
def test_a_later_build_takes_from_the_store_and_asks_only_for_what_may_pass(serve, make_build):
    pages = {f"/{i}.png": (200, {"ETag": f'"{i}"'}, picture(i)) for i in range(4)}
    web = serve({**pages, "/gone.png": (404, {}, b""), "/500.png": (500, {}, b"")})
    urls = [web.url(path) for path in web.pages]
    first, second = (make_build(web, out=out, sources=SITE, fetch={"max_wait_s": 0}) for out in ("one", "two"))
    before = run(first, *urls)
    web.asked.clear()
    web.pages["/500.png"] = (200, {}, picture(50))
    after = run(second, *urls, web.url("/gone.png"))
    assert web.asked == ["/robots.txt", "/500.png"]
    assert after[web.url("/500.png")]["data"] == picture(50)
    assert after[web.url("/gone.png")] == before[web.url("/gone.png")]
    for path in pages:
        same = ("data", "sha256", "etag", "fetched_at")
        assert [after[web.url(path)][k] for k in same] == [before[web.url(path)][k] for k in same]
    counts = second.stage("fetch").record(PARTITION).counts
    assert (counts["cached"], counts["fetched"]) == (5, 1)


@pytest.mark.slow
def test_what_the_store_says_is_checked_and_fetched_anew_where_it_fails(serve, make_build):
    web = serve({f"/{i}.png": picture(i) for i in range(3)})
    urls = [web.url(path) for path in web.pages]
    first = make_build(web, out="one", sources=SITE)
    before = run(first, *urls)
    tar = Path(first.out) / "images" / first.stage("fetch").record(PARTITION).files["tar"].name
    damaged = bytearray(tar.read_bytes())
    damaged[before[urls[1]]["offset"] + 5] ^= 1
    tar.write_bytes(damaged)
    web.asked.clear()
    assert {r["sha256"] for r in run(make_build(web, out="two", sources=SITE), *urls).values()} == {
        r["sha256"] for r in before.values()
    }
    assert web.asked == ["/robots.txt", "/1.png"]
    web.asked.clear()
    tar.unlink()
    rows = run(make_build(web, out="three", sources=SITE), *urls)
    assert all(row["ok"] for row in rows.values())
    assert sorted(web.asked) == ["/0.png", "/2.png", "/robots.txt"], "/1.png lies in the second build"


@pytest.mark.slow
def test_a_failure_is_remembered_only_under_the_limits_it_was_seen_with(serve, make_build):
    web = serve({"/big.png": picture(1, side=200)})
    url = web.url("/big.png")
    small = make_build(web, out="one", sources=SITE, egress={"max_image_bytes": 1000})
    assert run(small, url)[url]["reason"] == "too_large"
    assert run(make_build(web, out="two", sources=SITE), url)[url]["ok"]
    again = make_build(web, out="three", sources=SITE, egress={"max_image_bytes": 1000})
    assert run(again, url)[url]["reason"] == "too_large", "bytes from the store are judged anew"


def test_images_that_lie_in_a_source_are_read_there(serve, make_build, monkeypatch):
    from pipeline.sources import TableSource

    class Shelf(TableSource):
        def read_image(self, image_url: str) -> bytes | None:
            return {"folder:///shelf/a.png": picture(1), "folder:///shelf/b.png": b""}.get(image_url)

    monkeypatch.setattr(_stored_images, "sources_of", lambda spec: [Shelf(name="shelf", source_kind="library")])
    build = make_build(sources=SITE)
    urls = [f"folder:///shelf/{name}.png" for name in "abc"]
    admit(build, [candidate(url, source="shelf") for url in urls])
    fetch.run_partition(build, PARTITION)
    assert [outcome(build)[url]["reason"] for url in urls] == ["", "empty_body", "bad_url"]
    known = build.store.fetched().get([candidate(url).fetch_id for url in urls])
    assert known is None, "a source's own files may change; they are not remembered"
