"""The policy of a polite client: opt-outs, robots.txt, tdmrep.json, retries, redirects, and what is a page."""

from __future__ import annotations

import datetime
import email.utils
import json
import re
import subprocess
import sys
from urllib.parse import urljoin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from pipeline.rows.decisions import DropReason
from pipeline.web import policy
from pipeline.web.policy import HostRules, Robots


def policy_of(**egress: object) -> policy.Policy:
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}
    spec = BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": [source], "egress": egress})
    return policy.policy_of(spec)


@pytest.mark.parametrize(
    ("headers", "metas", "directives"),
    [
        (["noai"], [], ["noai"]),
        (["noai, max-image-preview:large"], [], ["noai"]),
        (["max-image-preview:large, NoImageAI"], [], ["noimageai"]),
        (["max-snippet:-1", "noindex"], [], ["noindex"]),
        (["wenlan: noindex"], [], ["noindex"]),
        (["*: noml"], [], ["noml"]),
        (["otherbot: noindex, noai"], [], []),
        (["otherbot: noindex, wenlan: noai"], [], ["noai"]),
        (["wenlan: nofollow, otherbot: noai"], [], []),
        (["unavailable_after: Wednesday, 25-Jun-10 15:00:00 PST, noimageindex"], [], ["noimageindex"]),
        (["index, follow"], ["all"], []),
        (["none"], [], ["none"]),
        ([], ["noai, noimageai"], ["noai", "noimageai"]),
        ([], ["nofollow noindex"], ["noindex"]),
        ([], ["noindex;noai"], ["noai", "noindex"]),
        (["", ",,:,"], [""], []),
        (["https://noai.example/"], [], []),
    ],
)
def test_opt_outs(headers, metas, directives):
    outs = policy.opt_outs([("X-Robots-Tag", value) for value in headers], metas)
    assert (list(outs.directives), outs.reserved) == (directives, False)
    assert bool(outs) == bool(directives)


@given(st.lists(st.text(max_size=60), max_size=3), st.lists(st.text(max_size=60), max_size=3))
def test_opt_outs_take_any_text_and_name_known_directives_only(headers, metas):
    outs = policy.opt_outs([("x-robots-tag", value) for value in headers], metas)
    assert set(outs.directives) <= policy.OPT_OUTS


def test_links_of_a_nofollow_page_are_not_followed():
    assert policy.follows_links([("X-Robots-Tag", "noindex"), ("X-Other", "nofollow")], ["all"])
    assert not policy.follows_links([], ["noindex, nofollow"])
    assert not policy.follows_links([("x-robots-tag", "all"), ("X-Robots-Tag", "none")])
    assert policy.follows_links([("X-Robots-Tag", "otherbot: nofollow")])


RULES = b"User-agent: *\nDisallow: /private/\nCrawl-delay: 3\n"
OURS_FIRST = b"User-agent: *\nDisallow: /\n\nUser-agent: WenLan\nDisallow: /a\n"


@pytest.mark.parametrize(("status", "body", "path", "allowed"), [
    (200, RULES, "/x", True), (200, RULES, "/private/x", False), (404, b"Disallow: /", "/x", True),
    (403, b"", "/x", True), (500, b"", "/x", False), (302, b"", "/x", False),
    (429, b"", "/x", False),  # not now is not never
    (200, OURS_FIRST, "/b", True), (200, OURS_FIRST, "/a", False),
    (200, b"User-agent: *\nCrawl-delay: 86400\n", "/x", False),  # a host that asks for very long pauses is left alone
    (200, bytes(range(256)) * 8, "/x", True),
])  # fmt: skip
def test_robots_allow_by_status_and_rules(status, body, path, allowed):
    assert policy.robots_of(status, body).allows(f"http://a.cn{path}") is allowed


def test_the_user_agent_is_one_line_of_ascii():
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}
    made = BuildSpec.model_validate({"name": "t", "contact": "http://a.cn/\r\nX: 中(文)", "sources": [source]})
    agent = policy.user_agent(made)
    assert agent.startswith("wenlan/")
    assert agent.isascii()
    assert "\n" not in agent


@pytest.mark.parametrize(
    ("value", "seconds"), [("120", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), (None, None), ("soon", None)]
)
def test_retry_after(value, seconds):
    assert policy.retry_after_seconds(value) == seconds


