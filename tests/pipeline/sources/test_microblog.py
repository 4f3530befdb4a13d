"""microblog: posts as JSON lines, by paths that the spec names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.rows.account import Account, Named
from pipeline.rows.records import Candidate
from pipeline.sources.microblog import Microblog


def read(tmp_path: Path, *posts: object, account: Account | None = None, **options: object) -> tuple[list, list]:
    lines = [post if isinstance(post, str) else json.dumps(post, ensure_ascii=False) for post in posts]
    (tmp_path / "posts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = Microblog(name="wb", source_kind="microblog", base=str(tmp_path), path="posts.jsonl", **options)
    assert source.parts() == 1
    entries = list(source.read(0, Account() if account is None else account))
    return [f for f in entries if isinstance(f, Candidate)], [f for f in entries if not isinstance(f, Candidate)]


def test_a_post_s_words_go_with_each_of_its_pictures_and_its_topics_are_tags(tmp_path):
    post = {
        "mid": 42,
        "text": '#苏州园林# 拙政园的<a href="/n/x">荷花</a>开了&amp;很美 http://t.cn/Abc1 ...全文',
        "pics": [
            {"large": {"url": "//wx1.example/large/1.jpg"}},
            {"large": {"url": "https://wx1.example/large/2.jpg"}},
        ],
        "url": "https://weibo.example/1/42",
    }
    candidates, decisions = read(tmp_path, post)
    assert decisions == []
    assert [c.image_url for c in candidates] == ["https://wx1.example/large/1.jpg", "https://wx1.example/large/2.jpg"]
    for candidate in candidates:
        assert [(t.kind, t.text) for t in candidate.texts] == [
            ("content", "#苏州园林# 拙政园的 荷花 开了&很美"),
            ("tag", "苏州园林"),
        ]
        assert (candidate.origin, candidate.page_url) == ("42", "https://weibo.example/1/42")
    assert len({c.candidate_id for c in candidates}) == 2


def test_a_repost_is_its_own_words_and_paths_may_be_given(tmp_path):
    post = {"key": "k", "body": {"words": "真好看//@某人:原来的话"}, "media": {"a": {"src": "http://i.example/1.png"}}}
    fields = {"id": ["key"], "text": ["body.words"], "images": ["media.*.src"]}
    [candidate], _ = read(tmp_path, post, fields=fields)
    assert [t.text for t in candidate.texts] == ["真好看"]
    assert (candidate.origin, candidate.image_url) == ("k", "http://i.example/1.png")


def test_a_post_beyond_all_measure_is_one_decision_and_the_next_one_is_read(tmp_path):
    picture = {"images": ["http://i.example/1.png"]}
    posts = [{**picture, "text": "长" * 100_001}, {**picture, "text": "长" * 1_100_000}, {**picture, "text": "好"}]
    candidates, decisions = read(tmp_path, *posts)
    assert [c.texts[0].text for c in candidates] == ["好"]
    assert [(d.reason, d.evidence.partition(":")[0]) for d in decisions] == [
        ("unreadable", "posts.jsonl, row 1"),
        ("unreadable", "posts.jsonl, row 2"),
    ]


def test_what_is_no_post_is_one_decision_that_names_its_row(tmp_path):
    picture = {"images": ["http://i.example/1.png"]}
    posts = [
        "{broken",
        "[1]",
        {"mid": 1, "text": "没有图片"},
        {"mid": 2, "text": "甲", "images": ["ftp://x/1"]},
        picture,
    ]
    candidates, decisions = read(tmp_path, *posts)
    assert candidates == []
    reasons = [(d.reason, d.evidence.partition(":")[0]) for d in decisions]
    assert reasons[:4] == [(r, f"posts.jsonl, row {n}") for n, r in enumerate(["bad_row"] * 3 + ["bad_url"], 1)]
    assert reasons[4][0] == "no_text"
    with pytest.raises(SourceError, match="no such file"):
        Microblog(name="wb", source_kind="microblog", base=str(tmp_path), path="none.jsonl").parts()


def test_white_space_without_end_costs_no_more_than_other_characters(tmp_path):
    post = {"mid": 1, "images": ["http://i.example/1.png"], "text": f"荷花{' ' * 900_000}开了 全文"}
    [candidate], _ = read(tmp_path, post)
    assert [t.text for t in candidate.texts] == ["荷花 开了"]


def test_each_picture_of_a_post_is_a_candidate_by_the_first_path_that_fits_it_or_a_decision(tmp_path):
    """Paths are alternatives for an entry of a list: those of one entry, or of one list, hide no other."""
    url = "http://i.example/{}.png".format
    post = {
        "text": "好",
        "pics": [{"large": {"url": url(1)}, "url": url(9)}, {"large": None, "url": url(2)}, url(3), None, {"pid": 4}],
        "pic_infos": {"a": {"largest": {"url": url(5)}}},
        "images": [url(6), url(1)],
    }
    account = Account()
    candidates, decisions = read(tmp_path, post, {"text": "好", "cover": url(7)}, account=account)
    assert [c.image_url for c in candidates] == [url(n) for n in (1, 2, 3, 5, 6)]
    assert [d.evidence.partition(" has ")[0] for d in decisions] == [
        "posts.jsonl, row 1: picture 4",
        "posts.jsonl, row 1: picture 5",
        "posts.jsonl, row 2: no picture",
    ]
    assert len({d.id for d in decisions}) == 3
    units = account["pictures of posts"]
    assert (units.met, units.candidates, units.decisions, units.named) == (8, 5, 2, {Named.REPEATED: 1})
    fields = {"images": ["cover", "thumb", "pics[].url"]}
    assert [c.image_url for c in read(tmp_path, {**post, "thumb": url(8)}, fields=fields)[0]] == [
        url(8),
        url(9),
        url(2),
    ]
