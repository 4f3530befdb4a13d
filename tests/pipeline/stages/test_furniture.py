"""_furniture: what stands on many pages of a site is taken off, and pages of a gallery are no such thing."""

from __future__ import annotations

from pipeline.rows.records import Candidate
from pipeline.stages import _furniture
from pipeline.stages._page_candidates import extract_page
from tests.captured import ARTICLES, article, capture, trap


def test_texts_on_many_pages_and_images_on_very_many_are_taken_off():
    pages = [f"http://a.test/{i}" for i in range(_furniture.SHOWN_ON_PAGES)]
    candidates = []
    for i, url in enumerate(pages):
        html = f"<h1>题目{i}号</h1><p><img src=/i/{i}.jpg alt=图{i}号></p><p>如有问题请告诉我们</p>"
        html += "<img src=/top.jpg alt=栏目>"
        candidates += [c for c in extract_page(capture(html, url=url), "s", "news").entries if isinstance(c, Candidate)]
    kept, dropped = _furniture.without_furniture(candidates)
    assert [{t.text for t in c.texts} for c in kept] == [{f"图{i}号", f"题目{i}号"} for i in range(len(pages))]
    assert {(d.reason, d.url) for d in dropped} == {("spacer", "http://a.test/top.jpg")}
    assert len(kept) + len(dropped) == len(candidates)
    [removed] = kept[0].removed
    assert (removed.kind, removed.text, removed.reason) == ("surrounding", "如有问题请告诉我们", "boilerplate")
    assert removed.evidence == f"repeated on {len(pages)} pages of a.test"


def test_the_words_of_an_article_are_none_of_its_site_in_however_many_lists_they_stand() -> None:
    """The article at two addresses, and its cover with its title and its beginning in ten lists, each time with
    others."""
    words = ("明洞街头的夜景", "晚上的明洞灯火通明。")
    html = f"<h1>{words[0]}</h1><p>{words[1]}</p><img src=/i/a.jpg><p>路边的小吃摊</p><img src=/i/b.jpg>"
    pages = {f"http://a.test/p/{name}": html for name in ("", "index.html")}
    for number in range(10):
        own = f"<article><img src=/i/a.jpg><h2>{words[0]}</h2><p>{words[1]}</p></article>"
        other = f"<article><img src=/i/{number}.jpg><h2>第{number}道家常菜</h2><p>做法在文章里</p></article>"
        pages[f"http://a.test/tags/{number}/"] = f"<title>归档</title>{own}{other}"
    candidates = [
        candidate
        for url, html in pages.items()
        for candidate in extract_page(capture(html, url=url), "s", "news").entries
        if isinstance(candidate, Candidate)
    ]
    kept, _ = _furniture.without_furniture(candidates)
    assert {text.text for candidate in kept for text in candidate.removed} == {"归档"}
    assert all(words[0] in [text.text for text in c.texts] for c in kept if c.image_url.endswith("a.jpg"))


def test_a_picture_of_a_list_is_known_by_its_own_page():
    """Two pages of a list of ten articles, each with its cover; the last two covers have no article here."""

    def entries(url: str, html: str) -> list[Candidate]:
        return [c for c in extract_page(capture(html, url=url), "s", "news").entries if isinstance(c, Candidate)]

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


def test_the_pages_of_a_gallery_are_no_trap_and_nineteen_days_are_none():
    def of(*pages: tuple[str, str]) -> list[str]:
        wordings: dict[str, str] = {}
        candidates: list[Candidate] = []
        for url, html in pages:
            entries, wording, _ = extract_page(capture(html, url=url), "s", "news")
            candidates += [entry for entry in entries if isinstance(entry, Candidate)]
            wordings |= {url: wording} if wording else {}
        return [decision.url for decision in _furniture.without_traps(candidates, wordings)[1]]

    gallery = [trap(number, [number, 1000]) for number in range(30)]
    assert of(*gallery) == []
    articles = [article(number) for number in range(ARTICLES)]
    assert of(*articles, *(trap(day, [0, 1]) for day in range(19))) == []
    assert len(of(*articles, *(trap(day, [0, 1]) for day in range(20)))) == 20
    assert of(*articles, *(trap(day, [0, 1], own=chr(0x4E00 + 50 * day)) for day in range(20))) == [], "of other words"
