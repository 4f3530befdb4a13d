"""site: which pages and hosts belong to a site."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from pipeline.sources.site import Site
from pipeline.urls import canonical_url


def site(**options: object) -> Site:
    return Site.model_validate({"name": "s", "source_kind": "news", "start": ["http://a.cn/"], **options})


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("http://a.cn/x", True),
        ("https://a.cn/x", True),
        ("http://a.cn:8080/x", False),
        ("http://b.a.cn/x", False),
        ("http://a.cn.evil.example/x", False),
    ],
)
def test_a_site_is_its_host_with_its_port(url, holds):
    assert site().holds(url) is holds


def test_further_hosts_prefixes_and_patterns():
    one = site(start=["http://a.cn/zh/index.html"], hosts=["B.cn:81"], within=["/zh/"], exclude=[r"[?&]print="])
    assert one.holds("http://b.cn:81/zh/1.html")
    assert not one.holds("http://b.cn/zh/1.html")
    assert not one.holds("http://a.cn/en/1.html")
    assert not one.holds("http://a.cn/zh/1.html?print=1")


def test_hosts_prefixes_and_patterns_may_be_chinese():
    one = site(
        start=["http://例子.中国/"], hosts=["新闻.中国", "b.cn:80", "c.cn:443"], within=["/新闻/"], exclude=["专题$"]
    )
    assert one.all_hosts() == ["b.cn", "c.cn", "xn--efvy88h.xn--fiqs8s", "xn--fsqu00a.xn--fiqs8s"]
    assert one.holds(canonical_url("http://新闻.中国/新闻/1.html"))
    assert not one.holds(canonical_url("http://新闻.中国/图片/1.html"))
    assert not one.holds(canonical_url("http://b.cn/新闻/专题"))
    assert one.holds(canonical_url("http://b.cn/新闻/专题/1.html"))


def test_a_pattern_in_ascii_is_about_the_address_as_it_is_asked_for():
    assert not site(exclude=["%E6%96%B0"]).holds(canonical_url("http://a.cn/新"))
    assert site(exclude=[" "]).holds(canonical_url("http://a.cn/a b"))


def test_a_start_page_belongs_to_the_site_wherever_it_lies():
    assert site(within=["/zh/"]).holds("http://a.cn/")


def test_start_pages_are_canonical_and_each_once():
    assert site(start=["http://A.cn", "http://a.cn:80/#top", "http://a.cn/b"]).start_urls() == [
        "http://a.cn/",
        "http://a.cn/b",
    ]


@pytest.mark.parametrize(
    "options",
    [{"start": []}, {"start": ["a.cn"]}, {"start": ["file:///x"]}, {"within": ["zh"]}, {"exclude": ["("]}, {"x": 1}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValidationError):
        site(**options)


def test_it_can_be_sent_to_a_worker_after_use():
    used = site()
    used.holds("http://a.cn/x")
    copy = pickle.loads(pickle.dumps(used))  # noqa: S301
    assert copy == used
    assert copy.identity() == site().identity()
    assert copy.warcs() == []
