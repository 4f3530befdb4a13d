"""folder: pictures with texts in files beside them or in one table."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import SourceError
from pipeline.files.inputs import MAX_FILE
from pipeline.rows.account import Account
from pipeline.rows.records import Candidate, Provenance, candidate_rows
from pipeline.sources.folder import FolderOfImages
from tests.candidates import put, read, texts
from tests.drawn import HEIC, encoded


def folder(path: Path, **more: Any) -> FolderOfImages:
    return FolderOfImages.model_validate({"name": "s", "source_kind": "library", "path": str(path), **more})


def test_texts_beside_pictures(tmp_path):
    put(tmp_path, {"b/一 二.JPG": b"B", "b/一 二.txt": "故宫\n雪景\n", "notes.md": "no"})
    put(tmp_path, {"a.png": b"A", "a.json": '{"alt": ["云", "海"], "x": 1}'})
    put(tmp_path, {"c.webp": b"C", "c.json": '{"texts": [{"kind": "title", "text": "题"}]}'})
    source = folder(tmp_path, images_per_part=2)
    assert source.parts() == 2
    a, b, c = read(source)
    assert [x.image_url for x in (a, b, c)] == [
        "folder:///s/a.png",
        "folder:///s/b/%E4%B8%80%20%E4%BA%8C.JPG",
        "folder:///s/c.webp",
    ]
    assert (texts(a), texts(b), texts(c)) == (
        [("alt", "云"), ("alt", "海")],
        [("caption", "故宫 雪景")],
        [("title", "题")],
    )
    assert [source.read_image(x.image_url) for x in (a, b, c)] == [b"A", b"B", b"C"]


def test_the_files_that_img2dataset_writes_keep_where_they_came_from(tmp_path):
    value = {"caption": "雪后的黄山", "url": "https://img.example/1.jpg", "key": "000000001", "sha256": "a" * 64}
    put(
        tmp_path, {"00000/000000001.jpg": b"1", "00000/000000001.json": json.dumps(value), "2.jpg": b"2", "2.txt": "云"}
    )
    source = folder(tmp_path)
    one, two = read(source)
    assert (one.image_url, one.origin) == ("https://img.example/1.jpg", "00000/000000001.jpg")
    assert one.provenance == Provenance("folder:///s/00000/000000001.jpg", "a" * 64)
    assert source.read_image(one.provenance.stored_at) == b"1"
    assert (two.image_url, two.provenance) == ("folder:///s/2.jpg", None)
    assert read(folder(tmp_path, fields={"url": []}))[0].image_url == "folder:///s/00000/000000001.jpg"


def test_a_captions_file_for_all(tmp_path):
    put(
        tmp_path,
        {"i/a.jpg": b"A", "i/b.jpg": b"B", "t.csv": "file,caption,alt,x\ni/a.jpg,说明,别名,1\ni/gone.jpg,无,,\n"},
    )
    source = folder(tmp_path, captions="t.csv")
    missing, a, b = read(source)
    assert (missing.reason, missing.evidence) == (
        "bad_row",
        "t.csv lists i/gone.jpg, which is not a picture in the folder",
    )
    assert texts(a) == [("alt", "别名"), ("caption", "说明")]
    assert (b.reason, b.evidence) == ("no_text", "i/b.jpg")
    put(tmp_path, {"t.jsonl": '{"file": "i/b.jpg", "tag": ["一", "二"]}\n'})
    assert texts(read(folder(tmp_path, captions="t.jsonl"))[1]) == [("tag", "一"), ("tag", "二")]
    put(tmp_path, {"bad.jsonl": "{"})
    with pytest.raises(SourceError, match=r"bad\.jsonl"):
        read(folder(tmp_path, captions="bad.jsonl"))


def test_texts_as_windows_saves_them(tmp_path):
    put(
        tmp_path,
        {"a.jpg": b"A", "a.txt": "雪后的黄山".encode("gbk"), "b.jpg": b"B", "b.txt": "西湖的晚上".encode("utf-16")},
    )
    put(tmp_path, {"c.jpg": b"C", "c.json": '{"caption": "小狗在草地上"}'.encode("gb18030")})
    expected = [("caption", "雪后的黄山"), ("caption", "西湖的晚上"), ("caption", "小狗在草地上")]
    assert [texts(x) for x in read(folder(tmp_path))] == [[text] for text in expected]
    refused = read(folder(tmp_path, encoding="utf-8"))
    assert [x.reason for x in refused] == ["bad_row"] * 3
    assert refused[0].evidence.startswith("a.txt: cannot be read (ValueError: not utf-8")


@pytest.mark.parametrize("codec", ["gbk", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_captions_file_with_any_columns(tmp_path, codec, separator):
    rows = [
        ["文件名", "描述", "标题", "作者"],
        ["旅行\\a.jpg", "雪后的黄山，很冷", "黄山", "小明"],
        ["b", "西湖的晚上", "", "小红"],
    ]
    table = "\r\n".join(separator.join(f'"{c}"' if separator in c else c for c in row) for row in rows)
    put(tmp_path, {"旅行/a.jpg": b"A", "b.png": b"B", "表.csv": table.encode(codec)})
    named = {"image": "文件名", "caption": ["描述", "标题"]}
    b, a = read(folder(tmp_path, captions="表.csv", columns=named))
    assert texts(a) == [("caption", "雪后的黄山，很冷"), ("caption", "黄山")]
    assert texts(b) == [("caption", "西湖的晚上")]


@pytest.mark.slow
def test_each_part_of_a_folder_holds_its_own_captions_alone(tmp_path):
    names = [f"{n:04d}.jpg" for n in range(400)]
    put(tmp_path, dict.fromkeys(names, b"x"))
    rows = [f"{name},{'雪' * 5_000}{name}" for name in [*names, "gone.jpg", "3.jpg"]]
    put(tmp_path, {"t.csv": "\n".join(["file,caption", *rows, "0000.jpg,又一句"])})
    parts = folder(tmp_path, captions="t.csv", images_per_part=100)
    whole, cut = read(folder(tmp_path, captions="t.csv")), []
    for part in range(parts.parts()):
        tracemalloc.start()
        cut += parts.read(part, Account())
        assert tracemalloc.get_traced_memory()[1] < 3_000_000, "400 captions have four million bytes"
        tracemalloc.stop()
    assert cut == whole
    assert texts(whole[2]) == [("caption", "雪" * 5_000 + "0000.jpg"), ("caption", "又一句")]
    assert [entry.reason for entry in whole[:2]] == ["bad_row", "bad_row"]


def test_a_captions_file_whose_columns_are_not_named_says_what_to_write(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "t.csv": "编号,文件名,描述\n1,a.jpg,雪后的黄山\n".encode("gbk")})
    advice = "no column 'file'; columns: 编号, 文件名, 描述; set columns: {image: ..., caption: ...}"
    with pytest.raises(SourceError, match=re.escape(advice)):
        read(folder(tmp_path, captions="t.csv"))
    with pytest.raises(SourceError, match="captions file: no column '说明'"):
        read(folder(tmp_path, captions="t.csv", columns={"image": "文件名", "caption": "说明"}))
    put(tmp_path, {"t.jsonl": '{"图": "a.jpg", "话": ["雪", "山"]}'})
    assert texts(read(folder(tmp_path, captions="t.jsonl", columns={"image": "图", "caption": "话"}))[0]) == [
        ("caption", "雪"),
        ("caption", "山"),
    ]
    with pytest.raises(SourceError, match="each row needs the column `file`; it has 图, 话"):
        read(folder(tmp_path, captions="t.jsonl"))


def test_a_picture_is_named_as_windows_and_macos_name_it(tmp_path):
    put(tmp_path, {"IMG_1.JPG": b"A", "café.png": b"B", "t.csv": "file,caption\nimg_1.jpg,云\n./cafe\u0301.png,海\n"})
    assert [texts(x) for x in read(folder(tmp_path, captions="t.csv"))] == [[("caption", "云")], [("caption", "海")]]


def test_a_name_that_two_pictures_have_is_no_picture(tmp_path):
    put(
        tmp_path,
        {"x/a.jpg": b"1", "y/a.jpg": b"2", "y/b.jpg": b"3", "t.csv": "file,caption\na.jpg,云\nb,山\ny/a.jpg,海\n"},
    )
    missing, *rest = read(folder(tmp_path, captions="t.csv"))
    assert missing.evidence == "t.csv lists a.jpg, which is not a picture in the folder"
    assert [(x.origin, texts(x)) for x in rest[1:]] == [
        ("y/a.jpg", [("caption", "海")]),
        ("y/b.jpg", [("caption", "山")]),
    ]


def test_pictures_of_phones_are_pictures_and_are_read_again_once_they_can_be(tmp_path, monkeypatch):
    put(tmp_path, {"IMG_1.HEIC": b"H", "IMG_1.txt": "云", "b.avif": b"A", "b.txt": "海"})
    assert [x.origin for x in read(folder(tmp_path))] == ["IMG_1.HEIC", "b.avif"]
    before = folder(tmp_path).token()
    monkeypatch.setattr("pipeline.sources.folder.readable_formats", lambda: ("jpeg",))
    assert folder(tmp_path).token() != before


def test_what_pillow_reads_is_a_picture_whatever_it_is_called(tmp_path):
    ramp = Image.linear_gradient("L").resize((60, 40))
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "ICO", "JPEG2000", "PPM", "DIB")
    pictures = {f"{n:02d}": encoded(ramp, kind) for n, kind in enumerate(kinds)} | {"11": HEIC, "12.bak": HEIC}
    put(tmp_path, pictures | {f"{n:02d}.txt": f"第{n}张" for n in range(13)})
    named = [f"x.{s}" for s in ("jfif", "jpe", "pjpeg", "ico", "jp2", "tga", "ppm", "apng", "dib")]
    put(tmp_path, dict.fromkeys(named, b"x") | {"notes": "云", "a.md": "海", "b.zip": b"PK\3\4"})
    source = folder(tmp_path, images_per_part=4)
    rows = read(source)
    assert [getattr(row, "origin", "") or row.evidence for row in rows] == sorted([*pictures, *named])
    assert [texts(row) for row in rows[:13]] == [[("caption", f"第{n}张")] for n in range(13)]
    assert [source.read_image(row.image_url) for row in rows[:13]] == list(pictures.values())


def test_a_folder_of_pictures_without_any_suffix_is_one(tmp_path):
    put(tmp_path, {"1": encoded(Image.new("L", (8, 8)), "PNG"), "2": "没有"})
    assert [row.evidence for row in read(folder(tmp_path))] == ["1"]
    put(tmp_path, {"1": "不是"})
    with pytest.raises(SourceError, match="no pictures"):
        folder(tmp_path).token()


@pytest.mark.parametrize(
    "suffix", ["txt", "TXT", "caption", "CAPTION", "jpg.txt", "jpg.caption", "json", "JSON", "jpg.json"]
)
def test_a_text_beside_a_picture_is_called_in_many_ways(tmp_path, suffix):
    put(tmp_path, {"x.jpg": b"A", f"x.{suffix}": '{"caption": "云"}' if "json" in suffix.lower() else "云"})
    assert texts(read(folder(tmp_path))[0]) == [("caption", "云")]


def test_a_row_that_names_a_file_which_is_no_picture_is_a_decision(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "a.md": "x", "t.csv": "file,caption\na,云\na.md,海\n"})
    a, missing = read(folder(tmp_path, captions="t.csv"))
    assert texts(a) == [("caption", "云")]
    assert missing.evidence == "t.csv lists a.md, which is not a picture in the folder"


def test_the_address_of_a_file_follows_from_its_path(tmp_path):
    source = folder(tmp_path)
    assert source.address_of(f"{tmp_path}/旅行/a b.jpg") == "folder:///s/%E6%97%85%E8%A1%8C/a%20b.jpg"
    for other in (f"{tmp_path}.jpg", f"{tmp_path}/a.txt", "/elsewhere/a.jpg"):
        assert source.address_of(other) == ""
    assert folder(Path("memory://x")).address_of("/x/a.jpg") == ""


def test_a_broken_text_file_costs_its_picture_only(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "a.json": "{", "b.jpg": b"B", "b.txt": b"\xff\xfe\xff", "c.jpg": b"C", "c.txt": "好"})
    a, b, c = read(folder(tmp_path))
    assert (a.reason, b.reason) == ("bad_row", "bad_row")
    assert a.evidence.startswith("a.json: cannot be read")
    assert texts(c) == [("caption", "好")]


def test_a_text_file_beyond_all_measure_costs_its_picture_only(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "a.txt": b"x" * 1_048_577, "b.jpg": b"B", "b.txt": "好"})
    a, b = read(folder(tmp_path))
    assert (a.reason, a.evidence) == ("bad_row", "a.txt: cannot be read (ValueError: more than 1,048,576 bytes)")
    assert texts(b) == [("caption", "好")]


def test_only_pictures_of_the_folder_are_given_out(tmp_path):
    put(tmp_path, {"in/a.jpg": b"A", "in/secret.txt": "s", "out.jpg": b"O"})
    source = folder(tmp_path / "in")
    for url in ("folder:///s/../out.jpg", "folder:///s/%2e%2e/out.jpg", "folder:///other/a.jpg", "http://a/a.jpg"):
        assert source.read_image(url) is None


def test_the_token_of_a_folder_follows_its_files(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "a.txt": "一"})
    before = folder(tmp_path).token()
    assert folder(tmp_path).token() == before
    put(tmp_path, {"a.txt": "一二"})
    assert folder(tmp_path).token() != before


def test_a_folder_without_pictures_or_none_at_all_is_one_error(tmp_path):
    with pytest.raises(SourceError, match="no pictures"):
        folder(tmp_path).token()
    with pytest.raises(SourceError, match=r"gone: no such folder"):
        folder(tmp_path / "gone").token()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "..\\\\secret.jpg", "a/../../secret.jpg"])
def test_a_captions_file_names_no_picture_outside_of_its_folder(tmp_path, name):
    put(tmp_path, {"secret.jpg": b"secret", "in/a.jpg": b"A"})
    put(
        tmp_path,
        {"in/c.jsonl": json.dumps({"file": name, "caption": "图"}) + "\n" + '{"file": "a.jpg", "caption": "云"}'},
    )
    source = folder(tmp_path / "in", captions="c.jsonl")
    got = read(source)
    assert [entry.origin for entry in got if isinstance(entry, Candidate)] == ["a.jpg"]
    assert source.read_image("folder:///s/a.jpg") == b"A"
    for address in ("folder:///s/../secret.jpg", "folder:///s/..%2Fsecret.jpg", "folder:///s//etc/passwd"):
        assert source.read_image(address) is None


@pytest.mark.parametrize("name", ["a::b", "simplecache::memory:::b", "http:::b", "100%", "[1]", "x#y?z", "~b", "c\\d"])
def test_a_picture_is_read_whatever_its_name_says_to_others(tmp_path, name):
    put(tmp_path, {f"{name}.jpg": b"A", f"{name}.txt": "云"})
    source = folder(tmp_path)
    [picture] = read(source)
    assert texts(picture) == [("caption", "云")]
    assert source.read_image(picture.image_url) == b"A"


def test_a_file_without_an_end_costs_its_picture_only(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "b.txt": "云", "c.txt": "海", "d.txt": "山"})
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    with (tmp_path / "d.jpg").open("wb") as f:
        f.truncate(MAX_FILE + 1)  # takes no room
    source = folder(tmp_path)
    a, *others = read(source)
    assert (a.reason, a.evidence) == ("bad_row", "a.txt: cannot be read (ValueError: not a regular file)")
    for picture, fault in zip(others, ["not a regular file", "not a regular file", "more than"], strict=True):
        with pytest.raises(ValueError, match=fault):
            source.read_image(picture.image_url)


def test_folders_behind_links_are_looked_into_once(tmp_path):
    put(tmp_path, {"in/a.jpg": b"A", "in/b/b.jpg": b"B", "out/c.jpg": b"C", "out/d/d.jpg": b"D"})
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "b" / "up").symlink_to("..")
    (tmp_path / "out" / "d" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "itself").symlink_to("itself")
    pictures = [row.evidence for row in read(folder(tmp_path / "in"))]  # they have no text
    assert pictures == ["a.jpg", "again/c.jpg", "again/d/d.jpg", "b/b.jpg"]


def test_a_folder_that_cannot_be_looked_into_is_named_and_not_passed_over(tmp_path, monkeypatch):
    put(tmp_path, {"a.jpg": b"A", "b/b.jpg": b"B"})
    scandir = os.scandir

    def denied(path: str) -> Any:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(SourceError, match=r"cannot be listed .*Permission denied: '.*/b/'"):
        folder(tmp_path).token()


def test_a_captions_row_with_more_fields_than_the_header_is_a_decision(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "b.jpg": b"B", "t.csv": "file,caption\na.jpg,一只猫, 在沙发上\nb.jpg,一只狗,,\n"})
    row, a, b = read(folder(tmp_path, captions="t.csv"))
    assert (row.reason, row.evidence) == ("unreadable", "t.csv, row 1: ValueError: 3 fields, but 2 in the header")
    assert (a.reason, texts(b)) == ("no_text", [("caption", "一只狗")])


def test_a_quote_that_nobody_closes_costs_no_other_caption(tmp_path):
    put(tmp_path, {f"{i}.jpg": b"A" for i in range(9)})
    rows = [f"{i}.jpg\t" + '"' * (i in (2, 3, 7)) + f"第{i}张" for i in range(9)]
    put(tmp_path, {"t.tsv": "\n".join(["file\tcaption", *rows])})
    got = read(folder(tmp_path, captions="t.tsv"))
    assert [texts(row)[0][1].strip('"') for row in got] == [f"第{i}张" for i in range(9)]
    assert texts(got[2]) == [("caption", '"第2张')], "it is a quote of the text"


@pytest.mark.slow
def test_a_captions_file_whose_header_no_quote_ends_is_read_or_is_one_line(tmp_path):
    put(tmp_path, {"a.jpg": b"A", "t.csv": '"file,caption\na.jpg,云\n'})
    assert texts(read(folder(tmp_path, captions="t.csv"))[0]) == [("caption", "云")]
    put(tmp_path, {"t.csv": '"name,caption\n' + "a.jpg,云\n" * 200_000})
    with pytest.raises(SourceError, match=r"t\.csv: source s: captions file"):
        read(folder(tmp_path, captions="t.csv"))


def test_names_in_the_encoding_of_a_chinese_windows_are_names(tmp_path):
    for name, data in (("表.jpg", b"A"), ("表.txt", "云".encode()), ("云.jpg", b"B"), ("云.txt", b"")):
        (tmp_path / os.fsdecode(name.encode("gbk"))).write_bytes(data)
    source = folder(tmp_path)
    table, cloud = read(source)
    assert (texts(table), table.origin, table.image_url) == (
        [("caption", "云")],
        "\\udcb1\\udced.jpg",
        "folder:///s/%B1%ED.jpg",
    )
    assert source.read_image(table.image_url) == b"A"
    assert source.address_of(str(tmp_path / os.fsdecode("表.jpg".encode("gbk")))) == table.image_url
    assert (cloud.reason, cloud.url) == ("no_text", "folder:///s/%D4%C6.jpg")
    candidate_rows([table], 0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_disk_that_fails_is_not_taken_for_pictures_that_are_gone(tmp_path, monkeypatch, number):
    put(tmp_path, {"a.jpg": b"A", "a.txt": "云"})
    source = folder(tmp_path)
    [picture] = read(source)

    def fail(self: Any, path: str, **more: Any) -> Any:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem._open", fail)
    with pytest.raises(SourceError, match=rf"a\.jpg: source s: {os.strerror(number)}"):
        source.read_image(picture.image_url)
    with pytest.raises(SourceError, match=rf"a\.txt: source s: {os.strerror(number)}"):
        read(source)


def test_a_picture_that_may_not_be_read_is_not_taken_for_one_that_is_gone(tmp_path, monkeypatch):
    put(tmp_path, {"a.jpg": b"A", "a.txt": "云"})
    source = folder(tmp_path)
    [picture] = read(source)

    def denied(self: Any, path: str, **more: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem._open", denied)
    with pytest.raises(ValueError, match="Permission denied"):
        source.read_image(picture.image_url)
    [row] = read(source)
    assert (row.reason, row.evidence) == ("bad_row", "a.txt: cannot be read (ValueError: Permission denied)")
    (tmp_path / "a.jpg").unlink()
    monkeypatch.undo()
    assert source.read_image(picture.image_url) is None


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz", "zst"])
def test_a_captions_file_may_be_packed(tmp_path, pack):
    put(tmp_path, {"a.jpg": b"A"})
    row = json.dumps({"file": "a.jpg", "caption": "云"}).encode()
    packed = {"gz": gzip.compress(row), "bz2": bz2.compress(row), "xz": lzma.compress(row)}
    put(tmp_path, {f"t.jsonl.{pack}": packed.get(pack) or bytes(pa.compress(row, "zstd", asbytes=True))})
    [a] = read(folder(tmp_path, captions=f"t.jsonl.{pack}"))
    assert texts(a) == [("caption", "云")]
