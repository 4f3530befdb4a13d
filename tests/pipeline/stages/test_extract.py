"""Captures and tables -> candidates: every image leaves as a candidate or with a reason."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import random
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from pipeline.errors import SourceError
from pipeline.records import Candidate, Capture, Decision, candidates_of
from pipeline.stages import STAGES, _furniture, extract
from pipeline.stages._page_candidates import extract_page
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS
from pipeline.store.store import Store
from pipeline.web.warc import read_captures
from tests.places import CORPUS, needs_corpus

URL = "http://a.test/x/page.html"


def capture(html: str | bytes, url: str = URL, kind: str = "text/html", status: int = 200, **headers: str) -> Capture:
    body = html if isinstance(html, bytes) else html.encode()
    return Capture(url, status, "2026-01-01T00:00:00Z", kind, body, tuple(headers.items()))


def run(html: str | bytes, **more: Any) -> tuple[list[Candidate], list[Decision]]:
    found = list(extract_page(capture(html, **more), "s", "news"))
    return [f for f in found if isinstance(f, Candidate)], [f for f in found if isinstance(f, Decision)]


def warc(*pages: tuple[str, str], encoding: str = "") -> bytes:
    """A WARC file written by hand after ISO 28500: one gzip member a record."""
    records = [("warcinfo", "", b"software: test\r\n")]
    for url, html in pages:
        body = gzip.compress(html.encode()) if encoding else html.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Encoding: {encoding}\r\n" if encoding else ""
        records.append(("response", url, head.encode() + b"\r\n" + body))
    data = b""
    for kind, url, block in records:
        content_type = "application/warc-fields" if kind == "warcinfo" else "application/http; msgtype=response"
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{uuid.uuid4()}>\r\n"
        head += f"WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n"
        head += f"WARC-Target-URI: {url}\r\n" if url else ""
        data += gzip.compress(head.encode() + b"\r\n" + block + b"\r\n\r\n")
    return data


def build_of(tmp_path: Path, *sources: dict[str, Any]) -> Build:
    spec = BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": sources, "base": str(tmp_path)})
    store, marks = Store(str(tmp_path / "store")), {"extract": "e" * 64}
    return Build(spec, str(tmp_path / "out"), store, "t", "2026-01-01", marks, stages=STAGES)


def test_relative_and_lazy_addresses_become_canonical_candidates():
    kept, dropped = run(
        "<h1>标题</h1><img src=data:x data-src='../i/a.jpg#t' alt=故宫雪景><base href=/y/><img src=b.jpg alt=云海>"
    )
    assert [(c.image_url, c.texts[0].text, c.row) for c in kept] == [
        ("http://a.test/i/a.jpg", "故宫雪景", 0),
        ("http://a.test/y/b.jpg", "云海", 1),
    ]
    assert all((c.origin, c.page_url, c.source_kind) == (URL, URL, "news") for c in kept)
    assert dropped == []


@pytest.mark.parametrize(
    ("img", "reason"),
    [
        ("<img src='data:image/gif;base64,AA' alt=云>", "data_uri"),
        ("<img alt=云>", "bad_url"),
        ("<img src='javascript:x()' alt=云>", "bad_url"),
        ("<img src='http://u:p@/a.jpg' alt=云>", "bad_url"),
        ("<img src=a.jpg width=1 height=1 alt=云>", "spacer"),
        ("<img src=/static/logo.png alt=云>", "spacer"),
        ("<img class='user-avatar' src=a.jpg alt=云>", "spacer"),
        ("<nav><img src=a.jpg alt=云></nav>", "spacer"),
        ("<img src=https://hm.baidu.com/hm.gif?x alt=云>", "spacer"),
        ("<img src=https://s4.cnzz.com/z_stat.php alt=云>", "spacer"),
    ],
)
def test_an_image_that_is_no_candidate_leaves_with_a_reason(img, reason):
    kept, dropped = run(f"<p>一段中文</p>{img}")
    assert kept == []
    assert [(d.subject, d.reason, d.stage) for d in dropped] == [("candidate", reason, "extract")]


def test_an_image_without_any_text_is_no_candidate():
    kept, dropped = run("<nav>首页新闻体育</nav><img src=a.jpg>")
    assert (kept, [d.reason for d in dropped]) == ([], ["no_text"])


def test_names_that_only_contain_a_word_like_icon_are_no_icons():
    kept, _ = run("<p>中文</p><img src=/silicon-valley.jpg><img src=/i/lexicon.jpg><img src=/logos-tempel.jpg>")
    assert len(kept) == 3


def test_an_image_shown_twice_is_one_candidate_with_both_texts_and_one_decision():
    kept, dropped = run(
        "<img src=a.jpg alt=一号图><img src=./a.jpg alt=二号图><noscript><img src=a.jpg alt=三号图></noscript>"
    )
    assert [t.text for t in kept[0].texts if t.kind == "alt"] == ["一号图", "二号图", "三号图"]
    assert [(d.reason, d.duplicate_of) for d in dropped] == [("repeated_on_page", kept[0].candidate_id)]
    assert dropped[0].id != kept[0].candidate_id


def test_the_page_image_is_a_candidate_unless_the_page_shows_it():
    head = "<meta property=og:image content=http://a.test/x/a.jpg><title>故宫雪景</title>"
    assert [c.image_url for c in run(head)[0]] == ["http://a.test/x/a.jpg"]
    kept, dropped = run(head + "<img src=a.jpg alt=云海>")
    assert [c.row for c in kept] == [0]
    assert dropped == []


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (capture("<img src=a.jpg alt=云>", status=404), "http_status"),
        (capture("<img src=a.jpg alt=云>", kind="application/pdf"), "not_html"),
        (capture(bytes(range(128, 256)) * 20, kind="text/html"), "bad_charset"),
        (capture("<meta name=robots content='noai, noimageai'><img src=a.jpg alt=云>"), "opt_out"),
        (capture("<img src=a.jpg alt=云>", **{"X-Robots-Tag": "noai"}), "opt_out"),
        (capture("<p>only English words stand on this page</p><img src=a.jpg alt=cloud>"), "not_chinese"),
        (capture("<p>桜の花が咲いています、とてもきれいです</p><img src=a.jpg>"), "not_chinese"),
        (capture("<p>서울의 겨울 풍경 漢字</p><img src=a.jpg alt=서울>"), "not_chinese"),
    ],
)
def test_a_page_that_is_not_used_is_one_decision_about_the_capture(page, reason):
    [decision] = extract_page(page, "s", "news")
    assert isinstance(decision, Decision)
    assert (decision.subject, decision.reason, decision.url, decision.kept) == ("capture", reason, URL, False)


def test_a_page_for_other_robots_is_used():
    assert len(run("<meta name=robots content='max-image-preview:large'><img src=a.jpg alt=云海>")[0]) == 1
    assert len(run("<meta name=googlebot content='noindex'><img src=a.jpg alt=云海>")[0]) == 1


@given(
    st.lists(st.sampled_from(["a.jpg", "b.jpg", "data:x", "", "logo.png", "javascript:1"]), max_size=8), st.booleans()
)
def test_every_image_element_is_counted_once(sources, text):
    html = ("<p>中文</p>" if text else "") + "".join(f'<img src="{src}">' for src in sources)
    kept, dropped = run(html)
    captures = [d for d in dropped if d.subject == "capture"]
    if captures:
        assert (kept, len(dropped)) == ([], 1)
    else:
        assert len(kept) + len(dropped) == len(sources)
        assert len({d.id for d in dropped} | {c.candidate_id for c in kept}) == len(sources)


@given(st.binary(max_size=400))
def test_no_page_raises(body):
    list(extract_page(capture(b"<p>\xe4\xba\x91</p><img src=a.jpg>" + body), "s", "news"))


def test_texts_on_many_pages_and_images_on_very_many_are_taken_off():
    pages = [f"http://a.test/{i}" for i in range(_furniture.SHOWN_ON_PAGES)]
    candidates = []
    for i, url in enumerate(pages):
        html = f"<h1>题目{i}号</h1><p><img src=/i/{i}.jpg alt=图{i}号></p><p>如有问题请告诉我们</p>"
        html += "<img src=/top.jpg alt=栏目>"
        candidates += [c for c in extract_page(capture(html, url=url), "s", "news") if isinstance(c, Candidate)]
    kept, dropped = _furniture.without_furniture(candidates)
    assert [{t.text for t in c.texts} for c in kept] == [{f"图{i}号", f"题目{i}号"} for i in range(len(pages))]
    assert {(d.reason, d.url) for d in dropped} == {("spacer", "http://a.test/top.jpg")}
    assert len(kept) + len(dropped) == len(candidates)
    [removed] = kept[0].removed
    assert (removed.kind, removed.text, removed.reason) == ("surrounding", "如有问题请告诉我们", "boilerplate")
    assert removed.evidence == f"stands on {len(pages)} pages of a.test"


def test_a_picture_of_a_list_is_known_by_its_own_page():
    """Two pages of a list of ten articles, each with its cover; the last two covers have no article here."""

    def entries(url: str, html: str) -> list[Candidate]:
        return [c for c in extract_page(capture(html, url=url), "s", "news") if isinstance(c, Candidate)]

    candidates = []
    for number in range(8):
        html = (
            f"<h1>第{number}道家常菜</h1><p>做法</p><img src=/i/{number}.jpg alt=成品{number}><img src=/x/{number}.jpg>"
        )
        candidates += entries(f"http://a.test/article/{number}.html", html)
    for url in ("http://a.test/", "http://a.test/hot.html"):
        covers = "".join(f"<a href=/article/{n}.html><img src=/i/{n}.jpg></a>" for n in range(10))
        candidates += entries(url, f"<h1>全部家常菜</h1><p>列表</p>{covers}")
    kept, dropped = _furniture.without_list_covers(candidates)
    assert len(kept) + len(dropped) == len(candidates) == 36
    assert {(d.reason, d.page_url) for d in dropped} == {
        ("list_cover", "http://a.test/"), ("list_cover", "http://a.test/hot.html")
    }  # fmt: skip
    assert [d.url for d in dropped] == [f"http://a.test/i/{n}.jpg" for n in range(8)] * 2
    own = {c.image_url: c.candidate_id for c in candidates if "/article/" in c.page_url}
    assert all(d.duplicate_of == own[d.url] for d in dropped)
    alone = [c for c in kept if c.page_url in ("http://a.test/", "http://a.test/hot.html")]
    assert {c.image_url for c in alone} == {"http://a.test/i/8.jpg", "http://a.test/i/9.jpg"}
    assert _furniture.without_list_covers(candidates[:16]) == (candidates[:16], [])
    shots = "".join(f"<img src=/g/{n}.jpg alt=风景{n}>" for n in range(6))  # a gallery, and most of it once more
    gallery = entries("http://a.test/g/all.html", f"<h1>全部风景</h1>{shots}")
    gallery += entries("http://a.test/g/best.html", f"<h1>精选风景</h1>{shots[: shots.index('<img src=/g/5')]}")
    assert len(gallery) == 11
    assert _furniture.without_list_covers(gallery) == (gallery, [])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("<img src=/dialog_button_ok.png alt=确定按钮>", ""),
        ("<div class=banner><img src=/head.jpg alt=雪后的故宫></div>", ""),
        ("<img src=/btn_ok.png alt=确定>", "spacer"),
        ("<img src=/button.png alt=确定>", "spacer"),
        ("<img src=/user-avatar.png alt=张三>", "spacer"),
        ("<img src=/upload/avatar/17.jpg alt=张三>", "spacer"),
        ("<img src=/img/weixin_ewm.jpg alt=联系我们>", "spacer"),
        ("<img src=/avatar-film/still.jpg alt=阿凡达剧照>", ""),
    ],
)
def test_an_image_is_not_dropped_for_a_name_that_may_be_its_subject(image, expected):
    [entry] = extract_page(capture(f"<p>中文的一段话</p>{image}"), "s", "news")
    assert (entry.reason if isinstance(entry, Decision) else "") == expected


def test_a_warc_goes_through_the_stage_and_its_funnel_adds_up(tmp_path):
    html = "<p>中文</p><img src=a.jpg alt=故宫雪景><img src=logo.png><img src=data:x>"
    (tmp_path / "x.warc.gz").write_bytes(
        warc(("http://a.test/1", html), ("http://a.test/2", "<p>English</p><img src=q.jpg>"))
    )
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    assert extract.partitions(build) == ["w-00000"]
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    counts = record.counts
    assert (counts["seen"], counts["kept"], counts["dropped"], counts["pages"], counts["pages_dropped"]) == (
        3,
        1,
        2,
        2,
        1,
    )
    [candidate] = candidates_of(build.stage("extract").table(record))
    assert (candidate.image_url, candidate.texts[0].text) == ("http://a.test/a.jpg", "故宫雪景")
    decisions = build.stage("extract").table(record, DECISIONS).to_pylist()
    assert sorted((d["subject"], d["reason"]) for d in decisions) == [
        ("candidate", "data_uri"),
        ("candidate", "spacer"),
        ("capture", "not_chinese"),
    ]
    assert {d["source"] for d in decisions} == {"w"}


def test_the_token_changes_with_the_file_and_with_nothing_else(tmp_path):
    (tmp_path / "x.warc.gz").write_bytes(warc(("http://a.test/1", "<p>中</p>")))
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    before = extract.token(build)
    assert json.dumps(before) == json.dumps(extract.token(build))
    (tmp_path / "x.warc.gz").write_bytes(warc(("http://a.test/1", "<p>中文</p>")))
    assert extract.token(build) != before


def test_a_warc_that_breaks_off_keeps_what_came_before(tmp_path):
    first = ("http://a.test/1", "<p>一</p>")
    dice = random.Random(1)
    second = ("http://a.test/2", "".join(chr(dice.randrange(0x4E00, 0x9FA5)) for _ in range(20_000)))
    whole, part = warc(first, second), len(warc(first))
    path = tmp_path / "cut.warc.gz"
    for cut in range(part + 500, len(whole) - 500, 5000):
        path.write_bytes(whole[:cut])
        info: dict[str, Any] = {}
        urls = [c.url for c in read_captures(str(path), 100_000, info) if isinstance(c, Capture)]
        assert urls == ["http://a.test/1"]
        assert info["truncated"].startswith("after 2 records")


@pytest.mark.parametrize("content", [b"", b"<html>no warc</html>", b"\x1f\x8bgarbage", gzip.compress(b"text", mtime=0)])
def test_a_file_that_is_no_warc_is_one_clear_error(tmp_path, content):
    path = tmp_path / "no.warc.gz"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"no\.warc\.gz: is not a WARC file"):
        list(read_captures(str(path), 1000, {}))


def test_a_missing_warc_names_its_path(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.warc: cannot be read"):
        list(read_captures(str(tmp_path / "gone.warc"), 1000, {}))


def test_encoded_bodies_are_unpacked_but_not_beyond_the_limit(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(warc(("http://a.test/1", "<p>中文</p>"), ("http://a.test/2", " " * 5_000_000), encoding="gzip"))
    one, two = read_captures(str(path), 100_000, {})
    assert isinstance(one, Capture)
    assert one.body == "<p>中文</p>".encode()
    assert isinstance(two, Decision)
    assert (two.reason, two.url) == ("too_large", "http://a.test/2")


@needs_corpus()
@pytest.mark.parametrize("form", ["plain", "lazy", "gb18030", "figure"])
def test_the_howtocook_site_gives_the_pairs_of_its_truth_file(form):
    site, root = CORPUS / "howtocook-site", "http://site.test/"
    truth = [json.loads(line) for line in (CORPUS / "howtocook-site.truth.jsonl").read_text().splitlines()]
    truth = [line for line in truth if line["form"] == form]
    found: dict[tuple[str, str], Candidate] = {}
    for page in sorted({line["page"] for line in truth}):
        for entry in extract_page(capture((site / page).read_bytes(), url=root + page), "s", "library"):
            if isinstance(entry, Candidate):
                found[page, entry.image_url.removeprefix(root)] = entry
    allowed = [line for line in truth if line["allowed"]]
    right = {"pair": 0, "near": 0}
    for line in allowed:
        candidate = found.get((line["page"], line["image"]))
        texts = {(t.kind, t.text) for t in candidate.texts} if candidate else set()
        wanted = {(kind, line[kind]) for kind in ("alt", "caption", "title") if line[kind]}
        right["pair"] += wanted <= texts
        right["near"] += line["near_text"] in {text for _, text in texts}
    assert right["pair"] >= 0.99 * len(allowed)
    assert right["near"] >= 0.95 * len(allowed)
    noai = {line["page"] for line in truth if not line["allowed"] and not line["page"].startswith("private/")}
    assert not {page for page, _ in found} & noai


def test_warcs_behind_urls_give_what_they_give_on_a_disk(tmp_path):
    """Both ways to name them, from a real web server, as Common Crawl's are read."""
    web = tmp_path / "web"
    (web / "crawl-data").mkdir(parents=True)
    for n in range(2):
        html = f"<p>中文</p><img src={n}.jpg alt=故宫雪景{n}号>" + "<p>雪</p>" * 3000
        (web / f"crawl-data/{n}.warc.gz").write_bytes(warc((f"http://a.test/{n}", html)))
    (web / "warc.paths.gz").write_bytes(gzip.compress(b"crawl-data/0.warc.gz\ncrawl-data/1.warc.gz\n"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(web))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}/"
        ways = {
            "disk": {"path": [f"{web}/crawl-data/{n}.warc.gz" for n in range(2)]},
            "urls": {"path": [f"{root}crawl-data/{n}.warc.gz" for n in range(2)]},
            "list": {"path_list": f"{root}warc.paths.gz", "prefix": root},
        }
        found = {}
        for way, named in ways.items():
            build = build_of(tmp_path / way, {"kind": "warc", "name": "w", "source_kind": "news", **named})
            for partition in extract.partitions(build):
                extract.run_partition(build, partition)
            stage = build.stage("extract")
            found[way] = [stage.table(record).to_pylist() for record in stage.records()]
        assert found["disk"] == found["urls"] == found["list"]
        assert [rows[0]["image_url"] for rows in found["disk"]] == ["http://a.test/0.jpg", "http://a.test/1.jpg"]
        gone = {"kind": "warc", "name": "w", "source_kind": "news", "path_list": f"{root}warc.paths.gz"}
        build = build_of(tmp_path / "gone", {**gone, "prefix": f"{root}nowhere/"})
        with pytest.raises(SourceError, match=r"nowhere/crawl-data/0\.warc\.gz.*404|cannot be read"):
            extract.run_partition(build, "w-00000")
        server.shutdown()


