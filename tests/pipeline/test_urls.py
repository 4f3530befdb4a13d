"""urls: canonical addresses of images, and what an address tells."""

from __future__ import annotations

import logging
import pickle
import re
from urllib.parse import urljoin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import urls
from pipeline.commands.terminal import say
from pipeline.errors import SourceError
from pipeline.processes import observe
from pipeline.rows.decisions import DropReason, drop
from pipeline.rows.records import Candidate
from pipeline.urls import HIDE_TOKENS, canonical_url, host_names, shown, without_userinfo


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTP://A.com:80/x/../y.jpg#top", "http://a.com/y.jpg"),
        ("https://a.com:443/图.jpg", "https://a.com/%e5%9b%be.jpg"),
        ("http://a.com/i?b=2&a=1", "http://a.com/i?a=1&b=2"),
        (" http://a.com/a\n.jpg ", "http://a.com/a.jpg"),
        ("http://中文.com/a", "http://xn--fiq228c.com/a"),
        (r"http:\\a.com\i\x.jpg?p=a\b", "http://a.com/i/x.jpg?p=a%5Cb"),
    ],
)
def test_two_spellings_of_one_address(one, other):
    assert canonical_url(one) == canonical_url(other)


def test_a_query_that_is_no_list_of_pairs_keeps_its_spelling():
    assert canonical_url("http://a.com/i.jpg?imageView2/2/w/600") == "http://a.com/i.jpg?imageView2/2/w/600"
    assert canonical_url("http://a.com/i.jpg?b&a") == "http://a.com/i.jpg?b&a"


def test_relative_addresses_start_from_the_base():
    assert canonical_url("../i/a.jpg", "http://a.com/x/y.html") == "http://a.com/i/a.jpg"
    assert canonical_url("//cdn.com/a.jpg", "https://a.com/") == "https://cdn.com/a.jpg"
    assert canonical_url(r"\i\a.jpg", "http://a.com/2017/x/") == "http://a.com/i/a.jpg", "as browsers read it"
    assert canonical_url(r"..\i\a.jpg", "http://a.com/2017/x/") == "http://a.com/2017/i/a.jpg"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "empty"),
        ("a.jpg", "relative"),
        ("file:///etc/passwd", "not http"),
        ("javascript:void(0)", "not http"),
        ("http://u:p@a.com/x", "credentials"),
        ("http:///x", "no host"),
        ("http://a.com:99999/x", "out of range"),
        ("http://a.com/" + "x" * 3000, "3013 characters"),
    ],
)
def test_what_is_no_address_is_refused_with_a_reason(url, why):
    with pytest.raises(ValueError, match="(?i)" + why):
        canonical_url(url)


@given(st.text(max_size=60), st.sampled_from(["http://a.com/x/", "https://例子.cn/a?b"]))
@example("?\x1b", "http://a.com/x/")
def test_canonical_is_idempotent_and_raises_nothing_but_value_errors(url, base):
    try:
        once = canonical_url(url, base)
    except ValueError:
        return
    assert canonical_url(once) == once
    assert once.startswith(("http://", "https://"))


def test_host_names_go_up_to_the_registered_domain_and_know_ports_and_addresses():
    assert host_names("http://a.b.com.cn/x") == ["a.b.com.cn", "b.com.cn", "com.cn"]
    assert host_names("http://127.0.0.1:80/x") == ["127.0.0.1:80", "127.0.0.1"]
    assert host_names("http://a.b.cn./x") == ["a.b.cn", "b.cn"]
    assert host_names("") == host_names("http://./") == []


PARTS = [
    "a",
    "b.jpg",
    "..",
    ".",
    "/",
    "//",
    "-x_~",
    "%41",
    "%20",
    "%E5%9B%BE",
    "%e5",
    "a,b!c@2x",
    "(1)+=",
    "?v=",
    "k=1",
    "中",
    "?",
    "#",
    ":80",
    ":443",
    ":8080",
    "a.cn",
    "A.cn",
    "http://",
]


@given(
    url=st.lists(st.sampled_from(["http://a.cn", "https://b-c.cn:81", "../", "./", *PARTS]), max_size=6).map("".join),
    base=st.sampled_from(["", "http://h.cn", "http://h.cn/a/b/c.html", "https://h.cn:8443/a/", "http://h.cn/a/../b/"]),
)
def test_the_short_way_gives_what_the_library_gives(url: str, base: str) -> None:
    def answer() -> str:
        try:
            return canonical_url(url, base)
        except ValueError as e:
            return f"ValueError: {e}"

    short = answer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urls, "_PLAINLY_CANONICAL", re.compile("(?!)"))
        assert answer() == short


