"""url_table: every format, and every kind of broken row."""

from __future__ import annotations

import bz2
import csv
import errno
import gzip
import io
import json
import lzma
import re
import socket
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.plugins import configure
from pipeline.rows.account import Account
from pipeline.rows.decisions import Decision
from pipeline.rows.records import Candidate
from pipeline.sources import TableSource
from pipeline.sources._look import Budget, Count
from pipeline.sources.url_table import UrlTable

ROWS = [{"url": f"http://i.test/{i}.jpg", "zh": f"第{i}张，“图”\n片", "page": f"http://p.test/{i}"} for i in range(7)]


def table(path: Path | str | list[str], **more: Any) -> UrlTable:
    columns = {"image_url": "url", "page_url": "page", "texts": {"alt": "zh"}}
    options = {"name": "t", "source_kind": "image_search", "path": path if isinstance(path, list) else str(path)}
    return UrlTable.model_validate({**options, "columns": columns, **more})


def read(source: TableSource) -> list[Candidate | Decision]:
    return [row for part in range(source.parts()) for row in source.read(part, Account())]


def write(folder: Path, kind: str, rows: list[dict[str, str]] = ROWS) -> Path:
    path = folder / f"t.{kind}"
    frame = pd.DataFrame(rows)
    if kind == "parquet":
        frame.to_parquet(path, row_group_size=2)
    elif kind.startswith("jsonl"):
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in kind else ",")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
@pytest.mark.parametrize("rows_per_part", [2, 100])
def test_every_format_gives_the_same_candidates_however_it_is_cut(tmp_path, kind, rows_per_part):
    entries = read(table(write(tmp_path, kind), rows_per_part=rows_per_part))
    assert [(c.image_url, c.texts[0].kind, c.texts[0].text, c.page_url, c.row) for c in entries] == [
        (r["url"], "alt", r["zh"].replace("\n", " "), r["page"], i + 1) for i, r in enumerate(ROWS)
    ]


