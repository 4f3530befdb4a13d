"""Sources whose pictures lie in the source itself: folders and webdataset tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_specs.shard import Sample, Text, encode_sample
from pipeline.errors import SourceError
from pipeline.records import Decision
from pipeline.sources import TableSource
from pipeline.sources.folder import FolderOfImages
from pipeline.sources.webdataset import WebDataset

SHARED = {"name": "s", "source_kind": "library"}


def folder(path: Path, **more: Any) -> FolderOfImages:
    return FolderOfImages.model_validate({**SHARED, "path": str(path), **more})


def tars(path: str | list[str]) -> WebDataset:
    return WebDataset.model_validate({**SHARED, "path": path})


def put(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(source: TableSource) -> list[Any]:
    return [row for part in range(source.parts()) for row in source.read(part)]


def texts(candidate: Any) -> list[tuple[str, str]]:
    return [(t.kind, t.text) for t in candidate.texts]


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


def tar(path: Path, members: dict[str, str | bytes]) -> None:
    with tarfile.open(path, "w") as f:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))


def test_tars_that_webdataset_wrote_are_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a-0.tar")) as f:
        f.write({"__key__": "k1", "jpg": b"\xff\xd8one", "txt": "故宫雪景"})
        f.write({"__key__": "k2", "png": b"two", "json": json.dumps({"alt": "云"}).encode()})
    source = tars(str(tmp_path / "*.tar"))
    one, two = read(source)
    assert (texts(one), texts(two)) == ([("caption", "故宫雪景")], [("alt", "云")])
    assert [source.read_image(c.image_url) for c in (one, two)] == [b"\xff\xd8one", b"two"]


def test_our_own_shards_are_a_source(tmp_path):
    sample = Sample(
        "c" * 64, "s", "news", "", "http://i/1", "a" * 64, 4, 4, (Text("caption", "题"), Text("alt", "别名"))
    )
    tar(tmp_path / "train-000000.tar", dict(encode_sample(sample, b"\xff\xd8picture")))
    source = tars(str(tmp_path / "train-000000.tar"))
    [candidate] = read(source)
    assert texts(candidate) == [("caption", "题"), ("alt", "别名")]
    assert source.read_image(candidate.image_url) == b"\xff\xd8picture"


def test_samples_without_picture_or_text_are_decisions(tmp_path):
    tar(
        tmp_path / "a.tar",
        {"d/k1.JPG": b"1", "d/k1.txt": "好", "k2.txt": "无图", "k3.jpg": b"3", "k4.jpg": b"4", "k4.json": "{"},
    )
    source = tars(str(tmp_path / "a.tar"))
    first, *others = read(source)
    assert source.read_image(first.image_url) == b"1"
    assert [d.reason for d in others if isinstance(d, Decision)] == ["bad_row", "no_text", "bad_row"]


def test_bad_tars_are_one_error_that_names_the_file(tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar" * 1000)
    tar(tmp_path / "cut.tar", {"k.jpg": b"1" * 5000, "k.txt": "好"})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:3000])
    for name in ("no.tar", "cut.tar"):
        with pytest.raises(SourceError, match=name.replace(".", r"\.")):
            read(tars(str(tmp_path / name)))
    with pytest.raises(ValueError, match="runs a command"):
        tars("pipe:curl http://a/")
    tar(tmp_path / "x.tar", {})
    (tmp_path / "d").mkdir()
    tar(tmp_path / "d" / "x.tar", {})
    with pytest.raises(SourceError, match=r"x\.tar: source s: two tars have this name"):
        tars([str(tmp_path / "x.tar"), str(tmp_path / "d" / "x.tar")]).token()


def test_what_a_build_keeps_of_a_rewritten_text_comes_back_with_it(tmp_path):
    kept = {
        "texts": [{"kind": "caption", "text": "简体", "original": "簡體"}, {"kind": "alt", "text": "云", "original": 3}]
    }
    put(tmp_path, {"a.jpg": b"A", "a.json": json.dumps(kept)})
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.json"):
            tar.add(tmp_path / name, name)
    [candidate] = read(tars(str(tmp_path / "x.tar")))
    assert candidate.texts == (Text("caption", "简体", "簡體"), Text("alt", "云"))
