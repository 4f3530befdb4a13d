"""What fuzzing begins with: sound examples per target, and what ended a stage, a build or a run before.

`SEEDS` are mutated by tests/fuzz/examples.py. Each of `FINDS` is run as it is by every `make test`; what a run of
`make fuzz` prints goes in here. `PENDING` names the finds, and the targets, that still fail, with the reason.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_specs.shard import SHARD_SCHEMA
from tests import archived
from tests.drawn import HEIC, claiming
from tests.places import SPECS

PENDING: dict[str, str] = {}
"""`target` or `target/find` -> why it is not run yet."""

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>标题</title><base href="/a/">
<meta name="description" content="描述"><meta property="og:image" content="o.jpg"><meta name="robots" content="noai">
<script type="application/ld+json">{"@type":"ImageObject","url":"j.jpg","caption":"图"}</script></head><body>
<h1>标题</h1><p>一段话<img src="a.jpg" alt="图" srcset="b.jpg 1x, c.jpg 2x">又一段</p><figure><picture><source
srcset="d.webp"><img data-src="d.jpg"></picture><figcaption>说明</figcaption></figure><ul><li><a href="x.html">下一页
</a></li></ul><table><tr><td>格<img src="e.png"></td></tr></table><!-- 注 --></body></html>""".encode()

POST = '{"id": 1, "text": "黄山 #云海# http://t.cn/a", "pics": [{"large": {"url": "http://site.test/a.jpg"}}]}'.encode()

LINKED = b'{"@graph":[{"@type":"ImageObject","url":"a.jpg","caption":"\\u56fe"},{"headline":"h","keywords":["a","b"]}]}'


def _record(kind: str, body: bytes, length: str = "", target: str = "http://site.test/") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {target}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
    head += "Content-Type: application/http; msgtype=response\r\n"
    return head.encode() + f"Content-Length: {length or len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


def http(body: bytes, headers: str = "", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\n{headers}\r\n".encode() + body


WARC = _record("response", http(PAGE)) * 2 + _record("request", b"GET / HTTP/1.1\r\n\r\n")


def picture(kind: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def tar_header(name: bytes, size: bytes, kind: bytes = b"0", sparse: bytes = b"") -> bytes:
    header = bytearray(512)
    header[: len(name)], header[124 : 124 + len(size)], header[156:157] = name, size, kind
    header[257:265] = b"ustar  \0" if sparse else b"ustar\x0000"
    header[386 : 386 + len(sparse)] = sparse
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _parquet() -> bytes:
    text = {"kind": "alt", "text": "图", "text_leader": "a" * 64}
    row = dict.fromkeys(SHARD_SCHEMA.names) | {"key": "a" * 32, "candidate_id": "a" * 64, "source_kind": "news"}
    row |= {"sha256": "b" * 64, "image_leader": "b" * 64, "width": 8, "height": 8, "texts": [text]}
    row |= {"image_offset": 0, "image_size": 4}
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row] * 2, schema=SHARD_SCHEMA), out)
    return out.getvalue()


def _manifest() -> bytes:
    file = {"path": "x", "bytes": 0, "sha256": "a" * 64}
    shard = {"split": "train", "samples": 2, "tar": file, "parquet": file, "regions": {"yolo": file}}
    described = {"schema_version": 1, "build_id": "b", "spec_digest": "", "content_digest": "", "created_at": ""}
    return json.dumps(described | {"samples": {"train": 2}, "detectors": ["yolo"], "shards": [shard]}).encode()


SITEMAP = (
    b'<?xml version="1.0" encoding="UTF-8"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"><url><loc>'
)
SITEMAP += b"http://site.test/a</loc></url><sitemap><loc>/b</loc></sitemap></urlset>"
ROBOTS = b"/a/b?c\nUser-agent: *\nDisallow: /*a*b$\nAllow: /a\nCrawl-delay: 1\nRequest-rate: 1/5s\nSitemap: /s.xml\n"
TDM = b'/a/b?c\n[{"location": "/*a*b$", "tdm-reservation": 1}, {"location": "/", "tdm-reservation": 0}]'

ARCHIVE = archived.jpeg("http://a.cn/1.jpg", b"\xff\xd8\xff") + archived.moved("http://a.cn/2", "/1.jpg")
ARCHIVE += archived.revisit("http://a.cn/1.jpg", WARC_Refers_To_Target_URI="http://a.cn/2")

DEEP = {"[": b"[" * 100_000, "{": b'{"a":' * 100_000, "digits": b'{"schema_version": ' + b"9" * 5000 + b"}"}


