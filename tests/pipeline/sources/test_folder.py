"""folder: pictures with texts in files beside them or in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.records import Provenance
from pipeline.sources.folder import FolderOfImages
from tests.candidates import put, read, texts


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
    gone, a, b = read(source)
    assert (gone.reason, gone.evidence) == ("bad_row", "t.csv names i/gone.jpg, which is no picture of the folder")
    assert texts(a) == [("alt", "别名"), ("caption", "说明")]
    assert (b.reason, b.evidence) == ("no_text", "i/b.jpg")
    put(tmp_path, {"t.jsonl": '{"file": "i/b.jpg", "tag": ["一", "二"]}\n'})
    assert texts(read(folder(tmp_path, captions="t.jsonl"))[1]) == [("tag", "一"), ("tag", "二")]
    put(tmp_path, {"bad.jsonl": "{"})
    with pytest.raises(SourceError, match=r"bad\.jsonl"):
        read(folder(tmp_path, captions="bad.jsonl"))


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
    with pytest.raises(SourceError, match="holds no pictures"):
        folder(tmp_path).token()
    with pytest.raises(SourceError, match=r"gone: there is no such folder"):
        folder(tmp_path / "gone").token()