def test_a_date_of_retry_after_is_seconds_from_now():
    until = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1), usegmt=True)
    assert policy.retry_after_seconds(until) == pytest.approx(3600, abs=120)


@given(
    st.one_of(st.text(max_size=40), st.from_regex(r"Wed, [0-9]{1,12} Oct [0-9]{1,30} [0-9:]{1,20} [+-]?[0-9]{1,12}"))
)
@example("Wed, 21 Oct 99999999 07:28:00 GMT")
@example("Wed, 21 Oct 99999999999999999999 07:28:00 GMT")
def test_whatever_stands_in_retry_after_is_seconds_or_nothing(value):
    seconds = policy.retry_after_seconds(value)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("url", "reserves"),
    [("/a/1.html", True), ("/a/open/1.html", False), ("/b/x.jpg", True), ("/b/x.jpg?y", False), ("/c", False)],
)
def test_reservations_of_text_and_data_mining_are_read_as_the_protocol_says(url, reserves):
    rules = """[{"location": "/a/open/", "tdm-reservation": 0}, {"location": "/a/", "tdm-reservation": 1},
        {"location": "/b/*.jpg$", "tdm-reservation": "1"}, {"tdm-reservation": 1}, "odd"]"""
    assert policy.tdm_of(200, rules.encode()).reserves(f"http://a.cn{url}") is reserves
    assert policy.tdm_url("http://a.cn/b/c?d") == "http://a.cn/.well-known/tdmrep.json"


@pytest.mark.parametrize("url", ["http://a.cn", "HTTPS://A.cn:8443/b/c?d#e", "http://[::1]:80/x;y", "http://a.cn//b"])
def test_the_files_about_a_host_lie_where_the_standard_library_finds_them(url):
    assert policy.robots_url(url) == urljoin(url, "/robots.txt")
    assert policy.tdm_url(url) == urljoin(url, "/.well-known/tdmrep.json")


@given(st.sampled_from([200, 404, 500]), st.binary(max_size=200))
def test_what_is_no_reservation_reserves_nothing(status, body):
    assert not policy.tdm_of(status, body).reserves("http://a.cn/x")
    assert not policy.tdm_of(404, b'[{"location": "/", "tdm-reservation": 1}]').reserves("http://a.cn/x")


def test_a_reservation_counts_wherever_it_stands_and_is_named_last():
    header = [("TDM-Reservation", "0"), ("tdm-reservation", " 1 "), ("x-robots-tag", "noai")]
    assert str(policy.opt_outs(header)) == "noai, tdm-reservation: 1"
    assert str(policy.opt_outs([], reserved_by_meta=True)) == "tdm-reservation: 1"
    assert not policy.opt_outs([("tdm-reservation", "0")])


def test_every_rule_of_a_host_has_its_reason_and_its_time():
    ours = policy_of()
    robots = policy.robots_of(200, b"User-agent: *\nDisallow: /private/\n")
    rules = HostRules(robots, policy.tdm_of(200, b'[{"location": "/tdm/", "tdm-reservation": 1}]'))
    assert ours.refusal(rules, "http://a.cn/") is None
    assert ours.refusal(HostRules(), "http://a.cn/private/x") is None
    refused = {path: ours.refusal(rules, f"http://a.cn{path}") for path in ("/private/x", "/tdm/x")} | {
        "down": ours.refusal(HostRules(Robots(unreachable="status 503")), "http://a.cn/")
    }
    assert {path: (r.reason, r.retry_after_s) for path, r in refused.items()} == {
        "/private/x": (DropReason.ROBOTS_DISALLOWED, policy.DISALLOWED_S),
        "/tdm/x": (DropReason.OPT_OUT, policy.LASTING_S),
        "down": (DropReason.ROBOTS_UNREACHABLE, 0.0),
    }
    assert "status 503" in refused["down"].evidence


