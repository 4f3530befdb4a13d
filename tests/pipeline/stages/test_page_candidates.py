"""_page_candidates: every image of a page is a candidate, or leaves with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rows.decisions import Decision
from pipeline.rows.records import Candidate, Capture
from pipeline.sources.site import Site
from pipeline.stages import _page_candidates as page_candidates
from pipeline.stages._page_candidates import extract_page, wording_of
from pipeline.web import readers
from tests.captured import URL, capture


def run(html: str | bytes, **more: Any) -> tuple[list[Candidate], list[Decision]]:
    entries = list(extract_page(capture(html, **more), "s", "news").entries)
    return [f for f in entries if isinstance(f, Candidate)], [f for f in entries if isinstance(f, Decision)]


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


def test_a_lazy_picture_has_the_texts_beside_it_and_not_those_of_its_noscript_first() -> None:
    step = "<p>{1}的灯光亮起来了。</p><figure><noscript><img src=/{0}.jpg></noscript><img data-src=/{0}.jpg></figure>"
    kept, _ = run("<h1>夜景</h1>" + "".join(map(step.format, range(3), ("明洞", "清水寺", "九份"))))
    assert {c.texts[0].text for c in kept} == {"明洞的灯光亮起来了。", "清水寺的灯光亮起来了。", "九份的灯光亮起来了。"}


def test_a_candidate_knows_how_its_page_shows_it() -> None:
    def shown(html: str) -> list[str]:
        return [candidate.shown for candidate in run(f"<h1>游记</h1>{html}")[0]]

    photo = "<p><img src={0}.jpg alt=照片{0}></p><p>说明{0}</p>"
    card = "<article><h2>第{0}篇</h2><img src={0}.jpg></article>"
    assert shown(photo.format(1) + photo.format(2)) == ["alone"] * 2
    assert shown("".join(map(photo.format, range(3)))) == ["alone", "alone", "among"]
    assert shown("".join(map(photo.format, range(4)))) == ["among"] * 4
    assert shown("".join(map(card.format, range(3)))) == ["listed"] * 3
    assert shown(card.format(1) + card.format(2) + photo.format(1)) == ["alone", "listed"], "not listed everywhere"


def test_at_most_two_images_of_a_page_can_have_its_title_as_their_only_text() -> None:
    bare, named = "<img src=a{}.jpg>", "<img src=b{}.jpg alt=雪后的角楼{}>"
    for html in (
        bare.format(1) + bare.format(2) + bare.format(3),
        named.format(1, 1) + bare.format(1) + bare.format(2),
    ):
        candidates = run(f"<h1>故宫</h1>{html}")[0]
        titled = [candidate for candidate in candidates if candidate.texts[0].kind == "title"]
        assert [c.shown for c in titled] == ["alone", "alone", "among"][: len(titled)]
        assert [c.shown for c in candidates].count("alone") == 2


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
        (capture("", kind="text/html"), "empty_body"),
        (capture(" \r\n"), "empty_body"),
        (capture(bytes(range(128, 256)) * 20, kind="text/html"), "bad_charset"),
        (capture("<meta name=robots content='noai, noimageai'><img src=a.jpg alt=云>"), "opt_out"),
        (capture("<img src=a.jpg alt=云>", **{"X-Robots-Tag": "noai"}), "opt_out"),
        (capture("<p>only English words stand on this page</p><img src=a.jpg alt=cloud>"), "not_chinese"),
        (capture("<p>桜の花が咲いています、とてもきれいです</p><img src=a.jpg>"), "not_chinese"),
        (capture("<p>서울의 겨울 풍경 漢字</p><img src=a.jpg alt=서울>"), "not_chinese"),
    ],
)
def test_a_page_that_is_not_used_is_one_decision_about_the_capture(page, reason):
    [decision] = extract_page(page, "s", "news").entries
    assert isinstance(decision, Decision)
    assert (decision.subject, decision.reason, decision.url, decision.kept) == ("capture", reason, URL, False)


@pytest.mark.parametrize(
    "metas",
    [
        "<meta name=robots content=noai>",
        "<meta property=og:type name=robots content=noai>",
        "<meta name=tdm-reservation content=1>",
        "<meta name=tdm-reservation content=0><meta name=tdm-reservation content=1>",
    ],
)
def test_crawl_and_extract_agree_on_what_opts_out(metas):
    page = capture(f"{metas}<p>中文<img src=a.jpg alt=云海>")
    site = Site(name="s", source_kind="news", start=("http://a.test/",))
    [decision] = extract_page(page, "s", "news").entries
    assert (decision.reason, decision.evidence) == ("opt_out", readers.read_page(page, (), site).opt_outs)


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
    list(extract_page(capture(b"<p>\xe4\xba\x91</p><img src=a.jpg>" + body), "s", "news").entries)


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
    [entry] = extract_page(capture(f"<p>中文的一段话</p>{image}"), "s", "news").entries
    assert (entry.reason if isinstance(entry, Decision) else "") == expected


@given(st.text(st.sampled_from("图字㐂𠮷あアー・。，한글a1 \udc80é"), max_size=40))
def test_scripts_are_counted_as_a_search_counts_them(text: str) -> None:
    han, kana, hangul = page_candidates._script_bounds(text)
    counted = [
        sum(map(len, runs.findall(text)))
        for runs in (page_candidates._HAN, page_candidates._KANA, page_candidates._HANGUL)
    ]
    assert han in (counted[0], -1)
    assert han < 0 or (kana >= counted[1] and hangul >= counted[2])
    assert (han < 0) is any(ch > "\uffff" for ch in text)


@given(st.text(max_size=40), st.text("0９一十 \u3000\u0663\x06\u200b", max_size=4))
def test_the_wording_of_a_page_leaves_numbers_out(text: str, number: str) -> None:
    half = len(text) // 2
    assert wording_of(text) == wording_of(text[:half] + number + text[half:])
    assert wording_of(text + "字") != wording_of(text)


@pytest.mark.parametrize(
    ("src", "evidence"),
    [
        ("btn_ok.png", "name btn_"),
        ("a/icon.png?x=/y", "name icon."),
        ("a/b-logo-1.png", "name -logo-"),
        ("a/.avatar", "name .avatar"),
        ("AVATARS/1.jpg", "name /AVATARS/"),
        ("x.cnzz.js", "tracker"),
        ("stat.php?a", "tracker"),
        ("http://hm.baidu.com:8080/x.gif", "tracker"),
        ("http://c.CNZZ.com/", "tracker"),
        ("dialog_button_ok.png", ""),
        ("gray-wolf-1.jpg", ""),
        ("app-icon-design.png", ""),
        ("form_blank.png", ""),
        ("page-loading-time.png", ""),
        ("us-dot-plot.png", ""),
        ("lazy-cat.jpg", ""),
        ("counter.png", ""),
        ("gray.gif", "name gray."),
        ("icon-2.png", "name icon-"),
        ("dot_gray_24x24@2x.png", "name dot_"),
        ("arrow-left.svg", "name arrow-"),
        ("blank", "name blank"),
        ("gray-logo-1.png", "name -logo-"),
        ("app-icon-design.png' width='64", "name -icon-"),
        ("app-icon-design.png' width='200", ""),
        ("http://cnzz.example.com/a.jpg", "tracker"),
        ("cnzz/a.jpg", ""),
        ("lexicon.png", ""),
    ],
)
def test_what_a_spacer_is_known_by_is_its_evidence(src, evidence):
    html = f"<p>北京今天下了一场雪<img src='{src}' alt=图>"
    [entry] = extract_page(Capture("http://a.cn/p/", 200, "", "text/html", html.encode()), "s", "news").entries
    assert (entry.evidence if isinstance(entry, Decision) else "") == evidence
