"""look: what each kind of source says of its input before a build, held against what a build would read of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from pipeline import plugins
from pipeline.errors import SourceError
from pipeline.rows.account import Account
from pipeline.rows.records import Candidate, Capture
from pipeline.sources import Source, TableSource, sources_of
from pipeline.sources._look import Budget, Count, FileCount, lines_of, sample_indexes, total_of
from pipeline.web.frontier import record_of
from tests import archived
from tests.candidates import put


def source(kind: str, base: Path, **options: Any) -> Source:
    own = {"kind": kind, "name": "s", "source_kind": "library", **options}
    [made] = sources_of(
        BuildSpec.model_validate({"name": "t", "contact": "a@b.c", "sources": [own], "base": str(base)})
    )
    return made


def candidates_read(made: Source) -> int:
    assert isinstance(made, TableSource)
    return sum(isinstance(entry, Candidate) for part in range(made.parts()) for entry in made.read(part, Account()))


def write_table(path: Path, kind: str, rows: int) -> dict[str, Any]:
    frame = pd.DataFrame(
        [{"url": f"http://h{i % 3}.test/{i}.jpg", "zh": f"第{i}张照片" if i % 4 else ""} for i in range(rows)]
    )
    if kind == "parquet":
        frame.to_parquet(path, row_group_size=100)
    elif kind.startswith("jsonl"):
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(path, index=False)
    return {"path": path.name, "columns": {"image_url": "url", "texts": {"alt": "zh"}}}


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
def test_a_table_that_is_read_whole_is_counted_exactly(tmp_path, kind):
    made = source("url_table", tmp_path, **write_table(tmp_path / f"t.{kind}", kind, 400))
    look = made.look(Budget(seconds=30))
    assert look.counts == (Count("files", 1), Count("rows", 400))
    assert look.candidates == Count("candidates", candidates_read(made))
    assert len({url.split("/")[2] for url in look.image_urls}) == 3
    assert [0.3 < share < 0.4 for _, share in look.hosts] == [True] * 3
    assert (look.facts[1][0], look.facts[1][1][:9]) == ("no_text", "100, e.g.")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_of_a_large_table_a_sample_is_read_and_the_rest_is_estimated(tmp_path, kind):
    made = source("url_table", tmp_path, **write_table(tmp_path / f"t.{kind}", kind, 20_000))
    look = made.look(Budget(seconds=30, rows=500, bytes=50_000))
    [_, rows] = look.counts
    assert rows.exactness == ("" if kind == "parquet" else rows.exactness)
    assert rows.number == pytest.approx(20_000, rel=0.2)
    assert look.candidates is not None
    assert (look.candidates.exactness, look.candidates.number) == ("about", pytest.approx(15_000, rel=0.25))


def test_a_column_that_a_table_lacks_is_one_line_with_those_it_has(tmp_path):
    options = write_table(tmp_path / "t.csv", "csv", 3)
    options["columns"]["image_url"] = "image"
    with pytest.raises(SourceError, match="no column 'image'; columns: url, zh"):
        source("url_table", tmp_path, **options).look(Budget())


@pytest.mark.parametrize(("kind", "options"), [
    ("url_table", {"path": "no.csv", "columns": {"texts": {"alt": "zh"}}}), ("microblog", {"path": "no.jsonl"}),
    ("webdataset", {"path": "no.tar"}), ("warc", {"path": "no.warc.gz"}), ("folder", {"path": "no"}),
])  # fmt: skip
def test_an_input_that_is_not_there_is_named(tmp_path, kind, options):
    with pytest.raises(SourceError, match=f"{tmp_path}/no"):
        source(kind, tmp_path, **options).look(Budget())


def test_posts_are_lines_and_candidates_their_pictures(tmp_path):
    posts = [
        {"id": i, "text": f"第{i}条", "pics": [{"url": f"http://h.test/{i}/{k}.jpg"} for k in range(i % 3)]}
        for i in range(30)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(post) for post in posts), "utf-8")
    made = source("microblog", tmp_path, path="p.jsonl")
    look = made.look(Budget(seconds=30))
    assert look.counts == (Count("files", 1), Count("posts", 30))
    assert look.candidates == Count("candidates", candidates_read(made))


def test_a_folder_says_which_pictures_have_a_text_and_which_captions_no_picture(tmp_path):
    put(tmp_path, {f"f/{i}.jpg": b"x" * 10 for i in range(6)} | {"f/0.txt": "云海", "f/1.txt": ""})
    put(tmp_path, {"f/c.csv": "file,caption\n2.jpg,雪山\n3.jpg,松树\n9.jpg,没有\n"})
    look = source("folder", tmp_path, path="f", captions="c.csv").look(Budget(seconds=30))
    assert look.counts == (Count("pictures", 6), Count(".txt files", 2))
    assert (look.bytes, look.candidates) == (60, Count("candidates", 3))
    facts = dict(look.facts)
    assert "lists 9.jpg, which is not a picture" in facts["bad_row"]
    assert facts["no_text"].startswith("3, ")


def test_samples_of_a_tar_are_counted_and_a_tar_without_pictures_is_a_warning(tmp_path):
    for name, members in (("a", ("{}.jpg", "{}.txt")), ("b", ("{}.txt",))):
        names = (member.format(f"{number:03d}") for number in range(20) for member in members)
        (tmp_path / f"{name}.tar").write_bytes(archived.tar(dict.fromkeys(names, "云海")))
    look = source("webdataset", tmp_path, path="a.tar").look(Budget(seconds=60))
    assert look.counts == (Count("files", 1), Count("samples", 20))
    assert look.candidates == Count("candidates", 20)
    assert (look.image_urls, look.hosts) == ((), ()), "they lie in the source"
    assert source("webdataset", tmp_path, path="b.tar").look(Budget(seconds=60)).warnings


def test_pages_of_warc_files_are_sampled(tmp_path):
    page = "<html><img src=a.jpg><p>正文</p><IMG src=b.jpg></html>".encode()
    records = [
        record_of(
            Capture(
                f"http://a.cn/{i}", 200, "2026-01-01T00:00:00Z", "text/html", page, (("Content-Type", "text/html"),)
            )
        )
        for i in range(40)
    ]
    (tmp_path / "1.warc.gz").write_bytes(b"".join(records))
    (tmp_path / "2.warc.gz").write_bytes(b"".join(records))
    look = source("warc", tmp_path, path="*.warc.gz").look(Budget(seconds=30))
    assert look.counts == (Count("WARC files", 2), Count("HTML pages", 80, "about"))
    assert look.candidates == Count("candidates", 160, "about")
    (tmp_path / "1.warc.gz").write_bytes(gzip.compress(b"no records"))
    with pytest.raises(SourceError, match="not a WARC file"):
        source("warc", tmp_path, path="1.warc.gz").look(Budget())


def test_pictures_in_warc_and_wacz_files_are_counted(tmp_path):
    records = archived.page("http://a.cn/", "1.jpg", "2.jpg") + archived.jpeg("http://a.cn/1.jpg", b"x")
    records += archived.record("http://a.cn/2.jpg", b"", archived.JPEG, kind="resource")
    records += archived.record("http://a.cn/3.jpg", b"", archived.JPEG, status="404 Not Found")
    records += archived.revisit("http://a.cn/1.jpg")
    (tmp_path / "1.warc.gz").write_bytes(records)
    archived.wacz(tmp_path / "1.wacz", {"1.warc.gz": records})
    counts = (Count("WARC files", 1), Count("HTML pages", 1), Count("pictures", 2))
    plain, packed = (
        source("warc", tmp_path, path=f"1.{kind}").look(Budget(seconds=30)) for kind in ("warc.gz", "wacz")
    )
    assert plain.counts == packed.counts == counts
    assert packed.bytes == (tmp_path / "1.wacz").stat().st_size
    archived.wacz(tmp_path / "2.wacz", {"1.warc.gz": records, "2.warc.gz": records})
    two = source("warc", tmp_path, path="2.wacz").look(Budget(seconds=30))
    assert two.bytes == (tmp_path / "2.wacz").stat().st_size
    assert two.counts[0] == Count("WARC files", 2)


def page_record(body: bytes, encoding: str = "") -> bytes:
    """A gzip member with one HTML page, its body as it is given."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: {encoding}\r\n\r\n".encode()
    warc = "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.cn/\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
    length = f"Content-Length: {len(head) + len(body)}\r\n\r\n"
    return gzip.compress((warc + length).encode() + head + body + b"\r\n\r\n")


