"""Examples for the targets: sound ones with damage, soups of what their formats are made of, and plain bytes."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.fuzz.corpus import seeds

LONGEST = 2_000_000
"""Bytes of one example."""

_MARKUP = "<div> <b> <p> <ul><li> <a href=' </a> <img src= alt= <table><td> </table> <?x ?> <!-- --> <svg> <template> "
_MARKUP += "<script type=application/ld+json> </script> <base href= <meta charset= <picture><source srcset= &amp; "
_MARKUP += "&#xd800; 图 \u0301 \u202e style='display:none' = \" ' < > / http://[::1 // data:,x"
_JSON = '{ } [ ] , : "a" "url" "\\ud83d" 9999999999 1e999 null true -1 "@graph" "image" "location" "/*a*a$" NaN \\u0000'
_XML = (
    "<?xml encoding='gb2312'?> <!DOCTYPE <!ENTITY <urlset> <url> <loc> </loc> </url> <![CDATA[ ]]> &#0; &a; x http://a/"
)
_HTTP = "WARC/1.0 \r\n \r\n\r\n WARC-Type: response Content-Length: 9 Content-Encoding: gzip br Transfer-Encoding: "
_HTTP += "chunked HTTP/1.1 200 WARC-Target-URI: http://a/ 0 99999999999999999999 : \n"
_ROBOTS = "\n User-agent: * Disallow: / * *a $ %zz Allow: Crawl-delay: 1e999 -1 Request-rate: 1/0s 0/0 Sitemap: # 图 a"
_YAML = "\n : - [ ] { } &a *a !!timestamp !!binary !!float !!set ? | > 2024-13-45 0x 1_0 .inf name <<: ' \" # \t"
_YAML += " sources kind site warc folder url_table"
_ROW = '{"text":" "," "images":[" ], "pics":[{"large":{"url":" http:// 微信 加微 vx weixin a. a.b .com 。 .. @ 1 138 - '
_ROW += "( ) ￥ 元 # 京a 一三八 图片 查看 \u0301 \ufdfa Ａ qq群 扫码 二维码 长按 dot 点 www. .jpg 0x ffffffff content "
_ROW += "alt <a> </a> //@x: &amp;"
_URL = "http:// https:// // / .. : @ [ ] ? & = # % %zz \\ \t 图 xn-- ::1 127.0.0.1 .cn 99999 ; sid= ."

WORDS = {
    "page": _MARKUP,
    "charset": _MARKUP,
    "linked_data": _JSON,
    "url": _URL,
    "row": _ROW,
    "links": _MARKUP,
    "sitemap": _XML,
    "robots": _ROBOTS,
    "tdmrep": _JSON,
    "warc": _HTTP,
    "spec": _YAML,
    "manifest": _JSON,
    "checkpoint": _JSON,
}
"""What the formats of text are made of, by target."""


@st.composite
def damaged(draw: st.DrawFn, target: str) -> bytes:
    """A sound example with a few changes: bytes set, cut out, put in, copied, or repeated many times."""
    data = bytearray(draw(st.sampled_from(seeds()[target])))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from((1, 2, 4, 16, 100))))
        match draw(st.sampled_from(("set", "cut", "insert", "copy", "repeat", "end"))):
            case "set":
                data[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
            case "cut":
                del data[at:end]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "copy":
                place = draw(st.integers(0, len(data)))
                data[place:place] = data[at:end]
            case "repeat":
                data[at:at] = data[at:end] * draw(st.sampled_from((3, 100, 20_000)))
            case "end":
                del data[max(at, 8) :]
    return bytes(data[:LONGEST])


@st.composite
def soup(draw: st.DrawFn, target: str) -> bytes:
    """Words of the format in any order, each some times."""
    words = [*WORDS[target].split(" "), " "]
    counts = st.sampled_from((1, 1, 1, 2, 50, 5_000))
    parts = draw(st.lists(st.tuples(st.sampled_from(words), counts), max_size=30))
    return b"".join(word.encode() * count for word, count in parts)[:LONGEST]


@dataclass(frozen=True)
class Example:
    """Bytes that print as a few: hypothesis writes each failing example out."""

    data: bytes

    def __repr__(self) -> str:
        start = base64.b85encode(self.data[:4000]).decode()
        return f"Example of {len(self.data)} bytes, in base 85: {start}{'...' if len(self.data) > 4000 else ''}"


@st.composite
def examples(draw: st.DrawFn, target: str) -> Example:
    """Examples of a target. (Not by `map`, which would print the bytes themselves.)"""
    of_words = [soup(target)] if target in WORDS else []
    return Example(draw(st.one_of(damaged(target), damaged(target), *of_words, st.binary(max_size=300))))