@pytest.mark.parametrize(
    ("end", "charset"), [("\n", "utf-16"), ("\r\n", "gb18030"), ("\r", "utf-8"), ("\r\n", "utf-16")]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_row_is_in_a_part_whatever_ends_a_line(tmp_path, end, charset, kind):
    rows = [f"http://i.test/{i}.jpg,“图”{i},http://p.test/{i}" for i in range(25)]
    if kind == "jsonl":
        rows = [json.dumps({"url": url, "zh": zh, "page": ""}, ensure_ascii=False) for url, zh, _ in csv.reader(rows)]
    lines = ["url,zh,page"] * (kind == "csv") + rows
    (tmp_path / f"t.{kind}").write_bytes("".join(line + end for line in lines).encode(charset))
    source = table(tmp_path / f"t.{kind}", rows_per_part=10)
    assert [entry.row for entry in read(source) if isinstance(entry, Candidate)] == list(range(1, 26))
    if charset != "utf-16":  # in which other characters have these bytes too
        assert source.parts() == 3


def test_several_texts_of_a_row_keep_their_kinds_and_equal_ones_count_once(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image_url,zh_cn,zh_tw,tags\nhttp://i.test/a.png,青蛙。,青蛙,青蛙。\nhttp://i.test/b.png,,蝌蚪,\n")
    columns = {"texts": {"caption": ["zh_cn", "zh_tw"], "tag": "tags"}}
    one, two = read(table(path, columns=columns))
    assert [(t.kind, t.text) for t in one.texts] == [("caption", "青蛙。"), ("caption", "青蛙")]
    assert [(t.kind, t.text) for t in two.texts] == [("caption", "蝌蚪")]


def test_a_broken_row_is_one_decision_that_names_file_and_row(tmp_path):
    path = tmp_path / "t.csv"
    lines = [
        "url,zh,page",
        "http://i.test/1.jpg,好,",
        "http://i.test/2.jpg,多,一,格",
        "no url,坏,",
        ",空,",
        "http://i.test/5.jpg,,",
        "",
    ]
    path.write_text("\n".join([*lines, "http://i.test/6.jpg,好,"]))
    entries = read(table(path))
    assert [f.reason if isinstance(f, Decision) else f.row for f in entries] == [
        1,
        "bad_row",
        "bad_url",
        "bad_url",
        "no_text",
        6,
    ]
    assert entries[1].evidence == "t.csv, row 2: 4 fields, but 3 in the header"
    assert all("t.csv, row" in f.evidence for f in entries if isinstance(f, Decision))
    assert len({f.id for f in entries if isinstance(f, Decision)}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_row_beyond_all_measure_is_one_decision_and_the_next_one_is_read(tmp_path, kind):
    """More text than any row has, then a line longer than is read at all; both lie between sound rows."""
    rows = [{**ROWS[1], "zh": "好"}, {**ROWS[2], "zh": "长" * 100_001}, {**ROWS[3], "zh": "长" * 1_100_000}, ROWS[4]]
    first, long, longer, last = read(table(write(tmp_path, kind, rows)))
    assert (first.texts[0].text, last.image_url) == ("好", ROWS[4]["url"])
    assert (long.reason, long.evidence.partition(": ")[0]) == ("unreadable", f"t.{kind}, row 2")
    assert "100,001 characters; at most 100,000 are allowed" in long.evidence
    assert (longer.reason, longer.evidence.partition(": ")[0]) == ("unreadable", f"t.{kind}, row 3")


def test_a_broken_line_of_json_is_one_decision(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"url": "http://i.test/1", "zh": "好"}\n{"url": \n[1]\n{"url": 5, "zh": "坏"}\n')
    assert [f.reason if isinstance(f, Decision) else f.row for f in read(table(path))] == [
        1,
        "bad_row",
        "bad_row",
        "bad_url",
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_one_error_that_names_file_and_columns(tmp_path, kind):
    path = write(tmp_path, kind)
    with pytest.raises(SourceError, match=rf"t\.{kind}: source t: no column 'text'; columns: url, zh, page"):
        read(table(path, columns={"image_url": "url", "texts": {"alt": "text"}}))


@pytest.mark.parametrize("status", [404, 500, 0])
def test_a_table_on_a_web_server_that_fails_is_one_line_with_its_url_and_status(serve, status):
    web = serve(
        {"/t.csv": (status, {}, b"") if status else lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)}
    )
    said = f"status {status}" if status else "disconnected"
    with pytest.raises(SourceError, match=rf"^{web.url('/t.csv')}: source t: .*{said}") as e:
        table(web.url("/t.csv")).token()
    assert "\n" not in str(e.value)


def test_what_cannot_be_read_is_one_error_that_names_the_file(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.csv: source t: no such file"):
        table(tmp_path / "gone.csv").token()
    with pytest.raises(SourceError, match=r"\*\.csv: source t: no file matches"):
        table(tmp_path / "*.csv").token()
    for name, content in (("a.parquet", b"no parquet"), ("b.csv", b"PK\x03\x04 an Excel file")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=name.replace(".", r"\.")):
            read(table(tmp_path / name))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"url,zh,page\n" * 1000)[:-20])
    with pytest.raises(SourceError, match=r"c\.csv\.gz"):
        read(table(tmp_path / "c.csv.gz"))
    (tmp_path / "d.xyz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"d\.xyz: source t: unknown file extension"):
        read(table(tmp_path / "d.xyz"))
    (tmp_path / "d.xlsx").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"d\.xlsx: source t: workbooks are not supported; save the sheet as CSV"):
        read(table(tmp_path / "d.xlsx"))
    (tmp_path / "e.csv").write_bytes(b"")
    with pytest.raises(SourceError, match=r"e\.csv: source t: no column 'url'; columns: none"):
        read(table(tmp_path / "e.csv"))


@pytest.mark.parametrize(("codec", "separator"), [("gbk", ";"), ("utf-16", "\t"), ("utf-8", "|")])
def test_encoding_and_separator_are_told_by_the_bytes(tmp_path, codec, separator):
    rows = [["url", "zh", "page"], ["http://i/1", "雪后的黄山日出", ""]]
    (tmp_path / "t.csv").write_bytes("\n".join(separator.join(row) for row in rows).encode(codec))
    source = table(tmp_path / "t.csv")
    assert [[(t.kind, t.text) for t in x.texts] for x in read(source)] == [[("alt", "雪后的黄山日出")]]
    with pytest.raises(SourceError, match="not ascii"):
        read(table(tmp_path / "t.csv", encoding="ascii"))


def test_a_row_added_at_the_top_changes_no_other_row_s_identity(tmp_path):
    rows = [{"url": "http://i.test/1", "zh": "一"}, {"url": "http://i.test/1", "zh": "二"}]
    columns = {"image_url": "url", "texts": {"alt": "zh"}}
    before = {c.candidate_id for c in read(table(write(tmp_path, "csv", rows), columns=columns))}
    more = [{"url": "http://i.test/0", "zh": "零"}, *rows]
    after = {c.candidate_id for c in read(table(write(tmp_path, "csv", more), columns=columns))}
    assert len(before) == 2
    assert before < after


def test_the_token_follows_the_files_content(tmp_path):
    path = write(tmp_path, "csv")
    before = table(path).token()
    assert table(path).token() == before
    path.write_text("url,zh,page\n")
    assert table(path).token() != before


def brivl(tmp_path: Path, *rows: Any, **more: Any) -> list[Candidate | Decision]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    options = {"name": "t", "source_kind": "news", "path": str(path), "format": "brivl_jsonl", "images": "pictures"}
    return read(UrlTable.model_validate({**options, "base": str(tmp_path), **more}))


def test_rows_of_brivl_s_release_are_read(tmp_path):
    sentences = [["alt_text", "甲"], ["sur_text", "乙。丙"], ["easy", "乙。丙"], ["first", "乙"]]
    entries = brivl(tmp_path, {"image_id": "a/1 2.jpg", "sentences": sentences, "bbox": [[0, 0, 5, 5]]})
    assert [(t.kind, t.text) for t in entries[0].texts] == [("alt", "甲"), ("surrounding", "乙。丙")]
    assert entries[0].image_url == "url-table:///t/a/1%202.jpg"
    [news] = brivl(tmp_path, {"image_id": "n.jpg", "sentences": [["easy", "只有这个"], ["first", "只有"]]})
    assert [(t.kind, t.text) for t in news.texts] == [("surrounding", "只有这个")]
    [aic] = brivl(tmp_path, {"image_id": "n.jpg", "sentences": ["一个 戴 帽子 的 人 ， iPhone 手机", "另 一 句"]})
    assert [(t.kind, t.text) for t in aic.texts] == [("caption", "一个戴帽子的人， iPhone 手机"), ("caption", "另一句")]
    [web] = brivl(tmp_path, {"image_id": "a.jpg", "sentences": ["一个"]}, images="https://cdn.test/i/")
    assert web.image_url == "https://cdn.test/i/a.jpg"


@pytest.mark.parametrize("images", ["{folder}", "file://{folder}", "memory://{folder}"])
def test_pictures_of_brivl_rows_may_lie_in_any_storage(tmp_path, images):
    images = images.format(folder=tmp_path / "图片 1")
    with fsspec.open(f"{images}/a/1 2.jpg", "wb", auto_mkdir=True) as f:
        f.write(b"picture")
    [row] = brivl(tmp_path, {"image_id": "a/1 2.jpg", "sentences": ["一"]}, images=images)
    assert row.image_url == "url-table:///t/a/1%202.jpg"
    source = table(tmp_path / "t.jsonl", format="brivl_jsonl", images=images)
    assert source.read_image(row.image_url) == b"picture"
    assert source.read_image("url-table:///t/a/2.jpg") is None


def test_pictures_of_brivl_rows_are_read_from_their_folder_and_from_nowhere_else(tmp_path):
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "pictures" / "a" / "1 2.jpg").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(b"secret")
    options = {"name": "t", "source_kind": "news", "path": "x", "format": "brivl_jsonl", "images": "pictures"}
    source = UrlTable.model_validate({**options, "base": str(tmp_path)})
    assert source.read_image("url-table:///t/a/1%202.jpg") == b"picture"
    for url in (
        "url-table:///t/../secret",
        "url-table:///t/%2e%2e/secret",
        f"url-table:///t/{tmp_path}/secret",
        "http://a/",
    ):
        assert source.read_image(url) is None
    [bad] = brivl(tmp_path, {"image_id": "../secret", "sentences": ["一"]})
    assert isinstance(bad, Decision)
    assert bad.reason == "bad_url"


@pytest.mark.parametrize(
    ("bbox", "fault"),
    [
        ("[[1, 2, 3]]", "lists of four"),
        ('[[1, 2, 3, "x"]]', "finite numbers"),
        ("[[1,", "not JSON"),
        ("7", "lists of four"),
    ],
)
def test_boxes_that_are_none_are_told(tmp_path: Path, bbox: str, fault: str) -> None:
    import csv

    with (tmp_path / "t.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["url", "zh", "boxes"], ["http://a.test/1.jpg", "图", bbox]])
    columns = {"image_url": "url", "texts": {"alt": "zh"}, "bbox": "boxes"}
    options = {"name": "s", "source_kind": "news", "path": str(tmp_path / "t.csv"), "columns": columns}
    (decision,) = configure("sources", "url_table", options, TableSource).read(0, Account())
    assert isinstance(decision, Decision)
    assert decision.reason == "bad_row"
    assert fault in decision.evidence


@pytest.mark.parametrize("rows_per_part", [3, 100])
def test_no_part_reads_a_row_of_another_where_texts_begin_with_quotes(tmp_path, rows_per_part):
    texts = {2: '"天下第一泉', 7: '他说"好', 8: '"趵突泉" 的水'}
    rows = [f"http://i.test/{i}.jpg\t{texts.get(i, f'第{i}张图')}\t" for i in range(1, 21)]
    (tmp_path / "t.tsv").write_text("\n".join(["url\tzh\tpage", *rows]), encoding="utf-8")
    entries = read(table(tmp_path / "t.tsv", rows_per_part=rows_per_part))
    assert [(c.image_url, c.row) for c in entries] == [(f"http://i.test/{i}.jpg", i) for i in range(1, 21)]
    assert [entries[i - 1].texts[0].text for i in (2, 3, 7)] == ['"天下第一泉', "第3张图", '他说"好']


def test_strings_that_parquet_does_not_call_text_are_read_and_what_is_none_is_a_decision(tmp_path):
    urls = [f"http://i.test/{i}.jpg".encode() for i in range(3)]
    values = pa.table({"url": urls, "zh": ["好".encode(), b"\xff\xfe", None], "page": [None] * 3})
    pq.write_table(values, tmp_path / "b.parquet")
    sound, broken, empty = read(table(tmp_path / "b.parquet"))
    assert (sound.image_url, sound.texts[0].text) == ("http://i.test/0.jpg", "好")
    assert (broken.reason, empty.reason) == ("unreadable", "no_text")
    pq.write_table(values.set_column(1, "zh", [[{"en": "good", "zh": "好"}] * 3]), tmp_path / "s.parquet")
    for row in read(table(tmp_path / "s.parquet")):
        assert (row.reason, row.evidence.partition(": ")[2]) == (
            "bad_row",
            "column zh is an object instead of text, with the fields en, zh",
        )


def test_nothing_is_no_word_of_a_text(tmp_path):
    lines = [
        {"url": "http://i.test/1.jpg", "zh": ["好", None, " ", "的"]},
        {"url": "http://i.test/2.jpg", "zh": float("nan")},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one, two = read(table(tmp_path / "t.jsonl"))
    assert (one.texts[0].text, two.reason) == ("好 的", "no_text")


def zstd(text: str) -> bytes:
    """A text as one frame."""
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as f:
        f.write(text.encode())
    return bytes(packed.getvalue())


def test_a_table_packed_by_zstd_is_read_to_its_end_however_many_frames_it_has(tmp_path):
    (tmp_path / "t.csv.zst").write_bytes(
        zstd("url,zh,page\nhttp://i.test/1.jpg,好,\n") + zstd("http://i.test/2.jpg,的,\n")
    )
    source = table(tmp_path / "t.csv.zst")
    assert [row.texts[0].text for row in read(source)] == ["好", "的"]
    assert source.look(Budget(seconds=60)).candidates == Count("candidates", 2)
    (tmp_path / "t.csv.zst").write_bytes((tmp_path / "t.csv.zst").read_bytes()[:-10])
    with pytest.raises(SourceError, match="Truncated"):
        read(table(tmp_path / "t.csv.zst"))


@pytest.mark.parametrize("rows_per_part", [5, 100])
def test_a_damaged_row_group_of_a_parquet_file_costs_its_own_rows(tmp_path, rows_per_part):
    rows = [{"url": f"http://i.test/{i}.jpg", "zh": f"第{i}张图", "page": ""} for i in range(30)]
    path = tmp_path / "t.parquet"
    pd.DataFrame(rows).to_parquet(path, row_group_size=10)
    place = pq.ParquetFile(path).metadata.row_group(1).column(1)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place.dictionary_page_offset : place.dictionary_page_offset + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    entries = read(table(path, rows_per_part=rows_per_part))
    numbers = [entry.row for entry in entries if isinstance(entry, Candidate)]
    assert numbers == [*range(1, 11), *range(21, 31)]
    lost = [entry for entry in entries if isinstance(entry, Decision)]
    assert {entry.reason for entry in lost} == {"unreadable"}
    weights = [entry.lost for entry in lost if entry.lost is not None]
    assert [weight.rows for weight in weights] == ([5, 5] if rows_per_part == 5 else [10])
    group = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(1)
    size = sum(group.column(number).total_compressed_size for number in range(group.num_columns))
    assert sum(weight.bytes for weight in weights) == pytest.approx(size, abs=1)
    assert re.search(r"t\.parquet: [\d,]+ bytes from byte [\d,]+ on with \d+ rows .*\(rows 11 to ", lost[0].evidence)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_of_which_no_row_is_in_the_encoding_of_the_spec_is_broken_however_short(tmp_path, kind):
    path = write(tmp_path, kind, [{"url": "http://i.test/1.jpg", "zh": zh, "page": ""} for zh in ("peak", "黄山云海")])
    path.write_bytes(path.read_bytes().decode().encode("gb18030"))
    assert [row.texts[0].text for row in read(table(path, encoding="gb18030"))] == ["peak", "黄山云海"]
    with pytest.raises(SourceError, match="none of the first 1 non-ASCII rows can be decoded"):
        read(table(path, encoding="utf-8"))


def test_rows_that_a_footer_states_and_a_row_group_lacks_are_lost_rows(tmp_path):
    """No reader complains about them."""
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"url": [f"http://i.test/{i}.jpg" for i in range(37)], "zh": ["图"] * 37, "page": ["h"] * 37}), path
    )
    whole = path.read_bytes()
    states = (whole[:at] + b"\x50" + whole[at + 1 :] for at, byte in enumerate(whole) if byte == 0x4A)  # 40 for 37
    data = next(own for own in states if pq.ParquetFile(io.BytesIO(own)).metadata.row_group(0).num_rows == 40)
    path.write_bytes(data)
    account = Account()
    entries = list(table(path).entries_of(0, str(path), account))
    assert [entry.lost.rows for entry in entries if isinstance(entry, Decision) and entry.lost] == [3]
    rows = account["rows"]
    assert (rows.met, rows.candidates, rows.decisions) == (40, 37, 3)


def test_a_disk_that_fails_under_a_parquet_file_is_no_damage_of_the_file(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileOpener

    path = write(tmp_path, "parquet")
    source = table(path)
    assert source.parts() == 1
    size, whole = path.stat().st_size, LocalFileOpener.read

    def fail(self: Any, *args: int) -> bytes:
        if self.tell() < size // 3:
            raise OSError(errno.EIO, "Input/output error")
        return bytes(whole(self, *args))

    monkeypatch.setattr(LocalFileOpener, "read", fail, raising=False)
    with pytest.raises(SourceError, match="Input/output error"):
        list(source.read(0, Account()))


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz", "zst"])
def test_a_packed_table_that_is_damaged_is_one_line(tmp_path, pack):
    whole = "url,zh,page\n" + "".join(f"http://i.test/{i}.jpg,{i * 2654435761 % 2**32},\n" for i in range(2_000))
    pieces = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": lambda text: zstd(text.decode())}
    packed = bytearray(pieces[pack](whole.encode()))
    damaged = [packed[: len(packed) // 2], b"no archive at all"]
    if pack != "zst":  # ours has no checksum: what is damaged in it are rows
        damaged.append(packed[:600] + b"\xff" * 600 + packed[1200:])
    for damage in damaged:
        (tmp_path / f"t.csv.{pack}").write_bytes(damage)
        for look in (read, lambda source: source.look(Budget())):
            with pytest.raises(SourceError, match=rf"t\.csv\.{pack}"):
                look(table(tmp_path / f"t.csv.{pack}"))