NO_URI = gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 2\r\n\r\nxx\r\n\r\n")


@pytest.mark.parametrize(
    ("odd", "pages", "damage"),
    [
        (page_record(b"0123456789", "br"), 4, False),
        (page_record(b"\x1f\x8b0123456789", "gzip"), 4, False),
        (NO_URI, 2, True),
        (b"\0" * 30, 2, True),
    ],
    ids=["brotli", "damaged body", "no address", "zeros"],
)
def test_a_record_that_a_build_passes_over_ends_no_look(tmp_path, odd, pages, damage):
    sound = page_record(b"<img src=a.jpg>")
    (tmp_path / "1.warc.gz").write_bytes(sound + sound + odd + sound)
    look = source("warc", tmp_path, path="1.warc.gz").look(Budget(seconds=30))
    assert look.counts[1] == Count("HTML pages", pages, "about" if damage else "")
    assert any("damaged" in warning for warning in look.warnings) is damage


def test_a_site_says_where_it_starts_and_how_far_it_goes(tmp_path):
    look = source("site", tmp_path, start=["http://a.cn/", "http://b.cn/x"], max_pages=70).look(Budget())
    assert look.counts == (Count("start pages", 2), Count("hosts", 2))
    assert (look.pages, look.start_urls, look.candidates) == (70, ("http://a.cn/", "http://b.cn/x"), None)


def test_every_kind_of_source_looks_at_its_input():
    assert [n for n in plugins.names("sources") if "look" not in vars(plugins.find("sources", n)) and not issubclass(
        plugins.find("sources", n), TableSource)] == []  # fmt: skip


@given(st.lists(st.text("ab\n", max_size=30), max_size=20))
def test_lines_are_those_that_python_reads(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("lines") / "t.txt"
    path.write_text("".join(pieces), newline="")
    assert lines_of(str(path), Budget()).number == len(path.read_text().splitlines())


@given(st.integers(1, 10_000), st.integers(1, 9))
def test_files_that_are_read_lie_all_over(number, most):
    numbers = sample_indexes(number, max(2, most))
    assert numbers == sorted(set(numbers))
    assert (numbers[0], numbers[-1]) == (0, number - 1)
    assert len(numbers) == min(number, max(2, most))


def test_totals_say_how_they_were_found():
    whole, part = FileCount(10, 100, 100, True), FileCount(10, 50, 100, False)
    assert str(total_of("rows", [whole, whole], 2, 200)) == "20 rows"
    assert str(total_of("rows", [whole, part], 2, 300)) == "about 40 rows"
    assert str(total_of("rows", [part], 1, 0)) == "at least 10 rows"
    assert str(Count("files", 1)) == "1 file"