@functools.cache
def seeds() -> dict[str, tuple[bytes, ...]]:
    """Sound examples of each target."""
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
    from_json = b'{"checkpoint_version": 2, "wenlan": "0", "files": {"config.json": {"bytes": 2, "sha256": ""}}}'
    sample = archived.tar({"a.png": picture("PNG"), "a.txt": "山水".encode(), "b.json": b'{"caption": "x"}'})
    return {
        "page": (PAGE,),
        "charset": (PAGE, "图片说明，中文网页".encode("gb18030"), "圖片說明".encode("big5")),
        "linked_data": (LINKED,),
        "url": (
            b"http://user:pw@site.test:80/a/../b?x=1&utm_source=y#f",
            "https://例子.测试/路?q=图".encode(),
            b"//[::1]/",
        ),
        "row": (
            POST,
            "加微信 abc12345，特价 9.9 元包邮，电话 138-0013-8000，邮箱 a.b@c.cn".encode(),
            b"http://a.b.cn/c.jpg",
        ),
        "links": (PAGE,),
        "sitemap": (SITEMAP, gzip.compress(SITEMAP)),
        "robots": (ROBOTS,),
        "tdmrep": (TDM,),
        "warc": (
            *(WARC, gzip.compress(WARC), b"".join(gzip.compress(_record("response", http(PAGE))) for _ in range(3))),
            *(ARCHIVE, archived.packed({"a.warc.gz": ARCHIVE, "b.warc": gzip.decompress(ARCHIVE)})),
        ),
        "tar": (sample, sample + sample, sample.rstrip(b"\0")),
        "spec": tuple(path.read_bytes() for path in SPECS),
        "manifest": (_manifest(),),
        "shards": (sample, _parquet()),
        "checkpoint": (from_json, b'{"config": {"recipe": "tiny"}, "detector": "grid"}', b"\x08\0\0\0\0\0\0\0{}      "),
        "image": (*(picture(kind) for kind in kinds), picture("JPEG", "CMYK"), picture("PNG", "P"), HEIC),
    }


def scans(times: int, side: int = 2_000) -> bytes:
    """A progressive JPEG whose last scan is repeated, with the table of codes that belongs to it."""
    data = picture_of(side, side, "JPEG", progressive=True)
    begin = data.rindex(b"\xff\xc4")
    return data[:-2] + data[begin:-2] * times + data[-2:]


def _png_of_alpha() -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (3_000, 3_300), (255, 0, 0, 9)).save(out, "PNG", compress_level=1)
    return out.getvalue()


SPARSE = b"%011o\0%011o\0" % ((1 << 32) - 1, 512) + bytes(73) + b"\x80" + (6 << 30).to_bytes(11, "big")
"""Fields of a header of GNU's old sparse format: one piece (offset, length), and the size when it is read."""

HUGE = b"\x80" + (2**62).to_bytes(11, "big")


def _index_of(file: str) -> bytes:
    """An index of a checkpoint that names one file."""
    return json.dumps({"checkpoint_version": 2, "files": {file: {"bytes": 2, "sha256": ""}}}).encode()