def test_the_longer_pause_of_spec_and_robots_txt_holds_and_a_host_may_have_its_own():
    asks = HostRules(policy.robots_of(200, b"User-agent: *\nCrawl-delay: 3\n"))
    hosts = {"b.test": {"delay_s": 0.1}, "a.b.test": {"delay_s": 0.2}, "c.test": {"connections": 8}}
    paces = policy_of(delay_s=5, hosts=hosts)
    seconds = {"b.test:80": 0.1, "c.B.test": 0.1, "x.a.b.test": 0.2, "ab.test": 5, "test": 5, "c.test": 5}
    assert {host: paces.delay_s(HostRules(), host) for host in seconds} == seconds
    assert [paces.delay_s(asks, host) for host in ("b.test", "test")] == [3, 5]


def test_rules_of_a_host_hold_for_a_day():
    assert not HostRules(asked_at=100.0).expired(100.0 + policy.ROBOTS_TTL_S)
    assert HostRules(asked_at=100.0).expired(101.0 + policy.ROBOTS_TTL_S)


def test_pages_and_images_are_asked_for_again_after_the_same_statuses():
    transient = {status for status in range(100, 600) if policy.is_transient(status)}
    assert transient == {408, 425, 429, *range(500, 600)}


@pytest.mark.parametrize(
    ("transient", "retry_after", "soon", "pause_s"),
    [
        (True, None, True, 0.0),
        (True, "30", True, 30.0),
        (True, "3600", False, 0.0),
        (True, "soon", True, 0.0),
        (False, None, False, 0.0),
    ],
)
def test_a_host_that_names_a_time_is_left_alone_until_then(transient, retry_after, soon, pause_s):
    retry = policy.retry_of(transient, retry_after)
    assert (retry.in_this_build, retry.pause_s) == (soon, pause_s)


def test_the_pause_after_failures_doubles_up_to_a_limit():
    assert [policy.backoff_s(n) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert policy.backoff_s(10**6) == policy.MAX_BACKOFF_S


@pytest.mark.parametrize(
    ("status", "location", "is_redirect"),
    [(301, "/x", True), (304, "/x", False), (302, "", False), (302, None, False), (200, "/x", False)],
)
def test_a_redirect_has_a_location(status, location, is_redirect):
    assert policy.is_redirect(status, location) is is_redirect
    assert [policy_of(max_redirects=2).too_many_redirects(n) for n in (0, 2, 3)] == [False, False, True]


@pytest.mark.parametrize(
    ("content_type", "body", "html"),
    [
        ("text/html; charset=gbk", b"", True),
        ("Application/XHTML+XML", b"", True),
        ("image/png", b"<html>", False),
        ("text/plain", b"<!doctype html>", False),
        ("", b"\xef\xbb\xbf\n<!DOCTYPE html><p>", True),
        ("", b"%PDF-1.7", False),
        ("", b"", False),
    ],
)
def test_what_is_a_page(content_type, body, html):
    assert policy.is_html(content_type, body) is html


SLOW = "/*a*a*a*a*a*a*a*a*a*a*a*a*zz"


@pytest.mark.slow
def test_no_pattern_that_a_host_writes_takes_long():
    """Backtracking took 177 s for a path of 60 `a`; the process is ended if this is not linear."""
    program = f"""
import json, resource
from pipeline.web import policy
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # of the processor, which other tests may have meanwhile
path = "http://a.test/" + "a" * 2000
rules = [{{"location": {SLOW!r}, "tdm-reservation": 1}}, {{"location": "/" + "*a" * 900 + "*b$", "tdm-reservation": 1}}]
assert not policy.tdm_of(200, json.dumps(rules * 1000).encode()).reserves(path)
robots = "User-agent: *\\n" + "Disallow: {SLOW}\\nDisallow: /" + "*a" * 900 + "*b$\\n" * 100
assert policy.robots_of(200, robots.encode()).allows(path)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
@given(st.lists(st.sampled_from(["a", "b", "/", "*", "$"]), max_size=9), st.text("ab/", max_size=9))
def test_patterns_mean_what_their_regular_expression_means(parts, rest):
    pattern, path = "/" + "".join(parts), "/" + rest
    expression = ".*".join(map(re.escape, pattern.removesuffix("$").split("*"))) + ("$" if pattern[-1] == "$" else "")
    rules = json.dumps([{"location": pattern, "tdm-reservation": 1}]).encode()
    assert policy.tdm_of(200, rules).reserves(f"http://a.cn{path}") == (re.match(expression, path) is not None)