def test_an_address_with_half_a_character_is_none():
    for url in ("http://a.test/\ud83d.jpg", "http://\udc00.test/", "\ud83d"):
        with pytest.raises(ValueError, match=r"surrogate|half"):
            canonical_url(url, "http://a.test/")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://user:pass@host/a.jpg", "http://host/a.jpg"),
        ("s3://key:se@cret@bucket/x.tsv: cannot be read", "s3://bucket/x.tsv: cannot be read"),
        ("//u:p@cdn.test/a.jpg", "//cdn.test/a.jpg"),
        ("HTTPS://u@h/ and ftp://v:w@h:21/x", "HTTPS://h/ and ftp://h:21/x"),
        ('"url": "http://u:p@h/a"', '"url": "http://h/a"'),
        ("<a href='http://u:p%40@h/a'>", "<a href='http://h/a'>"),
        ("https://h.test/@user/a@b?x=c@d", "https://h.test/@user/a@b?x=c@d"),
        ("mailto:owner@example.org", "mailto:owner@example.org"),
    ],
)
def test_user_info_is_cut_from_urls_wherever_they_stand(text: str, clean: str) -> None:
    assert (without_userinfo(text), shown(text), without_userinfo(clean)) == (clean, clean, clean)


def test_tokens_are_hidden_by_option(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://h.test/a.jpg?w=3&X-Amz-Signature=abc123&token=t0k&key=k1&monkey=no#x"
    assert shown(url) == url
    monkeypatch.setenv(HIDE_TOKENS, "1")
    assert shown(url) == "https://h.test/a.jpg?w=3&X-Amz-Signature=...&token=...&key=...&monkey=no#x"


def test_no_password_is_in_an_error_a_log_line_or_a_decision(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    url = "http://user:pa55word@h.test/a.warc"
    error = SourceError(url, f"cannot be read ({url})")
    assert str(error) == "http://h.test/a.warc: cannot be read (http://h.test/a.warc)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 (our own)
    line = logging.LogRecord("wenlan", logging.WARNING, "", 1, "%s: breaks off", (url,), None)
    observe._add_context(line)
    assert line.getMessage() == "http://h.test/a.warc: breaks off"
    candidate = Candidate("s", "news", url, url, url, (), 0)
    decision = drop(candidate, "extract", DropReason.BAD_URL, f"row: {url}")
    assert "pa55word" not in repr(decision)
    assert (decision.fetch_id, decision.id) == (candidate.fetch_id, candidate.candidate_id), "ids do not change"
    say(f"dataset: {url}")
    assert "pa55word" not in capsys.readouterr().err


def test_a_host_of_thousands_of_labels_costs_no_time_and_has_the_parents_that_dns_knows():
    names = host_names(f"https://{'a.' * 20_000}example.org/")
    assert names[-1] == "example.org"
    assert len(names) < 200


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("unit", ["a.", "//a ", "?key=", "token", "?a.token"])
def test_a_long_text_is_shown_in_time_that_grows_with_it_alone(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages reach log lines and reports: 40,000 characters of `a.` took ten seconds, and of `token` twenty."""
    monkeypatch.setenv("WENLAN_HIDE_TOKENS", "1")
    for text in (unit * 200_000 + "@", "?" + unit * 200_000 + " @"):
        assert shown(text)


@given(
    st.lists(st.sampled_from(["a", "b.c", "..", ".", "..d", "~e", "", "é", "?f", "x=1"]), max_size=5),
    st.lists(st.sampled_from(["a", "b.html", "..", "../..", ".", ".g", "", "h;i", "?j=k", "a b"]), max_size=4),
)
@example(["a", "b.c", "d.html"], ["g", "i.jpg"])
@example(["a", "b.c", "d.html"], ["..", "g.jpg"])
@example(["a", "b.c", ""], ["..", "..", "..", "g.jpg"])
@example(["a", "b.c"], ["", "g.jpg"])
def test_a_relative_address_is_joined_as_urljoin_joins_it(folders, parts):
    base, url = "http://h.cn/" + "/".join(folders), "/".join(parts)
    joined = urljoin(base, url)
    try:
        expected = canonical_url(joined)
    except ValueError:
        return
    if url.strip():
        assert canonical_url(url, base) == expected
