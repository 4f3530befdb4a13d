"""site: which pages and hosts belong to a site."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from pipeline.sources.site import Site


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
