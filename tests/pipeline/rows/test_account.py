"""account: for any input of any source, what was met = candidates + decisions + what has a name.

Inputs are made from pieces of which the test knows what raw units they are, so that the sum that a source states is
compared with one that it has no part in. SOURCES_EXAMPLES=n makes n inputs of each kind in place of a few.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from pipeline.errors import SourceError
from pipeline.plugins import configure
from pipeline.rows.account import ACCOUNT, Account, Named, Units
from pipeline.rows.records import Candidate, Capture
from pipeline.sources import TableSource
from pipeline.sources._text_files import lines_in_cells
from pipeline.stages import extract
from pipeline.stages._page_candidates import extract_page
from tests import archived
from tests.candidates import put, texts
from tests.drawn import encoded

EXAMPLES = int(os.environ.get("SOURCES_EXAMPLES", "25"))
PNG = encoded(Image.new("L", (8, 8)), "PNG")

Made = tuple[dict[str, Any], dict[str, int], int]
"""Options of a source, its raw units by name, and those that nothing accounts for."""


def files(draw: st.DrawFn, root: Path) -> Made:
    """Pictures of all suffixes and none, texts of all spellings, what systems leave, and what has no name."""
    suffixes = ["jpg", "JPG", "jfif", "png", "", "bin", "img", "txt", "TXT", "jpg.txt", "caption", "json", "md", "csv"]
    kinds = st.tuples(
        st.sampled_from(["", "f/", "夹/g/", ".git/", "__MACOSX/"]), st.sampled_from("abc云"), st.sampled_from(suffixes)
    )
    contents = st.sampled_from(
        [PNG, b"", "雪后的黄山".encode(), b'{"caption": "x"}', b"{", b"\0\1\2\3", b"\xff\xd8\xff\xe0"]
    )
    own = {
        f"{folder}{name}{'.' * bool(suffix)}{suffix}": data
        for (folder, name, suffix), data in draw(st.lists(st.tuples(kinds, contents), max_size=25))
    }
    own |= {"z.jpg": b"Z", **({".DS_Store": b"\0"} if draw(st.booleans()) else {})}
    put(root, own)
    hidden = {name for name in own if name.startswith((".", "__"))}
    telling = (".txt", ".json", ".caption", ".csv", ".jpg", ".png", ".jfif")
    lost = [
        name
        for name, data in own.items()
        if data == b"\0\1\2\3" and name not in hidden and not name.lower().endswith(telling)
    ]
    return (
        {"kind": "folder", "path": str(root), "images_per_part": draw(st.integers(1, 9))},
        {"files": len(own)},
        len(lost),
    )


def captions(draw: st.DrawFn, root: Path) -> Made:
    """A table of captions, perhaps below a title, with blank lines, missing pictures and cells of any shape."""
    put(root, {"a.jpg": b"A", "b.png": b"B", "c.jpg": b"C"})
    rows = draw(st.lists(st.sampled_from(LINES), max_size=40))
    lines = [*draw(st.sampled_from([[], ["图片清单"], ["图片清单", ""]])), "file,caption", *rows]
    text = "\n".join(lines) + "\n"
    put(root, {"t.csv": text})
    options = {"kind": "folder", "path": str(root), "captions": "t.csv", "images_per_part": draw(st.integers(1, 3))}
    return options, {"files": 4, "lines": text.count("\n")}, -1


LINES = [
    "a.jpg,云",
    "b,海",
    "gone.jpg,山",
    "",
    "c.jpg",
    "a.jpg,一,二",
    '"a.jpg,"引"',
    'c.jpg,"两\n行"',
    'b.png,"',
    "   ",
]


def table(draw: st.DrawFn, root: Path) -> Made:
    """CSV and TSV with quotes anywhere, of several lines a row, in several parts."""
    separator = draw(st.sampled_from([",", "\t"]))
    cell = st.sampled_from(
        ["云", "http://i/1.jpg", '"', '"今天"的', '"两\n行"', '"半', "", " ", "x" * 20, '"a""b"', "\r", "http://i/2"]
    )
    rows = draw(st.lists(st.lists(cell, max_size=3).map(separator.join), max_size=30))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = end.join([separator.join(["url", "zh"]), *rows]) + draw(st.sampled_from(["", end, end * 3]))
    put(root, {"t.csv": text})
    raw = len(io.StringIO(text, newline="").readlines())
    return _table(root, draw(st.integers(1, 9))), {"lines": raw}, -1


def _table(root: Path, step: int, file: str = "t.csv", **more: Any) -> dict[str, Any]:
    columns = {"image_url": "url", "texts": {"caption": "zh"}}
    return {"kind": "url_table", "path": str(root / file), "columns": columns, "rows_per_part": step, **more}


def json_lines(draw: st.DrawFn, root: Path) -> Made:
    """Rows, objects of other kinds, rubbish and blank lines."""
    row = st.sampled_from(
        ['{"url": "http://i/1.jpg", "zh": "云"}', '{"url": "x"}', "{", "[]", "", "  ", "null", '{"zh": {}}']
    )
    rows = draw(st.lists(row, max_size=40))
    text = "\n".join(rows) + draw(st.sampled_from(["", "\n", "\n\n"]))
    put(root, {"t.jsonl": text})
    return (
        _table(root, draw(st.integers(1, 9)), "t.jsonl"),
        {"lines": len(io.StringIO(text, newline="").readlines())},
        0,
    )


def parquet(draw: st.DrawFn, root: Path) -> Made:
    """Rows in groups, read in parts that cut them anywhere; some groups are damaged, their rows are in the footer."""
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(["http://i/1.jpg", "", None, "x"]), st.sampled_from(["云", "", None])),
            max_size=60,
        )
    )
    columns = {"url": pa.array([u for u, _ in rows], pa.string()), "zh": pa.array([t for _, t in rows], pa.string())}
    pq.write_table(pa.table(columns), root / "t.parquet", row_group_size=draw(st.integers(1, 20)))
    groups = pq.read_metadata(root / "t.parquet")
    data = bytearray((root / "t.parquet").read_bytes())
    for number in draw(st.sets(st.integers(0, max(0, groups.num_row_groups - 1)), max_size=groups.num_row_groups)):
        column = groups.row_group(number).column(draw(st.integers(0, 1)))
        at = draw(st.integers(0, column.total_compressed_size - 1)) + column.dictionary_page_offset
        junk = draw(st.binary(min_size=1, max_size=9))
        data[at : at + len(junk)] = junk
    (root / "t.parquet").write_bytes(data)
    return _table(root, draw(st.integers(1, 25)), "t.parquet"), {"rows": len(rows)}, 0


def posts(draw: st.DrawFn, root: Path) -> Made:
    """Posts with no, one and several pictures, rubbish and blank lines."""
    post = st.fixed_dictionaries(
        {},
        optional={
            "id": st.integers(0, 9),
            "text": st.sampled_from(["云", "#话题#", ""]),
            "pics": st.lists(
                st.fixed_dictionaries(
                    {}, optional={key: st.sampled_from(["http://i/1", "//i/2", "x", ""]) for key in ("url", "large")}
                ),
                max_size=3,
            ),
        },
    )
    row = st.one_of(post.map(json.dumps), st.sampled_from(["", " ", "{", "[]", "\\x"]))
    rows = draw(st.lists(row, max_size=30))
    put(root, {"t.jsonl": "\n".join(rows)})
    raw = len(io.StringIO("\n".join(rows)).readlines())
    pictures = sum(len(json.loads(row).get("pics", [])) for row in rows if row.startswith("{") and row != "{")
    options = {"kind": "microblog", "path": str(root / "t.jsonl"), "fields": {"images": ["pics[].large", "pics[].url"]}}
    return options, {"lines": raw, "pictures of posts": pictures}, 0


def members(draw: st.DrawFn, root: Path) -> Made:
    """Members of any name and kind, in any order."""
    names = [f"{folder}{key}{suffix}" for folder in ("", "d/") for key in "ab云" for suffix in SUFFIXES]
    kinds = st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
    contents = st.sampled_from([PNG, b"", "云".encode(), b'{"caption": "x"}', b"{", b"\0\1"])
    own = draw(
        st.lists(
            st.tuples(st.sampled_from([*names, "__meta__", "._a.jpg", ".x", "README"]), kinds, contents), max_size=25
        )
    )
    with tarfile.open(root / "t.tar", "w") as tar:
        for name, kind, data in own:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x" if kind == tarfile.SYMTYPE else ""
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    return {"kind": "webdataset", "path": str(root / "t.tar")}, {"members": len(own)}, 0


SUFFIXES = ("", ".jpg", ".txt", ".json", ".0.jpg", ".1.PNG", ".0.txt", ".bin", ".cls", ".mask.png")


MARKUP = [
    *(
        "<img src=a.jpg alt=山>",
        "<IMG SRC='b.png'>",
        "<img>",
        "<img src=data:x>",
        "<img src=logo.png>",
        "云海一片",
        "</p>",
    ),
    *(f"<{tag}>" for tag in ("p", "template", "svg", "object", "select", "noscript", "table", "td", "nav", "picture")),
    *(f"</{tag}>" for tag in ("template", "svg", "object", "noscript", "table", "nav")),
    *("<!-- <img src=c.jpg> -->", "<script>'<img src=d.jpg>'</script>", "<textarea><img></textarea>", "<image>"),
]


@pytest.mark.slow
@settings(max_examples=4 * EXAMPLES, deadline=None)
@given(st.lists(st.sampled_from(MARKUP), max_size=20).map("".join), st.integers(1, 3))
@example("<img data-src=a.jpg src=x.gif alt=山><noscript><img src=a.jpg></noscript><svg><img>", 2)
def test_every_image_of_a_page_is_a_candidate_a_decision_or_has_a_name(markup: str, most: int) -> None:
    """What a page has is counted in its DOM; the walk that reads images goes over what the DOM is written as."""
    html = f"<!doctype html><meta charset=utf-8><p>一段中文的话</p>{markup}"
    page = Capture("http://a.cn/", 200, "", "text/html", html.encode())
    entries, _, own = extract_page(page, "s", "news", most)
    images = own or Units()
    assert images.met - images.named[Named.EMBEDDED] == len(LexborHTMLParser(html).css("img"))
    assert images.unaccounted == 0
    assert images.candidates + images.decisions == len(entries)


ODD = {
    "<amp-img src=a.jpg alt=雪后的山></amp-img>": "candidate",
    "<amp-img src=a.jpg alt=山><noscript><img src=a.jpg></noscript></amp-img>": f"candidate, {Named.FALLBACK}",
    "<picture><source srcset=a.webp><img src=a.jpg alt=山></picture>": "candidate",
    "<image src=a.jpg alt=山>": "candidate",
    "<img srcset='a.jpg 1x, b.jpg 2x' alt=山>": "candidate",
    "<img src=data:image/png;base64,iVBO alt=山>": "decision",
    "<img alt=山>": "decision",
    "<div style='color: red; BACKGROUND-image: URL(a.jpg)'>山</div>": Named.BACKGROUND,
    "<div style='background: url(data:image/png;base64,iVBO)'>山</div>": Named.BACKGROUND,
    "<table background=a.jpg><tr><td style='background:url(b)'></table>": f"{Named.BACKGROUND}, {Named.BACKGROUND}",
    "<object data=a type=image/jpeg></object>": Named.EMBEDDED,
    "<object data=a.png><img src=b.jpg></object>": f"{Named.EMBEDDED}, {Named.UNSHOWN}",
    "<embed src=a.svg>": Named.EMBEDDED,
    "<iframe src=/a.jpg></iframe>": Named.EMBEDDED,
    "<picture><source srcset=a.webp></picture>": Named.EMBEDDED,
    "<svg><image href=a.jpg /></svg>": Named.EMBEDDED,
    "<svg><image xlink:href=a.jpg /></svg>": Named.EMBEDDED,
    "<input type=image src=a.jpg>": Named.EMBEDDED,
    "<video poster=a.jpg></video>": Named.EMBEDDED,
    "<video src=a.mp4></video><object data=a.swf></object><iframe src=/a></iframe><svg><image /></svg>": "",
    "<p style='cursor: url(a.cur)'>山</p>": "",
}


@pytest.mark.parametrize("markup", ODD)
@pytest.mark.parametrize("beside", ["", "<img src=z.jpg alt=海>"])
def test_a_picture_in_any_element_is_a_candidate_a_decision_or_counted(markup: str, beside: str) -> None:
    """Alone on a page too, which then is not read further."""
    html = f"<!doctype html><meta charset=utf-8><h1>雪后的黄山</h1><p>一段中文的话</p>{markup}<p>云</p>{beside}"
    page = Capture("http://a.cn/", 200, "", "text/html", html.encode())
    images = extract_page(page, "s", "news").images or Units()
    became = ["candidate"] * images.candidates + ["decision"] * images.decisions + [*images.named.elements()]
    assert sorted(became) == sorted(filter(None, [*ODD[markup].split(", "), beside and "candidate"]))
    assert (images.met, images.unaccounted) == (len(became), 0)


RECORDS: dict[str, Callable[[str], bytes]] = {
    "page": lambda url: archived.page(url, "/1.jpg", "/2.jpg"),
    "bare": lambda url: archived.record(url, "<p>没有图</p>".encode(), {"Content-Type": "text/html"}),
    "english": lambda url: archived.record(url, b"<p>No<img src=/3.jpg>", {"Content-Type": "text/html"}),
    "gone": lambda url: archived.record(
        url, b"<img src=/4.jpg>", {"Content-Type": "text/html"}, status="404 Not Found"
    ),
    "jpeg": lambda url: archived.jpeg(f"{url}.jpg", PNG),
    "request": lambda url: archived.record(url, b"", {}, kind="request"),
    "metadata": lambda url: archived.record(url, b"", {}, kind="metadata"),
}


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(kinds=st.lists(st.sampled_from([*RECORDS]), min_size=1, max_size=12))
def test_every_record_of_an_archive_is_of_a_candidate_a_decision_or_has_a_name(
    kinds: list[str], make_build: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = [RECORDS[kind](f"http://a.test/{n}") for n, kind in enumerate(kinds)]
        (Path(folder) / "1.warc.gz").write_bytes(b"".join(records))
        source = {"kind": "warc", "name": "w", "source_kind": "news", "path": f"{folder}/1.warc.gz"}
        build = replace(make_build(sources=[source]), out=f"{folder}/out")
        extract.run_partition(build, "w-00000")
        [record] = build.stage("extract").records()
    of, account = Counter(kinds), Account.of_json(record.info[ACCOUNT])
    units = account["records"]
    assert (units.met, units.candidates, units.decisions) == (len(kinds), of["page"], of["english"] + of["gone"])
    named = {"without": of["bare"], "picture": of["jpeg"], "other": of["request"] + of["metadata"]}
    names = (Named.WITHOUT_PICTURE, Named.PICTURE, Named.OTHER_RECORD)
    assert +units.named == +Counter(dict(zip(names, named.values(), strict=True)))
    assert (account["images"].met, account["images"].candidates) == (2 * of["page"], 2 * of["page"])
    assert account.unaccounted == record.counts["unaccounted"] == 0


def made(options: dict[str, Any]) -> TableSource:
    options = {"name": "s", "source_kind": "library", **options}
    return configure("sources", options.pop("kind"), options, TableSource)


@pytest.mark.slow
@pytest.mark.parametrize("make", [files, captions, table, json_lines, parquet, posts, members])
def test_what_a_source_met_is_a_candidate_a_decision_or_has_a_name(make: Callable[[st.DrawFn, Path], Made]) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (root := Path(folder) / "in").mkdir()
            options, raw, lost = make(data.draw, root)
            source, account, entries = made(options), Account(), 0
            try:
                for part in range(source.parts()):
                    own = Account()
                    entries += sum(1 for _ in source.read(part, own))
                    account.add(own)
            except SourceError:
                return  # the whole source, in one line
            assert {unit: units.met for unit, units in account} == {unit: n for unit, n in raw.items() if n}
            for _, units in account:
                assert min(units.unaccounted, units.candidates, units.decisions, *units.named.values(), 0) == 0
                assert units.candidates + units.decisions <= max(entries, units.met)
            assert lost < 0 or account.unaccounted == lost

    holds()


@pytest.mark.slow
def test_lines_that_a_quote_swallows_are_unaccounted_and_have_a_place(tmp_path: Path) -> None:
    swallowed = "".join("雪" * 1_000_000 + "\n" for _ in range(5))
    put(tmp_path, {"t.csv": f'url,zh\nhttp://i/1,云\nx,"\n{swallowed}http://i/3,海\n'})
    source, account = made(_table(tmp_path, 99)), Account()
    first, broken, *_ = source.read(0, account)
    assert (texts(first), broken.evidence) == (
        [("caption", "云")],
        "t.csv, row 2: field larger than field limit (1048576)",
    )
    lines = account["lines"]
    assert (lines.met, lines.unaccounted, lines.examples) == (9, 2, ["t.csv, row 2: 2 lines in one cell"])


@pytest.mark.parametrize(
    ("cells", "lines", "told"),
    [
        (["a", "b"], 1, 1),
        (["a\r\nb", "c\nd"], 3, 3),
        (["a", "b\nc"], 5, 2),
        (["a\nb\nc"], 2, 2),
        (ValueError(), 7, 1),
    ],
)
def test_a_row_tells_of_as_many_lines_as_its_cells_have(cells: list[str] | Exception, lines: int, told: int) -> None:
    assert lines_in_cells(cells, lines) == told


def test_accounts_add_up_and_come_back_from_a_record() -> None:
    one = Account({"lines": Units(9, 4, 3, examples=["a", "b"])})
    one["lines"].named[Named.BLANK] += 1
    two = Account.of_json(json.loads(json.dumps(one.as_json())))
    two.add(one)
    two["files"].met += 0
    assert two.as_json() == {
        "lines": {
            "met": 18,
            "candidates": 8,
            "decisions": 6,
            "named": {"blank lines": 2},
            "unaccounted": 2,
            "examples": ["a", "b", "a"],
        }
    }
    units = Units(met=2)
    units.take([], where="there")
    units.take([Candidate("s", "news", "", "", "", (), 0)])
    assert (units.unaccounted, units.examples) == (1, ["there"])