def test_one_file_of_many_that_is_no_warc_is_named_in_its_record(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(warc(("http://a.test/1", "<h1>雪后的黄山</h1><img src=a.jpg alt=雪后的黄山>")))
    (tmp_path / "b.warc.gz").write_bytes(b"")
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "*.warc.gz"})
    for partition in extract.partitions(build):
        extract.run_partition(build, partition)
    good, empty = build.stage("extract").records()
    assert (good.counts["kept"], good.info) == (1, {})
    assert (empty.counts["kept"], empty.counts["no_warc"]) == (0, 1)
    assert empty.info["no_warc"] == "is not a WARC file (it holds no record)"
    assert empty.info["file"].endswith(".warc.gz")
    (tmp_path / "a.warc.gz").unlink()
    with pytest.raises(SourceError, match=r"b\.warc\.gz: is not a WARC file"):
        extract.run_partition(build, "w-00000")


# traps, and how many images there may be

ARTICLES = 22


def article(number: int) -> tuple[str, str]:
    """A page of its own words with one picture."""
    words = "北京上海广州深圳天津重庆成都武汉西安南京杭州苏州青岛大连厦门长沙昆明贵阳兰州银川拉萨海口"[
        2 * number : 2 * number + 2
    ]
    html = f"<h1>{words}的雪</h1><p>今天{words}下了第一场雪<img src=/i/{number}.jpg alt={words}的雪景>"
    return f"http://a.test/{number}.html", html + "<img src=/top.jpg alt=栏目>"