FINDS: dict[str, dict[str, Callable[[], bytes]]] = {
    "row": {
        "labels": lambda: b"a." * 49_000 + b"@",  # boilerplate: hours for a megabyte
        "hosts": lambda: b"http://a" * 12_000,  # ads
        "digits": lambda: b"1" * 99_000,  # personal_data
        "prices": lambda: "特价".encode() + b"1," * 49_000,
        "accounts": lambda: b"weixin" * 16_000,
        "stops": lambda: "a。".encode() * 49_000 + b"com.cn",
        "marks": lambda: ("a" + "\u0301\u0327" * 40_000).encode(),
        "megabyte": lambda: b"a." * 500_000,
        "edges": lambda: "关注公众号".encode() + b"x" + b"-" * 99_000 + b"x",  # template: a minute
    },
    "page": {
        "php": lambda: b"<p>x</p><?php echo 1 ?><img src=a.jpg>",
        "instruction": lambda: b"6<?I>",
        "surrogate": lambda: rb'<script type="application/ld+json">{"headline":"\ud83d"}</script><img src=a.jpg>',
        "lists": lambda: b"<ul><li>" * 60_000 + b"<img src=a.jpg>",
        "bold": lambda: b"<div><b>" * 80_000,
        "divs": lambda: b"<div>" * 200_000,
        "attributes": lambda: b"<img " + b" ".join(b"a%d=1" % n for n in range(80_000)) + b">",
        "marks": lambda: b"<img src=a.jpg><p>a" + "\u0301\u0323".encode() * 200_000,
        "sources": lambda: b"<picture>" + b"<source srcset=a.jpg>" * 80_000 + b"<img src=a.jpg>" * 80_000,
        "sources of few": lambda: b"<picture>" + b"<source srcset=a>" * 8_000 + b"<img>" * 8_000,
        "formatting": lambda: b"<p>" + b"".join(b"<b a%d>" % n for n in range(1_000)) + b"<p>x" * 2_000,
        "adoption": lambda: b"".join(b"<i a=%d>" % n for n in range(3_000)) + b"<div>" * 3_000 + b"</i>" * 3_000,
        "options": lambda: b"<select>" + b"<option>" * 600_000,
        "bodies": lambda: b"".join(b"<body a%d>" % n for n in range(100_000)),
        "quoted tags": lambda: b"<img " + b" ".join(b"a%d='<b>'" % n for n in range(80_000)) + b">",
        "quoted ends": lambda: b"<div a='</div>'>" * 60_000,
        "srcset": lambda: (b"<img srcset='" + b"a.jpg 1x," * 1_100 + b"'>") * 490,
        "images": lambda: b"<img src=a.jpg>" * 300_000,
    },
    "charset": {"korean": lambda: "图片说明中文网页的图片".encode("gb18030") * 1000},
    "linked_data": {
        "surrogate in url": lambda: rb'{"@type":"ImageObject","url":"\ud83d.jpg","caption":"\ud83d"}',
        "surrogate in headline": lambda: rb'{"headline":"\ud83d"}',
        **{name: lambda data=data: data for name, data in DEEP.items()},
    },
    "url": {
        "bracket": lambda: b"http://[::1",
        "host of control characters": lambda: b"//" + bytes(7),
        "port of no host": lambda: b"// :256",
        "port": lambda: b"http://a:99999999999/",
        "long": lambda: b"a" * 500_000,
    },
    "links": {
        "base": lambda: b"<base href='http://[::1'><a href=x.html>x</a>",
        "divs": lambda: b"<div>" * 200_000,
        "long": lambda: b"<base href=/" + b"a" * 2_000 + b">" + b"".join(b"<a href=%d>" % n for n in range(300_000)),
        "query": lambda: b"<a href='?" + b"a&" * 2_400_000 + b"'>",
        "formatting": lambda: b"<p>" + b"".join(b"<b a%d>" % n for n in range(1_000)) + b"<p>x" * 2_000,
    },
    "sitemap": {
        **{
            name: lambda name=name: SITEMAP.replace(b"UTF-8", name.encode())
            for name in ("gb2312", "gb18030", "big5", "utf-7", "hex")
        },
        "deep": lambda: gzip.compress(b"<a>" * 15_000_000),
    },
    "robots": {
        "stars": lambda: b"a" * 120 + b"\nUser-agent: *\nDisallow: /" + b"*a" * 8 + b"zz\n",
        "rules": lambda: b"a" * 1000 + b"\nUser-agent: *\n" + b"Disallow: /*a*b*c*d\n" * 20_000,
    },
    "tdmrep": {
        "stars": lambda: b"a" * 120 + b'\n[{"location": "/' + b"*a" * 8 + b'zz", "tdm-reservation": 1}]',
        **{name: lambda data=data: b"/\n" + data for name, data in DEEP.items()},
    },
    "warc": {
        "brotli": lambda: _record("response", http(b"\x0b\x02\x80hello\x03", "Content-Encoding: br\r\n")),
        "headers without an end": lambda: _record("response", b"")[:-25] * 10_000,
        "lengths beyond the end": lambda: _record("response", http(PAGE), "9" * 9) * 2_000,
        "28 bytes": lambda: b"WARC/1.0\nWARC-Type:response",
        "length of 30 digits": lambda: _record("response", http(PAGE), "9" * 30),
        "length of 5000 digits": lambda: _record("response", http(PAGE), "9" * 5000),
        "status": lambda: _record("response", http(PAGE, status="²00 OK")),
        "header of 30 MB": lambda: _record("response", http(PAGE, f"X: {'a' * 30_000_000}\r\n")),
        "as a whole": lambda: gzip.compress(WARC * 3),
        "empty": lambda: b"",
        "empty gzip": lambda: gzip.compress(b""),
        "bomb": lambda: gzip.compress(_record("response", http(bytes(200_000_000)))),
    },
    "tar": {
        "empty": lambda: b"",
        "zeros": lambda: bytes(1 << 20),
    },
    "spec": {
        "date": lambda: SPECS[0].read_bytes() + b"\ndescription: 2024-13-45\n",
        "nesting": lambda: b"[" * 5_000,
        "timestamp": lambda: b"name: !!timestamp x\n",
        "digits": lambda: b"name: " + b"9" * 5000 + b"\n",
        "surrogate": lambda: rb'name: "\ud800"',
        "aliases": lambda: _aliases(40),
        "binary": lambda: b"name: !!binary x\n",
        "set": lambda: b"!!set {a}\n",
        "float": lambda: b"name: !!float x\n",
        "key": lambda: b"? [a]\n: b\n",
    },
    "manifest": {
        **{name: lambda data=data: data for name, data in DEEP.items()},
        "samples": lambda: _manifest().replace(b'"samples": 2', b'"samples": -2'),
        "sha256": lambda: _manifest().replace(b"a" * 64, b"../x"),
        "path": lambda: _manifest().replace(b'"path": "x"', rb'"path": "a\u0000"'),
        "surrogate": lambda: _manifest().replace(b'"path": "x"', rb'"path": "\ud800"'),
        "infinity": lambda: _manifest().replace(b'"bytes": 0', b'"bytes": Infinity'),
        "version": lambda: b'{"schema_version": true}',
    },
    "shards": {
        "sparse": lambda: tar_header(b"a.jpg", b"00000001000\0", b"S", SPARSE) + bytes(1536),
        "pax": lambda: tar_header(b"p", HUGE, b"x") + bytes(1024),
        "long name": lambda: tar_header(b"l", HUGE, b"L") + bytes(1024),
        "long names": lambda: tar_header(b"l", b"00000000001\0", b"L").ljust(1024, b"\0") * 5000,
        "below 0": lambda: tar_header(b"a.png", b"\xff" + (2**88 - 512).to_bytes(11, "big")) + bytes(1024),
        "deep json": lambda: archived.tar({"a.png": picture("PNG"), "a.json": DEEP["["], "b.json": DEEP["digits"]}),
        "surrogate": lambda: archived.tar({"a.png": picture("PNG"), "a.json": rb'{"caption": "\ud83d"}'}),
        "name": lambda: archived.tar({"a.png": picture("PNG"), "a.txt": b"x"}).replace(b"a.", b"\xff."),
    },
    "checkpoint": {
        "long name": lambda: _index_of("config.json" + ".g" * 5_000),
        **{name: lambda data=data: data for name, data in DEEP.items()},
        "infinity": lambda: b'{"checkpoint_version": 2, "files": {"a": {"bytes": 1e999, "sha256": ""}}}',
        "type": lambda: _tensors(b'{"a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}', 4),
        "shape": lambda: _tensors(b'{"a":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}}', 0),
    },
    "image": {
        "scans": lambda: scans(5_000),  # 215 kB: 14 s
        **{
            f"{kind} of {side}": lambda kind=kind, side=side: claiming(picture(kind), side, side)
            for kind in ("JPEG", "PNG")
            for side in (9_900, 20_000, 65_000)
        },
        "cut segment": lambda: picture("JPEG")[:2] + b"\xff\xee\0\x08Adobe\0" + picture("JPEG")[2:],
        "wide": lambda: picture_of(65_510, 1),
        "alpha": _png_of_alpha,
        "frames": lambda: _gif_of_frames(400_000),
        "directories": lambda: _tiff_of_directories(100_000),
        "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    },
}
"""By target and by name: what was found, made when it is run."""


def _aliases(levels: int) -> bytes:
    """Two aliases of the level before, and so on: a few lines that mean 2 ** levels values."""
    return b"a0: &a0 [x,x]\n" + b"".join(b"a%d: &a%d [*a%d,*a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, levels))


def _tensors(header: bytes, size: int) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(size)


def picture_of(width: int, height: int, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def _gif_of_frames(frames: int) -> bytes:
    """A picture of 1 x 1 pixel and many frames of a few bytes."""
    head = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff"
    return head + b",\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0" * frames + b";"


def _tiff_of_directories(directories: int) -> bytes:
    """The directory of a picture of 1 x 1 pixel again and again, each with the offset of the next one."""
    data = bytearray(picture_of(1, 1, "TIFF"))
    end = 10 + 12 * int.from_bytes(data[8:10], "little")  # the count has 2 bytes, an entry 12
    directory, size, start = bytes(data[8:end]), end - 4, len(data)
    data[end : end + 4] = struct.pack("<I", start)
    return bytes(data) + b"".join(directory + struct.pack("<I", start + size * n) for n in range(1, directories))