def trap(day: int, pictures: list[int], own: str = "") -> tuple[str, str]:
    """A page of a calendar that shows pictures of articles."""
    shown = "".join(f"<img src=/i/{number}.jpg alt=推荐图片>" for number in pictures)
    return f"http://a.test/day/{day}", f"<h1>第{day}日的日历</h1><p>今天是{day}日{own}</p>{shown}"


@pytest.mark.parametrize("rotates", [False, True], ids=["all", "some"])
def test_the_pictures_of_a_site_are_no_furniture_because_a_trap_shows_them(tmp_path, rotates):
    days = range(20 * ARTICLES if rotates else 20)
    traps = [trap(day, [day % ARTICLES, (day + 1) % ARTICLES] if rotates else list(range(ARTICLES))) for day in days]
    articles = [article(number) for number in range(ARTICLES)]
    (tmp_path / "x.warc.gz").write_bytes(warc(*articles, *traps))
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    kept = candidates_of(build.stage("extract").table(record))
    assert {c.image_url for c in kept} == {f"http://a.test/i/{number}.jpg" for number in range(ARTICLES)}
    assert {c.page_url for c in kept} == {url for url, _ in articles}
    decided = build.stage("extract").table(record, DECISIONS).to_pylist()
    assert {d["url"] for d in decided if d["reason"] == "trap"} == {url for url, _ in traps}
    assert {d["subject"] for d in decided if d["reason"] == "trap"} == {"capture"}
    assert {d["url"] for d in decided if d["reason"] == "spacer"} == {"http://a.test/top.jpg"}, "a logo is still one"
    assert record.counts["pages_dropped"] == len(traps)
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"] == 2 * ARTICLES


def test_the_pages_of_a_gallery_are_no_trap_and_nineteen_days_are_none():
    def of(*pages: tuple[str, str]) -> list[str]:
        wordings: dict[str, str] = {}
        candidates: list[Candidate] = []
        for url, html in pages:
            entries = extract_page(capture(html, url=url), "s", "news", wordings=wordings)
            candidates += [entry for entry in entries if isinstance(entry, Candidate)]
        return [decision.url for decision in _furniture.without_traps(candidates, wordings)[1]]

    gallery = [trap(number, [number, 1000]) for number in range(30)]
    assert of(*gallery) == []
    articles = [article(number) for number in range(ARTICLES)]
    assert of(*articles, *(trap(day, [0, 1]) for day in range(19))) == []
    assert len(of(*articles, *(trap(day, [0, 1]) for day in range(20)))) == 20
    assert of(*articles, *(trap(day, [0, 1], own=chr(0x4E00 + 50 * day)) for day in range(20))) == [], "of other words"


def test_images_beyond_the_caps_of_a_page_and_a_host_are_decisions(tmp_path):
    html = (
        "<p>中文的页面</p>" + "".join(f"<img src={i}.jpg alt=第{i}张图>" for i in range(9)) + "<img src=0.jpg alt=又>"
    )
    words = ["故宫", "长城"]
    pages = [(f"http://{host}.test/{i}", html.replace("中文", words[i])) for host in "ab" for i in range(2)]
    (tmp_path / "x.warc.gz").write_bytes(warc(*pages))
    source = {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"}
    build = build_of(tmp_path, {**source, "max_images_per_page": 5, "max_images_per_host": 7})
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    kept = candidates_of(build.stage("extract").table(record))
    assert [sum(c.page_url == url for c in kept) for url, _ in pages] == [5, 2, 5, 2]
    reasons = [d["reason"] for d in build.stage("extract").table(record, DECISIONS).to_pylist()]
    assert {r: reasons.count(r) for r in reasons} == {"cap_per_page": 16, "cap_per_host": 6, "repeated_on_page": 4}
    assert record.counts["seen"] == 40


def test_the_caps_change_the_identity_of_a_source_only_where_they_are_set(tmp_path):
    def identity(**more: Any) -> Any:
        spec = {"kind": "warc", "name": "w", "source_kind": "news", "path": "x", **more}
        [source] = extract.sources_of(build_of(tmp_path, spec).spec)
        return source.identity()

    assert "max_images_per_page" not in str(identity())
    assert identity() == identity(max_images_per_page=2000, max_images_per_host=1_000_000)
    assert identity(max_images_per_page=5) != identity()
